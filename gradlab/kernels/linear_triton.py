"""The product of two matrices and the column sum, as Triton kernels: linear's way there and back."""

import torch
import triton.language as tl

from gradlab.kernels.launch_triton import accumulator, block, interpreted, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _product_kernel(
    a_ptr, a_m, a_k,
    b_ptr, b_k, b_n,
    c_ptr, c_n,
    g_ptr, g_0, g_1,
    y_ptr, y_m, y_n,
    M, K, N,
    ACC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, GATE: tl.constexpr, WHOLE_K: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[m n] = sum_k a[m k] b[k n] + c[n], a | b | y gated by g > 0; grid (M/BM * N/BN); a program owns y[BM BN]."""
    # Programs walk down GROUP row tiles before they move right, so that the tiles of b they share stay in L2.
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    program = tl.program_id(0)
    first = program // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    tile_m = first + program % (GROUP * tiles_n) % high
    tile_n = program % (GROUP * tiles_n) // high

    # 64-bit offsets: an operand may pass 2^31 elements.
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
    if BIAS:
        acc += tl.load(c_ptr + n * c_n, mask=n < N, other=0.0).to(ACC)[None, :]
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if GATE == "y":
        g = tl.load(g_ptr + m[:, None] * g_0 + n[None, :] * g_1, mask=inside, other=0.0)
        acc = tl.where(g <= 0, 0.0, acc)
    tl.store(y_ptr + m[:, None] * y_m + n[None, :] * y_n, acc.to(y_ptr.dtype.element_ty), mask=inside)


@kernel
def _column_sum_kernel(
    a_ptr, a_m, a_n,
    g_ptr, g_m, g_n,
    s_ptr, s_z, s_n,
    M, N, ROWS,
    ACC: tl.constexpr, GATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """s[z n] = sum_m a[m n], gated by g > 0, over the z-th ROWS rows; grid (N/BN, Z); a program owns s[z BN]."""
    n = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    z = tl.program_id(1).to(tl.int64)
    total = tl.zeros((BN,), dtype=ACC)
    for m0 in range(0, ROWS, BM):
        row = m0 + tl.arange(0, BM)
        m = z * ROWS + row
        inside = ((row < ROWS) & (m < M))[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * a_m + n[None, :] * a_n, mask=inside, other=0.0).to(ACC)
        if GATE:
            g = tl.load(g_ptr + m[:, None] * g_m + n[None, :] * g_n, mask=inside, other=0.0)
            a = tl.where(g <= 0, 0.0, a)
        total += tl.sum(a, axis=0)
    tl.store(s_ptr + z * s_z + n * s_n, total.to(s_ptr.dtype.element_ty), mask=n < N)
# fmt: on


def _product_fake(a, b, bias, gate, place, relu, transposed):
    return _empty(a, a.shape[0], b.shape[1], transposed)


@op("product", fake=_product_fake)
def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, gate: torch.Tensor | None,
            place: str, relu: bool, transposed: bool) -> torch.Tensor:  # fmt: skip
    """y[M N] = a[M K] b[K N] + bias[N], then relu; where gate <= 0, zeros stand in for `place`: "a", "b" or "y".

    Any strides. `transposed` lays y out column by column, as the gradient of a transposed weight wants it.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    M, K, N = *a.shape, b.shape[1]
    y = _empty(a, M, N, transposed)
    BM, BK, BN, warps, stages = _tile(a, M, K, N)
    # fmt: off
    launch(
        _product_kernel, [-(-M // BM) * -(-N // BN)],
        a, *a.stride(),
        b, *b.stride(),
        *((a, 0) if bias is None else (bias, *bias.stride())),
        *((a, 0, 0) if gate is None else (gate, *gate.stride())),
        y, *y.stride(),
        M, K, N,
        ACC=triton_dtype(accumulator(a.dtype)), BIAS=bias is not None, RELU=relu, GATE=place, WHOLE_K=K % BK == 0,
        BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on
    return y


def _column_sum_fake(a, gate):
    return a.new_empty(a.shape[1])


@op("column_sum", fake=_column_sum_fake)
def column_sum(a: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """s[N] = sum over M of a[M N], zeros where gate <= 0; M * N * (1 or 2) elements read.

    A tall matrix is summed in two passes, Z partial rows first: no atomics, so the same bits each time.
    """
    M, N = a.shape
    if interpreted(a.device):
        Z, BM, BN = 1, block(M, 1024), block(N, 1024)
    else:
        Z, BM, BN = max(1, min(256, M // 512)), block(M, 64), block(N, 64)
    partial = a.new_empty((Z, N), dtype=accumulator(a.dtype) if Z > 1 else a.dtype)
    rows = -(-M // Z)
    # fmt: off
    launch(
        _column_sum_kernel, [-(-N // BN), Z],
        a, *a.stride(),
        *((a, 0, 0) if gate is None else (gate, *gate.stride())),
        partial, *partial.stride(),
        M, N, rows,
        ACC=triton_dtype(accumulator(a.dtype)), GATE=gate is not None, BM=BM, BN=BN, writes=[partial],
    )
    # fmt: on
    return partial[0] if Z == 1 else column_sum(partial, None).to(a.dtype)


def _empty(a: torch.Tensor, M: int, N: int, transposed: bool) -> torch.Tensor:
    return a.new_empty((N, M)).t() if transposed else a.new_empty((M, N))


def _tile(a: torch.Tensor, M: int, K: int, N: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BN, warps, stages: few programs when interpreted; tensor-core tiles in half precision when compiled."""
    if interpreted(a.device):
        return block(M, 1024), block(K, 1024), block(N, 1024), 4, 1
    if a.dtype in (torch.float64, torch.float32):
        # No tensor cores at full precision: more of K at a time spills registers where an operand is gated.
        return block(M, 64), 16, block(N, 64), 4, 3
    BM, BN = block(M, 128), block(N, 128)
    return BM, block(K, 64), BN, 8 if BM * BN > 64 * 128 else 4, 3
