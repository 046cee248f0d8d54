"""Executes a launch that was compiled for a GPU, within a budget of instructions, and puts its numbers together."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from gradlab.profiling.emulate.launch import Launch
from gradlab.profiling.emulate.result import LaunchResult
from gradlab.profiling.machine_code import sass
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.ptx.execute import execute, scratch_memory
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError, parse
from gradlab.profiling.ptx.program import Program
from gradlab.profiling.ptx.schedule import Budget

# Instructions of warps that one launch may take: some minutes.
BUDGET = 50_000_000
parsed = functools.lru_cache(maxsize=256)(parse)
resources = functools.lru_cache(maxsize=256)(sass.resources)
serialised = functools.lru_cache(maxsize=256)(sass.serialised)


def execute_launch(
    launch: Launch, where: Target, side: str, direction: str, budget: int, options: Mapping[str, Any]
) -> LaunchResult:
    """Execute all blocks of a launch.

    Raises:
        PTXError: an instruction that is not known; more instructions than the budget, which its first block tells.
    """
    made = launch.made
    program = parsed(made.ptx)
    scratch = scratch_memory(made.scratch * math.prod(launch.grid))
    # Triton's last two arguments: memory of each block for itself, and a profiler's.
    arguments = [*made.arguments, scratch.ctypes.data if scratch.size else 0, 0]
    extents = [*made.extents, Extent(scratch.ctypes.data, scratch.size, "scratch memory")]
    registers, _, static = resources(made.cubin, where)
    try:
        done = execute(
            program,
            launch.grid,
            made.threads,
            made.shared,
            arguments[: len(program.parameters)],
            extents,
            made.more,
            budget=budget,
            **options,
        )
    except Budget as spent:
        raise PTXError(_too_much(launch, program, spent, budget)) from None
    if done.notes and not serialised(made.ptx, where):
        done = dataclasses.replace(done, faults=[*done.faults, *done.notes], notes=[])
    return LaunchResult(
        launch.kernel,
        side,
        where.name,
        direction,
        launch.grid,
        made.threads,
        made.shared + static,
        registers,
        launch.file,
        done,
        made.ptx,
        made.cubin,
    )


def _too_much(launch: Launch, program: Program, spent: Budget, budget: int) -> str:
    blocks = math.prod(launch.grid)
    return (
        f"emulate: {launch.kernel} takes about {spent.expected:,} instructions in {blocks:,} blocks, wanted at most "
        f"{budget:,}: a smaller --case or --shapes, or a larger --budget"
    )
