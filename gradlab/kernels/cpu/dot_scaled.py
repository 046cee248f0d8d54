"""`tt.dot_scaled`: microscaled operands, unpacked and multiplied by their scales in float32, then `tt.dot`.

    d = (a * a_scale) (b * b_scale) + c,  a[M K], a_scale[M K/G], b[K N], b_scale[N K/G], c[M N]

An operand is of 4-bit floats, two in a byte along K, of 8-bit, or of 16-bit floats. G elements along K share a scale: a
power of two, stored as the exponent of a float32 (e8m0), or an 8-bit float. In float32 the scaling is exact.
"""

import copy

from gradlab.kernels.cpu import floats, lanes
from gradlab.kernels.cpu.dot import dot
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import registers
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation, Type
from gradlab.kernels.cpu.values import Index, NotLowered, Position

_PACKED = "e2m1"


def dot_scaled(tiles: Tiles, op: Operation) -> None:
    """Write the product; the operands are first widened to float32 in memory."""
    names = list(op.operands)
    sides = []
    for side, has_scale in zip(("lhs", "rhs"), op.attributes["scales"], strict=True):
        name, scale = names.pop(0), names.pop(0) if has_scale else None
        if not op.attributes.get(f"{side}_k_pack", True):
            raise NotLowered(op, f"4-bit floats of {side} that are packed along another axis than K")
        sides.append(_widened(tiles, op, side, name, scale))
    product = copy.copy(op)
    product.name, product.operands = "tt.dot", [*sides, names[0]]
    product.operand_types = [tiles.types[name] for name in product.operands]
    dot(tiles, product)


def _widened(tiles: Tiles, op: Operation, side: str, name: str, scale: str | None) -> str:
    """The name of an operand as float32, in memory."""
    b, kind = tiles.b, tiles.types[name]
    packed = op.attributes[side] == _PACKED
    if len(kind.shape) != 2:
        raise NotLowered(op, "a scaled dot of more than two axes")
    along_k = 1 if side == "lhs" else 0
    shape = tuple(n * 2 if packed and axis == along_k else n for axis, n in enumerate(kind.shape))
    # Packed values and scales are read at k // 2 and k // G, not at the loop's own k, so they go to memory first.
    values = tiles.materialize(name)
    scales = tiles.materialize(scale) if scale else None
    group = shape[along_k] // tiles.types[scale].shape[1] if scale else 0
    wide = tiles.buffer(shape, "f32")

    def body(index: Index) -> None:
        k = index[along_k]
        element = index
        if packed:
            element = tuple(_divided(b, k, 2) if axis == along_k else i for axis, i in enumerate(index))
        raw = registers(b, tiles.read(values, element))
        value = _four_bits(b, raw, k) if packed else floats.converted(b, kind.element, "f32", raw)
        if scales is not None:
            place = (index[1 - along_k], _divided(b, k, group) if scales.shape[1] > 1 else None)
            factor = _scale(b, scales.element, registers(b, tiles.read(scales, place)))
            value = b.op("fmul", "f32", value, factor)
        tiles.write(wide, index, lanes.made(b, value, "f32"))

    rows = 1 - along_k
    width = min(b.vector_bits // 32, shape[rows])
    tiles.nest(shape, rows, width if width > 1 else 0, body)
    widened = f"{name}@{side}{op.results[0]}"
    tiles.env[widened], tiles.types[widened] = wide, Type(shape, "f32")
    return widened


def _divided(b: Emitter, k: Position | None, by: int) -> Position | None:
    """k // by, for a power of two."""
    if k is None:
        return None
    if k.known is not None:
        return Position(str(k.known // by), k.known // by)
    with b.lanes(0):
        return Position(b.op("lshr", "i32", k.ssa, str(by.bit_length() - 1)))


def _four_bits(b: Emitter, byte: str, k: Position | None) -> str:
    """e2m1 to float32: a sign, two exponent bits, one fraction bit; the first along K is the low half of its byte."""
    word = b.convert("zext", "i8", "i32", byte)
    with b.lanes(0):
        shift = b.op("shl", "i32", b.op("and", "i32", k.ssa if k else "0", "1"), "2")
    nibble = b.op("lshr", "i32", word, b.splat("i32", shift))
    size = b.op("and", "i32", nibble, b.constant(7, "i32"))
    # From 1 on, exponent and fraction are those of a float32, shifted; below 1 are 0 and 1/2.
    normal = b.op("add", "i32", b.op("shl", "i32", size, b.constant(22, "i32")), b.constant(126 << 23, "i32"))
    small = b.bitcast(
        "f32", "i32", b.op("fmul", "f32", b.convert("uitofp", "i32", "f32", size), b.constant(0.5, "f32"))
    )
    bits = b.select(b.compare("ult", "i32", size, b.constant(2, "i32")), "i32", small, normal)
    sign = b.op("shl", "i32", b.op("lshr", "i32", nibble, b.constant(3, "i32")), b.constant(31, "i32"))
    return b.bitcast("i32", "f32", b.op("or", "i32", bits, sign))


def _scale(b: Emitter, element: str, raw: str) -> str:
    """2^(byte - 127), NaN of 255; an 8-bit float as it is."""
    if element != "i8":
        return floats.converted(b, element, "f32", raw)
    word = b.convert("zext", "i8", "i32", raw)
    bits = b.op("shl", "i32", word, b.constant(23, "i32"))
    # 2^-127 is a denormal float32; the bits of 255 are those of infinity.
    bits = b.select(b.compare("eq", "i32", word, b.constant(0, "i32")), "i32", b.constant(1 << 22, "i32"), bits)
    bits = b.select(b.compare("eq", "i32", word, b.constant(255, "i32")), "i32", b.constant(0x7FC00000, "i32"), bits)
    return b.bitcast("i32", "f32", bits)
