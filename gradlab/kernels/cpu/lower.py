"""A kernel from Triton IR to LLVM IR: one function that runs a range of programs.

    i64 run(ptr args, i64 begin, i64 end, i32 grid0, i32 grid1, i32 grid2, ptr scratch, ptr report)

`args` is a block of 8-byte words, one for each argument in the kernel's order. Programs [begin, end) run in order, axis
0 fastest; several threads may run ranges of one grid at once. The result is 0, or 1 after a failed assertion.
"""

import copy
import dataclasses
import re
from typing import Any

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.control import lower_blocks
from gradlab.kernels.cpu.emit import Emitter, written
from gradlab.kernels.cpu.lanes import Lane, Pointer, Uniform
from gradlab.kernels.cpu.machine import Machine
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Block, Function, Module, Operation
from gradlab.kernels.cpu.ttir_parse import parse
from gradlab.kernels.cpu.values import NotLowered, Value

NAME = "run"
_PARAMETERS = (
    "ptr noalias readonly %args, i64 %begin, i64 %end, i32 %grid0, i32 %grid1, i32 %grid2, ptr noalias %scratch, "
    "ptr noalias %report"
)
_ALTERNATIVE = "GRADLAB_CPU=interpret or TRITON_INTERPRET=1 runs it in Triton's interpreter"
ATOMIC = {"tt.atomic_rmw", "tt.atomic_cas"}


class Unsupported(NotImplementedError):
    """A kernel that is not compiled for CPUs; the message names operation, kernel, source line and an alternative."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A kernel as LLVM IR.

    Attributes:
        ir: the module's text.
        name: the kernel's function.
        arguments: name and element type of each argument; "*f32" is an address.
        scratch: bytes of scratch memory for each thread.
        stored: indices of the pointer arguments that the kernel stores through.
        ordered: whether programs must run one after another in one thread, as with atomic operations.
        messages: text and place of each assertion and print.
        sites: of a sanitized kernel, where each of its accesses stands (`sanitize_lower.Site`).
    """

    ir: str
    name: str
    arguments: list[tuple[str, str]]
    scratch: int
    stored: list[int]
    ordered: bool
    messages: list[tuple[str, str]]
    sites: list[Any] = dataclasses.field(default_factory=list)


def lower(text: str, machine: Machine, fusion: bool = True, writing: "type[Kernel] | None" = None) -> Lowered:
    """The LLVM IR of printed Triton IR.

    Args:
        text: TTIR after Triton's own passes, printed with locations.
        fusion: whether a multiply and an add may be rounded once.
        writing: the class that writes the function: `Kernel`, or `located.Located` for debug locations.

    Raises:
        Unsupported: the kernel uses an operation that is not compiled for CPUs.
    """
    try:
        module = parse(text)
    except ValueError as error:
        named = re.search(r'tt\.func public @"?([^"(\s]+)', text)
        raise Unsupported(f"{named[1] if named else 'a kernel'}: {error}; {_ALTERNATIVE}") from None
    writer = (writing or Kernel)(module, module.kernel, machine, fusion)
    try:
        return writer.lowered()
    except NotLowered as error:
        raise _unsupported(module, error.op, str(error)) from None
    except (ArithmeticError, AssertionError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        # Also an unforeseen error names the kernel's line.
        op = writer.at
        if op is None:
            raise
        raise _unsupported(module, op, f"{type(error).__name__} in the compiler for CPUs: {error}") from error


def _unsupported(module: Module, op: Operation, reason: str) -> Unsupported:
    place = module.where(op.location)
    reason = " ".join(reason.split())
    return Unsupported(f"{module.kernel.name}: {reason} ({op.name} at {place.file}:{place.line}); {_ALTERNATIVE}")


class Kernel(Tiles):
    """Writes the function of one kernel."""

    emitter: type[Emitter] = Emitter

    def __init__(self, module: Module, kernel: Function, machine: Machine, fusion: bool) -> None:
        super().__init__(self.emitter(machine.vector_bits, fusion, machine.matrices), kernel)
        self.module = module
        self.kernel = kernel
        self.machine = machine
        self._calls = 0

    def message(self, op: Operation, text: str) -> int:
        """The number of a message."""
        place = self.module.where(op.location)
        self.messages.append((text, f"{place.file}:{place.line}"))
        return len(self.messages) - 1

    def inline(self, op: Operation) -> list[Value]:
        """The results of a call, whose callee is inlined here."""
        callee = self.module.functions[op.attributes["callee"]]
        self._calls += 1
        blocks = _renamed(callee.blocks, f"@{self._calls}")
        copied = dataclasses.replace(callee, blocks=blocks)
        self.learn(copied)
        for (name, _), given in zip(copied.arguments, op.operands, strict=True):
            self.env[name] = self.env[given]
        buffers = [self.buffer(t.shape, t.element) if t.shape else None for t in callee.result_types]
        scalars = iter(lower_blocks(self, blocks, self.b.label(), buffers, [t.element for t in callee.result_types]))
        return [next(scalars) if buffer is None else buffer for buffer in buffers]

    def lowered(self) -> Lowered:
        b, arguments = self.b, self.kernel.arguments
        head = []
        for i, (name, kind) in enumerate(arguments):
            t = kind.element
            head.append(f"  %at{i} = getelementptr i64, ptr %args, i64 {i}")
            if t == "i1":
                head.append(f"  %byte{i} = load i8, ptr %at{i}, align 8")
                head.append(f"  %arg{i} = trunc i8 %byte{i} to i1")
            else:
                head.append(f"  %arg{i} = load {types.llvm(t)}, ptr %at{i}, align 8")
            value: Lane = Pointer(f"%arg{i}", None, t) if types.is_pointer(t) else Uniform(f"%arg{i}", t)
            self.env[name] = value
        b.block = "program_body"
        lower_blocks(self, self.kernel.blocks, "next", [], [])
        body = written(b.lines)
        names = [(name.lstrip("%"), kind.element) for name, kind in arguments]
        operations = list(self.kernel.walk()) + [op for f in self.module.functions.values() for op in f.walk()]
        return Lowered(
            ir=self._text(head, body),
            name=NAME,
            arguments=names,
            scratch=self.scratch,
            stored=self._stored(),
            ordered=any(op.name in ATOMIC or op.name == "tt.print" for op in operations),
            messages=self.messages,
        )

    def _stored(self) -> list[int]:
        from gradlab.kernels.cpu.stores import _root

        numbers = {name: i for i, (name, _) in enumerate(self.kernel.arguments)}
        written = {_root(self, op.operands[0]) for op in self.kernel.walk() if op.name in ("tt.store", *ATOMIC)}
        return sorted(numbers[name] for name in written if name in numbers)

    def _text(self, head: list[str], body: list[str]) -> str:
        b = self.b
        width = f'"prefer-vector-width"="{b.vector_bits}" "min-legal-vector-width"="{b.vector_bits}"'
        lines = [
            *b.declarations.values(),
            *b.helpers.values(),
            f"define i64 @{NAME}({_PARAMETERS}) #0 {{",
            "entry:",
            *b.slots,
            *head,
            "  %report_program = getelementptr i64, ptr %report, i64 1",
            "  %report_printer = getelementptr i64, ptr %report, i64 8",
            "  %wide0 = zext i32 %grid0 to i64",
            "  %wide1 = zext i32 %grid1 to i64",
            "  %any = icmp slt i64 %begin, %end",
            "  br i1 %any, label %program_head, label %done",
            "program_head:",
            "  %program = phi i64 [ %begin, %entry ], [ %following, %next ]",
            "  %along0 = urem i64 %program, %wide0",
            "  %row = udiv i64 %program, %wide0",
            "  %along1 = urem i64 %row, %wide1",
            "  %along2 = udiv i64 %row, %wide1",
            "  %program0 = trunc i64 %along0 to i32",
            "  %program1 = trunc i64 %along1 to i32",
            "  %program2 = trunc i64 %along2 to i32",
            "  br label %program_body",
            "program_body:",
            *body,
            "  %following = add nsw i64 %program, 1",
            "  %more = icmp slt i64 %following, %end",
            "  br i1 %more, label %program_head, label %done",
            "done:",
            "  ret i64 0",
            "}",
            f"attributes #0 = {{ nounwind {width} }}",
        ]
        return "\n".join(lines) + "\n"


def _renamed(blocks: list[Block], suffix: str) -> list[Block]:
    """A copy of blocks in which every name has a suffix."""
    copied = copy.deepcopy(blocks)

    def name(old: str) -> str:
        return old + suffix

    def visit(block: Block) -> None:
        block.arguments = [(name(old), kind) for old, kind in block.arguments]
        for op in block.operations:
            op.results = [name(old) for old in op.results]
            op.operands = [name(old) for old in op.operands]
            if "to" in op.attributes:
                op.attributes["to"] = [(label, [name(old) for old in given]) for label, given in op.attributes["to"]]
            for region in op.regions:
                for inner in region:
                    visit(inner)

    for block in copied:
        visit(block)
    return copied
