"""What a kernel did that it must not, in words of tensors and arrays: plain data."""

from dataclasses import dataclass
from typing import NamedTuple


class Stored(NamedTuple):
    """A launch that stored some of a storage: its number, kernel, argument, where it stores, address of the tensor."""

    launch: int
    kernel: str
    argument: str
    file: str
    line: int
    address: int


@dataclass(frozen=True)
class Fault:
    """One place of a kernel that did what it must not, in one launch.

    Attributes:
        kind: one of `sanitize_layout.KINDS`.
        access: "load", "store" or "atomic".
        kernel: the kernel's name.
        file, line: where the access stands.
        callers: file and line of the calls that led there, inner to outer.
        argument: the kernel's parameter; None for an address out of memory.
        index: of the element, from the first of the tensor on, in elements of its memory.
        address: of the element.
        shape, stride, dtype: of the tensor; None where none is known.
        program: place in the grid of the first program that did it; None where it is none's fault.
        grid: programs along the axes.
        other: place of the other program of a race.
        masked: whether the access has a mask; if so, the element's is true.
        count: elements that it was done to.
        launch: number of the launch, from 1 on.
        span: elements of memory from the tensor's first to its last.
        stored: the launch before this one that stored some of the memory.
        text: words for an operation that is no access to memory.
        reader: the function of torch that reads what is not written, and where it is called.
        launches: how many launches did it.
        role: what of a Pallas kernel's launch the array is, "operand 0" or "result 0"; None for torch's tensors.
        place: of the element along the axes of such an array, past their ends too.
    """

    kind: str
    access: str
    kernel: str
    file: str
    line: int
    callers: tuple[tuple[str, int], ...]
    argument: str | None
    index: int | None
    address: int
    shape: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    dtype: str | None
    program: tuple[int, ...] | None
    grid: tuple[int, ...] | None
    other: tuple[int, ...] | None
    masked: bool
    count: int
    launch: int
    span: int = 0
    stored: Stored | None = None
    reader: str | None = None
    text: str | None = None
    launches: int = 1
    role: str | None = None
    place: tuple[int, ...] | None = None
