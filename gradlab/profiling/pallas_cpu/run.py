"""jax ops' kernels for CUDA, run on a CPU with a GPU's blocks; sanitized, each of their accesses is examined."""

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.profiling.pallas_cpu import examine
from gradlab.profiling.pallas_cpu.launch import Launch


@dataclass
class Seen:
    """What ran.

    Attributes:
        kernels: launches by the kernel's name.
        faults: `gradlab.kernels.cpu.sanitize_fault.Fault`, in the order they were met.
        left: kernels that were interpreted as the program says, and why they were not run.
    """

    kernels: dict[str, int] = field(default_factory=dict)
    faults: list[Any] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def launches(self) -> int:
        """How many there were."""
        return sum(self.kernels.values())


@contextmanager
def cuda_on_cpu(
    sanitized: bool = False,
    *,
    bounds: bool = False,
    floats: bool = False,
    note: Callable[[list[Any]], None] = lambda faults: None,
) -> Iterator[Seen]:
    """Within it Pallas kernels on arrays of a CPU are lowered for CUDA, compiled for the CPU, and run so.

    They are those of this package's ops, and anybody's that go through `pallas_call`. Triton-backed Pallas masks no
    partial block, and the interpreter pads one: what a GPU does to the memory past an array shows here alone, where
    nobody has a GPU. Mapped by `jax.vmap`, a kernel has one more axis in its grid, as on a GPU.

    Args:
        sanitized: look at every access, which takes longer.
        bounds: only whether it lies within its array.
        floats: look for the birth of NaNs and infinities too.
        note: called with the faults of a launch, when it is over.

    Raises:
        ModuleNotFoundError: jax or triton is not installed.
    """
    programs: Any = importlib.import_module("gradlab.profiling.pallas_cpu.launches_jax")
    compiler: Any = importlib.import_module("gradlab.profiling.pallas_cpu.kernel_triton")
    seen, lock = Seen(), threading.Lock()

    def compiled(launch: Launch) -> Any:
        return compiler.kernel_of(launch.source, sanitized, floats)

    def run(launch: Launch, operands: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        # A sanitized kernel has one state; programs of XLA may run side by side.
        with lock:
            seen.kernels[launch.name] = seen.kernels.get(launch.name, 0) + 1
            results, faults = examine.run(launch, compiled(launch), operands, seen.launches, bounds)
            seen.faults += faults
            note(faults)
        return results

    with programs.cuda_programs(programs.Runner(compiled, run, seen.left)):
        yield seen
