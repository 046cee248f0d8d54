"""Inline assembly: what a GPU is told there about its launches means nothing to a CPU, the rest is not compiled."""

import re

from gradlab.kernels.cpu import lanes
from gradlab.kernels.cpu.elementwise import rule
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane
from gradlab.kernels.cpu.ttir import Operation

# Programmatic dependent launch: on a CPU the launch before has ended, and the next one begins after this one.
_NOTHING = {"griddepcontrol.wait", "griddepcontrol.launch_dependents", "nop"}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@rule("tt.elementwise_inline_asm")
def assembly(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """0, which nobody reads, for instructions that do nothing here.

    Raises:
        NotImplementedError: the assembly computes something.
    """
    text = _COMMENT.sub("", str(op.attributes["assembly"]))
    instructions = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    foreign = [one for one in instructions if one not in _NOTHING]
    if foreign or not instructions:
        raise NotImplementedError(f"a GPU's assembly is not compiled for CPUs: {'; '.join(foreign)[:60]!r}")
    return lanes.known(0, op.type.element)
