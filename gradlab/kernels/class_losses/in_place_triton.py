"""Cross-entropy whose gradient takes the memory of the logits, at once with the loss or after it, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.class_losses.backward_triton import _backward_kernel
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.rows_triton import (
    fold,
    gradient,
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
from gradlab.kernels.common.softcap_triton import capped
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype

# Logits of a row that one program keeps in registers; a longer row is read again.
HELD = 2**14


# fmt: off
@kernel
def _loss_with_gradient_kernel(
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    w_ptr, w_v,
    n_ptr,
    y_ptr,
    z_ptr,
    s_ptr, s_k,
    M, V, D, IGNORE, Z,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_W: tl.constexpr, CAP: tl.constexpr,
    MEAN: tl.constexpr, HELD: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """y, z, s of `_loss_kernel`; x[m v] becomes the gradient of sum y / n[0] + Z sum z / n[1]; grid (M/BM); a program owns rows BM."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.full((1,), 1.0, ACC)
    e = tl.zeros((1,), ACC) + Z
    if MEAN:
        c = c / tl.load(n_ptr)
        e = e / tl.load(n_ptr + 1)
    t = row(t_ptr, m, t_m, M, IGNORE, SOFT)
    known, valid = standing(t, m, M, V, IGNORE, SOFT)
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    top = tl.full((BM,), float("-inf"), dtype=ACC)
    total = tl.zeros((BM,), dtype=ACC)
    gap = tl.zeros((BM,), dtype=ACC)
    mass = tl.zeros((BM,), dtype=ACC)
    v = tl.arange(0, BV).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    x = tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    h = capped(x, CAP)
    r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
    top, total, gap, mass = fold(top, total, gap, mass, h, r, inside, True)
    if HELD == 0:
        for v0 in range(BV, V, BV):
            v = (v0 + tl.arange(0, BV)).to(tl.int64)
            inside = (m < M)[:, None] & (v < V)[None, :]
            h = capped(tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC), CAP)
            r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
            top, total, gap, mass = fold(top, total, gap, mass, h, r, inside, True)
    log_sum = tl.log(total)
    keep_rows(y_ptr, z_ptr, s_ptr, s_k, m, M, gap + mass * log_sum, top, log_sum, mass, known, valid)
    if HELD:
        g = gradient(x, h, r, top, log_sum, mass, c, e, known, valid, CAP, True)
        tl.store(x_ptr + v[None, :] * x_v, g.to(x_ptr.dtype.element_ty), mask=inside)
    else:
        for v0 in range(0, V, BV):
            v = (v0 + tl.arange(0, BV)).to(tl.int64)
            inside = (m < M)[:, None] & (v < V)[None, :]
            x = tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
            r = shares(t, q_ptr, q_v, w_ptr, w_v, v, inside, V, EPS, SOFT, HAS_W, ACC)
            g = gradient(x, capped(x, CAP), r, top, log_sum, mass, c, e, known, valid, CAP, True)
            tl.store(x_ptr + v[None, :] * x_v, g.to(x_ptr.dtype.element_ty), mask=inside)


@kernel
def _scale_kernel(
    c_ptr,
    g_ptr, g_n, g_v, g_d,
    M, V, D,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """g[m v] *= c in place, and nothing read or written where c = 1; grid (M/BM * V/BV); a program owns g[BM BV]."""
    c = tl.load(c_ptr).to(ACC)
    if c != 1.0:
        tiles_v = tl.cdiv(V, BV)
        m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
        v = (tl.program_id(0) % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        # A name of its own: a compiled `if` may not change a name's type, here from a pointer to a tile of pointers.
        tile_ptr = g_ptr + (m // D * g_n + m % D * g_d)[:, None] + v[None, :] * g_v
        g = tl.load(tile_ptr, mask=inside, other=0.0).to(ACC)
        tl.store(tile_ptr, (g * c).to(g_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_with_gradient_fake(x, t, q, w, n, ignore_index, eps, cap, z_loss):
    return statistics(x)[:2]


@op("cross_entropy_loss_with_gradient_", fake=_loss_with_gradient_fake, mutates=("x",))
def loss_with_gradient_(
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    w: torch.Tensor | None,
    n: torch.Tensor | None,
    ignore_index: int,
    eps: float,
    cap: float,
    z_loss: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y[M] and z[M] as `loss` gives them; over the logits the gradient of sum y / n[0] + z_loss sum z / n[1].

    Without n of their sums. M V logits read once (rows past HELD once more), M V written.
    """
    N, V, D = x.shape
    if t is not None:
        refuse_out_of_range("cross_entropy", t, V, D, ignore_index)
    y, z, s = statistics(x)
    BM, BV = tile(x)
    if V <= HELD and x.stride(1) == 1:
        BM, BV = 1, block(V, HELD)
    # fmt: off
    launch(
        _loss_with_gradient_kernel, [-(-N * D // BM)],
        x, *x.stride(),
        *targets(x, t, q, w),
        s if n is None else n,
        y,
        z,
        s, s.stride(0),
        N * D, V, D, ignore_index, float(z_loss),
        **settings(s.dtype, q, w, eps, cap), MEAN=n is not None, HELD=V <= BV, BM=BM, BV=BV,
        writes=[y, z, s, x], warps=max(4, min(16, BM * BV // 1024)),
    )
    # fmt: on
    return y, z


def _backward_in_place_fake(c, e, x, s, t, q, w, ignore_index, eps, cap):
    return None


@op("cross_entropy_backward_", fake=_backward_in_place_fake, mutates=("x",))
def backward_(
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
) -> None:
    """The pullback of the loss, written over the logits; M V read, M V written."""
    launch_backward(_backward_kernel, x, c, e, x, s, t, q, w, ignore_index, eps, cap)


def _scale_fake(g, c):
    return None


@op("cross_entropy_scale_", fake=_scale_fake, mutates=("g",))
def scale_(g: torch.Tensor, c: torch.Tensor) -> None:
    """g[N V D] *= c[] in place. Where c is 1, which only the device looks at, nothing is read or written."""
    N, V, D = g.shape
    BM, BV = tile(g)
    # fmt: off
    launch(
        _scale_kernel, [-(-N * D // BM) * -(-V // BV)],
        c,
        g, *g.stride(),
        N * D, V, D,
        ACC=triton_dtype(accumulator(g.dtype)), BM=BM, BV=BV, writes=[g],
    )
    # fmt: on
