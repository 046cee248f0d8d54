"""Linear and cross-entropy in one, with both backwards, as Triton kernels: the logits stay in registers."""

import math

import torch
import triton.language as tl

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_triton import cotangent, empties
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.rows_triton import fold
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.softcap_triton import cap_slope, capped
from gradlab.kernels.common.tiles_triton import fill, tile
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _logits(
    h_ptr, h_m, h_k,
    w_ptr, w_k, w_v,
    b_ptr, b_v,
    m, v, M, K, V,
    ACC: tl.constexpr, BIAS: tl.constexpr, WHOLE_K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """x[m v] = sum_k h[m k] w[k v] + b[v] of a tile."""
    x = tl.zeros((BM, BV), dtype=ACC)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK).to(tl.int64)
        if WHOLE_K:
            in_h = (m < M)[:, None]
            in_w = (v < V)[None, :]
        else:
            in_h = (m < M)[:, None] & (k < K)[None, :]
            in_w = (k < K)[:, None] & (v < V)[None, :]
        h = tl.load(h_ptr + m[:, None] * h_m + k[None, :] * h_k, mask=in_h, other=0.0)
        w = tl.load(w_ptr + k[:, None] * w_k + v[None, :] * w_v, mask=in_w, other=0.0)
        x = tl.dot(h, w, x, input_precision="ieee", out_dtype=ACC)
    if BIAS:
        x += tl.load(b_ptr + v * b_v, mask=v < V, other=0.0).to(ACC)[None, :]
    return x


@kernel
def _finish(
    top, total, picked, far, weight, t, z, m,
    c_ptr, c_z, c_v,
    r_ptr, s_ptr,
    M, V, IGNORE,
    ACC: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr, BM: tl.constexpr,
):
    """r[z m] = (sum_v r (l - z), l) or 0, s[z m] = (max, log sum exp(z - max), sum_v r) from sums over all classes."""
    valid = (m < M) & (t != IGNORE)
    known = (t >= 0) & (t < V)
    log_sum = tl.log(total)
    c = tl.full((BM,), 1.0, dtype=ACC)
    if WEIGHTS:
        c = tl.load(c_ptr + z * c_z + t * c_v, mask=valid & known, other=0.0).to(ACC)
    y = HARD * c * (log_sum + (top - picked))
    if SPREAD > 0:
        y += SPREAD * (weight * log_sum + far)
    y = tl.where(known, y, float("nan"))
    lse = tl.where(known, top + log_sum, float("nan"))
    at = z * M + m
    tl.store(r_ptr + 2 * at, tl.where(valid, y, 0.0), mask=m < M)
    tl.store(r_ptr + 2 * at + 1, tl.where(valid, lse, 0.0), mask=m < M)
    tl.store(s_ptr + 3 * at, top, mask=m < M)
    tl.store(s_ptr + 3 * at + 1, log_sum, mask=m < M)
    tl.store(s_ptr + 3 * at + 2, HARD * c + SPREAD * weight, mask=m < M)


@kernel
def _statistics_kernel(
    h_ptr, h_z, h_m, h_k,
    w_ptr, w_z, w_k, w_v,
    b_ptr, b_z, b_v,
    c_ptr, c_z, c_v,
    t_ptr, t_z, t_m,
    p_ptr, p_z, p_i, p_s,
    r_ptr, s_ptr,
    M, K, V, TILES, IGNORE,
    ACC: tl.constexpr, BIAS: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr,
    CAP: tl.constexpr, LAST: tl.constexpr, WHOLE_K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """p[z i s m] = max, sum exp(z - max), z[t], sum c (max - z), sum c over the s-th TILES tiles, or r, s of `_finish` when S = 1; grid (Z * M/BM, S); a program owns p[z s BM]."""
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    t = tl.load(t_ptr + z * t_z + m * t_m, mask=m < M, other=0).to(tl.int64)
    top = tl.full((BM,), float("-inf"), dtype=ACC)
    total = tl.zeros((BM,), dtype=ACC)
    picked = tl.zeros((BM,), dtype=ACC)
    far = tl.zeros((BM,), dtype=ACC)
    weight = tl.zeros((BM,), dtype=ACC)
    for i in range(TILES):
        v = ((s * TILES + i) * BV + tl.arange(0, BV)).to(tl.int64)
        x = _logits(
            h_ptr + z * h_z, h_m, h_k,
            w_ptr + z * w_z, w_k, w_v,
            b_ptr + z * b_z, b_v,
            m, v, M, K, V, ACC, BIAS, WHOLE_K, BM, BK, BV,
        )
        x = capped(x, CAP)
        inside = (m < M)[:, None] & (v < V)[None, :]
        picked += tl.sum(tl.where(inside & (v[None, :] == t[:, None]), x, 0.0), axis=1)
        c = x
        if SPREAD > 0:
            c = tl.where(inside, 1.0, 0.0).to(ACC)
            if WEIGHTS:
                c *= tl.load(c_ptr + z * c_z + v * c_v, mask=v < V, other=0.0).to(ACC)[None, :]
        top, total, far, weight = fold(top, total, far, weight, x, c, inside, SPREAD > 0)
    if LAST:
        _finish(
            top, total, picked, far, weight, t, z, m,
            c_ptr, c_z, c_v,
            r_ptr, s_ptr,
            M, V, IGNORE, ACC, WEIGHTS, HARD, SPREAD, BM,
        )
    else:
        p_ptr += z * p_z + s * p_s + m
        tl.store(p_ptr, top, mask=m < M)
        tl.store(p_ptr + p_i, total, mask=m < M)
        tl.store(p_ptr + 2 * p_i, picked, mask=m < M)
        tl.store(p_ptr + 3 * p_i, far, mask=m < M)
        tl.store(p_ptr + 4 * p_i, weight, mask=m < M)


@kernel
def _merge_kernel(
    p_ptr, p_z, p_i, p_s,
    c_ptr, c_z, c_v,
    t_ptr, t_z, t_m,
    r_ptr, s_ptr,
    M, V, S, IGNORE,
    ACC: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr, BM: tl.constexpr,
):
    """r, s of `_finish`, p merged over the S splits in their order; grid (Z * M/BM); a program owns r[z BM], s[z BM]."""
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    t = tl.load(t_ptr + z * t_z + m * t_m, mask=m < M, other=0).to(tl.int64)
    p_ptr += z * p_z + m
    top = tl.full((BM,), float("-inf"), dtype=ACC)
    total = tl.zeros((BM,), dtype=ACC)
    picked = tl.zeros((BM,), dtype=ACC)
    far = tl.zeros((BM,), dtype=ACC)
    weight = tl.zeros((BM,), dtype=ACC)
    for _ in range(S):
        other = tl.load(p_ptr, mask=m < M, other=float("-inf"))
        higher = tl.maximum(top, other)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.load(p_ptr + p_i, mask=m < M, other=0.0) * tl.exp(other - shift)
        picked += tl.load(p_ptr + 2 * p_i, mask=m < M, other=0.0)
        if SPREAD > 0:
            more = tl.load(p_ptr + 4 * p_i, mask=m < M, other=0.0)
            far += weight * tl.where(top == float("-inf"), 0.0, shift - top)
            far += tl.load(p_ptr + 3 * p_i, mask=m < M, other=0.0)
            far += more * tl.where(other == float("-inf"), 0.0, shift - other)
            weight += more
        top = higher
        p_ptr += p_s
    _finish(
        top, total, picked, far, weight, t, z, m,
        c_ptr, c_z, c_v,
        r_ptr, s_ptr,
        M, V, IGNORE, ACC, WEIGHTS, HARD, SPREAD, BM,
    )


@kernel
def _backward_kernel(
    h_ptr, h_z, h_m, h_k,
    w_ptr, w_z, w_k, w_v,
    b_ptr, b_z, b_v,
    g_ptr, g_z, g_m, g_i,
    c_ptr, c_z, c_v,
    t_ptr, t_z, t_m,
    s_ptr, s_z, s_m, s_i,
    d_ptr, d_z, d_m, d_v,
    M, K, V, FIRST, IGNORE, CLASSES,
    ACC: tl.constexpr, BIAS: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr, CAP: tl.constexpr,
    WHOLE_K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """d[z m v] = z' ((dy R + dl) p - dy r)[m v] of V classes from FIRST on; grid (Z * V/BV * M/BM); a program owns d[z BM BV]."""
    tiles_m = tl.cdiv(M, BM)
    tiles_v = tl.cdiv(V, BV)
    z = (tl.program_id(0) // (tiles_m * tiles_v)).to(tl.int64)
    # Rows first: the programs that run at once share their columns of w.
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    v = (tl.program_id(0) // tiles_m % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
    x = _logits(
        h_ptr + z * h_z, h_m, h_k,
        w_ptr + z * w_z, w_k, w_v,
        b_ptr + z * b_z, b_v,
        m, v, M, K, V, ACC, BIAS, WHOLE_K, BM, BK, BV,
    )
    _, _, d, _, _ = cotangent(
        capped(x, CAP), v, m, z,
        g_ptr, g_z, g_m, g_i,
        c_ptr, c_z, c_v,
        t_ptr, t_z, t_m,
        s_ptr, s_z, s_m, s_i,
        M, V, FIRST, IGNORE, CLASSES, ACC, WEIGHTS, HARD, SPREAD,
    )
    if CAP > 0:
        d *= cap_slope(x, CAP)
    inside = (m < M)[:, None] & (v < V)[None, :]
    tl.store(d_ptr + z * d_z + m[:, None] * d_m + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_fake(h, w, t, b, c, ignore_index, label_smoothing, softcap):
    acc = accumulator(h.dtype)
    rows = h.shape[:2]
    return h.new_empty((*rows, 2), dtype=acc), h.new_empty((*rows, 3), dtype=acc)


@op("linear_cross_entropy_loss", fake=_loss_fake, flops=lambda h, w, *_, out_shape: 2 * math.prod(h) * w[-1])
def loss(
    h: torch.Tensor,
    w: torch.Tensor,
    t: torch.Tensor,
    b: torch.Tensor | None,
    c: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, l)[Z M 2] and s[Z M 3] = (max, log sum exp, R), of h[Z M K], w[Z K V].

    Any strides, 0 too. softcap 0 is none. In the accumulator's dtype.

    Raises:
        IndexError: a class that is neither in [0, V) nor ignore_index (gradlab/kernels/class_losses/class_range_triton.py says when).
    """
    (Z, M, K), V = h.shape, w.shape[-1]
    refuse_out_of_range("linear_cross_entropy", t.reshape(-1), V, 1, ignore_index)
    r, s = _loss_fake(h, w, t, b, c, ignore_index, label_smoothing, softcap)
    BM, BK, BV, warps, stages = tile("logits", h, M, K, V)
    tiles = -(-V // BV)
    splits = max(1, min(tiles, fill(h.device) // max(1, Z * -(-M // BM))))
    each = -(-tiles // splits)
    splits = -(-tiles // each)
    p = s.new_empty((Z, 5, splits, M) if splits > 1 else (0, 0, 0, 0))
    shared = {
        "ACC": triton_dtype(s.dtype),
        "WEIGHTS": c is not None,
        "HARD": 1 - label_smoothing,
        "SPREAD": label_smoothing / V,
        "writes": [p, r, s],
    }
    # fmt: off
    launch(
        _statistics_kernel, [Z * -(-M // BM), splits],
        h, *h.stride(),
        w, *w.stride(),
        *_present(h, b),
        *_present(h, c),
        t, *t.stride(),
        p, *p.stride()[:3],
        r, s,
        M, K, V, each, ignore_index,
        BIAS=b is not None, CAP=softcap, LAST=splits == 1, WHOLE_K=K % BK == 0, BM=BM, BK=BK, BV=BV, **shared,
        warps=warps, stages=stages,
    )
    if splits == 1:
        return r, s
    BM = block(M, 64)
    launch(
        _merge_kernel, [Z * -(-M // BM)],
        p, *p.stride()[:3],
        *_present(h, c),
        t, *t.stride(),
        r, s,
        M, V, splits, ignore_index,
        BM=BM, **shared,
    )
    # fmt: on
    return r, s


def _backward_fake(g, h, w, t, b, c, s, ignore_index, label_smoothing, softcap, need_h, need_w, need_b, by_columns):
    return empties(h, w, need_h, need_w, need_b, by_columns)


def _backward_flops(
    g, h, w, t, b, c, s, ignore_index, label_smoothing, softcap, need_h, need_w, need_b, by_columns, *, out_shape
):
    # The logits once more, and what is needed of dgrad and wgrad.
    return 2 * math.prod(h) * w[-1] * (1 + need_h + need_w)


@op("linear_cross_entropy_backward", fake=_backward_fake, flops=_backward_flops)
def backward(
    g: torch.Tensor,
    h: torch.Tensor,
    w: torch.Tensor,
    t: torch.Tensor,
    b: torch.Tensor | None,
    c: torch.Tensor | None,
    s: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    need_h: bool,
    need_w: bool,
    need_b: bool,
    by_columns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dh[Z M K], dw[Z K V], db[Z V] of the cotangents g[Z M 2] of (loss, l); what is not needed is empty and costs nothing.

    `by_columns` lays dw out as a transposed weight lies. M Vc elements at once, dh in float32 (the module's docstring of
    linear_cross_entropy has the formula).
    """
    (Z, M, K), V = h.shape, w.shape[-1]
    dh, dw, db = empties(h, w, need_h, need_w, need_b, by_columns)
    width = chunk(Z * M, K, V)
    buffer = h.new_empty((Z, M, width))
    grown = dh if dh.dtype == s.dtype or width == V or not need_h else dh.new_empty(dh.shape, dtype=s.dtype)
    for first in range(0, V, width):
        part = slice(first, min(first + width, V))
        w_, (b_, c_) = w[..., part], (None if a is None else a[..., part] for a in (b, c))
        d = buffer[..., : w_.shape[-1]]
        BM, BK, BV, warps, stages = tile("logits", h, M, K, d.shape[-1])
        # fmt: off
        launch(
            _backward_kernel, [Z * -(-M // BM) * -(-d.shape[-1] // BV)],
            h, *h.stride(),
            w_, *w_.stride(),
            *_present(h, b_),
            g, *g.stride(),
            *_present(h, c_),
            t, *t.stride(),
            s, *s.stride(),
            d, *d.stride(),
            M, K, d.shape[-1], first, ignore_index, V,
            ACC=triton_dtype(s.dtype), BIAS=b is not None, WEIGHTS=c is not None, HARD=1 - label_smoothing,
            SPREAD=label_smoothing / V, CAP=softcap, WHOLE_K=K % BK == 0, BM=BM, BK=BK, BV=BV,
            writes=[d], warps=warps, stages=stages,
        )
        # fmt: on
        if need_h:
            matmul_into(dh if part.stop == V else grown, d, w_.mT, grown if first else None)
        if need_w:
            matmul_into(dw[..., part], h.mT, d, None)
        if need_b:
            db[..., part] = column_sum(d, None)
    return dh, dw, db


def _present(h: torch.Tensor, t: torch.Tensor | None) -> tuple:
    """A tensor that may be absent, and its two strides."""
    return (h, 0, 0) if t is None else (t, *t.stride())
