"""The rows that are tried in place of one: nearest first, without those that no compiler could make good."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from gradlab.kernels.configs.tiles import Row
from gradlab.profiling.machine_code.targets import RESERVED, Target

# Sides of a tile, steps of K, warps and stages, by whether tensor cores take the operands.
_SIDES = {True: (64, 128, 256), False: (32, 64, 128)}
_STEPS = {True: (32, 64, 128), False: (16, 32, 64)}
_WARPS, _STAGES = (4, 8), (2, 3, 4)
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# Registers of a thread, of 255, that accumulators may take: addresses and operands want the others.
_ACCUMULATORS = 192


def candidates(row: Row) -> list[Row]:
    """The row itself, of one dtype, then others in its place, those that differ in the fewest factors of two first."""
    half = _BYTES[row.dtypes[0]] == 2
    found = {_launched(row): row}
    options = itertools.product(_SIDES[half], _STEPS[half], _SIDES[half], _WARPS, _STAGES)
    for M, K, N, warps, stages in sorted(options, key=lambda option: _distance(row, option)):
        # Tiles that a small product cuts down to a quarter have work for 4 warps.
        small = M * N // 4 if warps > 4 else 0
        tried = replace(row, M=M, K=K, N=N, warps=warps, stages=stages, small=small, reason="tried")
        found.setdefault(_launched(tried), tried)
    return list(found.values())


def refusal(row: Row, where: Target) -> str:
    """Why no launch with a whole tile of the row can be good, known before it is compiled; empty if nothing is."""
    size = _BYTES[row.dtypes[0]]
    registers = row.M * row.N * max(size, 4) // 4 // (32 * row.warps)
    if registers > _ACCUMULATORS:
        return f"sums take more than {_ACCUMULATORS} of a thread's 255 registers"
    # Of the stages one may be in registers.
    shared, most = (row.stages - 1) * (row.M + row.N) * row.K * size, where.shared - RESERVED
    if shared > most:
        return f"operands take more than the {most // 1024} KiB of shared memory that a block has"
    return ""


def words(row: Row) -> str:
    """128 x 64 x 128, 8 warps, 3 stages."""
    return f"{row.M} x {row.K} x {row.N}, {row.warps} warps, {row.stages} stages"


def _launched(row: Row) -> tuple[int, ...]:
    return row.M, row.K, row.N, row.warps, row.stages


def _distance(row: Row, option: tuple[int, ...]) -> float:
    M, K, N, warps, stages = option
    ratios: Iterator[float] = (a / b for a, b in zip((M, K, N, warps), (row.M, row.K, row.N, row.warps), strict=True))
    return sum(abs(math.log2(ratio)) for ratio in ratios) + abs(stages - row.stages)
