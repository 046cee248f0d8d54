"""What a kernel did wrong: one of each kind and place, however often it was met."""

from dataclasses import dataclass

from gradlab.profiling.ptx.program import Instruction, Place

# Faults after which a kernel is left as it is.
MOST = 20


@dataclass
class Fault:
    """One fault.

    Attributes:
        kind: as in the table of docs/emulate.md.
        place, instruction: of the source, and of PTX.
        text: what happened, in words.
        program, warp: of the first time: the linear index in the grid, and the warp in its block.
        count: how often it was met.
        repaired: whether NVIDIA's assembler sees it and makes it right, which costs time: undefined by PTX, right on a
            GPU.
    """

    kind: str
    place: Place
    instruction: str
    text: str
    program: int | None
    warp: int | None
    count: int = 1
    repaired: bool = False


class Faults:
    """The faults of a launch."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], Fault] = {}

    def add(
        self,
        kind: str,
        instruction: Instruction,
        text: str,
        program: int | None,
        warp: int | None,
        repaired: bool = False,
    ) -> None:
        """Note one."""
        known = self.found.get((kind, instruction.index))
        if known is not None:
            known.count += 1
        else:
            place, statement = instruction.place, instruction.text
            self.found[kind, instruction.index] = Fault(kind, place, statement, text, program, warp, 1, repaired)
