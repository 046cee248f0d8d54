"""Writing LLVM IR as text: names, blocks, constants, intrinsics, counted loops, helper functions.

Code is written either for one element (`width` 0) or for `width` lanes at once; every method that makes a type or a
constant follows the width that holds where it is called.

Pure instructions are deduplicated and hoisted while they are written, in front of the outermost loop in which their
operands are defined. LLVM's optimiser would do the same, in as much time as all the rest of compiling a kernel takes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gradlab.kernels.cpu import types

_OPERAND = re.compile(r"%[\w.]+")
# Pure instructions: the result depends on the operands alone, and they may be executed speculatively.
# Divisions are among them: `integers` writes none whose divisor may trap.
_COMPUTES = {
    "add", "sub", "mul", "shl", "lshr", "ashr", "and", "or", "xor", "sdiv", "udiv", "srem", "urem",
    "fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "icmp", "fcmp", "select", "freeze",
    "trunc", "zext", "sext", "fptrunc", "fpext", "fptosi", "fptoui", "sitofp", "uitofp", "bitcast", "ptrtoint",
    "inttoptr", "getelementptr", "insertelement", "extractelement", "shufflevector",
}  # fmt: skip


class Scope:
    """A single-entry stretch of code: the body of a function, a loop or a branch.

    Attributes:
        depth: the number of enclosing scopes.
        parent: the enclosing scope.
        before: for a loop, the lines in front of it, where hoisted instructions go.
    """

    __slots__ = ("before", "depth", "parent")

    def __init__(self, parent: "Scope | None" = None, before: "list[Line] | None" = None) -> None:
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.before = before


# A line of text, or a list that hoisted lines are appended to while later ones are written.
Line = str | list[Any]


class Emitter:
    """Writes the body of one LLVM function and collects its module's declarations.

    Attributes:
        width: lanes of the code being written; 0 for scalar code.
        vector_bits: bits of a vector register of the CPU the code is for.
        fusion: whether a multiply and an add may fuse into one operation with one rounding.
        across: whether the loops inside the vector's loop go from row to row: they add one scalar to all lanes of an
            address, and what depends on the other part can be hoisted out of them.
        matrices: whether the CPU has tile registers that multiply bfloat16 (AMX).
        block: label of the basic block being written, which a phi has to name.
    """

    def __init__(self, vector_bits: int, fusion: bool = True, matrices: bool = False) -> None:
        self.vector_bits = vector_bits
        self.fusion = fusion
        self.matrices = matrices
        self.width = 0
        self.across = False
        self.block = "entry"
        self.lines: list[Line] = []
        self.slots: list[str] = []
        self.declarations: dict[str, str] = {}
        self.helpers: dict[str, str] = {}
        self._names = 0
        # The scopes around what is being written, outermost first.
        self._open = [Scope()]
        # The scope that defines each name; names not in it, such as arguments, are defined everywhere.
        self._defined: dict[str, Scope] = {}
        self._computed: dict[str, tuple[str, Scope]] = {}
        # The scope in which memory is steady; None where it is not.
        self._steady: Scope | None = None

    def name(self) -> str:
        """A fresh SSA name, of a value that is defined here."""
        self._names += 1
        name = f"%t{self._names}"
        self._defined[name] = self._open[-1]
        return name

    def emit(self, text: str) -> str:
        """Write an instruction with a result; returns the result's name."""
        if text[: text.find(" ")] in _COMPUTES:
            return self.compute(text)
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def compute(self, text: str) -> str:
        """Write a pure instruction unless an equal one is available; returns the result's name."""
        return self._once(text, text, 0)

    def read(self, text: str, anywhere: bool = False) -> str:
        """Write a load; returns the result's name. Within `steady` it is deduplicated and hoisted, as in `compute`.

        Args:
            anywhere: whether the address is readable even if this place is not reached.
        """
        if self._steady is None:
            name = self.name()
            self.lines.append(f"  {name} = {text}")
            return name
        first, last = self._steady, len(self._open) - 1
        # A load must not be hoisted out of a branch, which may not be taken.
        while last >= first.depth and (anywhere or self._open[last].before is not None):
            last -= 1
        return self._once(f"{id(first)} {text}", text, max(last, first.depth - 1))

    def once(self, key: str, write: Callable[[], str]) -> str:
        """The result of `write`, code of several blocks that reads memory; deduplicated as `read`, but not hoisted."""
        if self._steady is None:
            return write()
        key = f"{id(self._steady)} {key}"
        found = self._computed.get(key)
        if found is None or not self._around(found[1]):
            found = self._computed[key] = write(), self._open[-1]
        return found[0]

    @contextmanager
    def steady(self, holds: bool = True) -> Iterator[None]:
        """A context in which no memory that is read changes; with holds=False, one in which memory may change."""
        before = self._steady
        self._steady = Scope(self._open[-1]) if holds else None
        try:
            yield
        finally:
            self._steady = before

    def _once(self, key: str, text: str, depth: int) -> str:
        found = self._computed.get(key)
        if found is not None and self._around(found[1]):
            return found[0]
        for operand in _OPERAND.findall(text):
            scope = self._defined.get(operand)
            while scope is not None and not self._around(scope):
                # Defined in a loop or branch that has ended: available in the scope around that.
                scope = scope.parent
            if scope is not None and scope.depth > depth:
                depth = scope.depth
        name = self.name()
        line = f"  {name} = {text}"
        for scope in self._open[depth + 1 :]:
            if scope.before is not None:
                scope.before.append(line)
                assert scope.parent is not None
                self._defined[name] = scope.parent
                break
        else:
            self.lines.append(line)
        self._computed[key] = name, self._defined[name]
        return name

    def _around(self, scope: Scope) -> bool:
        return scope.depth < len(self._open) and self._open[scope.depth] is scope

    @contextmanager
    def branch_scope(self) -> Iterator[None]:
        """A context for conditional code: its results are not available after it."""
        self._open.append(Scope(self._open[-1]))
        try:
            yield
        finally:
            self._open.pop()

    @contextmanager
    def loop_scope(self) -> Iterator[None]:
        """A context for a loop, from its head to its last branch; hoisted code goes in front of it."""
        before: list[Line] = []
        self.lines.append(before)
        self._open.append(Scope(self._open[-1], before))
        try:
            yield
        finally:
            self._open.pop()

    @contextmanager
    def moving_across(self, holds: bool = True) -> Iterator[None]:
        """A context in which loops inside the vector's loop go from row to row (`across`)."""
        before, self.across = self.across, holds
        try:
            yield
        finally:
            self.across = before

    def do(self, text: str) -> None:
        """Write an instruction without a result."""
        self.lines.append(f"  {text}")

    def label(self) -> str:
        """A fresh label."""
        self._names += 1
        return f"L{self._names}"

    def start(self, label: str) -> None:
        """Begin a basic block; the one before must have ended in a branch."""
        self.lines.append(f"{label}:")
        self.block = label

    @contextmanager
    def lanes(self, width: int) -> Iterator[None]:
        """A context that writes code for another number of lanes."""
        before, self.width = self.width, width
        try:
            yield
        finally:
            self.width = before

    # Types and constants at the current width.

    def type(self, element: str) -> str:
        """LLVM's type of a value of this element type: `<16 x float>`, or `float` in scalar code."""
        return f"<{self.width} x {types.llvm(element)}>" if self.width else types.llvm(element)

    def constant(self, value: float, element: str) -> str:
        """A constant, in every lane."""
        text = types.constant(value, element)
        return f"splat ({types.llvm(element)} {text})" if self.width else text

    def iota(self, element: str) -> str:
        """0, 1, 2, ... in the lanes."""
        return self.vector(element, range(self.width))

    def vector(self, element: str, values: Sequence[int] | range) -> str:
        """A constant vector of integers."""
        return "<" + ", ".join(f"{types.llvm(element)} {value}" for value in values) + ">"

    def suffix(self, element: str) -> str:
        """The suffix of an intrinsic's name for values of this type: `v16f32`."""
        scalar = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(
            types.llvm(element), types.llvm(element)
        )
        return f"v{self.width}{scalar}" if self.width else scalar

    # Instructions.

    def op(self, instruction: str, element: str, *operands: str) -> str:
        """An instruction whose operands and result have one type: `fadd <16 x float> a, b`."""
        return self.emit(f"{instruction} {self.type(element)} {', '.join(operands)}")

    def convert(self, instruction: str, source: str, target: str, value: str) -> str:
        """A conversion: `sext <16 x i32> a to <16 x i64>`; a no-op where the LLVM types are the same."""
        if types.llvm(source) == types.llvm(target):
            return value
        return self.emit(f"{instruction} {self.type(source)} {value} to {self.type(target)}")

    def bitcast(self, source: str, target: str, value: str) -> str:
        """The same bits as another type."""
        return self.convert("bitcast", source, target, value)

    def compare(self, predicate: str, element: str, a: str, b: str) -> str:
        """`icmp` or `fcmp` with a predicate of either: a truth value in each lane."""
        kind = "fcmp" if element in ("f16", *types.NATIVE_FLOATS) else "icmp"
        return self.emit(f"{kind} {predicate} {self.type(element)} {a}, {b}")

    def select(self, condition: str, element: str, yes: str, no: str) -> str:
        """Lane by lane one of two values."""
        kind = self.type(element)
        return self.emit(f"select {self.type('i1')} {condition}, {kind} {yes}, {kind} {no}")

    def intrinsic(self, name: str, element: str, *operands: str, flags: str = "", extra: str = "") -> str:
        """`llvm.<name>` on operands of one type; `extra` is a last scalar operand with its type, as `i1 false`."""
        kind = self.type(element)
        full = f"llvm.{name}.{self.suffix(element)}"
        last = f", {extra.split()[0]}" if extra else ""
        self.declare(full, kind, ", ".join([kind] * len(operands)) + last)
        given = ", ".join(f"{kind} {operand}" for operand in operands) + (f", {extra}" if extra else "")
        return self.compute(f"call {flags + ' ' if flags else ''}{kind} @{full}({given})")

    def declare(self, name: str, result: str, arguments: str) -> None:
        """Declare a function that the module calls."""
        self.declarations[name] = f"declare {result} @{name}({arguments})"

    def table(self, constants: str) -> str:
        """The address of constants in the module, given in LLVM's syntax of an array."""
        name = f"@table.{len(self.declarations)}"
        self.declarations[name] = f"{name} = internal unnamed_addr constant {constants}, align 64"
        return name

    def helper(self, name: str, element: str, write: Callable[..., str], *operands: str) -> str:
        """Call the internal function `name` on operands of one type; `write(%x0, %x1, ...)` writes its body, once.

        Code that is used often is one function in the text, which the optimiser inlines: the text stays short, and so
        does the time to parse it.
        """
        kind = self.type(element)
        full = f"{name}.{self.suffix(element)}"
        if full not in self.helpers:
            self.helpers[full] = ""
            around = self.lines, self.block, self._open
            self.lines, self.block, self._open = [], "entry", [Scope()]
            names = [f"%x{i}" for i in range(len(operands))]
            result = write(*names)
            body = written(self.lines)
            self.lines, self.block, self._open = around
            takes = ", ".join(f"{kind} {operand}" for operand in names)
            self.helpers[full] = "\n".join(
                [
                    f"define internal {kind} @{full}({takes}) alwaysinline {{",
                    "entry:",
                    *body,
                    f"  ret {kind} {result}",
                    "}",
                ]
            )
        given = ", ".join(f"{kind} {operand}" for operand in operands)
        return self.compute(f"call {kind} @{full}({given})")

    def splat(self, element: str, value: str) -> str:
        """A scalar in every lane."""
        if not self.width:
            return value
        if not value.startswith("%"):
            return f"splat ({types.llvm(element)} {value})"
        kind = self.type(element)
        one = self.emit(f"insertelement {kind} poison, {types.llvm(element)} {value}, i64 0")
        return self.emit(f"shufflevector {kind} {one}, {kind} poison, <{self.width} x i32> zeroinitializer")

    def slot(self, elements: int, element: str) -> str:
        """Stack memory for a number of elements, aligned to a cache line."""
        name = self.name()
        self.slots.append(f"  {name} = alloca [{elements} x {types.in_memory(element)}], align 64")
        return name

    def branch(self, condition: str, yes: str, no: str) -> None:
        """End the block by a branch on a scalar truth value."""
        self.do(f"br i1 {condition}, label %{yes}, label %{no}")

    def jump(self, label: str) -> None:
        """End the block by a branch."""
        self.do(f"br label %{label}")

    def loop(
        self, count: int, step: int, carried: Sequence[tuple[str, str]], body: Callable[[str, list[str]], Sequence[str]]
    ) -> list[str]:
        """`for i in range(0, count, step)`, count > 0; a single iteration is written without a loop.

        Args:
            carried: LLVM type and initial value of each loop-carried value.
            body: writes one iteration, given i (an i32) and the carried values; returns their next values.

        Returns:
            The carried values after the last iteration.
        """
        if count <= step:
            return list(body("0", [value for _, value in carried]))
        leave = self.label()
        with self.loop_scope():
            head, before = self.label(), self.block
            self.jump(head)
            self.start(head)
            i, holes = self.name(), []
            at = len(self.lines)
            self.lines.append("")
            for _ in carried:
                holes.append((self.name(), len(self.lines)))
                self.lines.append("")
            after = body(i, [name for name, _ in holes])
            following = self.emit(f"add nuw nsw i32 {i}, {step}")
            more = self.emit(f"icmp ult i32 {following}, {count}")
            self.lines[at] = f"  {i} = phi i32 [ 0, %{before} ], [ {following}, %{self.block} ]"
            for (name, line), (kind, first), last in zip(holes, carried, after, strict=True):
                self.lines[line] = f"  {name} = phi {kind} [ {first}, %{before} ], [ {last}, %{self.block} ]"
            self.branch(more, head, leave)
        self.start(leave)
        return list(after)


def written(lines: Iterable[Line]) -> list[str]:
    """Lines of text, with hoisted lines in their places."""
    found: list[str] = []
    for line in lines:
        if isinstance(line, str):
            found.append(line)
        else:
            found += written(line)
    return found
