"""jax ops' kernels for CUDA, run on a CPU with a GPU's blocks; with `sanitized`, each of their accesses is examined."""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.launching import Grid
from gradlab.kernels.cpu.sanitize_run import NOTHING, Clock, Examined, Extent, Noted
from gradlab.profiling.pallas_cpu.launch import Launch

# Bytes of fresh results: not a number in every floating type, and no index that a kernel could mean.
_FRESH = 0xFF


@dataclass
class Seen:
    """What ran.

    Attributes:
        kernels: launches by the kernel's name.
        faults: one line for each access that did what it must not.
    """

    kernels: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@contextmanager
def cuda_on_cpu(sanitized: bool = False) -> Iterator[Seen]:
    """Within it jax ops on arrays of a CPU run the Pallas kernels that they have for CUDA, compiled for the CPU.

    Triton-backed Pallas masks no partial block, and the interpreter pads one with NaN: what a GPU does to the memory
    past an array shows here alone, where nobody has a GPU. Mapped by `jax.vmap`, a kernel runs once for each element.

    Args:
        sanitized: hold every access against the operands' and results' own elements, which takes longer.

    Raises:
        ModuleNotFoundError: jax or triton is not installed.
    """
    programs: Any = importlib.import_module("gradlab.profiling.pallas_cpu.launches_jax")
    compiler: Any = importlib.import_module("gradlab.profiling.pallas_cpu.kernel_triton")
    seen, clock = Seen(), Clock()

    def run(launch: Launch, operands: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        seen.kernels[launch.name] = seen.kernels.get(launch.name, 0) + 1
        given = [np.ascontiguousarray(x) for x in operands]
        results = [_fresh(shape, dtype) for shape, dtype in launch.results]
        for operand, result in launch.aliases.items():
            results[result][...] = given[operand]
            given[operand] = results[result]
        arrays, kernel = [*given, *results], compiler.kernel_of(launch.source, sanitized)
        x, y, z = (*launch.grid, 1, 1)[:3]
        addresses = [a.ctypes.data for a in arrays]
        if isinstance(kernel, Examined):
            extents = [Extent(a.ctypes.data, a.nbytes, a.itemsize.bit_length() - 1) for a in arrays]
            noted = kernel.examine((x, y, z), addresses, extents, lambda address: NOTHING, clock)
            seen.faults += [_said(kernel, launch, (x, y, z), arrays, one) for one in noted]
        else:
            kernel((x, y, z), addresses)
        return tuple(results)

    with programs.cuda_programs(run):
        yield seen


def _fresh(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.full(math.prod(shape) * dtype.itemsize, _FRESH, np.uint8).view(dtype).reshape(shape)


def _said(kernel: Examined, launch: Launch, grid: Grid, arrays: list[np.ndarray], noted: Noted) -> str:
    access, file, line, _, number, *_ = kernel.binary.sites[noted.site]
    operands = len(arrays) - len(launch.results)
    what = f"operand {number}" if number < operands else f"result {number - operands}"
    x, y, _ = grid
    program = (noted.program % x, noted.program // x % y, noted.program // (x * y))
    where = "an address" if number < 0 else f"{what}, {arrays[number].dtype}{list(arrays[number].shape)}"
    if number >= 0:
        where += f", element {(noted.at - arrays[number].ctypes.data) // arrays[number].itemsize}"
    return (
        f"{file or launch.name}:{line}: {layout.KINDS[noted.kind]}: {layout.ACCESSES[access]} of {where}, "
        f"{noted.elements} in all, program {program} of {grid}"
    )
