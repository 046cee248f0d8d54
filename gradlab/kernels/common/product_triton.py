"""The loop over K of a product of two matrices, and how operands reach it: pointers, or descriptors of a GPU's TMA.

A descriptor names a matrix in memory; the copy of a tile of it into shared memory is one instruction of one thread,
with no offsets, no masks and no registers. It takes sm_90, contiguous rows or columns, and multiples of 16 bytes.
"""

import functools

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import kernel, places

# Bytes of the widest load, and what a descriptor's address and strides are multiples of (CUDA driver API,
# cuTensorMapEncodeTiled).
_ALIGNMENT = 16


def ways(*operands: torch.Tensor | None, descriptors: bool = True) -> list[str]:
    """How a kernel reads or writes the matrices in the last two axes of operands; the first of them is not None.

    "rows" and "columns" are descriptors of a matrix that lies in memory row by row, or column by column; "wide rows"
    and "wide columns" are pointers to one that may be read 16 bytes at a time; "pointers" are those to any other, to
    all on a CPU, and to one that is None and is not read. Without `descriptors` all are pointers.
    """
    first = operands[0]
    assert first is not None
    generation = _generation(places(first.device))
    if not generation:
        return ["pointers"] * len(operands)
    return ["pointers" if t is None else _way(t, descriptors and generation >= 90) for t in operands]


def _way(t: torch.Tensor, descriptors: bool) -> str:
    if t.numel() == 0 or t.data_ptr() % _ALIGNMENT:
        return "pointers"
    *batch, rows, columns = t.stride()
    lies, size, unit, other = ("rows", -1, columns, rows) if columns == 1 else ("columns", -2, rows, columns)
    if unit != 1 or other < 1 or any(stride * t.element_size() % _ALIGNMENT for stride in (*batch, other)):
        return "pointers"
    if descriptors and t.element_size() == 2:
        return lies
    # A load reaches over the end of a row whose size is no multiple of its own.
    return f"wide {lies}" if t.shape[size] * t.element_size() % _ALIGNMENT == 0 else "pointers"


@functools.cache
def _generation(where: tuple[str, ...]) -> int:
    """The number of an architecture of CUDA; 0 of a CPU and of other GPUs."""
    return next((int(place.removeprefix("sm_")) for place in where if place.startswith("sm_")), 0)


# fmt: off
@kernel
def in_sixteens(x_ptr, size):
    """A number of elements that are a multiple of 16 bytes, as a product, from which Triton sees that it is one."""
    # tl.multiple_of says nothing of an argument of a helper.
    PER: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    return size // PER * PER


@kernel
def operand(
    x_ptr, z, x_z, x_r, x_c, R, C,
    WAY: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """What `load_tile`, `store_tile` and `add_product` take for x[z R C]: its pointer, or a descriptor of x[BR BC]."""
    x = x_ptr + z * (x_z if WAY == "pointers" else in_sixteens(x_ptr, x_z))
    if WAY == "rows":
        x = tl.make_tensor_descriptor(x, [R, C], [x_r, 1], [BR, BC])
    if WAY == "columns":
        x = tl.make_tensor_descriptor(x, [C, R], [x_c, 1], [BC, BR])
    return x


@kernel
def _offsets(
    x, x_r, x_c, r0, c0, R, C,
    WAY: tl.constexpr, FULL_R: tl.constexpr, FULL_C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Offsets of a tile of x[R C], and which of them are inside of it."""
    if WAY == "wide rows":
        x_r = in_sixteens(x, x_r)
        C = in_sixteens(x, C)
    if WAY == "wide columns":
        x_c = in_sixteens(x, x_c)
        R = in_sixteens(x, R)
    # 64-bit offsets: an operand may pass 2^31 elements.
    r = (r0 + tl.arange(0, BR)).to(tl.int64)
    c = (c0 + tl.arange(0, BC)).to(tl.int64)
    if FULL_C:
        inside = (r < R)[:, None]
    elif FULL_R:
        inside = (c < C)[None, :]
    else:
        inside = (r < R)[:, None] & (c < C)[None, :]
    return r[:, None] * x_r + c[None, :] * x_c, inside


@kernel
def load_tile(
    x, x_r, x_c, r0, c0, R, C,
    WAY: tl.constexpr, FULL_R: tl.constexpr, FULL_C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """x[BR BC] from row r0 and column c0 on, 0 outside of x[R C]; no row or column is outside where FULL says so."""
    if WAY == "rows":
        tile = x.load([r0, c0])
    elif WAY == "columns":
        tile = x.load([c0, r0]).T
    else:
        at, inside = _offsets(x, x_r, x_c, r0, c0, R, C, WAY, FULL_R, FULL_C, BR, BC)
        tile = tl.load(x + at, mask=inside, other=0.0)
    return tile


@kernel
def store_tile(
    x, x_r, x_c, values, r0, c0, R, C,
    WAY: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Writes values[BR BC] to x[R C] from row r0 and column c0 on, what is inside of it."""
    if WAY == "rows":
        x.store([r0, c0], values)
    elif WAY == "columns":
        x.store([c0, r0], values.T)
    else:
        at, inside = _offsets(x, x_r, x_c, r0, c0, R, C, WAY, False, False, BR, BC)
        tl.store(x + at, values, mask=inside)


@kernel
def tile_at(tile, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """(m0, n0), where the tile y[BM BN] of that number begins: down GROUP rows of tiles first, then to the right.

    So the tiles of b that programs share stay in L2.
    """
    tiles_n = tl.cdiv(N, BN)
    first = tile // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
    return (first + tile % (GROUP * tiles_n) % high) * BM, tile % (GROUP * tiles_n) // high * BN


@kernel
def add_product(
    y,
    a, a_m, a_k,
    b, b_k, b_n,
    m0, n0, M, K, N,
    A: tl.constexpr, B: tl.constexpr, FULL_K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """y[BM BN] + sum_k a[m k] b[k n], rows and columns from m0 and n0 on; A and B are the ways of the `operand`s."""
    for k0 in range(0, K, BK):
        a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
        b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
        y = tl.dot(a_tile, b_tile, y, input_precision="ieee", out_dtype=y.dtype)
    return y
# fmt: on
