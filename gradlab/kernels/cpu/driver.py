"""The driver half of the Triton back end `cpu`: what Triton's runtime asks of a device, answered for this CPU.

The driver is active where torch has no GPU, or where TRITON_DEFAULT_BACKEND=cpu names it; Triton asks when the first
kernel is launched. This module is imported with Triton itself: torch and LLVM wait until then.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

if TYPE_CHECKING:
    from gradlab.kernels.cpu.launching import Kernel

_PLENTY = 2**30


class CPUDriver(DriverBase):
    """What Triton asks of a device's driver."""

    def __init__(self) -> None:
        super().__init__()
        from gradlab.kernels.cpu import cache_triton

        cache_triton.install()
        self.utils = Utilities()
        self.launcher_cls = _launcher

    @classmethod
    def is_active(cls) -> bool:
        """Whether kernels of this process run here: no GPU has a driver of its own, or the environment says so."""
        if os.environ.get("TRITON_DEFAULT_BACKEND") == "cpu":
            return True
        try:
            import torch
        except ImportError:
            return True
        return not (torch.cuda.is_available() or torch.xpu.is_available())

    def map_python_to_cpp_type(self, ty: str) -> str:
        """How C declares an argument of a Triton type."""
        if ty.startswith("*"):
            return "void*"
        return {
            "i1": "int8_t",
            "u1": "uint8_t",
            "fp16": "double",
            "bf16": "double",
            "fp32": "double",
            "f32": "double",
            "fp64": "double",
        }.get(ty) or f"{'u' if ty[0] == 'u' else ''}int{ty[1:]}_t"

    def get_current_target(self) -> GPUTarget:
        """A target without warps; which CPU it is stands in `CPUBackend.hash`."""
        return GPUTarget("cpu", platform.machine(), 1)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int | None = None) -> int:
        """A launch is over when it returns: there are no streams."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Where torch puts tensors for kernels."""
        import torch

        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """Events and synchronisation, as `triton.testing.do_bench` takes them."""
        return Interface()

    def get_benchmarker(self) -> Callable[..., Any]:
        """What the autotuner times with."""
        return benchmark

    def get_empty_cache_for_benchmark(self) -> None:
        """Timings are of warm caches: a CPU's last level is shared with whatever else runs."""

    def clear_cache(self, cache: None) -> None:
        """Nothing, as above."""


class Utilities:
    """What Triton's runtime asks of a device's library."""

    def get_device_properties(self, device: int) -> dict[str, Any]:
        """A GPU's limits, which a CPU does not have."""
        return {
            "max_shared_mem": _PLENTY,
            "max_num_regs": _PLENTY,
            "multiprocessor_count": os.cpu_count() or 1,
            "warpSize": 1,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 64,
            "arch": "cpu",
        }

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> "tuple[Kernel, Kernel, int, int, int]":
        """A compiled kernel in memory: the module, the function, registers, spills, largest number of threads.

        Raises:
            RuntimeError: the file is damaged or not of this machine.
        """
        from gradlab.kernels.cpu.binary import Binary, Broken
        from gradlab.kernels.cpu.sanitize_run import loaded as in_memory

        try:
            loaded = in_memory(Binary.unseal(kernel), _threads())
        except Broken as error:
            raise RuntimeError(f"{name}: {error}; TRITON_ALWAYS_COMPILE=1 compiles it anew") from None
        # Hosts divide a GPU's registers by a thread's to find how many programs it holds.
        return loaded, loaded, 1, 0, _PLENTY

    def unload_module(self, module: "Kernel") -> None:
        """Code goes with the last who holds it."""

    def set_printf_fifo_size(self, size: int) -> None:
        """Nothing is buffered."""


class Interface:
    """torch.cuda's functions of time, for a device whose launches are over when they return."""

    class Event:
        """A moment."""

        def __init__(self, enable_timing: bool = True) -> None:
            self._time = 0.0

        def record(self, stream: Any = None) -> None:
            """It is now."""
            self._time = time.perf_counter()

        def elapsed_time(self, end: "Interface.Event") -> float:
            """Milliseconds from this to `end`."""
            return (end._time - self._time) * 1e3

        def synchronize(self) -> None:
            """It is over."""

    def synchronize(self, device: Any = None) -> None:
        """Every launch is over."""

    def current_device(self) -> int:
        """There is one."""
        return 0


def benchmark(
    kernel_call: Callable[[], Any],
    *,
    quantiles: Sequence[float] | None = None,
    warmup: float = 10.0,
    rep: float = 50.0,
    **unused: Any,
) -> Any:
    """Milliseconds of a call, after one that may compile it: quantiles, or the median.

    Args:
        quantiles: between 0 and 1.
        warmup, rep: milliseconds to warm up and to time for; at least one and three calls are made.
    """
    kernel_call()
    _times(kernel_call, warmup, 1)
    times = sorted(_times(kernel_call, rep, 3))
    found = [times[round(q * (len(times) - 1))] for q in quantiles or (0.5,)]
    return found if quantiles else found[0]


def _times(call: Callable[[], Any], milliseconds: float, least: int) -> list[float]:
    times: list[float] = []
    while len(times) < least or (sum(times) < milliseconds and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _launcher(src: Any, metadata: Any) -> Any:
    from gradlab.kernels.cpu.launcher_triton import Launcher

    if "torch._inductor.runtime.triton_heuristics" in sys.modules:
        from gradlab.kernels.cpu import ahead_torch

        ahead_torch.install()
    return Launcher(src, metadata)


def _threads() -> Callable[[], int]:
    try:
        import torch
    except ImportError:
        from gradlab.kernels.cpu.launching import cores

        return cores
    return torch.get_num_threads
