"""The formulas of the losses of classes, once: what the Triton kernels of both cross-entropies do with their tiles.

Letters are those of gradlab/kernels/cross_entropy.py. The row statistics are row_max, log_sum = log sum_v exp(z -
row_max) and r_sum = sum_v r; what backward needs of them is saved as s[3 M].
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.softcap_triton import cap_slope, capped
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, triton_dtype

# Logits that a compiled program works on at a time.
TILE = 4096


# fmt: off
@kernel
def row_classes(t_ptr, t_m, m, M, V, IGNORE, FIRST, SOFT: tl.constexpr, PART: tl.constexpr):
    """(t, in_range, valid) of rows m: the class, whether it lies in [0, V), whether the row is below M and not ignored.

    V classes of all parts; t counts from FIRST on, the first class here. Soft targets name no class: nothing is read,
    every row is in range.
    """
    if SOFT:
        t = m * 0
        in_range = m >= 0
        valid = m < M
    else:
        t = tl.load(t_ptr + m * t_m, mask=m < M, other=0).to(tl.int64)
        in_range = (t >= 0) & (t < V)
        valid = (m < M) & (t != IGNORE)
        if PART:
            t -= FIRST
    return t, in_range, valid


@kernel
def row_masked(tile, in_range, valid):
    """Of rows: NaN where the class is out of range, 0 where ignored."""
    return tl.where(valid, tl.where(in_range, tile, float("nan")), 0.0)


@kernel
def target_probabilities(q, a_ptr, a_v, v, inside, V, TOTAL, EPS: tl.constexpr, HAS_A: tl.constexpr):
    """r[m v] = a[v] ((1 - EPS) q[m v] + EPS / TOTAL) of a tile of targets q; V classes are here."""
    r = q * (1 - EPS)
    if EPS > 0:
        r += tl.full((1, 1), EPS, q.dtype) / TOTAL
        r = tl.where(inside, r, 0.0)
    if HAS_A:
        r *= tl.load(a_ptr + v * a_v, mask=v < V, other=0.0).to(q.dtype)[None, :]
    return r


@kernel
def logits_tile(
    x_ptr, x_v,
    q_ptr, q_v,
    a_ptr, a_v,
    t, m, v0, M, V, TOTAL,
    EPS: tl.constexpr, SOFT: tl.constexpr, HAS_A: tl.constexpr, CAP: tl.constexpr, ACC: tl.constexpr, BV: tl.constexpr,
):
    """(v, inside, x, z, r) of the BV classes from v0 on, x_ptr and q_ptr being the pointers of rows m."""
    v = (v0 + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    x = tl.load(x_ptr + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    if SOFT:
        q = tl.load(q_ptr + v[None, :] * q_v, mask=inside, other=0.0).to(ACC)
    else:
        q = (v[None, :] == t[:, None]).to(ACC)
    return v, inside, x, capped(x, CAP), target_probabilities(q, a_ptr, a_v, v, inside, V, TOTAL, EPS, HAS_A)


@kernel
def online_softmax(row_max, sum_exp, r_dot, r_sum, z, r, inside, DENSE: tl.constexpr):
    """One more tile z: row_max, sum exp(z - row_max), and if DENSE r_dot = sum r (row_max - z) and sum r.

    Masked after whatever made z: a lane past V must not enter the sum.
    """
    z = tl.where(inside, z, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(z, axis=1))
    # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    sum_exp = sum_exp * tl.exp(row_max - shift) + tl.sum(tl.exp(z - shift[:, None]), axis=1)
    if DENSE:
        before = tl.where(row_max == float("-inf"), 0.0, row_max)
        # A class of probability 0 costs nothing, also where its logit is -inf.
        r_dot += r_sum * (shift - before) + tl.sum(tl.where(r == 0, 0.0, r * (shift[:, None] - z)), axis=1)
        # Not the bare sum: Triton 3.7 stops at an assertion (OptimizeThreadLocality) where a loop's sum has two uses.
        r_sum += tl.sum(r, axis=1) + 0 * shift
    return new_max, sum_exp, r_dot, r_sum


@kernel
def one_class(row_max, z_t, a_ptr, a_v, t, mask, HAS_A: tl.constexpr):
    """(r_dot, r_sum) if class t alone has a probability; (row_max - z) first: logits far from zero cancel exactly."""
    r_sum = tl.full(row_max.shape, 1.0, row_max.dtype)
    if HAS_A:
        r_sum = tl.load(a_ptr + t * a_v, mask=mask, other=0.0).to(row_max.dtype)
    return r_sum * (tl.where(row_max == float("-inf"), 0.0, row_max) - z_t), r_sum


@kernel
def store_rows(y_ptr, n_ptr, s_ptr, m, M, row_max, log_sum, r_dot, r_sum, in_range, valid):
    """y[m] = r_dot + r_sum log_sum, n[m] = l[m]^2 and s[3 M] = (row_max, log_sum, r_sum)."""
    lse = row_max + log_sum
    tl.store(y_ptr + m, row_masked(r_dot + r_sum * log_sum, in_range, valid), mask=m < M)
    tl.store(n_ptr + m, row_masked(lse * lse, in_range, valid), mask=m < M)
    tl.store(s_ptr + m, row_max, mask=m < M)
    tl.store(s_ptr + M + m, log_sum, mask=m < M)
    tl.store(s_ptr + 2 * M + m, r_sum, mask=m < M)


@kernel
def store_part(p_ptr, p_i, mask, row_max, sum_exp, r_dot, r_sum):
    """p[4 ...] = (row_max, sum_exp, r_dot, r_sum) of some of the classes, p_i apart, for `merged`."""
    tl.store(p_ptr, row_max, mask=mask)
    tl.store(p_ptr + p_i, sum_exp, mask=mask)
    tl.store(p_ptr + 2 * p_i, r_dot, mask=mask)
    tl.store(p_ptr + 3 * p_i, r_sum, mask=mask)


@kernel
def merged(p_ptr, p_i, p_s, S, mask, ACC: tl.constexpr, BM: tl.constexpr):
    """(row_max, sum_exp, r_dot, r_sum) of rows, S parts p of their classes put together in their order."""
    row_max = tl.full((BM,), float("-inf"), dtype=ACC)
    sum_exp = tl.zeros((BM,), dtype=ACC)
    r_dot = tl.zeros((BM,), dtype=ACC)
    r_sum = tl.zeros((BM,), dtype=ACC)
    for _ in range(S):
        other = tl.load(p_ptr, mask=mask, other=float("-inf"))
        new_max = tl.maximum(row_max, other)
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        sum_exp *= tl.exp(row_max - shift)
        sum_exp += tl.load(p_ptr + p_i, mask=mask, other=0.0) * tl.exp(other - shift)
        more = tl.load(p_ptr + 3 * p_i, mask=mask, other=0.0)
        r_dot += r_sum * tl.where(row_max == float("-inf"), 0.0, shift - row_max)
        r_dot += tl.load(p_ptr + 2 * p_i, mask=mask, other=0.0)
        r_dot += more * tl.where(other == float("-inf"), 0.0, shift - other)
        r_sum += more
        row_max = new_max
        p_ptr += p_s
    return row_max, sum_exp, r_dot, r_sum


@kernel
def load_rows(
    dy_ptr, dy_m,
    dn_ptr, dn_m,
    s_ptr, s_k, s_m,
    m, M, HAS_DN: tl.constexpr, ACC: tl.constexpr,
):
    """(dy, dn, row_max, log_sum, r_sum) of rows m; dn is 0 and not read unless HAS_DN."""
    dy = tl.load(dy_ptr + m * dy_m, mask=m < M, other=0.0).to(ACC)
    dn = tl.zeros(dy.shape, dtype=ACC)
    if HAS_DN:
        dn = tl.load(dn_ptr + m * dn_m, mask=m < M, other=0.0).to(ACC)
    row_max = tl.load(s_ptr + m * s_m, mask=m < M, other=0.0)
    log_sum = tl.load(s_ptr + s_k + m * s_m, mask=m < M, other=0.0)
    r_sum = tl.load(s_ptr + 2 * s_k + m * s_m, mask=m < M, other=0.0)
    return dy, dn, row_max, log_sum, r_sum


@kernel
def cotangent(p, r, dy, dn, lse, r_sum, HAS_DN: tl.constexpr):
    """g[m v] = dy (R p - r) + 2 dn l p, the cotangent of the capped logits z."""
    g = dy[:, None] * (r_sum[:, None] * p - r)
    if HAS_DN:
        g += (2 * dn * lse)[:, None] * p
    return g


@kernel
def logit_gradient(
    x, z, r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP: tl.constexpr, HAS_DN: tl.constexpr,
):
    """dx[m v] = z' (dy (R p - r) + 2 dn l p) of a tile of logits x, z = capped x."""
    p = tl.exp((z - row_max[:, None]) - log_sum[:, None])
    g = cotangent(p, r, dy, dn, row_max + log_sum, r_sum, HAS_DN)
    if CAP > 0:
        g *= cap_slope(x, CAP)
    return row_masked(g, in_range[:, None], valid[:, None])


@kernel
def second_sums(x, z, u, r, row_max, log_sum, inside, CAP: tl.constexpr):
    """(sum_v U p, sum_v U r) of a tile, U = u z'."""
    if CAP > 0:
        u *= cap_slope(x, CAP)
    p = tl.exp((z - row_max[:, None]) - log_sum[:, None])
    # A lane past V reads 0, which may stand far above the maximum.
    return tl.sum(tl.where(inside, u * p, 0.0), axis=1), tl.sum(u * r, axis=1)


@kernel
def second_gradient(
    x, z, u, r, u_p, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP: tl.constexpr, HAS_DN: tl.constexpr,
):
    """(X[m v], U[m v]) of a tile: X = z' ((dy R + 2 dn l) p (U - P) + 2 dn P p) + z'' u g.

    U = u z', P = u_p = sum_v U p.
    """
    lse = row_max + log_sum
    p = tl.exp((z - row_max[:, None]) - log_sum[:, None])
    at_z = u
    if CAP > 0:
        slope = cap_slope(x, CAP)
        at_z = u * slope
    d = (dy * r_sum + 2 * dn * lse)[:, None] * p * (at_z - u_p[:, None]) + (2 * dn * u_p)[:, None] * p
    if CAP > 0:
        # z'' = -2 z z' / CAP^2.
        d = slope * (d - u * cotangent(p, r, dy, dn, lse, r_sum, HAS_DN) * (2 * z / (CAP * CAP)))
    return row_masked(d, in_range[:, None], valid[:, None]), at_z
# fmt: on


def empty_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Memory for y[M], n[M] and s[3 M] of logits x[N V D], in their accumulator's dtype."""
    M = x.shape[0] * x.shape[2]
    y, n, s = (x.new_empty(shape, dtype=accumulator(x.dtype)) for shape in (M, M, (3, M)))
    return y, n, s


def targets(x: torch.Tensor, t: torch.Tensor | None, q: torch.Tensor | None, a: torch.Tensor | None) -> tuple[Any, ...]:
    """Classes t[M], soft targets q[N V D] and class weights a[V] with their strides; x stands for what is absent."""
    return (
        *((x, 0) if t is None else (t, *t.stride())),
        *((x, 0, 0, 0) if q is None else (q, *q.stride())),
        *((x, 0) if a is None else (a, *a.stride())),
    )


def constants(settings: Sequence[Number], acc: torch.dtype, a: torch.Tensor | None) -> dict[str, Any]:
    """What every kernel is compiled for: a model's settings, which no step changes, and the accumulator's dtype."""
    loss = ClassLoss.of(settings)
    return {"EPS": loss.label_smoothing, "CAP": loss.softcap, "HAS_A": a is not None, "ACC": triton_dtype(acc)}


def part_numbers(part: Sequence[int] | None) -> tuple[int, int]:
    """The first class here and the number of all classes, of a flat `ClassPart`; not read where all are here."""
    return (0, 0) if part is None else (part[0], part[1])


def tile(x: torch.Tensor) -> tuple[int, int]:
    """BM, BV: TILE logits a program, longest where they are neighbours in memory."""
    N, V, D = x.shape
    if D > 1 and x.stride(2) == 1:
        BM = block(D, 128, least=1)
        return BM, block(V, TILE // BM, least=1)
    BV = block(V, TILE)
    return block(N * D, max(1, TILE // BV), least=1), BV
