"""The product of two matrices as a Triton kernel: bias, relu and the mask of its backward in one pass."""

import math

import torch
import triton.language as tl

from gradlab.kernels.common.product_triton import add_product, load_tile, operand, store_tile, ways
from gradlab.kernels.common.tiles_triton import tile
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, launch, triton_dtype


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
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = relu(sum_k a[z m k] b[z k n] + c), c[z n] (BIAS row) or c[z m n] (BIAS matrix).

    The array that MASKED names, a, b or y, is 0 where mask <= 0; without RELU no maximum is taken.
    A, B, MASK and Y are the ways, as `operand` takes them, in which the arrays are read and written.

    Grid (Z * M/BM * N/BN); a program owns y[z BM BN].
    """
    # Programs go down GROUP row tiles before they move right, so that the tiles of b that they share stay in L2.
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    program = tl.program_id(0) % (tiles_m * tiles_n)
    first = program // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    m0 = (first + program % (GROUP * tiles_n) % high) * BM
    n0 = program % (GROUP * tiles_n) // high * BN

    z = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    a = operand(a_ptr + z * a_z, a_m, a_k, M, K, A, BM, BK)
    b = operand(b_ptr + z * b_z, b_k, b_n, K, N, B, BK, BN)
    y = operand(y_ptr + z * y_z, y_m, y_n, M, N, Y, BM, BN)
    c_ptr += z * c_z
    mask_ptr += z * mask_z
    acc = tl.zeros((BM, BN), dtype=ACC)
    if MASKED == "a":
        mask = operand(mask_ptr, mask_0, mask_1, M, K, MASK, BM, BK)
        for k0 in range(0, K, BK):
            a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
            b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
            above = load_tile(mask, mask_0, mask_1, m0, k0, M, K, MASK, False, FULL_K, BM, BK)
            a_tile = tl.where(above <= 0, 0.0, a_tile).to(a_tile.dtype)
            acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=ACC)
    elif MASKED == "b":
        mask = operand(mask_ptr, mask_0, mask_1, K, N, MASK, BK, BN)
        for k0 in range(0, K, BK):
            a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
            b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
            above = load_tile(mask, mask_0, mask_1, k0, n0, K, N, MASK, FULL_K, False, BK, BN)
            b_tile = tl.where(above <= 0, 0.0, b_tile).to(b_tile.dtype)
            acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=ACC)
    else:
        acc = add_product(acc, a, a_m, a_k, b, b_k, b_n, m0, n0, M, K, N, A, B, FULL_K, BM, BK, BN)

    m = (m0 + tl.arange(0, BM)).to(tl.int64)
    n = (n0 + tl.arange(0, BN)).to(tl.int64)
    if BIAS == "row":
        acc += tl.load(c_ptr + n * c_n, mask=n < N, other=0.0).to(ACC)[None, :]
    if BIAS == "matrix":
        # c may be y itself: no other program reads this tile of it.
        inside = (m < M)[:, None] & (n < N)[None, :]
        acc += tl.load(c_ptr + m[:, None] * c_m + n[None, :] * c_n, mask=inside, other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    if MASKED == "y":
        mask = operand(mask_ptr, mask_0, mask_1, M, N, MASK, BM, BN)
        acc = tl.where(load_tile(mask, mask_0, mask_1, m0, n0, M, N, MASK, False, False, BM, BN) <= 0, 0.0, acc)
    store_tile(y, y_m, y_n, acc.to(y_ptr.dtype.element_ty), m0, n0, M, N, Y, BM, BN)

# fmt: on


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
    BM, BK, BN, warps, stages = tile("matmul", a, M, K, N)
    kind: str = ""
    c: tuple[object, ...] = (a, 0, 0, 0)
    if bias is not None and bias.ndim == a.ndim:
        kind, c = "matrix", (bias, *strides(bias, 2))
    elif bias is not None:
        z, n = strides(bias, 1)
        kind, c = "row", (bias, z, 0, n)
    by = ways(a, b, mask, y)
    # fmt: off
    launch(
        _matmul_kernel, [math.prod(a.shape[:-2]) * -(-M // BM) * -(-N // BN)],
        a, *strides(a, 2),
        b, *strides(b, 2),
        *c,
        *((a, 0, 0, 0) if mask is None else (mask, *strides(mask, 2))),
        y, *strides(y, 2),
        M, K, N,
        ACC=triton_dtype(accumulator(a.dtype)), BIAS=kind, RELU=relu, MASKED=masked, FULL_K=K % BK == 0,
        A=by[0], B=by[1], MASK=by[2], Y=by[3],
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on


def strides(t: torch.Tensor, axes: int) -> tuple[int, ...]:
    """The strides of Z and the last `axes` axes; that of Z is 0 when there is none."""
    return (0, *t.stride())[-1 - axes :]
