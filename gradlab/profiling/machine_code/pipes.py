"""NVIDIA machine code by source line and by the units of a multiprocessor that execute it."""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradlab.profiling.machine_code import sass
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.machine_code.tools import run_tool

# Units -> the opcodes that they execute; in none, and "other": memory, branches, tensor cores, uniform registers.
# Source: NVIDIA, Nsight Compute, "Metrics Decoder", pipelines; CUDA Binary Utilities, "Instruction Set Reference".
_UNITS = {
    "float32": r"FFMA|FADD|FMUL|FSWZADD",
    "half": r"HFMA2|HADD2|HMUL2",
    "multiply": r"IMAD|IMUL|XMAD|IDP",
    "float64": r"DADD|DFMA|DMUL|DSETP|DMNMX",
    "special": r"MUFU|F2F|F2FP|F2I|I2F|FRND|POPC|BREV|FLO|S2R",
    "integer": (
        r"IADD3|IADD|LEA|LOP3|LOP|PLOP3|SHF|SHL|SHR|ISETP|FSETP|HSETP2|FSET|ISET|SEL|FSEL|IMNMX|VIMNMX|FMNMX|HMNMX2"
        r"|PRMT|MOV|P2R|R2P|BMSK|SGXT|IABS|I2I|I2IP|I2FP|VABSDIFF|VABSDIFF4|VOTE|FCHK|CS2R|FMNMX3|VIADD|VIADDMNMX"
    ),
}
_UNIT = re.compile("|".join(rf"(?P<{unit}>(?:{names})\b)" for unit, names in _UNITS.items()))
_OTHER = "other"
_LABEL = re.compile(r"^(\.L_x_\d+):")
# Of a barrier in shared memory; and the instructions that a loop has at most that tries one until it is passed.
_WAIT = "SYNCS.PHASECHK"
_TRIES = 8
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")


@dataclass(frozen=True)
class Mix:
    """A kernel's machine code as it stands.

    Attributes:
        instructions: all of them.
        loops: how many there are.
        parts: (loop, line) -> unit -> instructions. Loops are counted from 1 by their first instruction; an
            instruction is in the innermost, or in none, 0. Lines are the kernel's own file's, 0 for none.
    """

    instructions: int = 0
    loops: int = 0
    parts: Mapping[tuple[int, int], Mapping[str, int]] = field(default_factory=dict)

    @property
    def lines(self) -> dict[int, int]:
        """Line -> instructions."""
        found: Counter[int] = Counter()
        for (_, line), units in self.parts.items():
            found[line] += sum(units.values())
        return dict(found)


@functools.lru_cache(256)
def mix(ptx: str, cubin: bytes, where: Target, file: str) -> Mix:
    """The instructions of a kernel by line and unit.

    Args:
        ptx, cubin: what Triton made.
        file: the kernel's own; what its lines call is counted on them.
    """
    relined = sass.relined(ptx, file)
    code = cubin if relined == ptx else sass.assembled(relined, where)
    return read(str(run_tool("nvdisasm", "-c", "-ndf", "-g", data=code, suffix=".cubin")), file)


def read(text: str, file: str) -> Mix:
    """The same of what nvdisasm printed."""
    labels: dict[str, int] = {}
    branches: list[tuple[int, int]] = []
    waits: list[int] = []
    number = 0
    for row in text.splitlines():
        if label := _LABEL.match(row):
            labels[label[1]] = number
        number += sass.instruction(row) is not None
        branch = _BRANCH.search(row)
        if branch and branch[1] in labels:
            branches.append((labels[branch[1]], number - 1))
        if _WAIT in row:
            waits.append(number - 1)
    loops = loops_of(number, branches, waits)
    counted: dict[tuple[int, int], Counter[str]] = {}
    for loop, (line, name) in zip(loops, sass.located(text, file), strict=True):
        counted.setdefault((loop, line), Counter())[unit(name)] += 1
    return Mix(number, max(loops, default=0), counted)


def loops_of(instructions: int, branches: Sequence[tuple[int, int]], waits: Sequence[int] = ()) -> list[int]:
    """The innermost loop of each instruction, counted from 1; 0 for none.

    Args:
        branches: those that jump back: the first and the last instruction of a loop. One to itself is no loop.
        waits: instructions that try whether a barrier is passed. A few around one are no loop either: ptxas moves what
            tries again behind all other code.
    """
    found = [0] * instructions
    intervals = sorted(
        {
            (first, last)
            for first, last in branches
            if first < last and not (last - first < _TRIES and any(first <= wait <= last for wait in waits))
        }
    )
    number = {interval: n + 1 for n, interval in enumerate(intervals)}
    for first, last in sorted(intervals, key=lambda interval: interval[0] - interval[1]):
        found[first : last + 1] = [number[first, last]] * (last + 1 - first)
    return found


def unit(name: str) -> str:
    """What executes an instruction of that name: `FFMA.FTZ` -> "float32"."""
    found = _UNIT.match(name)
    return found.lastgroup or _OTHER if found else _OTHER
