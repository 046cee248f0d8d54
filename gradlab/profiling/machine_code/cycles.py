"""Cycles that the parts of one multiprocessor need for what was executed: a model, never a time.

Each part is taken to work without a pause, as if every other part were infinitely fast.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.profiling.machine_code.gpus import Rates
from gradlab.profiling.machine_code.pipes import Mix, loops_of
from gradlab.profiling.ptx.counts import PASS, WARP, Counts
from gradlab.profiling.ptx.kinds import kind
from gradlab.profiling.ptx.program import Instruction, Program
from gradlab.profiling.ptx.totals import line_in
from gradlab.profiling.ptx.traffic import SECTOR


def multiprocessor(program: Program, counts: Counts, rates: Rates, issued: Mapping[str, float]) -> dict[str, float]:
    """Cycles of one multiprocessor that executes all of it.

    Args:
        issued: instructions of warps by what executes them: `ptx_units` or `machine_units`.
    """
    tensor = l1 = 0.0
    passes = float(counts.passes.sum())
    for i in program.instructions:
        times, what = int(counts.issued[i.index]), kind(i)
        if what == "tensor":
            tensor += int(counts.operations[i.index]) / (
                rates.tensor[_operands(i)] * (rates.mma if i.root == "mma" else 1)
            )
        elif i.root == "shfl":
            # Shuffles pass through the lanes of shared memory.
            passes += times
        elif what in ("load", "store", "atomic"):
            l1 += int(counts.sectors[i.index]) * SECTOR
    lanes = {unit: WARP * issued.get(unit, 0.0) for unit in (*_UNITS.values(), "half")}
    fma = (lanes["float32"] + lanes["multiply"]) / rates.float32 + lanes["half"] / rates.half
    return {
        "issue": sum(issued.values()) / rates.schedulers,
        "FMA": max(fma, lanes["multiply"] / rates.multiply),
        "ALU": lanes["integer"] / rates.integer,
        "float64": lanes["float64"] / rates.float64,
        "special": lanes["special"] / rates.special,
        "tensor": tensor,
        "shared": passes * PASS / rates.shared + l1 / rates.shared,
    }


def ptx_units(program: Program, counts: Counts) -> dict[str, float]:
    """Instructions of warps by the units that execute them, as PTX has them."""
    found: dict[str, float] = {}
    for i in program.instructions:
        what = kind(i)
        unit = "integer" if what == "convert" and _narrow(i) else _UNITS.get(what, "other")
        found[unit] = found.get(unit, 0.0) + float(counts.issued[i.index])
    return found


_UNITS = {
    "float32": "float32",
    "half": "half",
    "multiply": "multiply",
    "integer": "integer",
    "compare": "integer",
    "float64": "float64",
    "special": "special",
    "convert": "special",
}


def _operands(i: Instruction) -> str:
    """The type of what tensor cores multiply: `wgmma...d.a.b`, `mma...d.a.b.c`."""
    return i.opcode[-2] if i.root == "wgmma" else i.opcode[-3]


def _narrow(i: Instruction) -> bool:
    """Whether a conversion is a shift or a permutation of bits: of integers, and from 16 bits to float32."""
    to, of = i.opcode[-2:]
    return (to[0] in "sub" and of[0] in "sub" and "f" not in to + of) or (to == "f32" and of in ("f16", "bf16"))


def machine_units(program: Program, counts: Counts, code: Mix, file: str) -> dict[str, float]:
    """Instructions of warps by unit, in machine code.

    An instruction of a line in a loop is taken to be executed as often as those of PTX on that line in that loop are on
    average; if the loop has no such line, as those of the loop; what is in no loop and on no line, once by each warp.
    Where machine code has not as many loops as PTX, it is all taken as one. Where loops stand in loops, as in programs
    that stay for several tiles, PTX's own instructions are taken: ptxas moves what stands between the loops.
    """
    labels = program.labels
    branches = [(labels[i.operands[-1]], i.index) for i in program.instructions if i.root == "bra"]
    waits = [i.index for i in program.instructions if i.root == "mbarrier" and i.has("try_wait", "test_wait")]
    branches = [(first, last) for first, last in branches if first < last]
    loops = loops_of(len(program.instructions), branches, waits)
    if _nested(loops):
        return ptx_units(program, counts)
    alike = max(loops, default=0) == code.loops
    by_line: dict[tuple[int, int], list[int]] = {}
    by_loop: dict[int, list[int]] = {}
    for i in program.instructions:
        loop = loops[i.index] if alike else 0
        by_line.setdefault((loop, line_in(i.place, file)), []).append(int(counts.issued[i.index]))
        by_loop.setdefault(loop, []).append(int(counts.issued[i.index]))
    warps = [int(counts.issued[0])] if counts.issued.size else [0]
    found: dict[str, float] = {}
    for (inside, line), units in code.parts.items():
        loop = inside if alike else 0
        often = float(np.mean(by_line.get((loop, line), by_loop[loop] if loop else warps)))
        for unit, number in units.items():
            found[unit] = found.get(unit, 0.0) + number * often
    return found


def _nested(loops: Sequence[int]) -> bool:
    """Whether a loop goes on behind another one in it, the innermost loop of each instruction being given."""
    places = {loop: [i for i, other in enumerate(loops) if other == loop] for loop in set(loops) - {0}}
    return any(len(at) < at[-1] - at[0] + 1 for at in places.values())
