"""NVIDIA machine code by source line and by the units of a multiprocessor that execute it."""

import functools
import re
from collections import Counter
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Mix:
    """A kernel's machine code as it stands.

    Attributes:
        instructions: all of them.
        lines: line of the kernel's own file -> unit -> instructions; 0 for what is of none.
    """

    instructions: int = 0
    lines: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


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
    counted: dict[int, Counter[str]] = {}
    for line, name in sass.located(text, file):
        counted.setdefault(line, Counter())[unit(name)] += 1
    return Mix(sum(map(Counter.total, counted.values())), counted)


def unit(name: str) -> str:
    """What executes an instruction of that name: `FFMA.FTZ` -> "float32"."""
    found = _UNIT.match(name)
    return found.lastgroup or _OTHER if found else _OTHER
