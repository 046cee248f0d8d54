"""The driver half of the Triton back end `cpu`: Triton's device interface, for this CPU.

The driver is active where torch has no GPU, or where TRITON_DEFAULT_BACKEND=cpu names it; Triton decides at the
first launch. This module is imported with Triton itself: torch and LLVM are imported only at the first launch.
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
    """Triton's driver interface."""

    def __init__(self) -> None:
        super().__init__()
        from gradlab.kernels.cpu import cache_triton

        cache_triton.install()
        self.utils = Utilities()
        self.launcher_cls = _launcher

    @classmethod
    def is_active(cls) -> bool:
        """Whether this driver is the process's: no GPU driver is active, or the environment selects it."""
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
        """A target without warps; `CPUBackend.hash` identifies the CPU."""
        return GPUTarget("cpu", platform.machine(), 1)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int | None = None) -> int:
        """0: a launch has completed when it returns, so there are no streams."""
        return 0

    def get_active_torch_device(self) -> Any:
        """The torch device that tensors for kernels live on."""
        import torch

        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """Events and synchronisation for `triton.testing.do_bench`."""
        return Interface()

    def get_benchmarker(self) -> Callable[..., Any]:
        """The function that the autotuner times with."""
        return benchmark

    def get_empty_cache_for_benchmark(self) -> None:
        """None: timings are of warm caches, as other processes share a CPU's last-level cache."""

    def clear_cache(self, cache: None) -> None:
        """A no-op, as above."""


class Utilities:
    """Triton's interface to a device's runtime library."""

    def get_device_properties(self, device: int) -> dict[str, Any]:
        """Limits that Triton checks a GPU kernel against, set so that none applies."""
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
        """Load a compiled kernel; returns module, function, registers, spills, largest number of threads.

        Raises:
            RuntimeError: the file is damaged, or compiled for another machine.
        """
        from gradlab.kernels.cpu.binary import Binary, Broken
        from gradlab.kernels.cpu.sanitize_run import loaded as in_memory

        try:
            loaded = in_memory(Binary.unseal(kernel), _threads())
        except Broken as error:
            raise RuntimeError(f"{name}: {error}; TRITON_ALWAYS_COMPILE=1 compiles it again") from None
        # Host code divides a GPU's registers by a kernel's to get its occupancy: not 0.
        return loaded, loaded, 1, 0, _PLENTY

    def unload_module(self, module: "Kernel") -> None:
        """A no-op: the code is freed with the last reference."""

    def set_printf_fifo_size(self, size: int) -> None:
        """A no-op: prints are not buffered."""


class Interface:
    """The part of torch.cuda that benchmarks use, for a device whose launches are synchronous."""

    class Event:
        """A moment."""

        def __init__(self, enable_timing: bool = True) -> None:
            self._time = 0.0

        def record(self, stream: Any = None) -> None:
            """Note the time."""
            self._time = time.perf_counter()

        def elapsed_time(self, end: "Interface.Event") -> float:
            """Milliseconds from this to `end`."""
            return (end._time - self._time) * 1e3

        def synchronize(self) -> None:
            """A no-op: launches are synchronous."""

    def synchronize(self, device: Any = None) -> None:
        """A no-op: launches are synchronous."""

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
    """Milliseconds of a call, after a first one that may compile: quantiles, or the median.

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
