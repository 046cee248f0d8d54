"""Cross-entropy of rows of logits, forward, backward and second backward, as Triton kernels.

Logits are x[N V D]: the classes may stand before further axes, as torch has them. Row m is (n, d) = (m / D, m mod D).
"""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.backward_triton import backward_into
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.long_rows_triton import (
    long_rows,
    row_at,
    row_class,
    row_reference,
    row_softmax,
    row_target,
    row_tile,
)
from gradlab.kernels.class_losses.rows_triton import (
    constants,
    empty_rows,
    load_rows,
    logits_tile,
    one_class,
    online_softmax,
    part_numbers,
    row_classes,
    row_masked,
    second_gradient,
    second_sums,
    store_part,
    store_rows,
    targets,
    tile,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.softcap_triton import capped
from gradlab.kernels.runtime.launch_triton import kernel, launch, op


# fmt: off
@kernel
def _loss_kernel(
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    a_ptr, a_v,
    y_ptr,
    n_ptr,
    s_ptr,
    M, V, D, IGNORE, FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, SOFT: tl.constexpr, HAS_A: tl.constexpr, PART: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, and the row statistics; if PART what `merged` takes, in s.

    Grid (M/BM); a program owns y[BM], n[BM] and s[3 BM], or s[4 BM].
    """
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr, t_m, m, M, total, IGNORE, FIRST, SOFT, PART)
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    row_max = tl.full((BM,), float("-inf"), dtype=ACC)
    sum_exp = tl.zeros((BM,), dtype=ACC)
    r_dot = tl.zeros((BM,), dtype=ACC)
    r_sum = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, V, BV):
        _, inside, _, z, r = logits_tile(
            x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, v0, M, V, total, EPS, SOFT, HAS_A, CAP, ACC, BV,
        )
        row_max, sum_exp, r_dot, r_sum = online_softmax(row_max, sum_exp, r_dot, r_sum, z, r, inside, SOFT | (EPS > 0))
    if (SOFT | (EPS > 0)) == 0:
        has_class = valid & in_range
        if PART:
            has_class = has_class & (t >= 0) & (t < V)
        z_t = capped(tl.load(x_ptr + (t * x_v)[:, None], mask=has_class[:, None], other=0.0).to(ACC), CAP)
        r_dot, r_sum = one_class(row_max, tl.sum(z_t, axis=1), a_ptr, a_v, t, has_class, HAS_A)
        if PART:
            r_dot = tl.where(has_class, r_dot, 0.0)
            r_sum = tl.where(has_class, r_sum, 0.0)
    if PART:
        store_part(s_ptr + m, M, m < M, row_max, sum_exp, r_dot, r_sum)
    else:
        store_rows(y_ptr, n_ptr, s_ptr, m, M, row_max, tl.log(sum_exp), r_dot, r_sum, in_range, valid)


@kernel
def _row_loss_kernel(
    x_ptr, x_n, x_d,
    t_ptr, t_m,
    a_ptr, a_v,
    y_ptr,
    n_ptr,
    s_ptr,
    M, V, D, IGNORE, FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_A: tl.constexpr, PART: tl.constexpr, ACC: tl.constexpr,
    EDGES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    U: tl.constexpr, B: tl.constexpr, G: tl.constexpr, TAIL: tl.constexpr,
):
    """`_loss_kernel` of classes t in long rows; grid (M); a program owns y[m], n[m] and s[3 m], or s[4 m]."""
    m = tl.program_id(0).to(tl.int64)
    total = TOTAL if PART else V
    t, here, in_range, valid = row_class(t_ptr, t_m, m, V, total, IGNORE, FIRST, PART)
    x_ptr, lo, hi = row_at(x_ptr, x_n, x_d, m, D, V, EDGES, G)
    ref = row_reference(x_ptr, lo, CAP, EPS > 0, HALF, ACC)
    # Nothing is read of a row that is ignored.
    row_max, sum_exp, gap = row_softmax(
        x_ptr, lo, tl.where(valid, hi, 0), ref, CAP, EPS > 0, False, EDGES, HALF, PAIRS, ACC, U, B, G, TAIL,
    )
    r_dot, r_sum, _ = row_target(
        x_ptr, lo, t, here, row_max, gap, ref, a_ptr, a_v, V, total, EPS, CAP, HAS_A, HALF, ACC,
    )
    if PART:
        store_part(s_ptr + m, M, m < M, row_max, sum_exp, r_dot, r_sum)
    else:
        store_rows(y_ptr, n_ptr, s_ptr, m, M, row_max, tl.log(sum_exp), r_dot, r_sum, in_range, valid)


@kernel
def _target_backward_kernel(
    dy_ptr, dy_m,
    x_ptr, x_n, x_v, x_d,
    a_ptr, a_v,
    s_ptr, s_k, s_m,
    d_ptr, d_n, d_v, d_d,
    M, V, D,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_A: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """d[m v] = dy[m] a[v] (1 - EPS) (l[m] - z[m v]); grid (M/BM * V/BV); a program owns d[BM BV]."""
    tiles_v = tl.cdiv(V, BV)
    m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
    v = (tl.program_id(0) % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    dy, _, row_max, log_sum, _ = load_rows(dy_ptr, dy_m, dy_ptr, dy_m, s_ptr, s_k, s_m, m, M, False, ACC)
    x = tl.load(x_ptr + (m // D * x_n + m % D * x_d)[:, None] + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    d = (dy * (1 - EPS))[:, None] * ((row_max[:, None] - capped(x, CAP)) + log_sum[:, None])
    if HAS_A:
        d *= tl.load(a_ptr + v * a_v, mask=v < V, other=0.0).to(ACC)[None, :]
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)


@kernel
def _second_backward_kernel(
    u_ptr, u_n, u_v, u_d,
    dy_ptr, dy_m,
    dn_ptr, dn_m,
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    a_ptr, a_v,
    s_ptr, s_k, s_m,
    ddy_ptr,
    ddn_ptr,
    p_ptr,
    d_ptr, d_n, d_v, d_d,
    dq_ptr, dq_n, dq_v, dq_d,
    M, V, D, IGNORE, FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, SOFT: tl.constexpr, HAS_A: tl.constexpr, HAS_DN: tl.constexpr,
    PART: tl.constexpr, SUMS: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """ddy[m], ddn[m], d[m v], dq[m v]: the backward of `_backward_kernel` for u[m v], by dy, dn, x, q.

    If PART, this part's terms of ddy, ddn and p[m] = P if SUMS; else d and dq, of the P of all parts in p.

    Grid (M/BM); a program owns rows BM.
    """
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr, t_m, m, M, total, IGNORE, FIRST, SOFT, PART)
    dy, dn, row_max, log_sum, r_sum = load_rows(dy_ptr, dy_m, dn_ptr, dn_m, s_ptr, s_k, s_m, m, M, HAS_DN, ACC)
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    u_ptr += (m // D * u_n + m % D * u_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    dq_ptr += (m // D * dq_n + m % D * dq_d)[:, None]
    if SUMS:
        u_p = tl.zeros((BM,), dtype=ACC)
        u_r = tl.zeros((BM,), dtype=ACC)
        for v0 in range(0, V, BV):
            v, inside, x, z, r = logits_tile(
                x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, v0, M, V, total, EPS, SOFT, HAS_A, CAP, ACC, BV,
            )
            u = tl.load(u_ptr + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
            by_p, by_r = second_sums(x, z, u, r, row_max, log_sum, inside, CAP)
            u_p += by_p
            u_r += by_r
        tl.store(ddy_ptr + m, row_masked(r_sum * u_p - u_r, in_range, valid), mask=m < M)
        if HAS_DN:
            tl.store(ddn_ptr + m, row_masked(2 * (row_max + log_sum) * u_p, in_range, valid), mask=m < M)
        if PART:
            tl.store(p_ptr + m, u_p, mask=m < M)
    else:
        u_p = tl.load(p_ptr + m, mask=m < M, other=0.0)
    if (PART & SUMS) == 0:
        for v0 in range(0, V, BV):
            v, inside, x, z, r = logits_tile(
                x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, v0, M, V, total, EPS, SOFT, HAS_A, CAP, ACC, BV,
            )
            u = tl.load(u_ptr + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
            d, at_z = second_gradient(
                x, z, u, r, u_p, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, HAS_DN,
            )
            tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
            if SOFT:
                dq = (dy * (1 - EPS))[:, None] * (u_p[:, None] - at_z)
                if HAS_A:
                    dq *= tl.load(a_ptr + v * a_v, mask=v < V, other=0.0).to(ACC)[None, :]
                tl.store(dq_ptr + v[None, :] * dq_v, dq.to(dq_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_fake(x, t, q, a, settings, part=None):
    y, n, s = empty_rows(x)
    return (y, n, s) if part is None else (s.new_empty(0), s.new_empty(0), s.new_empty(4, s.shape[1]))


@op("cross_entropy_loss", fake=_loss_fake)
def loss(
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    settings: Sequence[Number],
    part: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y[M], n[M] = l^2 and the row statistics s[3 M] of logits x[N V D], M = N D; M V elements read once.

    In the accumulator's dtype. Targets are classes t[M] or soft targets q[N V D]; class weights a[V]; `settings` a
    `ClassLoss`, flat. Of a `part`, a `ClassPart`, flat, s[4 M] are the sums that `merge_parts` puts together, and y and
    n are empty.

    Raises:
        IndexError: a class that is neither in [0, V) nor ignore_index
            (gradlab/kernels/class_losses/class_range_triton.py says when).
    """
    N, V, D = x.shape
    M, ignore_index = N * D, ClassLoss.of(settings).ignore_index
    if t is not None:
        refuse_out_of_range("cross_entropy", t, V if part is None else part[1], D, ignore_index)
    y, n, s = _loss_fake(x, t, q, a, settings, part)
    known = constants(settings, s.dtype, a)
    # fmt: off
    if t is not None and long_rows(x, t, a, known["EPS"]):
        warps = 8 if V >= 2**16 else 4 if V >= 2**13 else 2
        launch(
            _row_loss_kernel, [M],
            x, x.stride(0), x.stride(2),
            t, *t.stride(),
            *((x, 0) if a is None else (a, *a.stride())),
            y,
            n,
            s,
            M, V, D, ignore_index, *part_numbers(part),
            **known, PART=part is not None, **row_tile(x, warps), writes=[y, n, s], warps=warps,
        )
        return y, n, s
    BM, BV = tile(x)
    launch(
        _loss_kernel, [-(-M // BM)],
        x, *x.stride(),
        *targets(x, t, q, a),
        y,
        n,
        s,
        M, V, D, ignore_index, *part_numbers(part),
        **known, SOFT=q is not None, PART=part is not None, BM=BM, BV=BV, writes=[y, n, s],
    )
    # fmt: on
    return y, n, s


def _backward_fake(dy, dn, x, t, q, a, s, settings, part=None):
    return torch.empty_like(x)


@op("cross_entropy_backward", fake=_backward_fake)
def backward(
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    s: torch.Tensor,
    settings: Sequence[Number],
    part: Sequence[int] | None = None,
) -> torch.Tensor:
    """dx[N V D] of the cotangents dy[M] and dn[M], 0 in ignored rows, laid out as x; M V read, M V written."""
    d = torch.empty_like(x)
    backward_into(d, dy, dn, x, t, q, a, s, settings, part)
    return d


def _target_backward_fake(dy, x, a, s, settings):
    return torch.empty_like(x)


@op("cross_entropy_target_backward", fake=_target_backward_fake)
def target_backward(
    dy: torch.Tensor, x: torch.Tensor, a: torch.Tensor | None, s: torch.Tensor, settings: Sequence[Number]
) -> torch.Tensor:
    """dq[N V D] of soft targets for the cotangent dy[M], laid out as x; M V read, M V written."""
    N, V, D = x.shape
    d = torch.empty_like(x)
    BM, BV = tile(x)
    # fmt: off
    launch(
        _target_backward_kernel, [-(-N * D // BM) * -(-V // BV)],
        dy, *dy.stride(),
        x, *x.stride(),
        *((x, 0) if a is None else (a, *a.stride())),
        s, *s.stride(),
        d, *d.stride(),
        N * D, V, D,
        **constants(settings, s.dtype, a), BM=BM, BV=BV, writes=[d],
    )
    # fmt: on
    return d


def _second_backward_fake(u, dy, dn, x, t, q, a, s, settings, part=None, sums=None):
    M = s.shape[1]
    rows = s.new_empty(M if sums is None else 0), s.new_empty(M if sums is None and dn is not None else 0)
    if part is not None and sums is None:
        return *rows, s.new_empty(M), x.new_empty(0)
    return *rows, torch.empty_like(x), x.new_empty(0) if q is None else torch.empty_like(x)


@op("cross_entropy_second_backward", fake=_second_backward_fake)
def second_backward(
    u: torch.Tensor,
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    s: torch.Tensor,
    settings: Sequence[Number],
    part: Sequence[int] | None = None,
    sums: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """d(dy)[M], d(dn)[M] if there is dn, dx[N V D], and dq of soft targets.

    They belong to the cotangent u[N V D] of `backward`'s dx. A `part` takes two calls: without `sums` its terms of
    d(dy), d(dn) and, in place of dx, P[M]; then dx and dq for `sums`, the P of all parts.

    x and u are read twice, dx is written once: 5 M V elements.
    """
    ddy, ddn, d, dq = _second_backward_fake(u, dy, dn, x, t, q, a, s, settings, part, sums)
    first = part is not None and sums is None
    p = d if first else ddy if sums is None else sums
    N, V, D = x.shape
    BM, BV = tile(x)
    # fmt: off
    launch(
        _second_backward_kernel, [-(-N * D // BM)],
        u, *u.stride(),
        dy, *dy.stride(),
        *((dy, 0) if dn is None else (dn, *dn.stride())),
        x, *x.stride(),
        *targets(x, t, q, a),
        s, *s.stride(),
        ddy,
        ddn,
        p,
        *((x, 0, 0, 0) if first else (d, *d.stride())),
        *((x, 0, 0, 0) if first or q is None else (dq, *dq.stride())),
        N * D, V, D, ClassLoss.of(settings).ignore_index, *part_numbers(part),
        **constants(settings, s.dtype, a), SOFT=q is not None, HAS_DN=dn is not None, PART=part is not None,
        SUMS=sums is None, BM=BM, BV=BV, writes=[ddy, ddn, p, d, dq],
    )
    # fmt: on
    return ddy, ddn, d, dq
