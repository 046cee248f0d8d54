"""A kernel as LLVM IR that examines each of its accesses to memory: the same lowering, with a guard in front of each.

An access that lies within its argument as a whole, which most do, costs a subtraction, a comparison and a branch. Any
other is asked lane by lane; what may not be read or written is masked off, and the kernel goes on.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from gradlab.kernels.cpu import lanes, memory, sanitize_guard, sanitize_shadow, sanitize_vector, types
from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.lanes import Lane, Pointer, Ramp, Uniform, Vector, registers
from gradlab.kernels.cpu.lower import ATOMIC, Kernel, Lowered
from gradlab.kernels.cpu.sanitize_operations import Operations
from gradlab.kernels.cpu.sanitize_origins import Origins
from gradlab.kernels.cpu.sanitize_own import own_loads
from gradlab.kernels.cpu.sanitize_shadow import Access
from gradlab.kernels.cpu.ttir import Function, Module, Operation
from gradlab.kernels.cpu.values import Index, Lazy, Value

# Where an access stands: what it does, file ("" is the kernel's own), line, callers, number of the argument or -1,
# element or words for an operation that is no access, whether it is masked.
Site = tuple[int, str, int, list[tuple[str, int]], int, str, bool]


@dataclasses.dataclass
class _Extent:
    """What an access is held against, as names of LLVM: the extent's address, and its fast part, if it is known."""

    address: str
    low: str | None = None
    bytes: str | None = None


class Sanitized(Kernel, Operations):
    """A kernel whose accesses are guarded; programs run in order, in one thread."""

    # Where the access that is guarded stands in its tile.
    _place: Index = ()

    def __init__(self, module: Module, *args: Any) -> None:
        self._origins = Origins()
        self._sites: list[Site] = []
        self._numbers: dict[int, int] = {}
        self._ticks: dict[int, str] = {}
        functions = module.functions.values()
        self._atomics = any(op.name in ATOMIC for function in functions for op in function.walk())
        self._own: set[int] = set()
        own = set().union(*map(own_loads, functions))
        loads = [op for function in functions for op in function.walk() if op.name == "tt.load"]
        # Whether any load is noted, so that stores look for it.
        noted = [op for op in loads if self._atomics or id(op) not in own]
        self._readers = bool(noted)
        self._loaded_from = [op.operands[0] for op in noted]
        super().__init__(module, *args)
        self._arguments = {name: i for i, (name, _) in enumerate(self.kernel.arguments)}
        self.b.helpers.update(sanitize_guard.helpers())

    def learn(self, function: Function) -> None:
        """Note a function's names, and where its pointers come from."""
        super().learn(function)
        self._origins.learn(function)
        # What an atomic operation between a load and a store orders is told by the load itself.
        if not self._atomics:
            self._own |= own_loads(function)

    def inline(self, op: Operation) -> list[Value]:
        """The results of a call, whose arguments point to what the caller gives."""
        callee = self.module.functions[op.attributes["callee"]]
        for (name, _), given in zip(callee.arguments, op.operands, strict=True):
            self._origins.same(f"{name}@{self._calls + 1}", given)
        return super().inline(op)

    def lowered(self) -> Lowered:
        """The function, and where its accesses stand."""
        return dataclasses.replace(super().lowered(), ordered=True, sites=self._sites)

    def _text(self, head: list[str], body: list[str]) -> str:
        more = [
            f"  %state.at = getelementptr i64, ptr %report, i64 {layout.STATE}",
            "  %state = load ptr, ptr %state.at",
        ]
        for name, number in (
            ("epoch", layout.EPOCH),
            ("floor", layout.FLOOR),
            ("start", layout.START),
            ("starts", layout.STARTS),
        ):
            more.append(f"  %state.{name} = getelementptr i64, ptr %state, i64 {number}")
        more += ["  %epoch = load i64, ptr %state.epoch", "  %starts = load ptr, ptr %state.starts"]
        for i, (_, kind) in enumerate(self.kernel.arguments):
            if not types.is_pointer(kind.element):
                continue
            more.append(f"  %extent{i} = getelementptr i64, ptr %state, i64 {layout.ARGUMENTS + layout.EXTENT * i}")
            for name, word in (("low", layout.FAST_LOW), ("bytes", layout.FAST_BYTES)):
                more.append(f"  %{name}{i}.at = getelementptr i64, ptr %extent{i}, i64 {word}")
                more.append(f"  %{name}{i} = load i64, ptr %{name}{i}.at")
        began = [
            "  %ticked = load i64, ptr %state",
            "  %start = add i64 %ticked, 1",
            "  store i64 %start, ptr %state",
            "  store i64 %start, ptr %state.start",
            "  store i64 %epoch, ptr %state.floor",
            "  %start.at = getelementptr i32, ptr %starts, i64 %program",
            "  %start.short = trunc i64 %start to i32",
            "  store i32 %start.short, ptr %start.at",
        ]
        return super()._text([*head, *more], [*began, *body])

    # Accesses.

    def _evaluate(self, value: Lazy, index: Index) -> Lane:
        before, self._place = self._place, index
        found = super()._evaluate(value, index)
        self._place = before
        return found

    def load(self, op: Operation, operands: list[Lane]) -> Lane:
        """A load of what lies within bounds; the other lanes are masked off."""
        p, mask, other = (*operands, None, None)[:3]
        assert p is not None
        given = p

        def access(mask: Lane | None) -> str:
            return registers(self.b, memory.load(self.b, given, mask, other))

        if self._straight(p, mask):
            key = f"guarded load {self._site(op, layout.LOAD)} {p} {mask} {other}"
            found = self.b.once(key, lambda: self._many(op, layout.LOAD, given, mask, None, access))
            return Vector(found, types.pointee(p.element))
        return memory.load(self.b, p, self._guarded(op, layout.LOAD, p, mask), other)

    def store(
        self, op: Operation, index: Index, p: Lane, value: Lane, mask: Lane | None, test_full: bool = True
    ) -> None:
        """A store within bounds."""
        self._place = index
        self._values(op.operands[1], index, mask)

        def access(mask: Lane | None) -> str:
            memory.store(self.b, p, value, mask, test_full)
            return ""

        if self._straight(p, mask):
            self._many(op, layout.STORE, p, mask, value, access)
        else:
            access(self._guarded(op, layout.STORE, p, mask, value))

    def stores(self, group: Iterable[Operation]) -> None:
        """Stores come whose elements are stored at one moment."""
        b = self.b
        with b.lanes(0):
            for op in group:
                before = b.emit("load i64, ptr %state")
                tick = b.emit(f"add i64 {before}, 1")
                b.do(f"store i64 {tick}, ptr %state")
                self._ticks[id(op)] = tick

    def atomic(self, op: Operation, index: Index, p: Lane, mask: Lane | None) -> Lane | None:
        """The mask of an atomic operation within bounds."""
        self._place = index
        return self._guarded(op, layout.ATOMIC, p, mask)

    def after_atomic(self, op: Operation) -> None:
        """An atomic operation whose result is looked at orders what follows it behind programs that came before."""
        if self.users.get(op.result) and "relaxed" not in str(op.attributes.get("semantics", "")):
            self.b.do("store i64 %start, ptr %state.floor")

    # Guards.

    def _guarded(
        self, op: Operation, access: int, p: Lane, mask: Lane | None, value: Lane | None = None
    ) -> Lane | None:
        """The mask of the lanes that may go on."""
        b = self.b
        if isinstance(mask, Uniform) and mask.known is not None:
            if mask.known == 0:
                return mask
            mask = None
        one = lanes.is_scalar(p) and (value is None or lanes.is_scalar(value))
        if not b.width or one:
            with b.lanes(0 if mask is None or lanes.is_scalar(mask) or not b.width else b.width):
                live = memory.any_lane(b, registers(b, mask)) if mask is not None else None
            with b.lanes(0):
                fine = self._one(op, access, p, live, value)
            if mask is None or lanes.is_scalar(mask) or not b.width:
                return Uniform(fine, "i1")
            return Vector(b.op("and", "i1", registers(b, mask), b.splat("i1", fine)), "i1")
        held = registers(b, mask) if mask is not None else "splat (i1 true)"
        if access == layout.LOAD:
            # A value is not known twice by one name, so that this name stands for the whole access.
            key = f"guard {self._site(op, access)} {p} {held}"
            return Vector(b.once(key, lambda: self._many(op, access, p, mask, None)), "i1")
        return Vector(self._many(op, access, p, mask, value), "i1")

    def _straight(self, p: Lane, mask: Lane | None) -> bool:
        """Whether an access is a vector of neighbours, some of which may be active."""
        if not self.b.width or not memory.neighbours(p) or types.pointee(p.element) == "i1":
            return False
        return not isinstance(mask, Uniform) or mask.known != 0

    def _one(
        self,
        op: Operation,
        access: int,
        p: Lane,
        live: str | None,
        value: Lane | None,
    ) -> str:
        """Whether a single access may go on."""
        b = self.b
        site, size, extent = self._held_against(op, access, p)
        assert isinstance(p, Pointer | Uniform | Vector)
        base = p.base if isinstance(p, Pointer) else p.ssa
        at = b.emit(f"ptrtoint ptr {base} to i64")
        fine = self._fast(extent, at, size)
        if live is not None:
            fine = b.op("or", "i1", fine, b.op("xor", "i1", live, "true"))
        word = self._bits(value) if value is not None else "0"
        given = self._given(op, extent, f"i64 {at}", size, access, site)
        yes = "true" if live is None else live
        return self._asked(fine, yes, "i1", lambda: b.emit(f"call i1 @sanitize.lane({given}, i64 {word})"))

    def _many(
        self,
        op: Operation,
        access: int,
        p: Lane,
        mask: Lane | None,
        value: Lane | None,
        go: Callable[[Lane | None], str] | None = None,
    ) -> str:
        """Which lanes of an access may go on; with `go`, what it gives for the mask that is left."""
        b = self.b
        site, size, extent = self._held_against(op, access, p)
        if isinstance(mask, Uniform) and mask.known is not None:
            mask = None
        held = registers(b, mask) if mask is not None else "splat (i1 true)"
        word, truth, pointers = b.type("i64"), b.type("i1"), f"<{b.width} x ptr>"
        first, at = None, None
        straight = isinstance(p, Pointer) and isinstance(p.offset, Ramp) and p.offset.step == 1
        if straight and p.offset.base.known == 0:  # type: ignore[union-attr]
            assert isinstance(p, Pointer)
            whole = b.width * size
            with b.lanes(0):
                first = b.emit(f"ptrtoint ptr {p.base} to i64")
                fine = self._fast(extent, first, whole)

            def ats() -> str:
                steps = b.vector("i64", [i * size for i in range(b.width)])
                return b.op("add", "i64", b.splat("i64", first), steps)
        else:
            at = b.emit(f"ptrtoint {pointers} {registers(b, p)} to {word}")
            if extent.low is None:
                fine = "false"
            else:
                offset = b.op("sub", "i64", at, b.splat("i64", extent.low))
                with b.lanes(0):
                    last = b.op("sub", "i64", str(extent.bytes), str(size))
                wrong = b.emit(f"icmp ugt {word} {offset}, {b.splat('i64', last)}")
                some = memory.any_lane(b, b.op("and", "i1", wrong, held))
                with b.lanes(0):
                    fine = b.op("xor", "i1", some, "true")

            def ats() -> str:
                return at

        def asked() -> str:
            name, text = sanitize_vector.lanes(b.width, self._width())
            b.helpers[name] = text
            values = self._bits(value) if value is not None else "zeroinitializer"
            given = self._given(op, extent, f"{word} {ats()}, {truth} {held}", size, access, site)
            kept = b.emit(f"call {truth} @{name}({given}, {word} {values})")
            self._explained(op, site, self._place, held, kept)
            return kept

        if extent.low is None or access == layout.ATOMIC:
            left = self._asked(fine, held, truth, asked)
            return left if go is None else go(Vector(left, "i1"))
        tick = self._ticks.get(id(op), "0")
        readers = id(op) not in self._own and (access == layout.LOAD or self._readers)
        shadowed = Access(access, extent.address, size, held, tick, first, at, self._atomics, readers)
        if go is None:
            return self._asked(fine, held, truth, lambda: sanitize_shadow.examined(b, shadowed, asked))
        # One access for lanes that may all go on, without a mask where it has none, and another for the others.
        fast, slow, after = b.label(), b.label(), b.label()
        b.branch(fine, fast, slow)
        b.start(slow)
        with b.branch_scope():
            other = go(Vector(sanitize_shadow.examined(b, shadowed, asked, fast), "i1"))
        from_slow = b.block
        b.jump(after)
        b.start(fast)
        with b.branch_scope():
            found = go(mask)
        from_fast = b.block
        b.jump(after)
        b.start(after)
        if not found:
            return ""
        kind = b.type(types.pointee(p.element))
        return b.emit(f"phi {kind} [ {found}, %{from_fast} ], [ {other}, %{from_slow} ]")

    def _held_against(self, op: Operation, access: int, p: Lane) -> tuple[int, int, _Extent]:
        """An access' site, the bytes of its element, and the extent of its address."""
        with self.b.lanes(0):
            return self._site(op, access), types.size(types.pointee(p.element)), self._extent(op.operands[0])

    def _asked(self, fine: str, held: str, kind: str, ask: Any) -> str:
        """The mask as it is where an access is fine, else what `ask()` leaves of it."""
        b = self.b
        before, slow, after = b.block, b.label(), b.label()
        b.branch(fine, after, slow)
        b.start(slow)
        with b.branch_scope():
            found = ask()
        end = b.block
        b.jump(after)
        b.start(after)
        return b.emit(f"phi {kind} [ {held}, %{before} ], [ {found}, %{end} ]")

    def _fast(self, extent: _Extent, at: str, size: int) -> str:
        """Whether so many bytes from an address on lie in the fast part of an extent."""
        b = self.b
        if extent.low is None:
            return "false"
        offset = b.op("sub", "i64", at, extent.low)
        return b.emit(f"icmp ule i64 {offset}, {b.op('sub', 'i64', str(extent.bytes), str(size))}")

    def _given(self, op: Operation, extent: _Extent, at: str, size: int, access: int, site: int) -> str:
        tick = self._ticks.get(id(op), "0")
        numbers = f"i64 {size}, i64 {access}, i64 {site}, i64 %program, i64 {tick}"
        return f"ptr %state, ptr {extent.address}, {at}, {numbers}"

    def _bits(self, value: Lane) -> str:
        """A value's bits as words of 64."""
        b, element = self.b, value.element
        ssa = registers(b, value)
        if types.is_pointer(element):
            return b.emit(f"ptrtoint {b.type(element)} {ssa} to {b.type('i64')}")
        width = f"i{types.bits(element)}"
        return b.convert("zext", width, "i64", b.bitcast(element, width, ssa))

    def _extent(self, name: str) -> _Extent:
        """What an address is held against."""
        origins = self._origins.of(name)
        if len(origins) != 1:
            return _Extent("null")
        (origin,) = origins
        number = self._arguments.get(origin)
        if number is not None:
            return _Extent(f"%extent{number}", f"%low{number}", f"%bytes{number}")
        value = self.env.get(origin)
        if not isinstance(value, Pointer) or value.offset is not None:
            return _Extent("null")
        # An address out of memory: the host knows what tensor begins there.
        b = self.b
        word = b.emit(f"ptrtoint ptr {value.base} to i64")
        found = b.compute(f"call ptr @sanitize.find(ptr %state, i64 {word}, i64 {int(self._noted(origin))})")
        low, size = (
            b.compute(f"load i64, ptr {b.emit(f'getelementptr i64, ptr {found}, i64 {n}')}")
            for n in (layout.FAST_LOW, layout.FAST_BYTES)
        )
        return _Extent(found, low, size)

    def _noted(self, origin: str) -> bool:
        """Whether it may be noted who loads what an address out of memory leads to."""
        if self._atomics or len(self.module.functions) > 1:
            return True
        return any(origin in self._origins.of(name) for name in self._loaded_from)

    def _site(self, op: Operation, access: int, text: str = "") -> int:
        """The number of the place of an access, or of another operation with words for it."""
        found = self._numbers.get(id(op))
        if found is None:
            place = self.module.where(op.location)
            if access == layout.OPERATION:
                found = self._numbers[id(op)] = len(self._sites)
                callers = [(self._file(file), line) for file, line in place.callers]
                self._sites.append((access, self._file(place.file), place.line, callers, -1, text, False))
                return found
            if id(op) in self._own:
                access = layout.OWN
            origins = self._origins.of(op.operands[0])
            arguments = [self._arguments[name] for name in origins if name in self._arguments]
            number = arguments[0] if len(origins) == len(arguments) == 1 else -1
            masked = len(op.operands) > (1 if op.name == "tt.load" else 2) and op.name != "tt.atomic_cas"
            element = types.pointee(op.operand_types[0].element)
            found = self._numbers[id(op)] = len(self._sites)
            callers = [(self._file(file), line) for file, line in place.callers]
            self._sites.append((access, self._file(place.file), place.line, callers, number, element, masked))
        return found

    def _file(self, name: str) -> str:
        """A file's name, "" for the kernel's own: a kernel in Triton's cache may have moved since it was compiled."""
        return "" if name == self.module.where(self.kernel.location).file else name

    def _width(self) -> str:
        bits = self.b.vector_bits
        return f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'
