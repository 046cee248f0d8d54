"""The sum of images over their pixels as a Triton kernel: the gradient of a convolution's bias."""

import torch
import triton.language as tl

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.images_triton import index
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, sized_for, triton_dtype


# fmt: off
@kernel
def _pixel_sum_kernel(
    u_ptr, u_b, u_f, u_p, u_q,
    mask_ptr, mask_b, mask_f, mask_p, mask_q,
    s_ptr, s_z, s_f,
    M, F, P, Q, ROWS,
    ACC: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr, PLANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """s[z f] = sum_m u[m f], 0 where mask <= 0, over the z-th ROWS of m = (b p q).

    Grid (F/BN, Z); a program owns s[z BN].
    """
    f = (tl.program_id(0) * BN + tl.arange(0, BN)).to(INDEX)
    z = tl.program_id(1).to(INDEX)
    total = tl.zeros((BN,), dtype=ACC)
    for m0 in range(0, ROWS, BM):
        row = m0 + tl.arange(0, BM)
        m = z * ROWS + row
        b = m // (P * Q)
        p = m // Q % P
        q = m % Q
        live = (row < ROWS) & (m < M)
        at = b * u_b + p * u_p + q * u_q
        at_mask = b * mask_b + p * mask_p + q * mask_q
        if PLANES:
            # Pixels last: neighbours in memory are neighbouring lanes.
            inside = (f < F)[:, None] & live[None, :]
            u = tl.load(u_ptr + (f * u_f)[:, None] + at[None, :], mask=inside, other=0.0).to(ACC)
            if MASKED:
                mask = tl.load(mask_ptr + (f * mask_f)[:, None] + at_mask[None, :], mask=inside, other=0.0)
                u = tl.where(mask <= 0, 0.0, u)
            total += tl.sum(u, axis=1)
        else:
            inside = live[:, None] & (f < F)[None, :]
            u = tl.load(u_ptr + at[:, None] + (f * u_f)[None, :], mask=inside, other=0.0).to(ACC)
            if MASKED:
                mask = tl.load(mask_ptr + at_mask[:, None] + (f * mask_f)[None, :], mask=inside, other=0.0)
                u = tl.where(mask <= 0, 0.0, u)
            total += tl.sum(u, axis=0)
    tl.store(s_ptr + z * s_z + f * s_f, total.to(s_ptr.dtype.element_ty), mask=f < F)


def pixel_sum(dy: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """s[F] = sum over B, P and Q of dy[B F P Q], zeros where mask <= 0; in two passes, no atomics."""
    B, F, P, Q = dy.shape
    M = B * P * Q
    planes = sized_for(dy.device) == "cuda" and dy.stride(1) > dy.stride(3) > 0
    Z, BM, BN = max(1, min(256, M // 512)), block(M, 512 if planes else 64), block(F, 8 if planes else 64)
    part = dy.new_empty((Z, F), dtype=accumulator(dy.dtype) if Z > 1 else dy.dtype)
    launch(
        _pixel_sum_kernel, [-(-F // BN), Z],
        dy, *dy.stride(),
        *((dy, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        part, *part.stride(),
        M, F, P, Q, -(-M // Z),
        ACC=triton_dtype(accumulator(dy.dtype)), INDEX=index(dy, mask), MASKED=mask is not None,
        PLANES=planes, BM=BM, BN=BN, writes=[part],
    )
    return part[0] if Z == 1 else column_sum(part, None).to(dy.dtype)
# fmt: on
