"""The second derivative of linear_cross_entropy as a Triton kernel beside linear's products: chunks of classes, too."""

import torch
import triton.language as tl

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_triton import cotangent, empties
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.softcap_triton import cap_slope, capped
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _second_backward_kernel(
    x_ptr, u_ptr,
    g_ptr, g_z, g_m, g_i,
    c_ptr, c_z, c_v,
    t_ptr, t_z, t_m,
    s_ptr, s_z, s_m, s_i,
    e_ptr, d_ptr, q_ptr,
    M, V, FIRST, IGNORE, CLASSES,
    ACC: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr, CAP: tl.constexpr,
    SUMS: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """Of V classes: e[z m] += (sum_v u z' (R p - r), sum_v u z' p), or d = dx and q = X with that sum known; grid (Z * M/BM); a program owns rows BM."""
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    e_ptr += 2 * (z * M + m)
    sum_y = tl.load(e_ptr, mask=m < M, other=0.0)
    sum_l = tl.load(e_ptr + 1, mask=m < M, other=0.0)
    for v0 in range(0, V, BV):
        v = v0 + tl.arange(0, BV).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        at = (z * M + m)[:, None] * V + v[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        u = tl.load(u_ptr + at, mask=inside, other=0.0)
        slope = tl.full((BM, BV), 1.0, dtype=ACC)
        if CAP > 0:
            slope = cap_slope(x, CAP)
        z_ = capped(x, CAP)
        p, r, g, a, R = cotangent(
            z_, v, m, z,
            g_ptr, g_z, g_m, g_i,
            c_ptr, c_z, c_v,
            t_ptr, t_z, t_m,
            s_ptr, s_z, s_m, s_i,
            M, V, FIRST, IGNORE, CLASSES, ACC, WEIGHTS, HARD, SPREAD,
        )
        if SUMS:
            sum_y += tl.sum(tl.where(inside, u * slope * (R * p - r), 0.0), axis=1)
            sum_l += tl.sum(tl.where(inside, u * slope * p, 0.0), axis=1)
        else:
            q = slope * a * p * (u * slope - sum_l[:, None])
            if CAP > 0:
                q -= g * u * 2 * z_ * slope / (CAP * CAP)
            tl.store(d_ptr + at, (g * slope).to(d_ptr.dtype.element_ty), mask=inside)
            tl.store(q_ptr + at, q.to(q_ptr.dtype.element_ty), mask=inside)
    if SUMS:
        tl.store(e_ptr, sum_y, mask=m < M)
        tl.store(e_ptr + 1, sum_l, mask=m < M)
# fmt: on


def _second_backward_fake(
    uh, uw, ub, g, h, w, t, b, c, s, ignore_index, label_smoothing, softcap, need_h, need_w, need_b, by_columns
):
    return s.new_empty((*h.shape[:2], 2)), *empties(h, w, need_h, need_w, need_b, by_columns)


def _second_backward_flops(uh, uw, ub, g, h, w, t, b, c, s, ignore_index, label_smoothing, softcap, need_h, need_w, need_b,
                  by_columns, *, out_shape):  # fmt: skip
    (Z, M, K), V = h, w[-1]
    given = (uh is not None) + (uw is not None)
    # The logits and u for the sums, and for the gradients anew where they were not of one chunk.
    passes = 2 if (need_h or need_w or need_b) and chunk(Z * M, K, V) < V else 1
    results = need_h * (1 + (uw is not None)) + need_w * (1 + (uh is not None))
    return 2 * Z * M * K * V * (passes * (1 + given) + results)


@op("linear_cross_entropy_second_backward", fake=_second_backward_fake, flops=_second_backward_flops)
def second_backward(uh: torch.Tensor | None, uw: torch.Tensor | None, ub: torch.Tensor | None, g: torch.Tensor,
           h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, b: torch.Tensor | None, c: torch.Tensor | None,
           s: torch.Tensor, ignore_index: int, label_smoothing: float, softcap: float, need_h: bool, need_w: bool,
           need_b: bool, by_columns: bool,
           ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dg[Z M 2], dh[Z M K], dw[Z K V], db[Z V]: the pullback of `backward` for the cotangents uh, uw, ub of its results.

    Twice over the chunks of classes: the rows' sums of <dx, u> first, then dx and X. 20 M K V FLOPs.
    """
    (Z, M, K), V = h.shape, w.shape[-1]
    e = s.new_zeros((Z, M, 2))
    dh, dw, db = empties(h, w, need_h, need_w, need_b, by_columns)
    width = chunk(Z * M, K, V)
    buffers = [s.new_empty(Z * M * width) for _ in range(2)] + [h.new_empty(Z * M * width) for _ in range(2)]
    grown = s.new_empty(h.shape) if need_h else None
    for sums in (True, False):
        if not sums and not (need_h or need_w or need_b):
            break
        for first in range(0, V, width):
            part = slice(first, min(first + width, V))
            w_ = w[..., part]
            b_, c_, uw_, ub_ = (None if a is None else a[..., part] for a in (b, c, uw, ub))
            N = w_.shape[-1]
            x, u, d, q = (a[: Z * M * N].view(Z, M, N) for a in buffers)
            if sums or width < V:
                matmul_into(x, h, w_, b_)
                _direction(u, h, w_, uh, uw_, ub_)
            BV, BM = block(N, 256), block(M, 4, least=1)
            # fmt: off
            launch(
                _second_backward_kernel, [Z * -(-M // BM)],
                x, u,
                g, *g.stride(),
                *((h, 0, 0) if c_ is None else (c_, *c_.stride())),
                t, *t.stride(),
                s, *s.stride(),
                e, d, q,
                M, N, first, ignore_index, V,
                ACC=triton_dtype(s.dtype), WEIGHTS=c is not None, HARD=1 - label_smoothing, SPREAD=label_smoothing / V,
                CAP=softcap, SUMS=sums, BM=BM, BV=BV, writes=[e, d, q],
            )
            # fmt: on
            if sums:
                continue
            if grown is not None:
                matmul_into(grown, q, w_.mT, grown if first else None)
                if uw_ is not None:
                    matmul_into(grown, d, uw_.mT, grown)
            if need_w:
                matmul_into(dw[..., part], h.mT, q, None)
                if uh is not None:
                    matmul_into(dw[..., part], uh.mT, d, dw[..., part])
            if need_b:
                db[..., part] = column_sum(q, None)
    return e, dh if grown is None else grown.to(dh.dtype), dw, db


def _direction(
    u: torch.Tensor,
    h: torch.Tensor,
    w: torch.Tensor,
    uh: torch.Tensor | None,
    uw: torch.Tensor | None,
    ub: torch.Tensor | None,
) -> None:
    """u[Z M V] = uh w + h uw + ub, those that are there."""
    bias = ub
    for one, other in ((uh, w), (h, uw)):
        if one is not None and other is not None:
            matmul_into(u, one, other, bias)
            bias = u
    if bias is ub:
        u.copy_(torch.zeros_like(u) if ub is None else ub.unsqueeze(-2).expand_as(u))
