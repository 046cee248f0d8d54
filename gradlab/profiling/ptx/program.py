"""A PTX kernel as data: its instructions, labels, registers, parameters and the source lines they come from."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """A line of source; `callers` are the lines that it is inlined at, the innermost first."""

    file: str
    line: int
    callers: tuple["Place", ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


UNKNOWN = Place("", 0)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: its parts, as ("ld", "global", "v4", "b32").
        operands: as they are written; a vector is one operand, `{%r1, %r2}`.
        guard: the predicate register that it is executed under, and whether it is negated.
        place: of the source.
        text: the whole statement.
        index: among the kernel's instructions.
    """

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    place: Place
    text: str
    index: int

    @property
    def root(self) -> str:
        """The first part of the opcode."""
        return self.opcode[0]

    def has(self, *parts: str) -> bool:
        """Whether the opcode has one of these parts."""
        return any(part in self.opcode for part in parts)

    def __str__(self) -> str:
        return f"{self.text} ({self.place})"


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
        labels: index of the instruction that a label stands before.
        registers: type of each register that is declared by its own name; of a range `%r<5>`, by its prefix `%r`.
        shared: offset in bytes of each variable in shared memory.
        static: bytes of shared memory that are declared with a size.
        local, local_size: offset of each variable in a thread's local memory, and its bytes.
        constants: the module's variables in global memory.
    """

    name: str
    parameters: tuple[Parameter, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    registers: dict[str, str]
    shared: dict[str, int] = field(default_factory=dict)
    static: int = 0
    local: dict[str, int] = field(default_factory=dict)
    local_size: int = 0
    constants: dict[str, bytes] = field(default_factory=dict)
