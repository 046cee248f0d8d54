"""One CPU instruction, and the interface to an architecture's assembly language."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """An instruction as it stands in a kernel's code.

    Attributes:
        name, operands: as LLVM writes them.
        function: that it stands in.
        depth: loops around it, the one over programs among them.
        inner: whether the loop around it has none in it.
        line: of the kernel's file; 0 where it has none.
        spilled: bytes that it moves because registers do not suffice; stored: to the stack, not from it.
        kinds: names of the counts it belongs to.
        bits: of the vector that it works on; 0 for a scalar's.
        call: the function that it calls, or the register that holds its address, "%rax".
    """

    name: str
    operands: tuple[str, ...]
    function: str = ""
    depth: int = 0
    inner: bool = False
    line: int = 0
    spilled: int = 0
    stored: bool = False
    kinds: tuple[str, ...] = ()
    bits: int = 0
    call: str = ""


@dataclass(frozen=True)
class Dialect:
    """An architecture's assembly language.

    Attributes:
        comment: what begins a comment.
        read: an instruction with its kinds, bits and call filled in; given bits of a vector register too.
        vectors: numbers of the vector registers that an instruction names.
        address: the register that it puts a function's address into, and that function.
        frame: bytes by which it enlarges the stack's frame.
    """

    comment: str
    read: Callable[[Instruction, int], Instruction]
    vectors: Callable[[Instruction], set[str]]
    address: Callable[[Instruction], tuple[str, str] | None]
    frame: Callable[[Instruction], int]
