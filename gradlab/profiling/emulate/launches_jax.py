"""Pallas kernels on arrays of a CPU, lowered for CUDA, compiled for a GPU and executed as it would."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from gradlab.profiling.emulate.launch import Compiled, Launch
from gradlab.profiling.machine_code.compile_triton import Binary, compiled
from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.machine_code.places import placed
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.pallas_cpu import launches_jax
from gradlab.profiling.pallas_cpu.launch import Launch as Lowered
from gradlab.profiling.pallas_cpu.memory import Memory
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError


@contextmanager
def emulated(where: Target, run: Callable[[Launch], None]) -> Iterator[None]:
    """Within it `run` gets every launch of a Pallas kernel on arrays of a CPU, compiled for a GPU.

    Raises:
        PTXError: at its end, the first that `run` raised, which would be lost within a program of XLA.
    """
    problems: list[PTXError] = []

    @functools.lru_cache(maxsize=1024)
    def binary(source: str, warps: int, stages: int) -> Binary:
        return compiled(Found("", 1, "", (), warps, stages, source, "", 0), where)

    def made(launch: Lowered) -> Binary:
        return binary(placed(launch.source, launch.file, launch.line), launch.warps, launch.stages)

    def take(launch: Lowered, operands: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        code = made(launch)
        memory = Memory(launch, operands, set())
        extents = tuple(
            Extent(a.ctypes.data, a.nbytes, name) for name, a in zip(launch.names, memory.arrays, strict=True)
        )
        addresses = tuple(a.ctypes.data for a in memory.arrays)
        taken = Compiled(code.assembly, code.code, code.threads, code.shared, 0, addresses, extents)
        x, y, z = (*launch.grid, 1, 1)[:3]
        if x * y * z and not problems:
            name = launch.name.removeprefix("gradlab_").removesuffix("_kernel")
            try:
                run(Launch(name, (x, y, z), taken, launch.file))
            except PTXError as problem:
                problems.append(problem)
        return memory.results()

    left: dict[str, str] = {}
    with launches_jax.cuda_programs(launches_jax.Runner(made, take, left)):
        yield
    if problems:
        raise problems[0]
    for name, reason in left.items():
        raise PTXError(f"emulate: {name} has no program for a GPU ({reason}), wanted one that Triton compiles")
