"""The loop over K of a product of two matrices, and how its operands reach it: pointers, or descriptors of a GPU's TMA.

A descriptor names a matrix in memory; the copy of a tile of it into shared memory is one instruction of one thread,
with no offsets, no masks and no registers. It takes sm_90, contiguous rows or columns, and multiples of 16 bytes.
"""

import functools

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import kernel, places

# Bytes that a descriptor's address and strides are multiples of (CUDA driver API, cuTensorMapEncodeTiled).
_ALIGNMENT = 16


def ways(*operands: torch.Tensor | None) -> list[str]:
    """How a kernel reads or writes the matrices in the last two axes: by "rows", by "columns", or by "pointers".

    The first two are descriptors of a matrix that lies in memory row by row, or column by column. What is None is not
    read at all; the first is not None.
    """
    first = operands[0]
    assert first is not None
    if not _has_descriptors(places(first.device)):
        return ["pointers"] * len(operands)
    return ["pointers" if t is None else _way(t) for t in operands]


def _way(t: torch.Tensor) -> str:
    if t.element_size() != 2 or t.numel() == 0 or t.data_ptr() % _ALIGNMENT:
        return "pointers"
    *batch, rows, columns = t.stride()
    unit, other = (columns, rows) if columns == 1 else (rows, columns)
    aligned = all(stride * t.element_size() % _ALIGNMENT == 0 for stride in (*batch, other))
    if unit != 1 or other < 1 or not aligned:
        return "pointers"
    return "rows" if columns == 1 else "columns"


@functools.cache
def _has_descriptors(where: tuple[str, ...]) -> bool:
    return any(place.startswith("sm_") and int(place.removeprefix("sm_")) >= 90 for place in where)


# fmt: off
@kernel
def operand(
    x_ptr, x_r, x_c, R, C,
    WAY: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """What `load_tile`, `store_tile` and `add_product` take for x[R C]: its pointer, or a descriptor of x[BR BC]."""
    x = x_ptr
    if WAY == "rows":
        x = tl.make_tensor_descriptor(x_ptr, [R, C], [x_r, 1], [BR, BC])
    if WAY == "columns":
        x = tl.make_tensor_descriptor(x_ptr, [C, R], [x_c, 1], [BC, BR])
    return x


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
        # 64-bit offsets: an operand may pass 2^31 elements.
        r = (r0 + tl.arange(0, BR)).to(tl.int64)
        c = (c0 + tl.arange(0, BC)).to(tl.int64)
        if FULL_C:
            inside = (r < R)[:, None]
        elif FULL_R:
            inside = (c < C)[None, :]
        else:
            inside = (r < R)[:, None] & (c < C)[None, :]
        tile = tl.load(x + r[:, None] * x_r + c[None, :] * x_c, mask=inside, other=0.0)
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
        r = (r0 + tl.arange(0, BR)).to(tl.int64)
        c = (c0 + tl.arange(0, BC)).to(tl.int64)
        tl.store(x + r[:, None] * x_r + c[None, :] * x_c, values, mask=(r < R)[:, None] & (c < C)[None, :])


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
