"""Loads and stores of lanes: neighbours as one vector, one address for all as a scalar, the rest lane by lane.

A pointer whose offset is a ramp of step 1 is a vector load or store, masked where its mask is not known to hold. Where
nothing is known about offsets, as after a convolution's division, they are compared with a ramp at run time.
"""

from collections.abc import Callable

from gradlab.kernels.cpu import lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Pointer, Ramp, Uniform, Vector, registers

# Bytes of a cache line, and of the smallest page: memory is readable by whole pages.
LINE = 64
PAGE = 4096


def load(b: Emitter, p: Lane, mask: Lane | None, other: Lane | None) -> Lane:
    """The elements that the lanes of `p` point to; where the mask does not hold `other`, or 0, and nothing is read."""
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
    if _neighbours(p):
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


def store(b: Emitter, p: Lane, value: Lane, mask: Lane | None, ask: bool = True) -> None:
    """Write the lanes of `value` where the lanes of `p` point to, and nothing where the mask does not hold.

    Args:
        ask: whether to ask at run time if the mask holds for all lanes, where masked stores are slow.
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
    if _neighbours(p):
        _store_vector(b, _base(p), stored, held, element, ask)
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


def _neighbours(p: Lane) -> bool:
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
        # Where nothing is to be read, the first argument is: no branch, and the same in front of a loop.
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
    """One address, and lanes that want what is there or not: read if one does."""
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
        # Narrower than a masked load can be.
        def whole() -> str:
            return b.select(mask, element, b.emit(f"load {kind}, ptr {base}, align {align}"), rest)

        def apart() -> str:
            return _gather_words(b, lanes.addresses(b, _ramp_from(base, element)), mask, rest, element)

        return b.once(
            f"{kind} {base} {mask} {rest}",
            lambda: _either_way(b, _readable(b, base, mask, b.width * align), element, whole, apart),
        )
    name = f"llvm.masked.load.{b.suffix(element)}.p0"
    b.declare(name, kind, f"ptr, i32, {truth}, {kind}")
    return b.read(f"call {kind} @{name}(ptr {base}, i32 {align}, {truth} {mask}, {kind} {rest})")


def _store_vector(b: Emitter, base: str, value: str, mask: str | None, element: str, ask: bool = True) -> str:
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
                _store_vector(b, there, part, live, element, ask)
        return ""

    def masked() -> str:
        if b.width * types.bits(element) > b.vector_bits:
            return parts()
        if b.vector_bits != 512 and ask:
            return _either_way(
                b, _is_head(b, mask), None, lambda: _store_head(b, base, value, mask, element), one_by_one
            )
        return one_by_one()

    def one_by_one() -> str:
        truth = b.type("i1")
        name = f"llvm.masked.store.{b.suffix(element)}.p0"
        b.declare(name, "void", f"{kind}, ptr, i32, {truth}")
        b.do(f"call void @{name}({kind} {value}, ptr {base}, i32 {align}, {truth} {mask})")
        return ""

    if b.vector_bits == 512 or not ask:
        return masked()
    # Without mask registers a masked store is slow, or one of each lane: at most the last vector of a row is one.
    return _whole_or(b, mask, None, lambda: _store_vector(b, base, value, None, element), masked)


def _readable(b: Emitter, base: str, mask: str, size: int) -> str:
    """Whether all of a vector can be read though only some lanes are to be: it lies in one page with one of those."""
    some = any_lane(b, mask)
    with b.lanes(0):
        place = b.op("and", "i64", b.emit(f"ptrtoint ptr {base} to i64"), str(PAGE - 1))
        return b.op("and", "i1", some, b.emit(f"icmp ule i64 {place}, {PAGE - size}"))


def _is_head(b: Emitter, mask: str) -> str:
    """Whether the lanes that are live are the first ones."""
    kind = f"i{b.width}"
    word = b.emit(f"bitcast {b.type('i1')} {mask} to {kind}")
    next_ = b.emit(f"add {kind} {word}, 1")
    return b.emit(f"icmp eq {kind} {b.emit(f'and {kind} {word}, {next_}')}, 0")


def _store_head(b: Emitter, base: str, value: str, mask: str, element: str) -> str:
    """The first lanes, as many as are live: a half of them at once, then a half of the rest, down to one."""
    scalar, width, whole = types.in_memory(element), b.width, f"i{b.width}"
    word = b.emit(f"bitcast {b.type('i1')} {mask} to {whole}")
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
        b.branch(b.emit(f"trunc {whole} {b.emit(f'lshr {whole} {word}, {size - 1}')} to i1"), write, after)
        b.start(write)
        with b.branch_scope():
            b.do(f"store {half} {low}, ptr {base}, align {types.size(element)}")
            further = b.emit(f"getelementptr i8, ptr {base}, i64 {size * types.size(element)}")
            rest = b.emit(f"lshr {whole} {word}, {size}")
        b.jump(after)
        b.start(after)
        value, base, word = (
            b.emit(f"phi {t} [ {x}, %{write} ], [ {y}, %{before} ]")
            for t, x, y in ((half, high, low), ("ptr", further, base), (whole, rest, word))
        )
        size //= 2
    return ""


def _ramp_from(base: str, element: str) -> Pointer:
    return Pointer(base, Ramp(lanes.known(0, "i64"), 1, "i64"), "*" + element)


def _gather_words(b: Emitter, addresses: str, mask: str | None, rest: str, element: str) -> str:
    """Elements of a byte or two by the aligned words around them: there is no narrower gather."""
    narrow = f"i{types.bits(element)}"
    address = b.emit(f"ptrtoint <{b.width} x ptr> {addresses} to {b.type('i64')}")
    aligned = b.op("and", "i64", address, b.constant(-4, "i64"))
    around = b.emit(f"inttoptr {b.type('i64')} {aligned} to <{b.width} x ptr>")
    word = _gather(b, around, mask, "zeroinitializer", "i32")
    # Little-endian: an element's bits begin at 8 times its place in the word.
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
    together: Callable[[str], str],
    apart: Callable[[], str],
) -> str:
    """`together(base)` where the live lanes turn out to be neighbours, else `apart()`; their value, if any."""
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
        return together(base)

    return _whole_or(b, same, element, neighbours, apart)


def _prefetch(b: Emitter, base: str, written: bool) -> None:
    """Ask for the cache line after an address, which the loop around this one comes to.

    Rows that lie far apart are gone down one vector at a time, so that no stream of neighbours is seen that the CPU
    would read ahead of.
    """
    b.declare("llvm.prefetch.p0", "void", "ptr, i32, i32, i32")
    with b.lanes(0):
        ahead = b.emit(f"getelementptr i8, ptr {base}, i64 {LINE}")
        b.do(f"call void @llvm.prefetch.p0(ptr {ahead}, i32 {int(written)}, i32 3, i32 1)")


def _whole_or(b: Emitter, mask: str, element: str | None, whole: Callable[[], str], apart: Callable[[], str]) -> str:
    """`whole()` where a truth value holds in every lane, else `apart()`; their value, if any."""
    return _either_way(b, every_lane(b, mask), element, whole, apart)


def _either_way(
    b: Emitter, condition: str, element: str | None, whole: Callable[[], str], apart: Callable[[], str]
) -> str:
    """One of two on a scalar truth value; their value, if any."""
    one, each, after = b.label(), b.label(), b.label()
    b.branch(condition, one, each)
    b.start(one)
    with b.branch_scope():
        x = whole()
    from_one = b.block
    b.jump(after)
    b.start(each)
    with b.branch_scope():
        y = apart()
    from_each = b.block
    b.jump(after)
    b.start(after)
    if element is None:
        return ""
    return b.emit(f"phi {b.type(element)} [ {x}, %{from_one} ], [ {y}, %{from_each} ]")
