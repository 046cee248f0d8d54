"""Inline assembly: a GPU's launch-control instructions are no-ops on a CPU; any other instruction is refused."""

import re

from gradlab.kernels.cpu import lanes
from gradlab.kernels.cpu.elementwise import rule
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import NotLowered

# Programmatic dependent launch: on a CPU the launch before has ended, and the next one begins after this one.
_NOTHING = {"griddepcontrol.wait", "griddepcontrol.launch_dependents", "nop"}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def check(op: Operation) -> None:
    """Refuse assembly that does something, even if its result is unused: it may have side effects.

    Raises:
        NotLowered: an instruction is not one of the no-ops.
    """
    text = _COMMENT.sub("", str(op.attributes["assembly"]))
    for instruction in re.split(r"[;\n]", text):
        if instruction.strip() not in {"", *_NOTHING}:
            raise NotLowered(op, f"a GPU's assembly is not compiled for CPUs: {instruction.strip()[:60]!r}")


@rule("tt.elementwise_inline_asm")
def nothing(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """0, an unused result: assembly that passes the check computes nothing."""
    check(op)
    return lanes.known(0, op.type.element)
