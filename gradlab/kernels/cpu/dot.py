"""`tt.dot`: operands packed for a register micro-kernel, whose accumulators stay in registers along K.

The logical product of a tile is [M K] x [K N] -> [M N] with 2 M K N FLOPs. The micro-kernel holds rows x vectors
accumulators; at each k it reads the vectors of b and one scalar of a for each row.
"""

from collections.abc import Sequence

from gradlab.kernels.cpu import dot_amx, floats, lanes, packing, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import registers
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation, Type
from gradlab.kernels.cpu.values import Buffer, Index, Lazy, NotLowered

# Rows x vectors of accumulators by register width: there are 32 registers of 512 bits, 16 of 256, 32 of 128 on aarch64.
# Two FMAs a cycle with a latency of four cycles take more than eight independent accumulators.
SHAPES = {512: (8, 2), 256: (6, 2), 128: (4, 4)}
# Rows of the remainder strips where M, a power of two, is no multiple of the micro-kernel's rows.
LAST = 4
# Unrolling of the micro-kernel's loop along K.
UNROLL = 4


def dot(tiles: Tiles, op: Operation) -> None:
    """d = a b + c, with a[M K], b[K N], c[M N]; or a batch of them along one leading axis."""
    kind = op.result_types[0]
    # A narrow accumulator is computed in float32 and rounded once.
    element = types.computed(kind.element)
    if element not in ("f32", "f64", "i32"):
        raise NotLowered(op, f"a dot that accumulates in {element}")
    if element == "f32" and "f64" in (given.element for given in op.operand_types[:2]):
        raise NotLowered(op, "a dot of float64 that accumulates in float32")
    c, zero = _accumulator(tiles, op.operands[2], op)
    batches = kind.shape[0] if len(kind.shape) == 3 else 1
    (left, right), d = op.operands[:2], c
    if dot_amx.covers(tiles, op):
        a, b, multiply = packing.rows(tiles, left, "bf16"), dot_amx.pairs(tiles, right), dot_amx.product
    elif batches == 1 and c.strides[-1] != 1:
        # The columns of c are contiguous (`orientation`): d^T = b^T a^T.
        a, b, multiply = packing.columns_of(tiles, left, element), packing.either_way(tiles, right, element), _product
        a, b, d = _transposed(b), _transposed(a), _transposed(c)
    else:
        a, b, multiply = packing.either_way(tiles, left, element), packing.rows(tiles, right, element), _product
    for batch in range(batches):
        multiply(tiles.b, _part(tiles, a, batch), _part(tiles, b, batch), _part(tiles, d, batch), zero)
    tiles.env[op.results[0]] = c if element == kind.element else _rounded(tiles, c, kind)


def _transposed(x: Buffer) -> Buffer:
    """The transpose, in the same memory."""
    return Buffer(x.base, x.shape[::-1], x.strides[::-1], x.element)


def _rounded(tiles: Tiles, wide: Buffer, kind: Type) -> Buffer:
    """An accumulator in the type of the dot's result."""
    narrow, b = tiles.buffer(kind.shape, kind.element), tiles.b
    along = len(kind.shape) - 1
    width = min(b.vector_bits // types.bits(wide.element), kind.shape[along])

    def body(index: Index) -> None:
        value = floats.converted(b, wide.element, kind.element, registers(b, tiles.read(wide, index)))
        tiles.write(narrow, index, lanes.made(b, value, kind.element))

    tiles.nest(kind.shape, along, width if width > 1 else 0, body)
    return narrow


def _accumulator(tiles: Tiles, name: str, op: Operation) -> tuple[Buffer, bool]:
    """Memory that holds c and receives d, and whether c is an all-zero constant that was not stored."""
    value, kind = tiles.env[name], tiles.types[name]
    element = types.computed(kind.element)
    if element != kind.element:
        wide = tiles.buffer(kind.shape, element)
        tiles.fill([(wide, name)], cast=lambda x, source, target: packing.cast(tiles.b, x, source, target))
        return wide, False
    if isinstance(value, Buffer) and name in tiles.owned and len(tiles.users[name]) == 1:
        return value, False
    if isinstance(value, Lazy) and value.op.name == "arith.constant" and value.op.attributes["value"] == 0:
        return tiles.buffer(kind.shape, kind.element), True
    return tiles.materialize(name), False


def _part(tiles: Tiles, buffer: Buffer, batch: int) -> Buffer:
    """One product's matrix."""
    if len(buffer.shape) == 2:
        return buffer
    base = buffer.base
    if batch:
        kind = types.in_memory(buffer.element)
        base = tiles.b.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {batch * buffer.strides[0]}")
    return Buffer(base, buffer.shape[1:], buffer.strides[1:], buffer.element)


def _product(e: Emitter, a: Buffer, b: Buffer, c: Buffer, zero: bool) -> None:
    """c = a b, or c + a b, tile by tile of the micro-kernel."""
    (M, K), N, element = a.shape, b.shape[1], c.element
    width = min(e.vector_bits // types.bits(element), N)
    rows, vectors = SHAPES[e.vector_bits]
    vectors = max(1, min(vectors, N // width))
    rows = min(M, rows if vectors > 1 else 2 * rows)
    kind = types.llvm(element)
    full = M - next(rest for rest in range(0, M + 1, min(M, LAST)) if (M - rest) % rows == 0)

    def moved(base: str, offset: str) -> str:
        return e.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {offset}")

    def along_n(n: str, _: Sequence[str]) -> list[str]:
        j = e.emit(f"zext nneg i32 {n} to i64")
        b_here = moved(b.base, j)

        def strips(first: int, count: int, rows: int) -> None:
            if not count:
                return
            name = _micro_kernel(e, rows, vectors, width, K, element, a.strides, b.strides[0], c.strides[0], zero)

            def along_m(m: str, _: Sequence[str]) -> list[str]:
                i = e.emit(f"zext nneg i32 {m} to i64")
                i = e.emit(f"add nuw nsw i64 {i}, {first}")
                a_here = moved(a.base, e.emit(f"mul nuw nsw i64 {i}, {a.strides[0]}"))
                row = e.emit(f"mul nuw nsw i64 {i}, {c.strides[0]}")
                c_here = moved(c.base, e.emit(f"add nuw nsw i64 {row}, {j}"))
                e.do(f"call void @{name}(ptr {a_here}, ptr {b_here}, ptr {c_here})")
                return []

            e.loop(count, rows, [], along_m)

        strips(0, full, rows)
        strips(full, M - full, min(LAST, M))
        return []

    with e.lanes(0):
        e.loop(N, vectors * width, [], along_n)


def _micro_kernel(
    e: Emitter,
    rows: int,
    vectors: int,
    width: int,
    K: int,
    element: str,
    a_strides: tuple[int, ...],
    b_stride: int,
    c_stride: int,
    zero: bool,
) -> str:
    """Write the function that accumulates `rows` rows of c over all of K; returns its name."""
    name = (
        f"micro_{rows}x{vectors}x{width}_{K}_{element}_{a_strides[0]}_{a_strides[1]}_{b_stride}_{c_stride}_{int(zero)}"
    )
    if name in e.helpers:
        return name
    scalar, vector, align = types.llvm(element), f"<{width} x {types.llvm(element)}>", types.size(element)
    places = [(i, j) for i in range(rows) for j in range(vectors)]
    lines = [f"define internal void @{name}(ptr noalias %a, ptr noalias %b, ptr noalias %c) noinline #0 {{", "entry:"]
    for i, j in places:
        lines.append(f"  %c{i}_{j} = getelementptr inbounds {scalar}, ptr %c, i64 {i * c_stride + j * width}")
        if not zero:
            lines.append(f"  %first{i}_{j} = load {vector}, ptr %c{i}_{j}, align {align}")
    unroll = min(UNROLL, K)
    lines += ["  br label %loop", "loop:", "  %k = phi i64 [ 0, %entry ], [ %next, %loop ]"]
    for i, j in places:
        first = "zeroinitializer" if zero else f"%first{i}_{j}"
        lines.append(f"  %sum{i}_{j} = phi {vector} [ {first}, %entry ], [ %new{unroll - 1}_{i}_{j}, %loop ]")
    lines += [
        f"  %b_offset = mul nuw nsw i64 %k, {b_stride}",
        f"  %a_offset = mul nuw nsw i64 %k, {a_strides[1]}",
        f"  %b_here = getelementptr inbounds {scalar}, ptr %b, i64 %b_offset",
        f"  %a_here = getelementptr inbounds {scalar}, ptr %a, i64 %a_offset",
    ]
    for u in range(unroll):
        for j in range(vectors):
            place = u * b_stride + j * width
            lines.append(f"  %b_at{u}_{j} = getelementptr inbounds {scalar}, ptr %b_here, i64 {place}")
            lines.append(f"  %b{u}_{j} = load {vector}, ptr %b_at{u}_{j}, align {align}")
        for i in range(rows):
            here, place = f"{u}_{i}", u * a_strides[1] + i * a_strides[0]
            lines.append(f"  %a_at{here} = getelementptr inbounds {scalar}, ptr %a_here, i64 {place}")
            lines.append(f"  %a{here} = load {scalar}, ptr %a_at{here}, align {align}")
            lines.append(f"  %one{here} = insertelement {vector} poison, {scalar} %a{here}, i64 0")
            lines.append(
                f"  %all{here} = shufflevector {vector} %one{here}, {vector} poison, <{width} x i32> zeroinitializer"
            )
            lines += [line for j in range(vectors) for line in _accumulate(e, u, i, j, element, vector, width)]
    last = unroll - 1
    lines += [
        f"  %next = add nuw nsw i64 %k, {unroll}",
        f"  %more = icmp ult i64 %next, {K}",
        "  br i1 %more, label %loop, label %done",
        "done:",
    ]
    lines += [f"  store {vector} %new{last}_{i}_{j}, ptr %c{i}_{j}, align {align}" for i, j in places]
    e.helpers[name] = "\n".join([*lines, "  ret void", "}"])
    return name


def _accumulate(e: Emitter, u: int, i: int, j: int, element: str, vector: str, width: int) -> list[str]:
    """Add the product of row i and vector j at the u-th unrolled k."""
    before, now = f"%new{u - 1}_{i}_{j}" if u else f"%sum{i}_{j}", f"{u}_{i}_{j}"
    factors = f"%all{u}_{i}", f"%b{u}_{j}"
    if element == "i32":
        return [
            f"  %product{now} = mul {vector} {', '.join(factors)}",
            f"  %new{now} = add {vector} {before}, %product{now}",
        ]
    name = f"llvm.fma.v{width}{element}"
    e.declare(name, vector, f"{vector}, {vector}, {vector}")
    given = ", ".join(f"{vector} {value}" for value in (*factors, before))
    return [f"  %new{now} = call {vector} @{name}({given})"]
