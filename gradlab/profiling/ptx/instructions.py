"""The table of instructions: an opcode's root -> what makes its step.

A step is made once for a Machine and called with lanes, as often as they come by; it reads and writes registers and
memory. The files that fill the table are named in `ALL`.
"""

import functools
import importlib
from collections.abc import Callable

from gradlab.profiling.ptx.flight import Flight
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.parse import PTXError
from gradlab.profiling.ptx.program import Instruction

Maker = Callable[[Instruction, Machine], Step]
MAKERS: dict[str, Maker] = {}
ALL = (
    "arithmetic",
    "carry",
    "logic",
    "convert",
    "floats",
    "moves",
    "memory",
    "atomics",
    "exchange",
    "calls",
    "block_barriers",
    "fences",
    "copies",
    "mbarriers",
    "tensor_maps",
    "matrix",
    "wgmma",
)


def instruction(*roots: str) -> Callable[[Maker], Maker]:
    """Enter the decorated function into the table."""

    def entered(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(roots, maker))
        return maker

    return entered


@functools.cache
def _load() -> None:
    for name in ALL:
        importlib.import_module(f"gradlab.profiling.ptx.{name}")


def step(i: Instruction, machine: Machine) -> Step:
    """The step of an instruction.

    Raises:
        PTXError: an instruction that is not in the table, or a form of it that is not known.
    """
    _load()
    maker = MAKERS.get(i.root)
    if maker is None:
        raise PTXError(f"emulate: instruction is {i}, wanted one of {', '.join(sorted(MAKERS))}")
    try:
        made = maker(i, machine)
    except PTXError:
        raise
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        raise PTXError(f"emulate: instruction is {i}, wanted a form that is known ({error})") from error
    return machine.part(Flight).watched(i, made) if "wgmma" in machine.roots else made
