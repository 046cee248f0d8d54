"""What the cross-entropy kernels for Triton share: a row's class and shares, the running maximum, and their arguments.

Logits are x[N V D]: the classes may stand before further axes, as torch has them. Row m is (n, d) = (m / D, m mod D).
"""

from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.common.softcap_triton import cap_slope
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, triton_dtype

# Logits that a compiled program works on at a time.
TILE = 4096


# fmt: off
@kernel
def row(ptr, m, stride, M, other, SKIP: tl.constexpr):
    """The number of each row m below M, `other` past it; zeros, and nothing read, if SKIP."""
    if SKIP:
        found = m * 0
    else:
        found = tl.load(ptr + m * stride, mask=m < M, other=other)
    return found


@kernel
def standing(t, m, M, V, IGNORE, SOFT: tl.constexpr):
    """Whether row m has a class in [0, V), and whether it is there and not ignored; soft targets have every class."""
    if SOFT:
        known = m >= 0
        valid = m < M
    else:
        known = (t >= 0) & (t < V)
        valid = (m < M) & (t != IGNORE)
    return known, valid


@kernel
def shares(
    t, q_ptr, q_v, w_ptr, w_v, v, inside, V,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_W: tl.constexpr, ACC: tl.constexpr,
):
    """r[m v] = w[v] ((1 - EPS) q[m v] + EPS / V): q the one-hot row of t unless SOFT"""
    if SOFT:
        q = tl.load(q_ptr + v[None, :] * q_v, mask=inside, other=0.0).to(ACC)
    else:
        q = (v[None, :] == t[:, None]).to(ACC)
    r = q * (1 - EPS)
    if EPS > 0:
        r += tl.full((1, 1), EPS, ACC) / V
        r = tl.where(inside, r, 0.0)
    if HAS_W:
        r *= tl.load(w_ptr + v * w_v, mask=v < V, other=0.0).to(ACC)[None, :]
    return r


@kernel
def fold(top, total, gap, mass, h, r, inside, DENSE: tl.constexpr):
    """One more tile h of the rows' logits: their maximum, sum exp(h - max), and if DENSE sum r (max - h) and sum r.

    Masked after whatever made h: a lane that is not there must not enter the sum.
    """
    h = tl.where(inside, h, float("-inf"))
    higher = tl.maximum(top, tl.max(h, axis=1))
    # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    total = total * tl.exp(top - shift) + tl.sum(tl.exp(h - shift[:, None]), axis=1)
    if DENSE:
        before = tl.where(top == float("-inf"), 0.0, top)
        # A class without a share costs nothing, also where its logit is -inf.
        gap += mass * (shift - before) + tl.sum(tl.where(r == 0, 0.0, r * (shift[:, None] - h)), axis=1)
        # Not the bare sum: Triton 3.7 stops at an assertion (OptimizeThreadLocality) where a loop's sum has two uses.
        mass += tl.sum(r, axis=1) + 0 * shift
    return higher, total, gap, mass


@kernel
def keep_rows(y_ptr, z_ptr, s_ptr, s_k, m, M, y, top, log_sum, mass, known, valid):
    """Store y[m], z[m] = l[m]^2 and s[3 m]; a row without a known class is not a number, one that is ignored 0."""
    y = tl.where(known, y, float("nan"))
    squared = tl.where(known, (top + log_sum) * (top + log_sum), float("nan"))
    tl.store(y_ptr + m, tl.where(valid, y, 0.0), mask=m < M)
    tl.store(z_ptr + m, tl.where(valid, squared, 0.0), mask=m < M)
    tl.store(s_ptr + m, top, mask=m < M)
    tl.store(s_ptr + s_k + m, log_sum, mask=m < M)
    tl.store(s_ptr + 2 * s_k + m, mass, mask=m < M)


@kernel
def gradient(x, h, r, top, log_sum, mass, c, e, known, valid, CAP: tl.constexpr, HAS_E: tl.constexpr):
    """A tile of the gradient of c y, and of e z if HAS_E, in the logits x, h = capped x."""
    p = tl.exp((h - top[:, None]) - log_sum[:, None])
    d = c[:, None] * (mass[:, None] * p - r)
    if HAS_E:
        d += (2 * e * (top + log_sum))[:, None] * p
    if CAP > 0:
        d *= cap_slope(x, CAP)
    return tl.where(valid[:, None], tl.where(known[:, None], d, float("nan")), 0.0)
# fmt: on


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Memory for y[M], z[M] and s[3 M] of logits x[N V D], in their accumulator's dtype."""
    M = x.shape[0] * x.shape[2]
    y, z, s = (x.new_empty(shape, dtype=accumulator(x.dtype)) for shape in (M, M, (3, M)))
    return y, z, s


def targets(x: torch.Tensor, t: torch.Tensor | None, q: torch.Tensor | None, w: torch.Tensor | None) -> tuple[Any, ...]:
    """Classes t[M], soft targets q[N V D] and weights w[V] with their strides; x stands for what is not there."""
    return (
        *((x, 0) if t is None else (t, *t.stride())),
        *((x, 0, 0, 0) if q is None else (q, *q.stride())),
        *((x, 0) if w is None else (w, *w.stride())),
    )


def settings(
    acc: torch.dtype, q: torch.Tensor | None, w: torch.Tensor | None, eps: float, cap: float
) -> dict[str, Any]:
    """The constants of a kernel: settings of a model, which no step changes."""
    return {
        "EPS": eps,
        "SOFT": q is not None,
        "HAS_W": w is not None,
        "CAP": cap,
        "ACC": triton_dtype(acc),
    }


def tile(x: torch.Tensor) -> tuple[int, int]:
    """BM, BV: TILE logits a program, longest where they are neighbours in memory."""
    N, V, D = x.shape
    if D > 1 and x.stride(2) == 1:
        BM = block(D, 128, least=1)
        return BM, block(V, TILE // BM, least=1)
    BV = block(V, TILE)
    return block(N * D, max(1, TILE // BV), least=1), BV


def launch_backward(
    jit: JITFunction,
    d: torch.Tensor,
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
    """The pullback in the memory of d[N V D], which may be x itself: each logit is read by the program that writes it."""
    N, V, D = x.shape
    BM, BV = tile(x)
    # fmt: off
    launch(
        jit, [-(-N * D // BM) * -(-V // BV)],
        c, *c.stride(),
        *((c, 0) if e is None else (e, *e.stride())),
        x, *x.stride(),
        s, *s.stride(),
        *targets(x, t, q, w),
        d, *d.stride(),
        N * D, V, D, ignore_index,
        **settings(s.dtype, q, w, eps, cap), HAS_E=e is not None, BM=BM, BV=BV, writes=[d],
    )
    # fmt: on
