"""The sum of a matrix over its rows as a Triton kernel, in two passes where it is tall."""

import math

import torch
import triton.language as tl

from gradlab.kernels.common.matmul_triton import strides
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, sized_for, triton_dtype


# fmt: off
@kernel
def _column_sum_kernel(
    a_ptr, a_z, a_m, a_n,
    mask_ptr, mask_z, mask_m, mask_n,
    s_ptr, s_z, s_i, s_n,
    M, N, ROWS,
    ACC: tl.constexpr, MASKED: tl.constexpr, LANES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """s[z i n] = sum_m a[z m n] over rows m from i ROWS to (i + 1) ROWS - 1; terms with mask <= 0 count as 0.

    LANES: each of BM rows of a tile has sums of its own, added up at the end: on a GPU a sum over rows goes through
    shared memory, which the tile of each step would wait for.

    Grid (Z * N/BN, I); a program owns s[z i BN].
    """
    tiles_n = tl.cdiv(N, BN)
    n = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(tl.int64)
    i = tl.program_id(1).to(tl.int64)
    z = (tl.program_id(0) // tiles_n).to(tl.int64)
    a_ptr += z * a_z
    mask_ptr += z * mask_z
    s_ptr += z * s_z
    total = tl.zeros((BM, BN) if LANES else (BN,), dtype=ACC)
    for m0 in range(0, ROWS, BM):
        row = m0 + tl.arange(0, BM)
        m = i * ROWS + row
        inside = ((row < ROWS) & (m < M))[:, None] & (n < N)[None, :]
        a = tl.load(a_ptr + m[:, None] * a_m + n[None, :] * a_n, mask=inside, other=0.0).to(ACC)
        if MASKED:
            mask = tl.load(mask_ptr + m[:, None] * mask_m + n[None, :] * mask_n, mask=inside, other=0.0)
            a = tl.where(mask <= 0, 0.0, a)
        total += a if LANES else tl.sum(a, axis=0)
    if LANES:
        total = tl.sum(total, axis=0)
    tl.store(s_ptr + i * s_i + n * s_n, total.to(s_ptr.dtype.element_ty), mask=n < N)
# fmt: on


def _column_sum_fake(a, mask):
    return a.new_empty((*a.shape[:-2], a.shape[-1]))


def _column_sum_sharding(a, mask):
    z = "Z " * (a.ndim - 2)
    return f"a[{z}M N], mask[{z}M N] -> s[{z}N]; sums M"


@op("column_sum", fake=_column_sum_fake, sharding=_column_sum_sharding)
def column_sum(a: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """s[N] = sum over M of a[M N], zeros where mask <= 0; both may have one more axis Z in front.

    Z * M * N * (1 or 2) elements read. A tall matrix is summed in two passes, `parts` partial sums of rows
    first: no atomics, so the same bits each time.
    """
    M, N = a.shape[-2:]
    Z = math.prod(a.shape[:-2])
    parts, BM, BN = max(1, min(256, M // 512)), block(M, 64), block(N, 64)
    partial = a.new_empty((Z, parts, N), dtype=accumulator(a.dtype) if parts > 1 else a.dtype)
    # fmt: off
    launch(
        _column_sum_kernel, [Z * -(-N // BN), parts],
        a, *strides(a, 2),
        *((a, 0, 0, 0) if mask is None else (mask, *strides(mask, 2))),
        partial, *partial.stride(),
        M, N, -(-M // parts),
        ACC=triton_dtype(accumulator(a.dtype)), MASKED=mask is not None, LANES=sized_for(a.device) == "cuda",
        BM=BM, BN=BN, writes=[partial],
    )
    # fmt: on
    s = partial[:, 0] if parts == 1 else column_sum(partial, None).to(a.dtype)
    return s if a.ndim == 3 else s[0]
