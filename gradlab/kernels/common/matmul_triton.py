"""The product of two matrices as a Triton kernel: bias, relu and the mask of its backward in one pass."""

import math

import torch
import triton.language as tl

from gradlab.kernels.common.images_triton import channels_last
from gradlab.kernels.common.product_triton import add_product, load_tile, operand, store_tile, ways
from gradlab.kernels.common.tiles_triton import multiprocessors, tile
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, launch, sized_for, triton_dtype


# fmt: off
@kernel
def _matmul_kernel(
    a_ptr, a_z, a_m, a_k,
    b_ptr, b_z, b_k, b_n,
    c_ptr, c_z, c_m, c_n,
    mask_ptr, mask_z, mask_0, mask_1,
    y_ptr, y_z, y_m, y_n,
    M, K, N,
    ACC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, FULL_K: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, MASK: tl.constexpr, Y: tl.constexpr,
    PERSISTENT: tl.constexpr, HALVES: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = relu(sum_k a[z m k] b[z k n] + c), c[z n] (BIAS row) or c[z m n] (BIAS matrix).

    The array that MASKED names, a, b or y, is 0 where mask <= 0; without RELU no maximum is taken.
    A, B, MASK and Y are the ways, as `operand` takes them, in which the arrays are read and written.

    Grid (Z * M/BM * N/BN); a program owns y[z BM BN]. PERSISTENT: Z is 1, and a program of fewer owns several tiles.
    HALVES: a matrix c is added to the left and the right half of a tile in turn, for which registers suffice.
    """
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
    # The tiles of b that programs share stay in L2.
    tiles_n = tl.cdiv(N, BN)
    first = tile // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
    m0 = (first + tile % (GROUP * tiles_n) % high) * BM
    n0 = tile % (GROUP * tiles_n) // high * BN
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
    store_tile(y, y_m, y_n, acc.to(TO), m0, n0, M, N, Y, BM, BN)

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
    kind: str = ""
    c: tuple[object, ...] = (a, 0, 0, 0)
    if bias is not None and bias.ndim == a.ndim:
        kind, c = "matrix", (bias, *strides(bias, 2))
    elif bias is not None:
        z, n = strides(bias, 1)
        kind, c = "row", (bias, z, 0, n)
    by = ways(a, b, mask, y)
    programs = math.prod(a.shape[:-2]) * -(-M // BM) * -(-N // BN)
    # Where a multiprocessor has room for one program alone, its stores overlap with its next tile, and it makes its
    # descriptors once.
    alone = BM * BN >= _ALONE and sized_for(y.device) == "cuda"
    persistent = alone and mask is None and a.ndim == 2 and by[3] in ("rows", "columns")
    if persistent:
        programs = min(programs, multiprocessors(y.device))
    # fmt: off
    launch(
        _matmul_kernel, [programs],
        a, *strides(a, 2),
        b, *strides(b, 2),
        *c,
        *((a, 0, 0, 0) if mask is None else (mask, *strides(mask, 2))),
        y, *strides(y, 2),
        M, K, N,
        ACC=triton_dtype(accumulator(a.dtype)), BIAS=kind, RELU=relu, MASKED=masked, FULL_K=K % BK == 0,
        PERSISTENT=persistent, HALVES=alone, A=by[0], B=by[1], MASK=by[2], Y=by[3],
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on


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
