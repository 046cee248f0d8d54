"""What a sanitized kernel looks at beside memory: assertions, integer division by zero, shifts, offsets that wrap.

What is computed for lanes that are masked off afterwards may be anything. So a scalar is looked at where it is
computed, and a tensor where an active lane of it is stored, or is the address of an access that fails.
"""

from collections.abc import Iterator, Sequence

from gradlab.kernels.cpu import memory, types
from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.indexing import SOURCES
from gradlab.kernels.cpu.lanes import Lane, Uniform, registers
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Function, Operation
from gradlab.kernels.cpu.values import Affine, Index, Lazy

_DIVISIONS = {"arith.divsi", "arith.divui", "arith.remsi", "arith.remui", "arith.ceildivsi", "arith.floordivsi"}
_SHIFTS = {"arith.shli", "arith.shrui", "arith.shrsi"}
_SUMS = {"arith.addi": "sadd", "arith.subi": "ssub", "arith.muli": "smul"}
_WORDS = {"arith.addi": "sum", "arith.subi": "difference", "arith.muli": "product"}
# What an offset is still an offset after.
_LINEAR = {*_SUMS, "arith.extsi", "tt.splat", "tt.broadcast", "tt.expand_dims", "arith.minsi", "arith.maxsi"}
_LOGICAL = {"arith.andi", "arith.ori", "tt.splat", "tt.broadcast", "tt.expand_dims"}
_MASKED = {"tt.load": 1, "tt.store": 2, "tt.atomic_rmw": 2}


class Operations(Tiles):
    """The hooks of a kernel for operations that touch no memory."""

    def __init__(self, b: Emitter, function: Function) -> None:
        # Of numbers, whether addresses or masks are made of them.
        self._counting: dict[str, bool] = {}
        super().__init__(b, function)

    def _site(self, op: Operation, access: int, text: str = "") -> int:
        raise NotImplementedError

    def failed(self, op: Operation, number: int, go_on: str) -> None:
        """Note a failed assertion, and go on."""
        self._record(self._site(op, layout.OPERATION, self.messages[number][0]), layout.ASSERTION)
        self.b.jump(go_on)

    def scalar_operation(self, op: Operation, operands: Sequence[Lane]) -> None:
        """Look at the operands of a scalar operation."""
        if op.name in _DIVISIONS or op.name in _SHIFTS:
            self._amount(op, operands[1])
        elif op.name in _SUMS and op.type.element == "i32" and self._counts(op.result):
            self._wraps(op, operands)

    def define(self, op: Operation) -> None:
        """Look at a divisor, or a number of bits, that is one scalar for all of a tensor."""
        if op.name in _DIVISIONS or op.name in _SHIFTS:
            given = self.definitions.get(op.operands[1])
            while given is not None and given.name in ("tt.broadcast", "tt.expand_dims"):
                given = self.definitions.get(given.operands[0])
            if given is not None and given.name == "tt.splat" and given.operands[0] in self.env:
                with self.b.lanes(0):
                    self._amount(op, self.scalar(given.operands[0]))
        super().define(op)

    # Divisors and shifts.

    def _amount(self, op: Operation, amount: Lane) -> None:
        """Note a scalar divisor of 0, or a shift by as many bits as there are."""
        if not isinstance(amount, Uniform) or self._guarded_by_select(op):
            return
        kind, text, predicate, limit = _limit(op)
        if amount.known is not None:
            known = amount.known % 2 ** types.bits(amount.element)
            if known == 0 if kind == layout.DIVISION else known >= limit:
                self._record(self._site(op, layout.OPERATION, text), kind)
            return
        wrong = self.b.emit(f"icmp {predicate} {types.llvm(amount.element)} {amount.ssa}, {limit}")
        self._note_if(wrong, self._site(op, layout.OPERATION, text), kind)

    def _values(self, name: str, index: Index, mask: Lane | None) -> None:
        """Note what an active lane of a stored value was divided or shifted by."""
        b = self.b
        for op in self._elementwise(name):
            amount = self.lane(op.operands[1], index)
            if isinstance(amount, Uniform):
                continue
            kind, text, predicate, limit = _limit(op)
            t = op.operand_types[1].element
            wrong = b.emit(f"icmp {predicate} {b.type(t)} {registers(b, amount)}, {b.constant(limit, t)}")
            if mask is not None:
                wrong = b.op("and", "i1", wrong, registers(b, mask))
            self._note_if(memory.any_lane(b, wrong), self._site(op, layout.OPERATION, text), kind)

    def _elementwise(self, name: str) -> Iterator[Operation]:
        """The divisions and shifts that a lazy tensor is made of, element by element, past no choice."""
        todo, seen = [name], set()
        while todo:
            value = self.env.get(todo.pop())
            if not isinstance(value, Lazy) or id(value.op) in seen or value.op.name in SOURCES:
                continue
            seen.add(id(value.op))
            if value.op.name in ("tt.load", "arith.select"):
                continue
            if value.op.name in _DIVISIONS or value.op.name in _SHIFTS:
                yield value.op
            todo += value.op.operands

    def _guarded_by_select(self, op: Operation) -> bool:
        users = self.users.get(op.result, ())
        return bool(users) and all(user.name == "arith.select" for user in users)

    # Offsets that wrap.

    def _wraps(self, op: Operation, operands: Sequence[Lane]) -> None:
        """Note a scalar of 32 bits that wraps, of which addresses or masks are made."""
        x, y = operands
        if not isinstance(x, Uniform) or not isinstance(y, Uniform) or (x.known is not None and y.known is not None):
            return
        text = f"a {_WORDS[op.name]} of 32-bit integers wraps, and addresses or masks are made of it"
        self._note_if(self._overflow(op, operands), self._site(op, layout.OPERATION, text), layout.OVERFLOW)

    def _overflow(self, op: Operation, operands: Sequence[Lane]) -> str:
        """Whether an operation on 32 bits wraps, for each lane."""
        b = self.b
        kind, truth = b.type("i32"), b.type("i1")
        name = f"llvm.{_SUMS[op.name]}.with.overflow.{b.suffix('i32')}"
        b.declare(name, f"{{ {kind}, {truth} }}", f"{kind}, {kind}")
        x, y = (registers(b, operand) for operand in operands)
        both = b.compute(f"call {{ {kind}, {truth} }} @{name}({kind} {x}, {kind} {y})")
        return b.compute(f"extractvalue {{ {kind}, {truth} }} {both}, 1")

    def _explained(self, op: Operation, site: int, index: Index, held: str, kept: str) -> None:
        """Note of the lanes of an access that may not go on that their offset has wrapped, where it has."""
        b = self.b
        memo = dict(self._memo)
        flags = list(self._overflows(op.operands[0], index))
        if flags:
            wrong = b.op("and", "i1", held, b.op("xor", "i1", kept, "splat (i1 true)"))
            wrapped = flags[0]
            for flag in flags[1:]:
                wrapped = b.op("or", "i1", wrapped, flag)
            self._note_if(memory.any_lane(b, b.op("and", "i1", wrong, wrapped)), site, layout.OVERFLOW)
        self._memo = memo

    def _overflows(self, name: str, index: Index) -> Iterator[str]:
        """For each operation on 32 bits that an address is made of, whether it wraps, for each lane."""
        b = self.b
        value = self.env.get(name)
        while isinstance(value, Affine):
            value = self.env.get(value.start)
        if not isinstance(value, Lazy):
            return
        op = value.op
        if op.name in SOURCES and op.operands:
            there, width = SOURCES[op.name](self, op, index, b.width)
            if width not in (0, b.width):
                return
            with b.lanes(width):
                found = list(self._overflows(op.operands[0], there))
            yield from (flag if width == b.width else b.splat("i1", flag) for flag in found)
        elif op.name in ("tt.addptr", "arith.extsi") or op.name in _SUMS:
            for operand in op.operands:
                yield from self._overflows(operand, index)
            if op.name in _SUMS and op.type.element == "i32":
                yield self._overflow(op, [self.lane(operand, index) for operand in op.operands])

    def _counts(self, name: str) -> bool:
        """Whether a number ends in an address, in the mask of an access, or as a bound of a loop."""
        found = self._counting.get(name)
        if found is None:
            self._counting[name] = False
            found = self._counting[name] = any(self._counts_for(user, name) for user in self.users.get(name, ()))
        return found

    def _counts_for(self, user: Operation, name: str) -> bool:
        if user.name == "tt.addptr":
            return user.operands[1] == name
        if user.name == "scf.for":
            return name in user.operands[:3]
        if user.name == "arith.cmpi":
            return not self._loaded(name) and self._masks(user.result)
        return user.name in _LINEAR and self._counts(user.result)

    def _masks(self, name: str) -> bool:
        for user in self.users.get(name, ()):
            place = _MASKED.get(user.name)
            if place is not None and user.operands[place:] and user.operands[-1 if place == 2 else 1] == name:
                return True
            if user.name in _LOGICAL and self._masks(user.result):
                return True
        return False

    def _loaded(self, name: str) -> bool:
        """Whether a number is made of what was loaded: data, which may wrap."""
        todo, seen = [name], set()
        while todo:
            op = self.definitions.get(todo.pop())
            if op is None or id(op) in seen:
                continue
            seen.add(id(op))
            if op.name == "tt.load":
                return True
            todo += op.operands
        return False

    # Notes.

    def _note_if(self, wrong: str, site: int, kind: int) -> None:
        """Note a fault where a scalar truth value holds."""
        b = self.b
        bad, after = b.label(), b.label()
        b.branch(wrong, bad, after)
        b.start(bad)
        self._record(site, kind)
        b.jump(after)
        b.start(after)

    def _record(self, site: int, kind: int) -> None:
        numbers = f"i64 {site}, i64 {kind}, i64 %program, i64 0, i64 0"
        self.b.do(f"call void @sanitize.record(ptr %state, {numbers}, ptr null)")


def _limit(op: Operation) -> tuple[int, str, str, int]:
    """Kind of fault, words, and what the second operand must not be: an icmp's predicate and its right side."""
    if op.name in _DIVISIONS:
        return layout.DIVISION, "an integer is divided by 0", "eq", 0
    bits = types.bits(op.result_types[0].element)
    return layout.SHIFTED, f"{bits} bits are shifted by {bits} or more", "uge", bits
