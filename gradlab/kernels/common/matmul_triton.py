"""The product of two matrices as a Triton kernel: bias, relu and the mask of its backward in one pass.

A product of few tiles and a long K is split along K: parts of it are computed side by side, and a second pass adds
them.
"""

import math

import torch
import triton.language as tl

from gradlab.kernels.common.images_triton import channels_last
from gradlab.kernels.common.product_triton import (
    add_product,
    in_sixteens,
    load_tile,
    operand,
    store_tile,
    tile_at,
    ways,
)
from gradlab.kernels.common.tiles_triton import multiprocessors, product_parts, tile
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, sized_for, triton_dtype


# fmt: off
@kernel
def _matmul_kernel(
    a_ptr, a_z, a_m, a_k,
    b_ptr, b_z, b_k, b_n,
    c_ptr, c_z, c_m, c_n,
    mask_ptr, mask_z, mask_0, mask_1,
    y_ptr, y_z, y_m, y_n, y_s,
    M, K, N, PART,
    ACC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, FULL_K: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, MASK: tl.constexpr, Y: tl.constexpr,
    PERSISTENT: tl.constexpr, SPLIT: tl.constexpr, HALVES: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = relu(sum_k a[z m k] b[z k n] + c), c[z n] (BIAS row) or c[z m n] (BIAS matrix).

    The array that MASKED names, a, b or y, is 0 where mask <= 0; without RELU no maximum is taken.
    A, B, MASK and Y are the ways, as `operand` takes them, in which the arrays are read and written.

    Grid (Z * M/BM * N/BN); a program owns y[z BM BN]. PERSISTENT: Z is 1, and a program of fewer owns several tiles.
    HALVES: a matrix c is added to the left and the right half of a tile in turn, for which registers suffice.
    SPLIT: y[s z m n] is the sum over k from s PART to (s + 1) PART - 1. Grid (Z * M/BM * N/BN, S).
    """
    if SPLIT:
        # A part is a product of its own: PART is a multiple of BK, and its first element as aligned as the matrix.
        first = tl.program_id(1) * PART
        a_ptr += first.to(tl.int64) * a_k
        b_ptr += first.to(tl.int64) * b_k
        if MASKED == "a":
            mask_ptr += first.to(tl.int64) * mask_1
        if MASKED == "b":
            mask_ptr += first.to(tl.int64) * mask_0
        y_ptr += tl.program_id(1).to(tl.int64) * (y_s if Y == "pointers" else in_sixteens(y_ptr, y_s))
        K = tl.minimum(K - first, PART)
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    z = (tl.program_id(0) // tiles).to(tl.int64)
    a = operand(a_ptr, z, a_z, a_m, a_k, M, K, A, BM, BK)
    b = operand(b_ptr, z, b_z, b_k, b_n, K, N, B, BK, BN)
    y = operand(y_ptr, z, y_z, y_m, y_n, M, N, Y, BM, BN)
    mask = mask_ptr
    if MASKED == "a":
        mask = operand(mask_ptr, z, mask_z, mask_0, mask_1, M, K, MASK, BM, BK)
    if MASKED == "b":
        mask = operand(mask_ptr, z, mask_z, mask_0, mask_1, K, N, MASK, BK, BN)
    if MASKED == "y":
        mask = operand(mask_ptr, z, mask_z, mask_0, mask_1, M, N, MASK, BM, BN)
    if PERSISTENT:
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            _tile(
                a, a_m, a_k, b, b_k, b_n, c_ptr, c_m, c_n, mask, mask_0, mask_1, y, y_m, y_n, tile, M, K, N,
                ACC, BIAS, RELU, MASKED, FULL_K, A, B, MASK, Y, y_ptr.dtype.element_ty, HALVES, BM, BK, BN, GROUP,
            )
    else:
        _tile(
            a, a_m, a_k, b, b_k, b_n, c_ptr + z * c_z, c_m, c_n, mask, mask_0, mask_1, y, y_m, y_n,
            tl.program_id(0) % tiles, M, K, N,
            ACC, BIAS, RELU, MASKED, FULL_K, A, B, MASK, Y, y_ptr.dtype.element_ty, HALVES, BM, BK, BN, GROUP,
        )


@kernel
def _tile(
    a, a_m, a_k,
    b, b_k, b_n,
    c_ptr, c_m, c_n,
    mask, mask_0, mask_1,
    y, y_m, y_n,
    tile, M, K, N,
    ACC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, FULL_K: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, MASK: tl.constexpr, Y: tl.constexpr,
    TO: tl.constexpr, HALVES: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """The tile y[BM BN] of that number: tiles go down GROUP rows of tiles before they move right."""
    m0, n0 = tile_at(tile, M, N, BM, BN, GROUP)
    acc = tl.zeros((BM, BN), dtype=ACC)
    if MASKED == "a":
        for k0 in range(0, K, BK):
            a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
            b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
            above = load_tile(mask, mask_0, mask_1, m0, k0, M, K, MASK, False, FULL_K, BM, BK)
            a_tile = tl.where(above <= 0, 0.0, a_tile).to(a_tile.dtype)
            acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=ACC)
    elif MASKED == "b":
        for k0 in range(0, K, BK):
            a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
            b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
            above = load_tile(mask, mask_0, mask_1, k0, n0, K, N, MASK, FULL_K, False, BK, BN)
            b_tile = tl.where(above <= 0, 0.0, b_tile).to(b_tile.dtype)
            acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=ACC)
    else:
        acc = add_product(acc, a, a_m, a_k, b, b_k, b_n, m0, n0, M, K, N, A, B, FULL_K, BM, BK, BN)

    acc = _epilogue(
        acc, c_ptr, c_m, c_n, mask, mask_0, mask_1, m0, n0, M, N, BIAS, RELU, MASKED, MASK, HALVES, BM, BN,
    )
    store_tile(y, y_m, y_n, acc.to(TO), m0, n0, M, N, Y, BM, BN)


@kernel
def _epilogue(
    acc,
    c_ptr, c_m, c_n,
    mask, mask_0, mask_1,
    m0, n0, M, N,
    BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, MASK: tl.constexpr, HALVES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """The sums acc[BM BN] of the tile from row m0 and column n0 on, with c, relu and the mask of y."""
    ACC: tl.constexpr = acc.dtype
    if BIAS == "row":
        n = (n0 + tl.arange(0, BN)).to(tl.int64)
        acc += tl.load(c_ptr + n * c_n, mask=n < N, other=0.0).to(ACC)[None, :]
    if BIAS == "matrix":
        # c may be y itself: no other program reads this tile of it.
        if HALVES:
            left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
            left += load_tile(c_ptr, c_m, c_n, m0, n0, M, N, "pointers", False, False, BM, BN // 2).to(ACC)
            right += load_tile(c_ptr, c_m, c_n, m0, n0 + BN // 2, M, N, "pointers", False, False, BM, BN // 2).to(ACC)
            acc = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (BM, BN))
        else:
            acc += load_tile(c_ptr, c_m, c_n, m0, n0, M, N, "pointers", False, False, BM, BN).to(ACC)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    if MASKED == "y":
        acc = tl.where(load_tile(mask, mask_0, mask_1, m0, n0, M, N, MASK, False, False, BM, BN) <= 0, 0.0, acc)
    return acc


@kernel
def _sum_parts_kernel(
    p_ptr, p_s, p_z, p_m,
    c_ptr, c_z, c_m, c_n,
    mask_ptr, mask_z, mask_0, mask_1,
    y_ptr, y_z, y_m, y_n,
    S, M, N,
    BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr, MASK: tl.constexpr, Y: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[z m n] = relu(sum_s p[s z m n] + c), added up in the order of s; c, the mask of y and the ways as a product's.

    Grid (Z * M/BM * N/BN); a program owns y[z BM BN].
    """
    tiles_n = tl.cdiv(N, BN)
    tiles = tl.cdiv(M, BM) * tiles_n
    z = (tl.program_id(0) // tiles).to(tl.int64)
    m0 = tl.program_id(0) % tiles // tiles_n * BM
    n0 = tl.program_id(0) % tiles_n * BN
    p = operand(p_ptr, z, p_z, p_m, 1, M, N, P, BM, BN)
    y = operand(y_ptr, z, y_z, y_m, y_n, M, N, Y, BM, BN)
    mask = mask_ptr
    if MASKED == "y":
        mask = operand(mask_ptr, z, mask_z, mask_0, mask_1, M, N, MASK, BM, BN)
    acc = tl.zeros((BM, BN), dtype=p_ptr.dtype.element_ty)
    # Four loads are under way at once.
    for _ in tl.range(S, loop_unroll_factor=4):
        acc += load_tile(p, p_m, 1, m0, n0, M, N, P, False, False, BM, BN)
        p += p_s if P == "pointers" else in_sixteens(p_ptr, p_s)
    acc = _epilogue(
        acc, c_ptr + z * c_z, c_m, c_n, mask, mask_0, mask_1, m0, n0, M, N, BIAS, RELU, MASKED, MASK, False, BM, BN,
    )
    store_tile(y, y_m, y_n, acc.to(y_ptr.dtype.element_ty), m0, n0, M, N, Y, BM, BN)
# fmt: on

# Elements of a tile whose sums take half of a multiprocessor's registers.
_ALONE = 128 * 256


def matmul_into(
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None = None,
    masked: str = "",
    relu: bool = False,
) -> None:
    """y[M N] = a b + bias, y of any strides and dtype; a bias[M N] may be y itself: then a b is added to y."""
    M, K, N = *a.shape[-2:], b.shape[-1]
    BM, BK, BN, warps, stages = tile("masked matmul" if masked == "b" else "matmul", a, M, K, N)
    if masked != "b" and _by_rows_first(b, M):
        b = channels_last(b.mT.reshape(-1, N, K, 1)).view(*b.shape[:-2], N, K).mT
    tiles = math.prod(a.shape[:-2]) * -(-M // BM) * -(-N // BN)
    S, steps = product_parts(y.device, tiles, y.numel(), -(-K // BK))
    if S == 1:
        out, added, mask_in, masked_in = y, bias, mask, masked
    else:
        # As many sums as a tile for each program of one wave: 8 MiB with the tiles of the table.
        out, added = y.new_empty((S, *y.shape), dtype=accumulator(a.dtype)), None
        mask_in, masked_in = (None, "") if masked == "y" else (mask, masked)
    one = out if S == 1 else out[0]
    by = ways(a, b, mask_in, one)
    # Where a multiprocessor has room for one program alone, its stores overlap with its next tile, and it makes its
    # descriptors once.
    alone = BM * BN >= _ALONE and sized_for(y.device) == "cuda"
    persistent = alone and S == 1 and mask is None and a.ndim == 2 and by[3] in ("rows", "columns")
    programs = min(tiles, multiprocessors(y.device)) if persistent else tiles
    kind, c = _added(a, added)
    # fmt: off
    launch(
        _matmul_kernel, [programs] if S == 1 else [programs, S],
        a, *strides(a, 2),
        b, *strides(b, 2),
        *c,
        *((a, 0, 0, 0) if mask_in is None else (mask_in, *strides(mask_in, 2))),
        out, *strides(one, 2), 0 if S == 1 else out.stride(0),
        M, K, N, steps * BK,
        ACC=triton_dtype(accumulator(a.dtype)), BIAS=kind, RELU=relu and S == 1, MASKED=masked_in,
        FULL_K=K % BK == 0, PERSISTENT=persistent, SPLIT=S > 1, HALVES=alone, A=by[0], B=by[1], MASK=by[2], Y=by[3],
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[out], warps=warps, stages=stages,
    )
    # fmt: on
    if S > 1:
        _sum_parts(y, out, bias, mask if masked == "y" else None, relu)


def _sum_parts(
    y: torch.Tensor, p: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None, relu: bool
) -> None:
    """y[Z M N] = the sum of p[S Z M N] over S, in order, + bias; then relu, or 0 where mask <= 0."""
    M, N = y.shape[-2:]
    kind, c = _added(y, bias)
    by = ways(p[0], mask, y, descriptors=False)
    # Rows of a cache line of float32 each; columns of y are whole sectors in half precision.
    BM, BN = block(M, 16, 1), block(N, 32)
    # fmt: off
    launch(
        _sum_parts_kernel, [math.prod(y.shape[:-2]) * -(-M // BM) * -(-N // BN)],
        p, p.stride(0), *strides(p[0], 2)[:2],
        *c,
        *((y, 0, 0, 0) if mask is None else (mask, *strides(mask, 2))),
        y, *strides(y, 2),
        p.shape[0], M, N,
        BIAS=kind, RELU=relu, MASKED="" if mask is None else "y", P=by[0], MASK=by[1], Y=by[2],
        BM=BM, BN=BN, writes=[y],
    )
    # fmt: on


def _added(like: torch.Tensor, bias: torch.Tensor | None) -> tuple[str, tuple[object, ...]]:
    """What a kernel adds to a product of as many axes as `like`: BIAS, and c with its strides; without one, `like`."""
    if bias is None:
        return "", (like, 0, 0, 0)
    if bias.ndim == like.ndim:
        return "matrix", (bias, *strides(bias, 2))
    z, n = strides(bias, 1)
    return "row", (bias, z, 0, n)


def _by_rows_first(b: torch.Tensor, M: int) -> bool:
    """Whether b[K N], which lies column by column, is copied to rows ahead of a product of M rows.

    In float32 on a GPU a dot's lanes read neighbouring columns from shared memory, where these then lie K apart, in one
    bank: 8 times as many passes as products have. A copy costs K N of M K N, from a launch's worth on.
    """
    by_columns = b.stride(-2) == 1 and b.stride(-1) > 1
    return b.dtype == torch.float32 and by_columns and M >= 64 and b.numel() >= 2**14 and sized_for(b.device) == "cuda"


def strides(t: torch.Tensor, axes: int) -> tuple[int, ...]:
    """The strides of Z and the last `axes` axes; that of Z is 0 when there is none."""
    return (0, *t.stride())[-1 - axes :]


def masks_first(dy: torch.Tensor) -> bool:
    """Whether relu's mask is applied to dy[M N] once, by a pass of its own, and not in each product that reads dy.

    Tensor cores of sm_90 read shared memory: an operand that is masked on its way is loaded, masked and written there
    again, 2 or 3 times the traffic that the product has. A pass over memory costs M N of each product's M N K; small
    products are cheaper than a launch.
    """
    return sized_for(dy.device) == "cuda" and dy.numel() >= 2**21
