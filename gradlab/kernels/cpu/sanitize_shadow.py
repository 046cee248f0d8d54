"""The shadow of a vector, looked at and brought up to date where nothing is wrong: a few instructions at each access.

Where something is, nothing has changed yet, and each lane is asked (`sanitize_guard`).
"""

import dataclasses
from collections.abc import Callable

from gradlab.kernels.cpu import memory
from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.emit import Emitter


@dataclasses.dataclass(frozen=True)
class Access:
    """An access of a vector, as names of LLVM.

    Attributes:
        kind: `sanitize_layout.LOAD` or `STORE`.
        extent: address of what it is held against.
        size: bytes of an element.
        held: its mask.
        tick: of a store.
        first: address of the first lane, where the others are its neighbours; else None.
        at: address of each lane, else.
        atomics: whether the kernel has atomic operations.
        readers: whether it is kept who loaded the elements.
    """

    kind: int
    extent: str
    size: int
    held: str
    tick: str
    first: str | None
    at: str | None
    atomics: bool
    readers: bool


def examined(b: Emitter, access: Access, ask: Callable[[], str], go_on: str | None = None) -> str:
    """The lanes that may go on: the mask as it is where nothing is wrong, else what `ask()` leaves of it.

    Args:
        go_on: the label of what follows where nothing is wrong; what follows here is then the other case alone.
    """
    truth = b.type("i1")
    shadow, slow = b.label(), b.label()
    after = go_on or b.label()
    extent = _Words(b, access)
    b.branch(extent.within(), shadow, slow)
    b.start(shadow)
    with b.branch_scope():
        writers = extent.entries("writers")
        readers = extent.entries("readers") if access.readers else ""
        writer = _read(b, access, writers)
        again = b.splat("i32", _short(b, access.tick)) if access.kind == layout.STORE else "zeroinitializer"
        wrong = b.op("or", "i1", _recent(b, access, writer), b.emit(f"icmp eq {b.type('i32')} {writer}, {again}"))
        if access.kind == layout.STORE and access.readers:
            wrong = b.op("or", "i1", wrong, _recent(b, access, _read(b, access, readers)))
        some = memory.any_lane(b, b.op("and", "i1", wrong, access.held))
        mark = b.label()
        b.branch(some, slow, mark)
        b.start(mark)
        if access.kind == layout.STORE:
            _mark_store(b, access, writers, writer, slow)
        elif access.readers:
            _mark_load(b, access, extent, readers)
    fine = b.block
    b.jump(after)
    b.start(slow)
    with b.branch_scope():
        left = ask()
    if go_on is not None:
        return left
    end = b.block
    b.jump(after)
    b.start(after)
    return b.emit(f"phi {truth} [ {access.held}, %{fine} ], [ {left}, %{end} ]")


class _Words:
    """The words of an extent, which do not change in a launch."""

    def __init__(self, b: Emitter, access: Access) -> None:
        self._b, self._access = b, access

    def word(self, number: int) -> str:
        """One word."""
        with self._b.lanes(0):
            at = self._b.emit(f"getelementptr i64, ptr {self._access.extent}, i64 {number}")
            return self._b.compute(f"load i64, ptr {at}")

    def within(self) -> str:
        """Whether all active lanes lie in the extent, and have one entry of a shadow each."""
        b, access = self._b, self._access
        low, size = self.word(layout.LOW), self.word(layout.BYTES)
        shift = access.size.bit_length() - 1
        with b.lanes(0):
            single = b.compute(f"icmp eq i64 {self.word(layout.DENSE)}, {shift}")
        if access.first is not None:
            # Where an extent is none for whole vectors, no address is near its beginning: one comparison is left.
            whole = b.width * access.size
            with b.lanes(0):
                most = b.compute(f"sub i64 {size}, {whole}")
                some = b.compute(f"and i1 {single}, {b.compute(f'icmp sge i64 {most}, 0')}")
                begin = b.compute(f"select i1 {some}, i64 {low}, i64 {layout.NOWHERE}")
                end = b.compute(f"select i1 {some}, i64 {most}, i64 0")
                return b.emit(f"icmp ule i64 {b.op('sub', 'i64', access.first, begin)}, {end}")
        offset = b.op("sub", "i64", str(access.at), b.splat("i64", low))
        with b.lanes(0):
            last = b.op("sub", "i64", size, str(access.size))
        outside = b.emit(f"icmp ugt {b.type('i64')} {offset}, {b.splat('i64', last)}")
        some = memory.any_lane(b, b.op("and", "i1", outside, access.held))
        with b.lanes(0):
            return b.op("and", "i1", single, b.op("xor", "i1", some, "true"))

    def entries(self, name: str) -> str:
        """Where a shadow's entries of the lanes are; those of the readers are the writers', where none are kept."""
        b, access = self._b, self._access
        base = self.word(layout.WRITERS)
        if name == "readers":
            with b.lanes(0):
                base = b.select(self.reads(), "i64", self.word(layout.READERS), base)
        low, shift = self.word(layout.LOW), access.size.bit_length() - 1
        if access.first is not None:
            with b.lanes(0):
                offset = b.op("sub", "i64", access.first, low)
                there = b.op("shl", "i64", b.op("ashr", "i64", offset, str(shift)), "2")
                return b.emit(f"inttoptr i64 {b.op('add', 'i64', base, there)} to ptr")
        offset = b.op("sub", "i64", str(access.at), b.splat("i64", low))
        element = b.op("ashr", "i64", offset, b.constant(shift, "i64"))
        place = b.op("add", "i64", b.splat("i64", base), b.op("shl", "i64", element, b.constant(2, "i64")))
        return b.emit(f"inttoptr {b.type('i64')} {place} to <{b.width} x ptr>")

    def reads(self) -> str:
        """Whether readers are kept."""
        with self._b.lanes(0):
            return self._b.emit(f"icmp ne i64 {self.word(layout.READERS)}, 0")


def _short(b: Emitter, word: str) -> str:
    with b.lanes(0):
        return b.emit(f"trunc i64 {word} to i32")


def _recent(b: Emitter, access: Access, entry: str) -> str:
    """Whether another program of this launch has left an entry, which nothing orders before this one."""
    kind = b.type("i32")
    with b.lanes(0):
        floor = b.emit("load i64, ptr %state.floor") if access.atomics else "%epoch"
        after = _short(b, b.op("add", "i64", floor, "1"))
        span = b.op("sub", "i32", _short(b, "%start"), after)
    if access.atomics:
        # Of an atomic operation the tick is negative.
        name = f"llvm.abs.{b.suffix('i32')}"
        b.declare(name, kind, f"{kind}, i1")
        entry = b.emit(f"call {kind} @{name}({kind} {entry}, i1 false)")
    since = b.op("sub", "i32", entry, b.splat("i32", after))
    if not access.atomics:
        return b.emit(f"icmp ult {kind} {since}, {b.splat('i32', span)}")
    # After a lock was taken, no program before counts.
    with b.lanes(0):
        some = b.emit(f"icmp sgt i32 {span}, 0")
    early = b.emit(f"icmp ult {kind} {since}, {b.splat('i32', span)}")
    return b.op("and", "i1", early, b.splat("i1", some))


def _read(b: Emitter, access: Access, entries: str) -> str:
    kind = b.type("i32")
    if access.first is not None:
        # Not by `read`: what a load gives here may change before the next.
        name = b.name()
        b.lines.append(f"  {name} = load {kind}, ptr {entries}, align 4")
        return name
    pointers, truth = f"<{b.width} x ptr>", b.type("i1")
    gather = f"llvm.masked.gather.{b.suffix('i32')}.v{b.width}p0"
    b.declare(gather, kind, f"{pointers}, i32, {truth}, {kind}")
    return b.emit(f"call {kind} @{gather}({pointers} {entries}, i32 4, {truth} {access.held}, {kind} zeroinitializer)")


def _write(b: Emitter, access: Access, entries: str, value: str, mask: str, before: str) -> None:
    kind, truth = b.type("i32"), b.type("i1")
    if access.first is not None:
        b.do(f"store {kind} {b.select(mask, 'i32', value, before)}, ptr {entries}, align 4")
        return
    pointers = f"<{b.width} x ptr>"
    scatter = f"llvm.masked.scatter.{b.suffix('i32')}.v{b.width}p0"
    b.declare(scatter, "void", f"{kind}, {pointers}, i32, {truth}")
    b.do(f"call void @{scatter}({kind} {value}, {pointers} {entries}, i32 4, {truth} {mask})")


def _mark_store(b: Emitter, access: Access, entries: str, before: str, slow: str) -> None:
    """Leave the store's tick; two lanes of one element are told by what one of them finds in place of its number."""
    if access.first is None:
        numbers = b.iota("i32")
        _write(b, access, entries, numbers, access.held, before)
        found = _read(b, access, entries)
        other = b.emit(f"icmp ne {b.type('i32')} {found}, {numbers}")
        some = memory.any_lane(b, b.op("and", "i1", other, access.held))
        back, go_on = b.label(), b.label()
        b.branch(some, back, go_on)
        b.start(back)
        _write(b, access, entries, before, access.held, before)
        b.jump(slow)
        b.start(go_on)
    tick = b.splat("i32", _short(b, access.tick))
    _write(b, access, entries, tick, access.held, before)


def _mark_load(b: Emitter, access: Access, extent: _Words, entries: str) -> None:
    """Leave this program's tick where none of this launch has loaded before."""
    note, done = b.label(), b.label()
    b.branch(extent.reads(), note, done)
    b.start(note)
    before = _read(b, access, entries)
    epoch, start = (b.splat("i32", _short(b, name)) for name in ("%epoch", "%start"))
    old = b.emit(f"icmp sle {b.type('i32')} {before}, {epoch}")
    _write(b, access, entries, start, b.op("and", "i1", old, access.held), before)
    b.jump(done)
    b.start(done)
