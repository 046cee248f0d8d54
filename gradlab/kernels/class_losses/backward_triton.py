"""The gradient of a tile of logits and of soft targets from what a row kept, as a Triton kernel."""

import triton.language as tl

from gradlab.kernels.class_losses.rows_triton import (
    gradient,
    row,
    shares,
    standing,
)
from gradlab.kernels.common.softcap_triton import capped
from gradlab.kernels.runtime.launch_triton import kernel


# fmt: off
@kernel
def _backward_kernel(
    c_ptr, c_m,
    e_ptr, e_m,
    x_ptr, x_n, x_v, x_d,
    s_ptr, s_k, s_m,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    w_ptr, w_v,
    d_ptr, d_n, d_v, d_d,
    M, V, D, IGNORE,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_W: tl.constexpr, CAP: tl.constexpr,
    HAS_E: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """d[m v] = h'[m v] (c[m] (R[m] p[m v] - r[m v]) + 2 e[m] l[m] p[m v]), p = softmax h; grid (M/BM * V/BV); a program owns d[BM BV]."""
    tiles_v = tl.cdiv(V, BV)
    m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
    v = (tl.program_id(0) % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    c = row(c_ptr, m, c_m, M, 0.0, False).to(ACC)
    t = row(t_ptr, m, t_m, M, IGNORE, SOFT)
    known, valid = standing(t, m, M, V, IGNORE, SOFT)
    top = row(s_ptr, m, s_m, M, 0.0, False)
    log_sum = row(s_ptr + s_k, m, s_m, M, 0.0, False)
    mass = row(s_ptr + 2 * s_k, m, s_m, M, 0.0, False)
    x = tl.load(x_ptr + (m // D * x_n + m % D * x_d)[:, None] + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
    e = c
    if HAS_E:
        e = row(e_ptr, m, e_m, M, 0.0, False).to(ACC)
    d = gradient(x, capped(x, CAP), r, top, log_sum, mass, c, e, known, valid, CAP, HAS_E)
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
# fmt: on
