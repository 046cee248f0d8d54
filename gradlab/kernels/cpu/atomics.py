"""Atomic operations, one element after another: a kernel that has one runs its programs in order, in one thread."""

from gradlab.kernels.cpu import floats, lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Pointer, Uniform, registers
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Buffer, Index, NotLowered

_KINDS = {
    "add": "add",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "max": "max",
    "min": "min",
    "umax": "umax",
    "umin": "umin",
    "exch": "xchg",
    "fadd": "fadd",
    "fmax": "fmax",
    "fmin": "fmin",
}
# A plain load, operation and store for types that LLVM has no atomic operation for: one thread runs this kernel.
_PLAIN = {"fadd": "fadd", "exch": None}


def read_modify_write(tiles: Tiles, op: Operation) -> None:
    """`tt.atomic_rmw`; the result is the old values, built only if it is used."""
    kind = _KINDS.get(str(op.attributes["kind"]))
    if kind is None:
        raise NotLowered(op, f"an atomic {op.attributes['kind']}")
    element = op.result_types[0].element

    def one(b: Emitter, p: str, value: Lane) -> str:
        ssa = registers(b, value)
        if element in types.FLOATS and element not in types.NATIVE_FLOATS:
            return _narrow(b, op, p, ssa, element)
        return b.emit(f"atomicrmw {kind} ptr {p}, {types.llvm(element)} {ssa} monotonic")

    _each(tiles, op, one, masked=len(op.operands) > 2)


def compare_and_swap(tiles: Tiles, op: Operation) -> None:
    """`tt.atomic_cas`: store the new value where the old equals the expected one; the result is the old values."""
    element = op.result_types[0].element
    if element in types.FLOATS and element not in ("f16", "bf16", *types.NATIVE_FLOATS):
        raise NotLowered(op, f"a compare-and-swap of {element}")
    word = f"i{types.bits(element)}"

    def one(b: Emitter, p: str, expected: Lane, new: Lane) -> str:
        old, put = (b.bitcast(element, word, registers(b, x)) for x in (expected, new))
        pair = b.emit(f"cmpxchg ptr {p}, {word} {old}, {word} {put} acq_rel monotonic")
        return b.bitcast(word, element, b.emit(f"extractvalue {{ {word}, i1 }} {pair}, 0"))

    _each(tiles, op, one, masked=False)


def _narrow(b: Emitter, op: Operation, p: str, value: str, element: str) -> str:
    kind = str(op.attributes["kind"])
    if kind not in _PLAIN:
        raise NotLowered(op, f"an atomic {kind} of {element}")
    stored, size = types.llvm(element), types.size(element)
    old = b.emit(f"load {stored}, ptr {p}, align {size}")
    new = value
    if kind == "fadd":
        summed = b.op("fadd", "f32", floats.widened(b, element, old)[0], floats.widened(b, element, value)[0])
        new = floats.narrowed(b, element, summed)
    b.do(f"store {stored} {new}, ptr {p}, align {size}")
    return old


def _each(tiles: Tiles, op: Operation, one, masked: bool) -> None:
    """Apply an operation element by element, in order; masked-off elements give 0."""
    b, (kind,), (result,) = tiles.b, op.result_types, op.results
    shape = kind.shape
    buffer: Buffer | None = tiles.buffer(shape, kind.element) if shape and tiles.users.get(result) else None

    def body(index: Index) -> None:
        operands = [tiles.lane(name, index) for name in op.operands]
        mask = operands.pop() if masked else None
        p = operands[0]
        mask = tiles.atomic(op, index, p, mask)
        address = p.base if isinstance(p, Pointer) else p.ssa  # type: ignore[union-attr]
        if mask is None or (isinstance(mask, Uniform) and mask.known == 1):
            old = one(b, address, *operands[1:])
        else:
            inside, after, before = b.label(), b.label(), b.block
            b.branch(registers(b, mask), inside, after)
            b.start(inside)
            with b.branch_scope():
                found = one(b, address, *operands[1:])
            end = b.block
            b.jump(after)
            b.start(after)
            zero = types.constant(0, kind.element)
            old = b.emit(f"phi {types.llvm(kind.element)} [ {found}, %{end} ], [ {zero}, %{before} ]")
        value = lanes.made(b, old, kind.element)
        if buffer is not None:
            tiles.write(buffer, index, value)
        elif not shape:
            tiles.env[result] = value

    tiles.nest(shape, -1, 0, body)
    tiles.after_atomic(op)
    if buffer is not None:
        tiles.env[result] = buffer
