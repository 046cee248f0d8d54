"""The second backward of linear_cross_entropy on Triton: a kernel on chunks of logits between linear's products."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_triton import empty_gradients, present
from gradlab.kernels.class_losses.rows_triton import (
    constants,
    load_rows,
    logit_gradient,
    part_numbers,
    row_classes,
    row_masked,
    second_gradient,
    second_sums,
    target_probabilities,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.softcap_triton import capped
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op


# fmt: off
@kernel
def _second_backward_kernel(
    x_ptr,
    u_ptr,
    dy_ptr, dy_z, dy_m,
    dn_ptr, dn_z, dn_m,
    t_ptr, t_z, t_m,
    a_ptr, a_z, a_v,
    s_ptr, s_z, s_k, s_m,
    ddy_ptr,
    ddn_ptr,
    p_ptr,
    d_ptr,
    dx_ptr,
    M, N, V, FIRST, IGNORE, PART_FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_A: tl.constexpr, HAS_DN: tl.constexpr, SUMS: tl.constexpr,
    PART: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """Of the N classes from FIRST on, if SUMS: ddy[z m] += R P - sum_v U r, p[z m] += P, ddn = 2 l p, P = sum_v U p;
    else d = dx and dx = X.

    Grid (Z * M/BM); a program owns rows BM.
    """
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, total, IGNORE, PART_FIRST, False, PART)
    dy, dn, row_max, log_sum, r_sum = load_rows(
        dy_ptr + z * dy_z, dy_m, dn_ptr + z * dn_z, dn_m, s_ptr + z * s_z, s_k, s_m, m, M, HAS_DN, ACC,
    )
    a_ptr += z * a_z
    rows = z * M + m
    u_p = tl.load(p_ptr + rows, mask=m < M, other=0.0)
    sum_p = tl.zeros((BM,), dtype=ACC)
    sum_r = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, N, BV):
        v = v0 + tl.arange(0, BV).to(tl.int64)
        inside = (m < M)[:, None] & (v < N)[None, :]
        at = rows[:, None] * N + v[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        u = tl.load(u_ptr + at, mask=inside, other=0.0)
        q = ((FIRST + v)[None, :] == t[:, None]).to(ACC)
        r = target_probabilities(q, a_ptr, a_v, FIRST + v, inside, V, total, EPS, HAS_A)
        capped_x = capped(x, CAP)
        if SUMS:
            by_p, by_r = second_sums(x, capped_x, u, r, row_max, log_sum, inside, CAP)
            sum_p += by_p
            sum_r += by_r
        else:
            g = logit_gradient(x, capped_x, r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, HAS_DN)
            d, _ = second_gradient(
                x, capped_x, u, r, u_p, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, HAS_DN,
            )
            tl.store(d_ptr + at, g.to(d_ptr.dtype.element_ty), mask=inside)
            tl.store(dx_ptr + at, d.to(dx_ptr.dtype.element_ty), mask=inside)
    if SUMS:
        ddy = tl.load(ddy_ptr + rows, mask=m < M, other=0.0) + row_masked(r_sum * sum_p - sum_r, in_range, valid)
        u_p += sum_p
        tl.store(p_ptr + rows, u_p, mask=m < M)
        tl.store(ddy_ptr + rows, ddy, mask=m < M)
        if HAS_DN:
            tl.store(ddn_ptr + rows, row_masked(2 * (row_max + log_sum) * u_p, in_range, valid), mask=m < M)
# fmt: on


def _second_backward_fake(
    uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, by_columns, part=None, sums=None
):
    shape = dy.shape if sums is None else (0,)
    rows = s.new_empty(shape), s.new_empty(0 if dn is None else shape)
    if part is not None and sums is None:
        return *rows, s.new_empty(shape), w.new_empty(0), w.new_empty(0)
    return *rows, *empty_gradients(h, w, need_h, need_w, need_b, by_columns, None if part is None else s.dtype)


def _second_backward_flops(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, *more, out_shape):
    need_h, need_w, need_b, _, part, sums = (*more, None, None)[:6]
    (Z, M, K), V = h, w[-1]
    given = (uh is not None) + (uw is not None)
    # The logits and u for the sums, recomputed for the gradients where there are several chunks; a part has two calls.
    passes = 2 if part is None and (need_h or need_w or need_b) and chunk(Z * M, K, V) < V else 1
    results = need_h * (1 + (uw is not None)) + need_w * (1 + (uh is not None))
    if part is not None and sums is None:
        results = 0
    return 2 * Z * M * K * V * (passes * (1 + given) + results)


@op("linear_cross_entropy_second_backward", fake=_second_backward_fake, flops=_second_backward_flops)
def second_backward(
    uh: torch.Tensor | None,
    uw: torch.Tensor | None,
    ub: torch.Tensor | None,
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    h: torch.Tensor,
    w: torch.Tensor,
    t: torch.Tensor,
    b: torch.Tensor | None,
    a: torch.Tensor | None,
    s: torch.Tensor,
    settings: Sequence[Number],
    need_h: bool,
    need_w: bool,
    need_b: bool,
    by_columns: bool,
    part: Sequence[int] | None = None,
    sums: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """d(dy)[Z M], d(dn)[Z M] if there is dn, dh[Z M K], dw[Z K V], db[Z V].

    They belong to the cotangents uh, uw, ub of `backward`'s results. A `part` takes two calls: without `sums` its terms
    of d(dy), d(dn) and, in place of dh, P[Z M]; then for `sums`, the P of all parts, its term of dh, dw and db.

    Twice over the chunks of classes: the rows' sums of <dx, u> first, then dx and X. 20 M K V FLOPs.
    """
    (Z, M, K), V = h.shape, w.shape[-1]
    ddy, ddn, dh, dw, db = _second_backward_fake(
        uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, by_columns, part, sums
    )
    first_of_two = part is not None and sums is None
    u_p = s.new_zeros((Z, M)) if sums is None else sums
    ddy.zero_()
    if V == 0:
        return ddy, ddn.zero_(), dh.zero_(), dw, db
    width = chunk(Z * M, K, V)
    buffers = [s.new_empty(Z * M * width) for _ in range(2)] + [h.new_empty(Z * M * width) for _ in range(2)]
    dh_sum = s.new_empty(h.shape) if need_h else None
    for summing in (True, False) if part is None else (sums is None,):
        if not summing and not (need_h or need_w or need_b):
            break
        for first in range(0, V, width):
            columns = slice(first, min(first + width, V))
            w_ = w[..., columns]
            b_, uw_, ub_ = (None if row is None else row[..., columns] for row in (b, uw, ub))
            N = w_.shape[-1]
            x, u, d, dx = (buffer[: Z * M * N].view(Z, M, N) for buffer in buffers)
            if summing or width < V or part is not None:
                matmul_into(x, h, w_, b_)
                _direction(u, h, w_, uh, uw_, ub_)
            BV, BM = block(N, 256), block(M, 4, least=1)
            # fmt: off
            launch(
                _second_backward_kernel, [Z * -(-M // BM)],
                x,
                u,
                dy, *dy.stride(),
                *present(dy, dn),
                t, *t.stride(),
                *present(h, a),
                s, *s.stride(),
                ddy,
                ddn,
                u_p,
                d,
                dx,
                M, N, V, first, ClassLoss.of(settings).ignore_index, *part_numbers(part),
                **constants(settings, s.dtype, a), HAS_DN=dn is not None, SUMS=summing, PART=part is not None, BM=BM,
                BV=BV, writes=[ddy, ddn, u_p, d, dx],
            )
            # fmt: on
            if summing:
                continue
            if dh_sum is not None:
                matmul_into(dh_sum, dx, w_.mT, dh_sum if first else None)
                if uw_ is not None:
                    matmul_into(dh_sum, d, uw_.mT, dh_sum)
            if need_w:
                matmul_into(dw[..., columns], h.mT, dx, None)
                if uh is not None:
                    matmul_into(dw[..., columns], uh.mT, d, dw[..., columns])
            if need_b:
                db[..., columns] = column_sum(dx, None)
    if first_of_two:
        return ddy, ddn, u_p, dw, db
    return ddy, ddn, dh if dh_sum is None else dh_sum.to(dh.dtype), dw, db


def _direction(
    u: torch.Tensor,
    h: torch.Tensor,
    w: torch.Tensor,
    uh: torch.Tensor | None,
    uw: torch.Tensor | None,
    ub: torch.Tensor | None,
) -> None:
    """u[Z M V] = uh w + h uw + ub, of those that are not None."""
    bias = ub
    for one, other in ((uh, w), (h, uw)):
        if one is not None and other is not None:
            matmul_into(u, one, other, bias)
            bias = u
    if bias is ub:
        u.copy_(torch.zeros_like(u) if ub is None else ub.unsqueeze(-2).expand_as(u))
