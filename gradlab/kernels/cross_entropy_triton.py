"""Cross-entropy of rows of logits, forward, backward and second backward, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.class_losses.backward_triton import _backward_kernel
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.rows_triton import (
    fold,
    keep_rows,
    launch_backward,
    row,
    settings,
    shares,
    standing,
    statistics,
    targets,
    tile,
)
from gradlab.kernels.common.softcap_triton import cap_slope, capped
from gradlab.kernels.runtime.launch_triton import kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _loss_kernel(
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    w_ptr, w_v,
    y_ptr,
    z_ptr,
    s_ptr, s_k,
    M, V, D, IGNORE,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_W: tl.constexpr, CAP: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """y[m] = sum_v r[m v] (l[m] - h[m v]), z[m] = l[m]^2; grid (M/BM); a program owns y[BM], z[BM] and s[3 BM] = (max, log sum exp(h - max), sum r)."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    t = row(t_ptr, m, t_m, M, IGNORE, SOFT)
    known, valid = standing(t, m, M, V, IGNORE, SOFT)
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    top = tl.full((BM,), float("-inf"), dtype=ACC)
    total = tl.zeros((BM,), dtype=ACC)
    gap = tl.zeros((BM,), dtype=ACC)
    mass = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        h = capped(tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC), CAP)
        r = h
        if SOFT | (EPS > 0):
            r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
        top, total, gap, mass = fold(top, total, gap, mass, h, r, inside, SOFT | (EPS > 0))
    log_sum = tl.log(total)
    if (SOFT | (EPS > 0)) == 0:
        # The one class of the row; (max - h) first: logits far from zero cancel exactly.
        x_ptr += (t.to(tl.int64) * x_v)[:, None]
        picked = capped(tl.load(x_ptr, mask=(valid & known)[:, None], other=0.0).to(ACC), CAP)
        mass += 1
        if HAS_W:
            mass = tl.load(w_ptr + t * w_v, mask=valid & known, other=0.0).to(ACC)
        gap = mass * (top - tl.sum(picked, axis=1))
    keep_rows(y_ptr, z_ptr, s_ptr, s_k, m, M, gap + mass * log_sum, top, log_sum, mass, known, valid)


@kernel
def _target_backward_kernel(
    c_ptr, c_m,
    x_ptr, x_n, x_v, x_d,
    s_ptr, s_k, s_m,
    w_ptr, w_v,
    d_ptr, d_n, d_v, d_d,
    M, V, D,
    EPS: tl.constexpr, HAS_W: tl.constexpr, CAP: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """d[m v] = c[m] w[v] (1 - EPS) (l[m] - h[m v]); grid (M/BM * V/BV); a program owns d[BM BV]."""
    tiles_v = tl.cdiv(V, BV)
    m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
    v = (tl.program_id(0) % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    c = row(c_ptr, m, c_m, M, 0.0, False).to(ACC)
    top = row(s_ptr, m, s_m, M, 0.0, False)
    log_sum = row(s_ptr + s_k, m, s_m, M, 0.0, False)
    x = tl.load(x_ptr + (m // D * x_n + m % D * x_d)[:, None] + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    d = (c * (1 - EPS))[:, None] * ((top[:, None] - capped(x, CAP)) + log_sum[:, None])
    if HAS_W:
        d *= tl.load(w_ptr + v * w_v, mask=v < V, other=0.0).to(ACC)[None, :]
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)


@kernel
def _second_backward_kernel(
    u_ptr, u_n, u_v, u_d,
    c_ptr, c_m,
    e_ptr, e_m,
    x_ptr, x_n, x_v, x_d,
    s_ptr, s_k, s_m,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    w_ptr, w_v,
    a_ptr,
    b_ptr,
    d_ptr, d_n, d_v, d_d,
    f_ptr, f_n, f_v, f_d,
    M, V, D, IGNORE,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_W: tl.constexpr, CAP: tl.constexpr,
    HAS_E: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """a[m], b[m], d[m v], f[m v] = the pullback of `_backward_kernel` by c, e, x, q for u[m v]; grid (M/BM); a program owns rows BM."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = row(c_ptr, m, c_m, M, 0.0, False).to(ACC)
    e = tl.zeros((BM,), dtype=ACC)
    if HAS_E:
        e = row(e_ptr, m, e_m, M, 0.0, False).to(ACC)
    t = row(t_ptr, m, t_m, M, IGNORE, SOFT)
    known, valid = standing(t, m, M, V, IGNORE, SOFT)
    top = row(s_ptr, m, s_m, M, 0.0, False)
    log_sum = row(s_ptr + s_k, m, s_m, M, 0.0, False)
    mass = row(s_ptr + 2 * s_k, m, s_m, M, 0.0, False)
    lse = top + log_sum
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    u_ptr += (m // D * u_n + m % D * u_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    f_ptr += (m // D * f_n + m % D * f_d)[:, None]
    by_p = tl.zeros((BM,), dtype=ACC)
    by_r = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        x = tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
        u = tl.load(u_ptr + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
        if CAP > 0:
            u *= cap_slope(x, CAP)
        r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
        p = tl.exp((capped(x, CAP) - top[:, None]) - log_sum[:, None])
        # A lane that is not there reads 0, which may stand far above the maximum.
        by_p += tl.sum(tl.where(inside, u * p, 0.0), axis=1)
        by_r += tl.sum(u * r, axis=1)
    a = tl.where(valid, tl.where(known, mass * by_p - by_r, float("nan")), 0.0)
    tl.store(a_ptr + m, a, mask=m < M)
    if HAS_E:
        b = tl.where(valid, tl.where(known, 2 * lse * by_p, float("nan")), 0.0)
        tl.store(b_ptr + m, b, mask=m < M)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        x = tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
        u = tl.load(u_ptr + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
        h = capped(x, CAP)
        p = tl.exp((h - top[:, None]) - log_sum[:, None])
        at_h = u
        if CAP > 0:
            slope = cap_slope(x, CAP)
            at_h = u * slope
        d = (c * mass + 2 * e * lse)[:, None] * p * (at_h - by_p[:, None]) + (2 * e * by_p)[:, None] * p
        if CAP > 0:
            r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
            bent = c[:, None] * (mass[:, None] * p - r) + (2 * e * lse)[:, None] * p
            # The slope's own derivative is -2 h slope / CAP^2.
            d = slope * (d - u * bent * (2 * h / (CAP * CAP)))
        d = tl.where(valid[:, None], tl.where(known[:, None], d, float("nan")), 0.0)
        tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
        if SOFT:
            f = (c * (1 - EPS))[:, None] * (by_p[:, None] - at_h)
            if HAS_W:
                f *= tl.load(w_ptr + v * w_v, mask=v < V, other=0.0).to(ACC)[None, :]
            tl.store(f_ptr + v[None, :] * f_v, f.to(f_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_fake(x, t, q, w, ignore_index, eps, cap):
    return statistics(x)


@op("cross_entropy_loss", fake=_loss_fake)
def loss(
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    w: torch.Tensor | None,
    ignore_index: int,
    eps: float,
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss y[M] and z[M] = l^2 of logits x[N V D], M = N D, and s[3 M]: each row's maximum, log sum of exp and sum of r.

    All in the accumulator's dtype. Targets are classes t[M] or shares q[N V D]; weights w[V]. M V elements read once.

    Raises:
        IndexError: a class that is neither in [0, V) nor ignore_index (gradlab/kernels/class_losses/class_range_triton.py says when).
    """
    _, V, D = x.shape
    if t is not None:
        refuse_out_of_range("cross_entropy", t, V, D, ignore_index)
    y, z, s = statistics(x)
    M = y.shape[0]
    BM, BV = tile(x)
    # fmt: off
    launch(
        _loss_kernel, [-(-M // BM)],
        x, *x.stride(),
        *targets(x, t, q, w),
        y,
        z,
        s, s.stride(0),
        M, V, D, ignore_index,
        **settings(s.dtype, q, w, eps, cap), BM=BM, BV=BV, writes=[y, z, s],
    )
    # fmt: on
    return y, z, s


def _backward_fake(c, e, x, s, t, q, w, ignore_index, eps, cap):
    return torch.empty_like(x)


@op("cross_entropy_backward", fake=_backward_fake)
def backward(
    c: torch.Tensor,
    e: torch.Tensor | None,
    x: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    w: torch.Tensor | None,
    ignore_index: int,
    eps: float,
    cap: float,
) -> torch.Tensor:
    """dx[N V D] for the cotangents c[M] of y and e[M] of z, 0 in ignored rows, laid out as x; M V read, M V written."""
    d = torch.empty_like(x)
    launch_backward(_backward_kernel, d, c, e, x, s, t, q, w, ignore_index, eps, cap)
    return d


def _target_backward_fake(c, x, s, w, eps, cap):
    return torch.empty_like(x)


@op("cross_entropy_target_backward", fake=_target_backward_fake)
def target_backward(
    c: torch.Tensor, x: torch.Tensor, s: torch.Tensor, w: torch.Tensor | None, eps: float, cap: float
) -> torch.Tensor:
    """dq[N V D] of soft targets for the cotangent c[M] of y, laid out as x; M V read, M V written."""
    N, V, D = x.shape
    d = torch.empty_like(x)
    BM, BV = tile(x)
    constants = {"EPS": eps, "HAS_W": w is not None, "CAP": cap, "ACC": triton_dtype(s.dtype)}
    # fmt: off
    launch(
        _target_backward_kernel, [-(-N * D // BM) * -(-V // BV)],
        c, *c.stride(),
        x, *x.stride(),
        s, *s.stride(),
        *((x, 0) if w is None else (w, *w.stride())),
        d, *d.stride(),
        N * D, V, D,
        **constants, BM=BM, BV=BV, writes=[d],
    )
    # fmt: on
    return d


def _second_backward_fake(u, c, e, x, s, t, q, w, ignore_index, eps, cap):
    a, b = s.new_empty(s.shape[1]), s.new_empty(0 if e is None else s.shape[1])
    return a, b, torch.empty_like(x), x.new_empty(0) if q is None else torch.empty_like(x)


@op("cross_entropy_second_backward", fake=_second_backward_fake)
def second_backward(
    u: torch.Tensor,
    c: torch.Tensor,
    e: torch.Tensor | None,
    x: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    w: torch.Tensor | None,
    ignore_index: int,
    eps: float,
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pullback of `backward` for the cotangent u[N V D]: dc[M], de[M] if there is e, dx[N V D], and dq of soft targets.

    x and u are read twice, dx is written once: 5 M V elements.
    """
    a, b, d, f = _second_backward_fake(u, c, e, x, s, t, q, w, ignore_index, eps, cap)
    N, V, D = x.shape
    BM, BV = tile(x)
    # fmt: off
    launch(
        _second_backward_kernel, [-(-N * D // BM)],
        u, *u.stride(),
        c, *c.stride(),
        *((c, 0) if e is None else (e, *e.stride())),
        x, *x.stride(),
        s, *s.stride(),
        *targets(x, t, q, w),
        a,
        b,
        d, *d.stride(),
        *((d, 0, 0, 0) if q is None else (f, *f.stride())),
        N * D, V, D, ignore_index,
        **settings(s.dtype, q, w, eps, cap), HAS_E=e is not None, BM=BM, BV=BV, writes=[a, b, d, f],
    )
    # fmt: on
    return a, b, d, f
