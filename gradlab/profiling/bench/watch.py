"""The GPU's clocks while it is timed: nvidia-smi runs beside, and rounds in which the card throttled do not count."""

import subprocess
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import suppress

import numpy as np

# Milliseconds between two samples.
EVERY = 100
QUERY = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
# Bits of NVML's clock event reasons (nvml.h): slowdowns by hardware (0x8, 0x40, 0x80) and by heat (0x20). The power cap
# (0x4) is where large products live on any card: it is recorded and drops nothing.
SLOWED, CAPPED = 0x8 | 0x20 | 0x40 | 0x80, 0x4


class Watch:
    """Clocks in MHz, temperature in degrees Celsius, watts and throttle reasons over time; empty without a GPU."""

    def __init__(self, device: str = "cuda", clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._wanted = clock, device == "cuda"
        self._samples: list[tuple[float, tuple[float, float, float, float], int]] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "-i", "0", "-lms", str(EVERY)]
        if self._wanted:
            with suppress(OSError):
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
                )
                self._thread = threading.Thread(target=self._listen, daemon=True)
                self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._thread is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join(2)

    def slowed(self, start: float, end: float) -> bool:
        """Whether the card was slowed down between two seconds of the clock, or at the sample before them."""
        return any(reasons & SLOWED for _, _, reasons in self._between(start, end))

    def summary(self, start: float, end: float) -> dict[str, float]:
        """Medians between two seconds of the clock, and the share of samples at the power cap; nothing without
        samples."""
        samples = self._between(start, end)
        if not samples:
            return {}
        sm, memory, heat, power = np.median([values for _, values, _ in samples], axis=0)
        capped = sum(bool(reasons & CAPPED) for _, _, reasons in samples) / len(samples)
        return {
            "sm_mhz": float(sm),
            "memory_mhz": float(memory),
            "celsius": float(heat),
            "watts": float(power),
            "capped": capped,
        }

    def _between(self, start: float, end: float) -> list[tuple[float, tuple[float, float, float, float], int]]:
        times = [sample[0] for sample in self._samples]
        return self._samples[max(0, bisect_left(times, start) - 1) : bisect_right(times, end)]

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                words = [word.strip() for word in line.split(",")]
                # A GPU that does not report one of them prints "[N/A]".
                with suppress(ValueError, IndexError):
                    sm, memory, heat, power = (float(word) if word[:1].isdigit() else 0.0 for word in words[:4])
                    self._samples.append((self._clock(), (sm, memory, heat, power), int(words[4], 16)))
