"""Parser of printed Triton IR, with locations, into a tree.

Triton's Python bindings expose neither float or dense constants nor the operations of a block; the text has everything,
one operation a line. Two traps: MLIR reuses names in sibling regions, and it abbreviates the operand types of some
operations, so that types are taken from the operands' definitions.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from gradlab.kernels.cpu.ttir import Block, Function, Module, Operation, Type
from gradlab.kernels.cpu.ttir_heads import DEFAULTS, read_head, rename, result_types
from gradlab.kernels.cpu.ttir_text import put_strings, read_attributes, read_type, read_types, split, take_strings

_NAME = r"%[\w$.\-]+"
_START = re.compile(rf'(?:({_NAME}(?::\d+)?(?:, {_NAME}(?::\d+)?)*) = )?([A-Za-z_][\w.]*|"\d+")')
_VALUE = re.compile(rf"{_NAME}(?:#\d+)?")
_PLAIN = re.compile(rf" {_NAME}(?:#\d+)?(?:, {_NAME}(?:#\d+)?)*")
_FOR = re.compile(
    r" (unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+?)\s*(?: iter_args\((.*)\) -> \((.*)\))?\s*(?:: (\S+) )?\{"
)
_CARRIED = re.compile(rf"({_NAME}) = ({_NAME}(?:#\d+)?)")
_FUNCTION = re.compile(r'tt\.func (?:(public|private|nested) )?@([\w.$\-]+|"\d+")\(')
_LABEL = re.compile(r"\^([\w.$\-]+)(?:\((.*)\))?:")
_TARGET = re.compile(r"\^([\w.$\-]+)(?:\(([^:]*) : [^^]*\))?")
_DICTIONARY = re.compile(r"<?\{([^{}]*)\}>?")

Scope = dict[str, tuple[str, Type]]


def parse(text: str) -> Module:
    """The tree of a printed module.

    Raises:
        ValueError: a line is not understood; the message shows it.
    """
    return _Reader(text).module()


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0
        self.strings: list[str] = []
        self.taken: set[str] = set()
        # Operands used before the line that defines them: operation, index of the operand, its printed name.
        self.early: list[tuple[Operation, int, str]] = []
        self.branches: list[tuple[Operation, list[tuple[str, int]]]] = []

    def module(self) -> Module:
        module = Module()
        try:
            while (line := self.next()) is not None:
                if line.startswith("tt.func"):
                    function = self.function(line)
                    module.functions[function.name] = function
                elif line.startswith("#"):
                    key, _, value = line.partition(" = ")
                    if value.startswith("loc("):
                        module.locations[key] = value[4:-1]
                elif not line.startswith(("module", "}")):
                    raise ValueError("nothing that belongs into a module")
        except (ValueError, KeyError, IndexError, NotImplementedError) as error:
            shown = self.lines[min(self.at, len(self.lines)) - 1].strip()
            raise ValueError(f"Triton IR, line {self.at}: cannot read {shown!r}: {error}") from error
        return module

    def next(self) -> str | None:
        """The next line that is not empty, its strings replaced by their numbers."""
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            self.at += 1
            if line and not line.startswith("//"):
                if '"' in line and line[0] != "#":
                    line, self.strings = take_strings(line)
                return line
        return None

    def function(self, line: str) -> Function:
        self.taken = set()
        self.early = []
        self.branches = []
        found = _FUNCTION.match(line)
        if found is None:
            raise ValueError("a function without a name")
        name = found[2] if found[2][0] != '"' else self.strings[int(found[2][1:-1])]
        function = Function(name, public=found[1] in (None, "public"))
        end = _closing(line, found.end() - 1)
        scope: Scope = {}
        arguments = self.arguments(line[found.end() : end], function)
        header, function.location = self.location(line[end + 1 :])
        header = header.removesuffix("{").strip()
        if "attributes {" in header:
            header, _, dictionary = header.partition("attributes {")
            function.attributes = read_attributes(dictionary.strip().removesuffix("}"), self.strings)
        if header.startswith("->"):
            function.result_types = [read_type(part) for part in read_types(header[2:].strip())[0]]
        if not line.endswith("{"):
            function.blocks = [Block("bb0", None)]
            function.blocks[0].arguments = arguments
            return function
        function.blocks, closing = self.region(None, scope, arguments)
        function.location = self.location(closing)[1]
        if self.early:
            raise ValueError(f"{self.early[0][2]} is not defined")
        for operation, targets in self.branches:
            first = len(operation.operands) - sum(count for _, count in targets)
            operation.attributes["to"] = to = []
            for label, count in targets:
                to.append((label, operation.operands[first : first + count]))
                first += count
        return function

    def arguments(self, text: str, function: Function | None = None) -> list[tuple[str, Type]]:
        """Names and types of the arguments of a block or a function."""
        found = []
        for part in re.split(r", (?=%)", text) if text else ():
            name, _, rest = part.partition(":")
            rest, location = self.location(rest)
            attributes: dict[str, Any] = {}
            if " {" in rest:
                rest, _, dictionary = rest.partition(" {")
                attributes = read_attributes(dictionary.strip().removesuffix("}"), self.strings)
            found.append((name.strip(), read_type(rest.strip())))
            if function is not None:
                function.argument_attributes.append(attributes)
                function.argument_locations.append(location)
        return found

    def location(self, line: str) -> tuple[str, str]:
        """A line without its location, and the location's key."""
        start = line.rfind(" loc(")
        if start < 0 or line[-1] != ")":
            return line, "unknown"
        return line[:start], put_strings(line[start + 5 : -1], self.strings)

    def region(
        self, parent: Operation | None, outer: Scope, arguments: Sequence[tuple[str, Type]] = ()
    ) -> tuple[list[Block], str]:
        """The blocks up to the closing brace, and the line of the brace."""
        scope = dict(outer)
        waiting = len(self.early)
        block = Block("bb0", parent)
        block.arguments = [self.bind(name, type_, scope) for name, type_ in arguments]
        blocks = [block]
        while True:
            line = self.next()
            if line is None:
                raise ValueError("the text ends within a region")
            if line[0] == "}":
                break
            if line[0] == "^":
                found = _LABEL.match(line)
                if found is None:
                    raise ValueError("no label of a block")
                # The first block's label is printed only where it has arguments of its own.
                if block.operations or len(blocks) > 1:
                    blocks.append(block := Block(found[1], parent))
                else:
                    block.label = found[1]
                block.arguments += [self.bind(name, type_, scope) for name, type_ in self.arguments(found[2] or "")]
            else:
                block.operations.append(self.operation(line, block, scope))
        forward = self.early[waiting:]
        del self.early[waiting:]
        for operation, index, name in forward:
            if name in scope:
                operation.operands[index], operation.operand_types[index] = scope[name]
            else:
                self.early.append((operation, index, name))
        return blocks, line

    def bind(self, name: str, type_: Type, scope: Scope) -> tuple[str, Type]:
        """Map a printed name to one that is unique in the function."""
        unique = self.fresh(name)
        scope[name] = (unique, type_)
        return unique, type_

    def fresh(self, name: str) -> str:
        unique, n = name, 0
        while unique in self.taken:
            n += 1
            unique = f"{name}~{n}"
        self.taken.add(unique)
        return unique

    def use(self, operation: Operation, names: Sequence[str], scope: Scope) -> None:
        """Append operands by their printed names."""
        for name in names:
            bound = scope.get(name)
            if bound is None:
                self.early.append((operation, len(operation.operands), name))
                bound = (name, _UNKNOWN)
            operation.operands.append(bound[0])
            operation.operand_types.append(bound[1])

    def define(self, operation: Operation, printed: str | None, types: Sequence[Type], scope: Scope) -> None:
        """Name the results of an operation."""
        if printed is None:
            # Results that nothing uses may be printed without names.
            operation.result_types = list(types)
            operation.results = [self.fresh("%_") for _ in types]
            return
        if "," not in printed and ":" not in printed and len(types) == 1:
            unique = self.fresh(printed)
            operation.results, operation.result_types = [unique], [types[0]]
            scope[printed] = (unique, types[0])
            return
        pairs: list[tuple[str, str]] = []
        for part in printed.split(", "):
            name, _, count = part.partition(":")
            unique = self.fresh(name)
            pairs += [(f"{name}#{i}", f"{unique}#{i}") for i in range(int(count))] if count else [(name, unique)]
        if len(types) == 1 < len(pairs):
            types = list(types) * len(pairs)
        if len(types) != len(pairs):
            raise ValueError(f"{len(pairs)} results of {len(types)} types")
        operation.result_types = list(types)
        operation.results = [unique for _, unique in pairs]
        for (name, unique), type_ in zip(pairs, types, strict=True):
            scope[name] = (unique, type_)

    def operation(self, line: str, block: Block, scope: Scope) -> Operation:
        text, location = self.location(line)
        found = _START.match(text)
        if found is None:
            raise ValueError("no operation")
        name = found[2] if found[2][0] != '"' else self.strings[int(found[2][1:-1])]
        operation = Operation(name, block, location)
        rest = text[found.end() :]
        if name in DEFAULTS:
            operation.attributes.update(DEFAULTS[name])
        if rest.endswith("{"):
            reader = _REGIONS.get(operation.name, _Reader.with_regions)
            reader(self, operation, rest, found[1], scope)
            return operation
        if "{" in rest:
            rest = self.dictionaries(operation, rest)
        if operation.name in ("cf.br", "cf.cond_br"):
            self.use(operation, _VALUE.findall(rest), scope)
            targets = [(label, len(_VALUE.findall(values or ""))) for label, values in _TARGET.findall(rest)]
            self.branches.append((operation, targets))
            return operation
        head, colon, types = rest.rpartition(" : ")
        if not colon:
            # An operation without operands may print its results' types alone.
            head, arrow, types = rest.partition("-> ")
            types = arrow + types
        if _PLAIN.fullmatch(head):
            self.use(operation, head[1:].split(", "), scope)
        elif head:
            self.use(operation, _VALUE.findall(head), scope)
            read_head(operation, head, types, self.strings)
        if operation.attributes:
            rename(operation.attributes)
        if found[1] or "-> " in types:
            self.define(operation, found[1], result_types(operation, types), scope)
        return operation

    def dictionaries(self, operation: Operation, text: str) -> str:
        """Read the attributes in braces; returns the text without them."""
        while (start := text.find("{")) >= 0:
            first = start - (text[start - 1] == "<")
            if found := _DICTIONARY.match(text, first):
                end, inner = found.end(), found[1]
            else:
                # A dictionary within a dictionary.
                end = _closing(text, start) + 1
                inner = text[start + 1 : end - 1]
                end += start - first
            operation.attributes.update(read_attributes(inner, self.strings))
            text = f"{text[:first].rstrip()} {text[end:].lstrip()}".rstrip()
        return text

    def closed(self, operation: Operation, line: str) -> str:
        """Read location and attributes from the line of a closing brace; returns the rest of it."""
        rest, operation.location = self.location(line)
        rest = rest[1:].strip()
        if rest.startswith(")"):
            rest = rest[1:].strip()
        if "{" in rest:
            rest = self.dictionaries(operation, rest.removeprefix("attributes ")).strip()
        return rest

    def loop(self, operation: Operation, rest: str, printed: str | None, scope: Scope) -> None:
        """scf.for: bounds, step, initial values; the body's arguments are the induction variable and carried values."""
        found = _FOR.fullmatch(rest)
        if found is None:
            raise ValueError("no loop")
        operation.attributes["unsigned"] = found[1] is not None
        carried = _CARRIED.findall(found[6] or "")
        types = [read_type(part) for part in split(found[7] or "")]
        self.use(operation, [found[3], found[4], found[5], *(initial for _, initial in carried)], scope)
        index = read_type(found[8] or "index")
        names = [name for name, _ in carried]
        arguments = [(found[2], index), *zip(names, types, strict=True)]
        blocks, closing = self.region(operation, scope, arguments)
        operation.regions.append(blocks)
        self.closed(operation, closing)
        self.define(operation, printed, types, scope)

    def condition(self, operation: Operation, rest: str, printed: str | None, scope: Scope) -> None:
        """scf.if: a region, and a second after `else`."""
        head, _, types = rest.removesuffix("{").partition(" -> ")
        self.use(operation, _VALUE.findall(head), scope)
        closing = self.regions(operation, scope, "else")
        self.closed(operation, closing)
        self.define(operation, printed, [read_type(part) for part in read_types(types.strip())[0]], scope)

    def while_(self, operation: Operation, rest: str, printed: str | None, scope: Scope) -> None:
        """scf.while: the region before, which ends in scf.condition, and the region after `do`."""
        head, _, types = rest.removesuffix("{").partition(" : ")
        before, after = read_types(types.strip())
        carried = _CARRIED.findall(head)
        self.use(operation, [initial for _, initial in carried], scope)
        names = [name for name, _ in carried]
        arguments = list(zip(names, map(read_type, before), strict=True))
        closing = self.regions(operation, scope, "do", arguments)
        self.closed(operation, closing)
        self.define(operation, printed, [read_type(part) for part in after or ()], scope)

    def with_regions(self, operation: Operation, rest: str, printed: str | None, scope: Scope) -> None:
        """The general form, of tt.reduce, tt.scan, tt.map_elementwise: types come after the last brace."""
        head = rest[:-1].rstrip().removesuffix("(")
        if "{" in head:
            head = self.dictionaries(operation, head)
        self.use(operation, _VALUE.findall(head), scope)
        closing = self.regions(operation, scope, ",")
        rest = self.closed(operation, closing)
        types = rest.removeprefix(":").strip() or head.partition(" -> ")[2].strip()
        if printed or " -> " in types:
            self.define(operation, printed, result_types(operation, types), scope)

    def regions(
        self, operation: Operation, scope: Scope, between: str, arguments: Sequence[tuple[str, Type]] = ()
    ) -> str:
        """All regions of an operation, separated by `between`. The first has the arguments."""
        blocks, closing = self.region(operation, scope, arguments)
        operation.regions.append(blocks)
        while closing.endswith("{") and closing[1:].strip().startswith(between):
            blocks, closing = self.region(operation, scope)
            operation.regions.append(blocks)
        return closing


_UNKNOWN = Type((), "?")
_REGIONS: dict[str, Callable[[_Reader, Operation, str, str | None, Scope], None]] = {
    "scf.for": _Reader.loop,
    "scf.if": _Reader.condition,
    "scf.while": _Reader.while_,
}


def _closing(text: str, start: int) -> int:
    """The index at which the bracket that opens at `start` closes."""
    opening = text[start]
    closing = {"(": ")", "{": "}"}[opening]
    depth = 0
    for i in range(start, len(text)):
        if text[i] == opening:
            depth += 1
        elif text[i] == closing:
            depth -= 1
            if not depth:
                return i
    raise ValueError(f"{opening} without {closing}")
