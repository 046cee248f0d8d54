"""A dot of bfloat16 by AMX's tile registers: 16 x 16 float32 results of 32 products each in one instruction.

A tile of a is 16 rows of 32 elements along K; one of b holds pairs along K, 16 rows of 16 pairs. Four tiles of results
stay in registers along K. Products are exact in float32 and summed there, two sums for the pairs' halves, as in the
libraries that torch uses; denormal operands count as zero, and so do denormal sums.
"""

from collections.abc import Sequence

from gradlab.kernels.cpu import packing
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import registers
from gradlab.kernels.cpu.packing import LINE, column, columns, moved, transposed
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Buffer, Position

# Rows of a tile, results in a row, elements of a along K.
ROWS, COLUMNS, DEEP = 16, 16, 32


def covers(tiles: Tiles, op: Operation) -> bool:
    """Whether a dot is of bfloat16, its sizes are multiples of AMX tiles, and this CPU has AMX."""
    *_, M, K = op.operand_types[0].shape
    N = op.operand_types[1].shape[-1]
    half = op.operand_types[0].element == op.operand_types[1].element == "bf16"
    full = M % ROWS == 0 and N % COLUMNS == 0 and K % DEEP == 0
    return tiles.b.matrices and half and full and op.result_types[0].element == "f32"


def pairs(tiles: Tiles, name: str) -> Buffer:
    """b[K N] as [K/2 2N]: the elements of two rows side by side."""
    e, shape = tiles.b, tiles.types[name].shape
    *front, K, N = shape
    packed = (*front, K // 2, 2 * N)
    buffer = tiles.buffer(packed, "bf16", packing.strides(packed, "bf16"))
    row = buffer.strides[-2]

    def store(front: tuple[Position | None, ...], k: str, more: int, n: str, pair: str, kind: str) -> None:
        """Store the pairs of rows k + 2 more and k + 2 more + 1, from column n on."""
        with e.lanes(0):
            at = e.emit(f"mul nuw nsw i32 {k}, {row // 2}")
            at = e.emit(f"add nuw nsw i32 {at}, {more * row}")
            at = e.emit(f"add nuw nsw i32 {at}, {e.emit(f'shl nuw nsw i32 {n}, 1')}")
            for place in front:
                if place is not None:
                    at = e.emit(f"add nuw nsw i32 {at}, {e.emit(f'mul nuw nsw i32 {place.ssa}, {buffer.strides[0]}')}")
            wide = e.emit(f"zext nneg i32 {at} to i64")
            address = e.emit(f"getelementptr inbounds i16, ptr {buffer.base}, i64 {wide}")
            e.do(f"store {kind} {pair}, ptr {address}, align 4")

    def interleaved(front: tuple[Position | None, ...], k: str, n: str) -> None:
        with e.lanes(across):
            low, high = (
                registers(e, column(tiles, name, "bf16", front, moved(e, k, i, False), moved(e, n, 0, True)))
                for i in (0, 1)
            )
            order = ", ".join(f"i32 {i // 2 + i % 2 * across}" for i in range(2 * across))
            kind = e.type("bf16")
            pair = e.emit(f"shufflevector {kind} {low}, {kind} {high}, <{2 * across} x i32> <{order}>")
        store(front, k, 0, n, pair, f"<{2 * across} x i16>")

    def packed_transposed(front: tuple[Position | None, ...], k: str, n: str) -> None:
        with e.lanes(DEEP):
            found = columns(tiles, name, "bf16", front, moved(e, k, 0, True), n, COLUMNS)
        with e.lanes(COLUMNS):
            words = [e.emit(f"bitcast <{DEEP} x i16> {one} to <{COLUMNS} x i32>") for one in found]
            words = transposed(e, words, "i32")
        for i, word in enumerate(words):
            store(front, k, i, n, word, f"<{COLUMNS} x i32>")

    across = min(DEEP, N)
    if tiles.along(shape, [name]) == len(shape) - 2:
        packing.blocks(tiles, name, DEEP, COLUMNS, packed_transposed)
    else:
        packing.blocks(tiles, name, 2, across, interleaved)
    return buffer


def product(e: Emitter, a: Buffer, b: Buffer, c: Buffer, zero: bool) -> None:
    """c = a b, or c + a b."""
    (M, K), N = a.shape, c.shape[1]
    high, wide = min(2, M // ROWS), min(2, N // COLUMNS)
    name = _micro_kernel(e, high, wide, K, 2 * a.strides[0], 2 * b.strides[0], 4 * c.strides[0], zero)
    e.helpers["amx_shape"] = f"@amx_shape = internal constant [{LINE} x i8] [{_shape()}], align {LINE}"
    e.declare("llvm.x86.ldtilecfg", "void", "ptr")
    e.declare("llvm.x86.tilerelease", "void", "")

    def moved_by(buffer: Buffer, place: str, stride: int) -> str:
        kind = "float" if buffer.element == "f32" else "i16"
        far = e.emit(f"mul nuw nsw i64 {e.emit(f'zext nneg i32 {place} to i64')}, {stride}")
        return e.emit(f"getelementptr inbounds {kind}, ptr {buffer.base}, i64 {far}")

    def along_n(n: str, _: Sequence[str]) -> list[str]:
        right = moved_by(b, n, 2)

        def along_m(m: str, _: Sequence[str]) -> list[str]:
            left = moved_by(a, m, a.strides[0])
            row = moved_by(c, m, c.strides[0])
            result = moved_by(Buffer(row, c.shape, c.strides, "f32"), n, 1)
            e.do(f"call void @{name}(ptr {left}, ptr {right}, ptr {result})")
            return []

        e.loop(M, high * ROWS, [], along_m)
        return []

    with e.lanes(0):
        e.do("call void @llvm.x86.ldtilecfg(ptr @amx_shape)")
        e.loop(N, wide * COLUMNS, [], along_n)
        e.do("call void @llvm.x86.tilerelease()")


def _shape() -> str:
    """The configuration: palette 1, eight tiles of 16 rows of 64 bytes."""
    words = [0] * LINE
    words[0] = 1
    for tile in range(8):
        words[16 + 2 * tile], words[48 + tile] = LINE, ROWS
    return ", ".join(f"i8 {word}" for word in words)


def _micro_kernel(e: Emitter, high: int, wide: int, K: int, a_row: int, b_row: int, c_row: int, zero: bool) -> str:
    """Write the function that accumulates high x wide tiles of c over all of K, strides in bytes; returns its name."""
    name = f"amx_{high}x{wide}_{K}_{a_row}_{b_row}_{c_row}_{int(zero)}"
    if name in e.helpers:
        return name
    for instruction, takes in (
        ("tileloadd64", "i8, ptr, i64"),
        ("tilestored64", "i8, ptr, i64"),
        ("tdpbf16ps", "i8, i8, i8"),
        ("tilezero", "i8"),
    ):
        e.declare(f"llvm.x86.{instruction}", "void", takes)
    results = [(i, j, i * wide + j) for i in range(high) for j in range(wide)]
    lines = [f"define internal void @{name}(ptr noalias %a, ptr noalias %b, ptr noalias %c) noinline #0 {{", "entry:"]
    for i, j, tile in results:
        lines.append(f"  %c{tile} = getelementptr inbounds i8, ptr %c, i64 {i * ROWS * c_row + j * LINE}")
        lines.append(
            f"  call void @llvm.x86.tilezero(i8 {tile})"
            if zero
            else f"  call void @llvm.x86.tileloadd64(i8 {tile}, ptr %c{tile}, i64 {c_row})"
        )
    lines += [
        "  br label %loop",
        "loop:",
        "  %k = phi i64 [ 0, %entry ], [ %next, %loop ]",
        f"  %a_offset = mul nuw nsw i64 %k, {LINE}",
        f"  %b_offset = mul nuw nsw i64 %k, {DEEP // 2 * b_row}",
    ]
    for side, count, distance, row, first in (("a", high, ROWS * a_row, a_row, 4), ("b", wide, LINE, b_row, 6)):
        lines.append(f"  %{side}_here = getelementptr inbounds i8, ptr %{side}, i64 %{side}_offset")
        for i in range(count):
            lines.append(f"  %{side}{i} = getelementptr inbounds i8, ptr %{side}_here, i64 {i * distance}")
            lines.append(f"  call void @llvm.x86.tileloadd64(i8 {first + i}, ptr %{side}{i}, i64 {row})")
    lines += [f"  call void @llvm.x86.tdpbf16ps(i8 {tile}, i8 {4 + i}, i8 {6 + j})" for i, j, tile in results]
    lines += [
        "  %next = add nuw nsw i64 %k, 1",
        f"  %more = icmp ult i64 %next, {K // DEEP}",
        "  br i1 %more, label %loop, label %done",
        "done:",
    ]
    lines += [f"  call void @llvm.x86.tilestored64(i8 {tile}, ptr %c{tile}, i64 {c_row})" for *_, tile in results]
    e.helpers[name] = "\n".join([*lines, "  ret void", "}"])
    return name
