"""The product of two matrices and the column sum, as Triton kernels: linear's forward and backward."""

import math

import torch
import triton.language as tl

from gradlab.kernels.launch_triton import accumulator, block, kernel, launch, op, triton_dtype
from gradlab.kernels.sizes_triton import tile


# fmt: off
@kernel
def _product_kernel(
    a_ptr, a_z, a_m, a_k,
    b_ptr, b_z, b_k, b_n,
    c_ptr, c_z, c_m, c_n,
    g_ptr, g_z, g_0, g_1,
    y_ptr, y_z, y_m, y_n,
    M, K, N,
    ACC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, GATE: tl.constexpr, WHOLE_K: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = sum_k a[z m k] b[z k n] + c[z m n], one gated by g > 0; grid (Z * M/BM * N/BN); a program owns y[z BM BN]."""
    # Programs walk down GROUP row tiles before they move right, so that the tiles of b they share stay in L2.
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
    g_ptr += z * g_z
    y_ptr += z * y_z
    m = (tile_m * BM + tl.arange(0, BM)).to(tl.int64)
    n = (tile_n * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK).to(tl.int64)
        if WHOLE_K:
            in_a = (m < M)[:, None]
            in_b = (n < N)[None, :]
        else:
            in_a = (m < M)[:, None] & (k < K)[None, :]
            in_b = (k < K)[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * a_m + k[None, :] * a_k, mask=in_a, other=0.0)
        b = tl.load(b_ptr + k[:, None] * b_k + n[None, :] * b_n, mask=in_b, other=0.0)
        if GATE == "a":
            g = tl.load(g_ptr + m[:, None] * g_0 + k[None, :] * g_1, mask=in_a, other=0.0)
            a = tl.where(g <= 0, 0.0, a).to(a.dtype)
        if GATE == "b":
            g = tl.load(g_ptr + k[:, None] * g_0 + n[None, :] * g_1, mask=in_b, other=0.0)
            b = tl.where(g <= 0, 0.0, b).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if BIAS == "row":
        acc += tl.load(c_ptr + n * c_n, mask=n < N, other=0.0).to(ACC)[None, :]
    if BIAS == "matrix":
        # c may be y itself: no other program reads this tile of it.
        acc += tl.load(c_ptr + m[:, None] * c_m + n[None, :] * c_n, mask=inside, other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    if GATE == "y":
        g = tl.load(g_ptr + m[:, None] * g_0 + n[None, :] * g_1, mask=inside, other=0.0)
        acc = tl.where(g <= 0, 0.0, acc)
    tl.store(y_ptr + m[:, None] * y_m + n[None, :] * y_n, acc.to(y_ptr.dtype.element_ty), mask=inside)


@kernel
def _column_sum_kernel(
    a_ptr, a_z, a_m, a_n,
    g_ptr, g_z, g_m, g_n,
    s_ptr, s_z, s_i, s_n,
    M, N, ROWS,
    ACC: tl.constexpr, GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """s[z i n] = sum_m a[z m n], gated by g > 0, over the i-th ROWS rows; grid (Z * N/BN, I); a program owns s[z i BN]."""
    tiles_n = tl.cdiv(N, BN)
    n = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(tl.int64)
    i = tl.program_id(1).to(tl.int64)
    z = (tl.program_id(0) // tiles_n).to(tl.int64)
    a_ptr += z * a_z
    g_ptr += z * g_z
    s_ptr += z * s_z
    total = tl.zeros((BN,), dtype=ACC)
    for m0 in range(0, ROWS, BM):
        row = m0 + tl.arange(0, BM)
        m = i * ROWS + row
        inside = ((row < ROWS) & (m < M))[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * a_m + n[None, :] * a_n, mask=inside, other=0.0).to(ACC)
        if GATE:
            g = tl.load(g_ptr + m[:, None] * g_m + n[None, :] * g_n, mask=inside, other=0.0)
            a = tl.where(g <= 0, 0.0, a)
        total += tl.sum(a, axis=0)
    tl.store(s_ptr + i * s_i + n * s_n, total.to(s_ptr.dtype.element_ty), mask=n < N)
# fmt: on


def _product_fake(a, b, bias, gate, place, relu, transposed):
    return _empty(a, b, transposed)


@op("product", fake=_product_fake, flops=lambda a, b, *_, out_shape: 2 * math.prod(a) * b[-1])
def product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    place: str,
    relu: bool,
    transposed: bool,
) -> torch.Tensor:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; where gate <= 0, zeros stand in for `place`: "a", "b" or "y".

    All of them may have one more axis Z in front, for Z products in one launch. Any strides. `transposed` lays y out
    column by column, as the gradient of a transposed weight wants it.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    y = _empty(a, b, transposed)
    product_into(y, a, b, bias, gate, place, relu)
    return y


def product_into(
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None = None,
    place: str = "",
    relu: bool = False,
) -> None:
    """`product` written to y[M N], of any strides and dtype; bias[M N] is added too, and may be y: then y grows."""
    M, K, N = *a.shape[-2:], b.shape[-1]
    BM, BK, BN, warps, stages = tile("product", a, M, K, N)
    shape: str = ""
    c: tuple[object, ...] = (a, 0, 0, 0)
    if bias is not None and bias.ndim == a.ndim:
        shape, c = "matrix", (bias, *_strides(bias, 2))
    elif bias is not None:
        z, n = _strides(bias, 1)
        shape, c = "row", (bias, z, 0, n)
    # fmt: off
    launch(
        _product_kernel, [math.prod(a.shape[:-2]) * -(-M // BM) * -(-N // BN)],
        a, *_strides(a, 2),
        b, *_strides(b, 2),
        *c,
        *((a, 0, 0, 0) if gate is None else (gate, *_strides(gate, 2))),
        y, *_strides(y, 2),
        M, K, N,
        ACC=triton_dtype(accumulator(a.dtype)), BIAS=shape, RELU=relu, GATE=place, WHOLE_K=K % BK == 0,
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on


def _column_sum_fake(a, gate):
    return a.new_empty((*a.shape[:-2], a.shape[-1]))


@op("column_sum", fake=_column_sum_fake)
def column_sum(a: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """s[N] = sum over M of a[M N], zeros where gate <= 0; both may have one more axis Z in front.

    Z * M * N * (1 or 2) elements read. A tall matrix is summed in two passes, I partial rows first: no atomics, so the
    same bits each time.
    """
    M, N = a.shape[-2:]
    Z = math.prod(a.shape[:-2])
    parts, BM, BN = max(1, min(256, M // 512)), block(M, 64), block(N, 64)
    partial = a.new_empty((Z, parts, N), dtype=accumulator(a.dtype) if parts > 1 else a.dtype)
    # fmt: off
    launch(
        _column_sum_kernel, [Z * -(-N // BN), parts],
        a, *_strides(a, 2),
        *((a, 0, 0, 0) if gate is None else (gate, *_strides(gate, 2))),
        partial, *partial.stride(),
        M, N, -(-M // parts),
        ACC=triton_dtype(accumulator(a.dtype)), GATE=gate is not None, BM=BM, BN=BN, writes=[partial],
    )
    # fmt: on
    s = partial[:, 0] if parts == 1 else column_sum(partial, None).to(a.dtype)
    return s if a.ndim == 3 else s[0]


def _strides(t: torch.Tensor, axes: int) -> tuple[int, ...]:
    """The strides of Z and the last `axes` axes; that of Z is 0 when there is none."""
    return (0, *t.stride())[-1 - axes :]


def _empty(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> torch.Tensor:
    Z, M, N = a.shape[:-2], a.shape[-2], b.shape[-1]
    return a.new_empty((*Z, N, M)).mT if transposed else a.new_empty((*Z, M, N))
