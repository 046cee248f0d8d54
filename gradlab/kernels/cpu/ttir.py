"""Triton IR as a tree: types, operations, blocks, functions, places in the source.

`ttir_parse.parse` builds it from the text that Triton prints. SSA names are unique within a function, results of one
operation are `%x#0`, `%x#1`, and operands stand in the order of the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradlab.kernels.cpu import ttir_locations
from gradlab.kernels.cpu.ttir_locations import Place

__all__ = ["Block", "Function", "Module", "Operation", "Place", "Type"]


@dataclass(frozen=True)
class Type:
    """The type of a value.

    Attributes:
        shape: lengths of a tensor's axes; () for a scalar.
        element: "i32", "bf16", "*f32" for an address, "**f32" for an address of addresses; other types as printed,
            such as "!tt.tensordesc<tensor<16x16xf32>>". The address of a block, of the deprecated block pointers, is
            "*tensor<16x16xf32>".
    """

    shape: tuple[int, ...]
    element: str

    @cached_property
    def elements(self) -> int:
        """How many elements a value of this type has."""
        return math.prod(self.shape)

    def with_element(self, element: str) -> "Type":
        """The same shape of another element type."""
        return Type(self.shape, element)

    def __str__(self) -> str:
        return f"tensor<{'x'.join(map(str, self.shape))}x{self.element}>" if self.shape else self.element


class Operation:
    """One operation.

    Attributes:
        name: dialect and name, such as "arith.addi".
        results, result_types: the values that it defines.
        operands, operand_types: the values that it uses, in the order of the text; a branch's include the arguments it
            passes, a loop's first are its bounds and step, then the initial values it carries.
        attributes: everything else in the text, by name. Normalised are `value` (a number, or a list of them for a
            dense constant that is no splat), `predicate`, `axis` (0, 1, 2 of the grid too), `start` and `end`, `order`,
            `to` (pairs of a block's label and the values passed), `symbol`, `libname`, `kind`, `semantics`, `scope`,
            `reverse`, `callee`, `message`, `hex`, `rounding`, `input_precision`, `overflow`, `unsigned`, `scales`
            (which operands of a scaled dot come with scales), `assembly`, `cache_modifier`, `eviction_policy`,
            `volatile`; others have their printed names, and `text` is the part that was not parsed.
        regions: blocks of each region: one of a loop or a reduction, two of scf.if with results and of scf.while.
        location: key of its place in the source, for `Module.where`.
        block: the block it stands in.
    """

    __slots__ = (
        "attributes",
        "block",
        "location",
        "name",
        "operand_types",
        "operands",
        "regions",
        "result_types",
        "results",
    )

    def __init__(self, name: str, block: "Block", location: str) -> None:
        self.name = name
        self.block = block
        self.location = location
        self.results: list[str] = []
        self.operands: list[str] = []
        self.result_types: list[Type] = []
        self.operand_types: list[Type] = []
        self.attributes: dict[str, Any] = {}
        self.regions: list[list[Block]] = []

    @property
    def result(self) -> str:
        """The name of its only result."""
        (name,) = self.results
        return name

    @property
    def type(self) -> Type:
        """The type of its only result."""
        (type_,) = self.result_types
        return type_

    def walk(self) -> Iterator["Operation"]:
        """This operation and all within its regions, as they stand in the text."""
        yield self
        for region in self.regions:
            for block in region:
                yield from block.walk()

    def __repr__(self) -> str:
        results = f"{', '.join(self.results)} = " if self.results else ""
        return f"{results}{self.name} {', '.join(self.operands)}".rstrip()


class Block:
    """Operations without a branch among them; the last is a terminator.

    Attributes:
        label: its name within the region; the first block of a region is "bb0" where no name is printed.
        arguments: names and types of the values passed to it.
        parent: the operation whose region it stands in; None for a block of a function.
    """

    __slots__ = ("arguments", "label", "operations", "parent")

    def __init__(self, label: str, parent: Operation | None) -> None:
        self.label = label
        self.parent = parent
        self.arguments: list[tuple[str, Type]] = []
        self.operations: list[Operation] = []

    @property
    def terminator(self) -> Operation:
        """The operation that leaves the block."""
        return self.operations[-1]

    def walk(self) -> Iterator[Operation]:
        """All operations of the block and within their regions."""
        for operation in self.operations:
            yield from operation.walk()

    def __repr__(self) -> str:
        return f"^{self.label} of {len(self.operations)} operations"


@dataclass
class Function:
    """A function of the module: the kernel, which is public, or one it calls.

    Attributes:
        argument_attributes: attributes of each argument, such as {"tt.divisibility": 16}.
        argument_locations: keys of the arguments' places.
    """

    name: str
    public: bool
    blocks: list[Block] = field(default_factory=list)
    result_types: list[Type] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    argument_attributes: list[dict[str, Any]] = field(default_factory=list)
    argument_locations: list[str] = field(default_factory=list)
    location: str = "unknown"

    @property
    def arguments(self) -> list[tuple[str, Type]]:
        """Names and types of the arguments."""
        return self.blocks[0].arguments

    def walk(self) -> Iterator[Operation]:
        """All operations, as they stand in the text."""
        for block in self.blocks:
            yield from block.walk()


@dataclass
class Module:
    """The module that Triton's front end makes for one kernel.

    Attributes:
        functions: by name.
        locations: the text of each location, by key.
    """

    functions: dict[str, Function] = field(default_factory=dict)
    locations: dict[str, str] = field(default_factory=dict)

    @property
    def kernel(self) -> Function:
        """The public function."""
        public = [function for function in self.functions.values() if function.public]
        if len(public) != 1:
            raise ValueError(f"Triton IR: {len(public)} public functions, one kernel is wanted")
        return public[0]

    def where(self, location: str) -> Place:
        """The place in the source of an operation's location."""
        return ttir_locations.resolve(location, self.locations)
