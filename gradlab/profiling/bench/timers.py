"""The timers of each device: warm on a CPU; warm, cold and host on CUDA."""

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.autodiff.frameworks.side import Side
from gradlab.profiling.bench.clock import Call, Host, Timer


@dataclass(frozen=True)
class Dispatch:
    """Seconds until calls return, not waiting for the device: the framework's own overhead."""

    wait: Callable[[Any], Any]
    clock: Callable[[], float] = time.perf_counter

    def __call__(self, call: Call, repeat: int) -> float:
        start = self.clock()
        for _ in range(repeat):
            value = call()
        seconds = self.clock() - start
        self.wait(value)
        return seconds


def timers(side: Side, uncaptured: str = "") -> Mapping[str, Timer]:
    """By kind of time, what takes it on the side's default device.

    Args:
        uncaptured: why short calls cannot be captured into a CUDA graph and replayed; empty if they can.
    """
    if side.device() != "cuda":
        return {"warm": Host(side.wait)}
    on_cuda: Callable[[Side, str], Mapping[str, Timer]] = importlib.import_module(
        f"gradlab.profiling.bench.timers_{side.name}"
    ).timers
    return {**on_cuda(side, uncaptured), "host": Dispatch(side.wait)}
