"""The product of two matrices as a Triton kernel: bias, relu and the mask of its backward in one pass."""

import math

import torch
import triton.language as tl

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
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = relu(sum_k a[z m k] b[z k n] + c), c[z n] (BIAS row) or c[z m n] (BIAS matrix).

    The array that MASKED names, a, b or y, is 0 where mask <= 0; without RELU no maximum is taken.

    Grid (Z * M/BM * N/BN); a program owns y[z BM BN].
    """
    # Programs go down GROUP row tiles before they move right, so that the tiles of b that they share stay in L2.
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    program = tl.program_id(0) % (tiles_m * tiles_n)
    first = program // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    tile_m = first + program % (GROUP * tiles_n) % high
    tile_n = program % (GROUP * tiles_n) // high

    # 64-bit offsets: an operand may pass 2^31 elements.
    z = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    a_ptr += z * a_z
    b_ptr += z * b_z
    c_ptr += z * c_z
    mask_ptr += z * mask_z
    y_ptr += z * y_z
    m = (tile_m * BM + tl.arange(0, BM)).to(tl.int64)
    n = (tile_n * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK).to(tl.int64)
        if FULL_K:
            in_a = (m < M)[:, None]
            in_b = (n < N)[None, :]
        else:
            in_a = (m < M)[:, None] & (k < K)[None, :]
            in_b = (k < K)[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * a_m + k[None, :] * a_k, mask=in_a, other=0.0)
        b = tl.load(b_ptr + k[:, None] * b_k + n[None, :] * b_n, mask=in_b, other=0.0)
        if MASKED == "a":
            mask = tl.load(mask_ptr + m[:, None] * mask_0 + k[None, :] * mask_1, mask=in_a, other=0.0)
            a = tl.where(mask <= 0, 0.0, a).to(a.dtype)
        if MASKED == "b":
            mask = tl.load(mask_ptr + k[:, None] * mask_0 + n[None, :] * mask_1, mask=in_b, other=0.0)
            b = tl.where(mask <= 0, 0.0, b).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if BIAS == "row":
        acc += tl.load(c_ptr + n * c_n, mask=n < N, other=0.0).to(ACC)[None, :]
    if BIAS == "matrix":
        # c may be y itself: no other program reads this tile of it.
        acc += tl.load(c_ptr + m[:, None] * c_m + n[None, :] * c_n, mask=inside, other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    if MASKED == "y":
        mask = tl.load(mask_ptr + m[:, None] * mask_0 + n[None, :] * mask_1, mask=inside, other=0.0)
        acc = tl.where(mask <= 0, 0.0, acc)
    tl.store(y_ptr + m[:, None] * y_m + n[None, :] * y_n, acc.to(y_ptr.dtype.element_ty), mask=inside)

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
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on


def strides(t: torch.Tensor, axes: int) -> tuple[int, ...]:
    """The strides of Z and the last `axes` axes; that of Z is 0 when there is none."""
    return (0, *t.stride())[-1 - axes :]
