"""Loads and stores of lanes: contiguous as one vector, one address for all as a scalar, others as gather or scatter.

A pointer whose offset is a ramp of step 1 is a vector load or store, masked unless the mask is constant true. Where
offsets are arbitrary, as after a convolution's division, they are compared with a ramp at run time.
"""

from collections.abc import Callable

from gradlab.kernels.cpu import lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Pointer, Ramp, Uniform, Vector, registers

# Bytes of a cache line, and of the smallest page: a page is readable as a whole or not at all.
LINE = 64
PAGE = 4096


def load(b: Emitter, p: Lane, mask: Lane | None, other: Lane | None) -> Lane:
    """The elements that the lanes of `p` point to; masked-off lanes read nothing and give `other`, or 0."""
    element = types.pointee(p.element)
    mask = _unless_known(mask)
    if isinstance(mask, Uniform) and mask.known == 0:
        return other if other is not None else lanes.constant(0, element)
    if element == "i1":
        # A truth value is a byte in memory.
        byte = load(b, _as_bytes(p), mask, None if other is None else _as_byte(b, other))
        with b.lanes(0 if lanes.is_scalar(byte) else b.width):
            zero = b.constant(0, "i8")
            return lanes.made(b, b.emit(f"icmp ne {b.type('i8')} {registers(b, byte)}, {zero}"), "i1")
    if lanes.is_scalar(p) and (mask is None or isinstance(mask, Uniform)):
        with b.lanes(0):
            if other is None or lanes.is_scalar(other):
                return _load_scalar(b, p, mask, other)
    if isinstance(p, Pointer) and p.offset is None and b.width:
        return _load_one_for_all(b, p, mask, other)
    if not b.width:
        return _load_scalar(b, p, mask, other)
    rest = registers(b, other) if other is not None else "zeroinitializer"
    held = registers(b, mask) if mask is not None else None
    if neighbours(p):
        return Vector(_load_vector(b, _base(p), held, rest, element), element)
    if isinstance(p, Pointer) and isinstance(p.offset, Vector):
        return Vector(
            _either(
                b,
                p,
                held,
                element,
                lambda base: _load_vector(b, base, held, rest, element),
                lambda: _gather(b, lanes.addresses(b, p), held, rest, element),
            ),
            element,
        )
    return Vector(_gather(b, registers(b, p), held, rest, element), element)


def store(b: Emitter, p: Lane, value: Lane, mask: Lane | None, test_full: bool = True) -> None:
    """Store the lanes of `value` to the addresses in `p`; masked-off lanes store nothing.

    Args:
        test_full: whether to test at run time if no lane is masked off, where masked stores are slow.
    """
    element = types.pointee(p.element)
    mask = _unless_known(mask)
    if isinstance(mask, Uniform) and mask.known == 0:
        return
    if element == "i1":
        store(b, _as_bytes(p), _as_byte(b, value), mask)
        return
    if not b.width or (lanes.is_scalar(p) and lanes.is_scalar(value) and (mask is None or isinstance(mask, Uniform))):
        with b.lanes(0):
            _store_scalar(b, p, value, mask)
        return
    held = registers(b, mask) if mask is not None else None
    stored = registers(b, value)
    if neighbours(p):
        _store_vector(b, _base(p), stored, held, element, test_full)
        return
    if isinstance(p, Pointer) and isinstance(p.offset, Vector):
        _either(
            b,
            p,
            held,
            None,
            lambda base: _store_vector(b, base, stored, held, element),
            lambda: _scatter(b, lanes.addresses(b, p), stored, held, element),
        )
        return
    _scatter(b, registers(b, p), stored, held, element)


def any_lane(b: Emitter, mask: str) -> str:
    """Whether a truth value holds in some lane, as a scalar."""
    if not b.width:
        return mask
    word = b.emit(f"bitcast {b.type('i1')} {mask} to i{b.width}")
    return b.emit(f"icmp ne i{b.width} {word}, 0")


def every_lane(b: Emitter, mask: str) -> str:
    """Whether a truth value holds in every lane, as a scalar."""
    if not b.width:
        return mask
    word = b.emit(f"bitcast {b.type('i1')} {mask} to i{b.width}")
    return b.emit(f"icmp eq i{b.width} {word}, -1")


def _unless_known(mask: Lane | None) -> Lane | None:
    return None if isinstance(mask, Uniform) and mask.known == 1 else mask


def _as_bytes(p: Lane) -> Lane:
    return p._replace(element="*i8")


def _as_byte(b: Emitter, value: Lane) -> Lane:
    with b.lanes(0 if lanes.is_scalar(value) else b.width):
        return lanes.made(b, b.convert("zext", "i1", "i8", registers(b, value)), "i8")


def neighbours(p: Lane) -> bool:
    """Whether lanes point to neighbouring elements, the first at the pointer's base."""
    return isinstance(p, Pointer) and isinstance(p.offset, Ramp) and p.offset.step == 1 and p.offset.base.known == 0


def _base(p: Lane) -> str:
    if isinstance(p, Pointer):
        return p.base
    assert isinstance(p, Uniform | Vector)
    return p.ssa


def _load_scalar(b: Emitter, p: Lane, mask: Lane | None, other: Lane | None) -> Lane:
    element = types.pointee(p.element)
    kind, align = types.llvm(element), types.size(element)
    if mask is None:
        return lanes.made(b, b.read(f"load {kind}, ptr {_base(p)}, align {align}"), element)
    rest = registers(b, other) if other is not None else types.constant(0, element)
    held = registers(b, mask)
    if align <= 8:
        # A masked-off load reads the kernel's first argument instead: no branch, and the load can be hoisted.
        address = b.select(held, "ptr", _base(p), "%args")
        value = b.read(f"load {kind}, ptr {address}, align {align}", anywhere=True)
        return lanes.made(b, b.select(held, element, value, rest), element)
    read, after, before = b.label(), b.label(), b.block
    b.branch(held, read, after)
    b.start(read)
    value = b.emit(f"load {kind}, ptr {_base(p)}, align {align}")
    b.jump(after)
    b.start(after)
    return lanes.made(b, b.emit(f"phi {kind} [ {value}, %{read} ], [ {rest}, %{before} ]"), element)


def _store_scalar(b: Emitter, p: Lane, value: Lane, mask: Lane | None) -> None:
    element = types.pointee(p.element)
    text = f"store {types.llvm(element)} {registers(b, value)}, ptr {_base(p)}, align {types.size(element)}"
    if mask is None:
        b.do(text)
        return
    write, after = b.label(), b.label()
    b.branch(registers(b, mask), write, after)
    b.start(write)
    b.do(text)
    b.jump(after)
    b.start(after)


def _load_one_for_all(b: Emitter, p: Pointer, mask: Lane | None, other: Lane | None) -> Lane:
    """A load of one address for lanes with a mask: read if any lane is active."""
    element = types.pointee(p.element)
    held = registers(b, mask) if mask is not None else None
    wanted: Lane | None = None if held is None else Uniform(any_lane(b, held), "i1")
    rest = registers(b, other) if other is not None else "zeroinitializer"
    with b.lanes(0):
        one = _load_scalar(b, p, wanted, None)
    if held is None:
        return one
    return Vector(b.select(held, element, registers(b, one), rest), element)


def _load_vector(b: Emitter, base: str, mask: str | None, rest: str, element: str) -> str:
    kind, align = b.type(element), types.size(element)
    if mask is None:
        return b.read(f"load {kind}, ptr {base}, align {align}")
    truth = b.type("i1")
    if align < 4 and b.vector_bits == 256:
        # AVX2 has no masked load of elements this narrow.
        def at_once() -> str:
            return b.select(mask, element, b.emit(f"load {kind}, ptr {base}, align {align}"), rest)

        def gathered() -> str:
            return _gather_words(b, lanes.addresses(b, _ramp_from(base, element)), mask, rest, element)

        return b.once(
            f"{kind} {base} {mask} {rest}",
            lambda: _if_else(b, _readable(b, base, mask, b.width * align), element, at_once, gathered),
        )
    name = f"llvm.masked.load.{b.suffix(element)}.p0"
    b.declare(name, kind, f"ptr, i32, {truth}, {kind}")
    return b.read(f"call {kind} @{name}(ptr {base}, i32 {align}, {truth} {mask}, {kind} {rest})")


def _store_vector(b: Emitter, base: str, value: str, mask: str | None, element: str, test_full: bool = True) -> str:
    kind, align = b.type(element), types.size(element)
    if mask is None:
        b.do(f"store {kind} {value}, ptr {base}, align {align}")
        return ""

    def parts() -> str:
        half = b.width // 2
        for first in (0, half):
            places = f"<{half} x i32> {b.vector('i32', range(first, first + half))}"
            part, live = (
                b.emit(f"shufflevector {t} {x}, {t} poison, {places}") for t, x in ((kind, value), (b.type("i1"), mask))
            )
            with b.lanes(0):
                there = b.emit(f"getelementptr i8, ptr {base}, i64 {first * align}")
            with b.lanes(half):
                _store_vector(b, there, part, live, element, test_full)
        return ""

    def masked() -> str:
        if b.width * types.bits(element) > b.vector_bits:
            return parts()
        if b.vector_bits != 512 and test_full:
            return _if_else(b, _is_head(b, mask), None, lambda: _store_head(b, base, value, mask, element), one_by_one)
        return one_by_one()

    def one_by_one() -> str:
        truth = b.type("i1")
        name = f"llvm.masked.store.{b.suffix(element)}.p0"
        b.declare(name, "void", f"{kind}, ptr, i32, {truth}")
        b.do(f"call void @{name}({kind} {value}, ptr {base}, i32 {align}, {truth} {mask})")
        return ""

    if b.vector_bits == 512 or not test_full:
        return masked()
    # Without mask registers a masked store is slow, or one store a lane; only the last vector of a row needs one.
    return _if_all_lanes(b, mask, None, lambda: _store_vector(b, base, value, None, element), masked)


def _readable(b: Emitter, base: str, mask: str, size: int) -> str:
    """Whether a full vector is readable though lanes are masked off: an active lane is in the same page."""
    active = any_lane(b, mask)
    with b.lanes(0):
        place = b.op("and", "i64", b.emit(f"ptrtoint ptr {base} to i64"), str(PAGE - 1))
        return b.op("and", "i1", active, b.emit(f"icmp ule i64 {place}, {PAGE - size}"))


def _is_head(b: Emitter, mask: str) -> str:
    """Whether the active lanes are the first ones."""
    kind = f"i{b.width}"
    word = b.emit(f"bitcast {b.type('i1')} {mask} to {kind}")
    next_ = b.emit(f"add {kind} {word}, 1")
    return b.emit(f"icmp eq {kind} {b.emit(f'and {kind} {word}, {next_}')}, 0")


def _store_head(b: Emitter, base: str, value: str, mask: str, element: str) -> str:
    """Store the active lanes, which are the first ones: by halves of the vector, down to one lane."""
    scalar, width, bits = types.in_memory(element), b.width, f"i{b.width}"
    word = b.emit(f"bitcast {b.type('i1')} {mask} to {bits}")
    size = width // 2
    while size:
        kind, half = f"<{2 * size} x {scalar}>", f"<{size} x {scalar}>"
        low, high = (
            b.emit(
                f"shufflevector {kind} {value}, {kind} poison, <{size} x i32> {b.vector('i32', range(at, at + size))}"
            )
            for at in (0, size)
        )
        write, after, before = b.label(), b.label(), b.block
        b.branch(b.emit(f"trunc {bits} {b.emit(f'lshr {bits} {word}, {size - 1}')} to i1"), write, after)
        b.start(write)
        with b.branch_scope():
            b.do(f"store {half} {low}, ptr {base}, align {types.size(element)}")
            further = b.emit(f"getelementptr i8, ptr {base}, i64 {size * types.size(element)}")
            rest = b.emit(f"lshr {bits} {word}, {size}")
        b.jump(after)
        b.start(after)
        value, base, word = (
            b.emit(f"phi {t} [ {x}, %{write} ], [ {y}, %{before} ]")
            for t, x, y in ((half, high, low), ("ptr", further, base), (bits, rest, word))
        )
        size //= 2
    return ""


def _ramp_from(base: str, element: str) -> Pointer:
    return Pointer(base, Ramp(lanes.known(0, "i64"), 1, "i64"), "*" + element)


def _gather_words(b: Emitter, addresses: str, mask: str | None, rest: str, element: str) -> str:
    """Gather elements of one or two bytes as the aligned 32-bit words around them: there is no narrower gather."""
    narrow = f"i{types.bits(element)}"
    address = b.emit(f"ptrtoint <{b.width} x ptr> {addresses} to {b.type('i64')}")
    aligned = b.op("and", "i64", address, b.constant(-4, "i64"))
    around = b.emit(f"inttoptr {b.type('i64')} {aligned} to <{b.width} x ptr>")
    word = _gather(b, around, mask, "zeroinitializer", "i32")
    # Little-endian: an element's bits begin at 8 times its byte in the word.
    place = b.op("and", "i32", b.convert("trunc", "i64", "i32", address), b.constant(3, "i32"))
    bits = b.op("lshr", "i32", word, b.op("shl", "i32", place, b.constant(3, "i32")))
    found = b.bitcast(narrow, element, b.convert("trunc", "i32", narrow, bits))
    return found if mask is None else b.select(mask, element, found, rest)


def _gather(b: Emitter, addresses: str, mask: str | None, rest: str, element: str) -> str:
    if types.size(element) < 4 and b.vector_bits >= 256:
        return _gather_words(b, addresses, mask, rest, element)
    kind, pointers, truth = b.type(element), f"<{b.width} x ptr>", b.type("i1")
    name = f"llvm.masked.gather.{b.suffix(element)}.v{b.width}p0"
    b.declare(name, kind, f"{pointers}, i32, {truth}, {kind}")
    held = mask or "splat (i1 true)"
    return b.read(
        f"call {kind} @{name}({pointers} {addresses}, i32 {types.size(element)}, {truth} {held}, {kind} {rest})"
    )


def _scatter(b: Emitter, addresses: str, value: str, mask: str | None, element: str) -> str:
    kind, pointers, truth = b.type(element), f"<{b.width} x ptr>", b.type("i1")
    name = f"llvm.masked.scatter.{b.suffix(element)}.v{b.width}p0"
    b.declare(name, "void", f"{kind}, {pointers}, i32, {truth}")
    held = mask or "splat (i1 true)"
    b.do(f"call void @{name}({kind} {value}, {pointers} {addresses}, i32 {types.size(element)}, {truth} {held})")
    return ""


def _either(
    b: Emitter,
    p: Pointer,
    mask: str | None,
    element: str | None,
    contiguous: Callable[[str], str],
    lane_by_lane: Callable[[], str],
) -> str:
    """`contiguous(base)` if the active lanes turn out to be so, else `lane_by_lane()`; their value, if any."""
    assert isinstance(p.offset, Vector)
    offset, t = p.offset.ssa, p.offset.element
    kind = types.in_memory(types.pointee(p.element))
    first = b.emit(f"extractelement {b.type(t)} {offset}, i64 0")
    wanted = b.op("add", t, b.splat(t, first), b.iota(t))
    same = b.emit(f"icmp eq {b.type(t)} {wanted}, {offset}")
    if mask is not None:
        same = b.op("or", "i1", same, b.op("xor", "i1", mask, "splat (i1 true)"))

    def neighbours() -> str:
        base = b.emit(f"getelementptr {kind}, ptr {p.base}, {types.llvm(t)} {first}")
        if b.across:
            _prefetch(b, base, element is None)
        return contiguous(base)

    return _if_all_lanes(b, same, element, neighbours, lane_by_lane)


def _prefetch(b: Emitter, base: str, written: bool) -> None:
    """Prefetch the cache line after an address, which the next iteration of the outer loop reads.

    The inner loop goes down rows that lie far apart, one vector each: there is no sequential stream for the CPU's own
    prefetcher to detect.
    """
    b.declare("llvm.prefetch.p0", "void", "ptr, i32, i32, i32")
    with b.lanes(0):
        ahead = b.emit(f"getelementptr i8, ptr {base}, i64 {LINE}")
        b.do(f"call void @llvm.prefetch.p0(ptr {ahead}, i32 {int(written)}, i32 3, i32 1)")


def _if_all_lanes(b: Emitter, mask: str, element: str | None, yes: Callable[[], str], no: Callable[[], str]) -> str:
    """`yes()` if a truth value holds in every lane, else `no()`; their value, if any."""
    return _if_else(b, every_lane(b, mask), element, yes, no)


def _if_else(b: Emitter, condition: str, element: str | None, yes: Callable[[], str], no: Callable[[], str]) -> str:
    """A branch on a scalar truth value; the value of the side taken, if any."""
    one, each, after = b.label(), b.label(), b.label()
    b.branch(condition, one, each)
    b.start(one)
    with b.branch_scope():
        x = yes()
    from_one = b.block
    b.jump(after)
    b.start(each)
    with b.branch_scope():
        y = no()
    from_each = b.block
    b.jump(after)
    b.start(after)
    if element is None:
        return ""
    return b.emit(f"phi {b.type(element)} [ {x}, %{from_one} ], [ {y}, %{from_each} ]")
