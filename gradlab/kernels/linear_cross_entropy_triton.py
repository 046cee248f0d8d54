"""Linear and cross-entropy in one, with both backwards, as Triton kernels: the logits stay in registers."""

import math
from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.class_losses.chunks_triton import empty_gradients, present
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.rows_triton import (
    constants,
    load_rows,
    logit_gradient,
    merged,
    one_class,
    online_softmax,
    part_numbers,
    row_classes,
    store_part,
    store_rows,
    target_probabilities,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.product_triton import add_product, operand, ways
from gradlab.kernels.common.softcap_triton import capped
from gradlab.kernels.common.tiles_triton import fill, tile
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _logits(
    h, h_m, h_k,
    w, w_k, w_v,
    b_ptr, b_v,
    m0, v0, M, K, V,
    ACC: tl.constexpr, HAS_B: tl.constexpr, FULL_K: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """x[m v] = sum_k h[m k] w[k v] + b[v] of a tile, from row m0 and class v0 on, of the `operand`s h and w."""
    x = tl.zeros((BM, BV), dtype=ACC)
    x = add_product(x, h, h_m, h_k, w, w_k, w_v, m0, v0, M, K, V, H, W, FULL_K, BM, BK, BV)
    if HAS_B:
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        x += tl.load(b_ptr + v * b_v, mask=v < V, other=0.0).to(ACC)[None, :]
    return x


@kernel
def _statistics_kernel(
    h_ptr, h_z, h_m, h_k,
    w_ptr, w_z, w_k, w_v,
    t_ptr, t_z, t_m,
    b_ptr, b_z, b_v,
    a_ptr, a_z, a_v,
    y_ptr,
    n_ptr,
    s_ptr,
    p_ptr, p_z, p_i, p_s,
    x_ptr, x_z, x_m,
    M, K, V, TILES, KEPT, IGNORE, FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_B: tl.constexpr, HAS_A: tl.constexpr, LAST: tl.constexpr,
    KEEP: tl.constexpr, PART: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    FULL_K: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """y, n, s of rows, or p[z i s m] = (row_max, sum_exp, r_dot, r_sum) of the s-th TILES tiles unless LAST.

    If KEEP, x[z m v] of the first KEPT classes. Grid (Z * M/BM, S); a program owns p[z s BM] and x[z BM TILES*BV].
    """
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    m0 = tl.program_id(0) % tiles_m * BM
    m = (m0 + tl.arange(0, BM)).to(tl.int64)
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, total, IGNORE, FIRST, False, PART)
    h = operand(h_ptr, z, h_z, h_m, h_k, M, K, H, BM, BK)
    w = operand(w_ptr, z, w_z, w_k, w_v, K, V, W, BK, BV)
    b_ptr += z * b_z
    a_ptr += z * a_z
    row_max = tl.full((BM,), float("-inf"), dtype=ACC)
    sum_exp = tl.zeros((BM,), dtype=ACC)
    r_dot = tl.zeros((BM,), dtype=ACC)
    r_sum = tl.zeros((BM,), dtype=ACC)
    z_t = tl.zeros((BM,), dtype=ACC)
    first = tl.program_id(1) * TILES * BV
    for i in range(TILES):
        v0 = first + i * BV
        x = _logits(
            h, h_m, h_k, w, w_k, w_v, b_ptr, b_v, m0, v0, M, K, V, ACC, HAS_B, FULL_K, H, W, BM, BK, BV,
        )
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        if KEEP:
            kept = (m < M)[:, None] & (v < KEPT)[None, :]
            tl.store(x_ptr + z * x_z + m[:, None] * x_m + v[None, :], x, mask=kept)
        x = capped(x, CAP)
        inside = (m < M)[:, None] & (v < V)[None, :]
        hit = v[None, :] == t[:, None]
        z_t += tl.sum(tl.where(inside & hit, x, 0.0), axis=1)
        r = target_probabilities(hit.to(ACC), a_ptr, a_v, v, inside, V, total, EPS, HAS_A)
        row_max, sum_exp, r_dot, r_sum = online_softmax(row_max, sum_exp, r_dot, r_sum, x, r, inside, EPS > 0)
    if EPS == 0:
        here = in_range & (t >= first) & (t < first + TILES * BV)
        if PART:
            here = here & (t < V)
        r_dot, r_sum = one_class(row_max, z_t, a_ptr, a_v, t, here & (m < M), HAS_A)
        r_dot = tl.where(here, r_dot, 0.0)
        r_sum = tl.where(here, r_sum, 0.0)
    if LAST:
        store_rows(
            y_ptr + z * M, n_ptr + z * M, s_ptr + 3 * z * M, m, M,
            row_max, tl.log(sum_exp), r_dot, r_sum, in_range, valid,
        )
    else:
        store_part(p_ptr + z * p_z + s * p_s + m, p_i, m < M, row_max, sum_exp, r_dot, r_sum)


@kernel
def _merge_kernel(
    p_ptr, p_z, p_i, p_s,
    t_ptr, t_z, t_m,
    y_ptr,
    n_ptr,
    s_ptr,
    M, V, S, IGNORE,
    LAST: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr,
):
    """y, n, s of rows, p merged over the S splits in their order; what `merged` takes, in s, unless LAST.

    Grid (Z * M/BM); a program owns y[z BM], n[z BM], s[z 3 BM], or s[4 z BM].
    """
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    _, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, V, IGNORE, 0, False, False)
    row_max, sum_exp, r_dot, r_sum = merged(p_ptr + z * p_z + m, p_i, p_s, S, m < M, ACC, BM)
    if LAST:
        store_rows(
            y_ptr + z * M, n_ptr + z * M, s_ptr + 3 * z * M, m, M,
            row_max, tl.log(sum_exp), r_dot, r_sum, in_range, valid,
        )
    else:
        store_part(s_ptr + 4 * z * M + m, M, m < M, row_max, sum_exp, r_dot, r_sum)


@kernel
def _backward_kernel(
    dy_ptr, dy_z, dy_m,
    dn_ptr, dn_z, dn_m,
    h_ptr, h_z, h_m, h_k,
    w_ptr, w_z, w_k, w_v,
    t_ptr, t_z, t_m,
    b_ptr, b_z, b_v,
    a_ptr, a_z, a_v,
    s_ptr, s_z, s_k, s_m,
    x_ptr, x_z, x_m, x_v,
    d_ptr, d_z, d_m, d_v,
    M, K, N, V, FIRST, IGNORE, PART_FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_B: tl.constexpr, HAS_A: tl.constexpr, HAS_DN: tl.constexpr,
    KEPT: tl.constexpr, PART: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    FULL_K: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """d[z m v] = z' (dy (R p - r) + 2 dn l p)[m v] of the N classes from FIRST on.

    Their x[z m v] is read if KEPT, and else made again. Grid (Z * N/BV * M/BM); a program owns d[z BM BV].
    """
    tiles_m = tl.cdiv(M, BM)
    tiles_v = tl.cdiv(N, BV)
    z = (tl.program_id(0) // (tiles_m * tiles_v)).to(tl.int64)
    # Rows first: the programs that run at once share their columns of w.
    m0 = tl.program_id(0) % tiles_m * BM
    v0 = tl.program_id(0) // tiles_m % tiles_v * BV
    m = (m0 + tl.arange(0, BM)).to(tl.int64)
    v = (v0 + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < N)[None, :]
    if KEPT:
        x = tl.load(x_ptr + z * x_z + m[:, None] * x_m + v[None, :] * x_v, mask=inside, other=0.0)
    else:
        h = operand(h_ptr, z, h_z, h_m, h_k, M, K, H, BM, BK)
        w = operand(w_ptr, z, w_z, w_k, w_v, K, N, W, BK, BV)
        x = _logits(
            h, h_m, h_k, w, w_k, w_v, b_ptr + z * b_z, b_v, m0, v0, M, K, N, ACC, HAS_B, FULL_K, H, W, BM, BK, BV,
        )
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, total, IGNORE, PART_FIRST, False, PART)
    dy, dn, row_max, log_sum, r_sum = load_rows(
        dy_ptr + z * dy_z, dy_m, dn_ptr + z * dn_z, dn_m, s_ptr + z * s_z, s_k, s_m, m, M, HAS_DN, ACC,
    )
    q = ((FIRST + v)[None, :] == t[:, None]).to(ACC)
    r = target_probabilities(q, a_ptr + z * a_z, a_v, FIRST + v, inside, V, total, EPS, HAS_A)
    d = logit_gradient(x, capped(x, CAP), r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, HAS_DN)
    tl.store(d_ptr + z * d_z + m[:, None] * d_m + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_fake(h, w, t, b, a, settings, part=None, kept=0):
    (Z, M, _), acc = h.shape, accumulator(h.dtype)
    x = h.new_empty((Z, M, kept) if kept else 0, dtype=acc)
    if part is not None:
        return *(h.new_empty(0, dtype=acc) for _ in range(2)), h.new_empty((Z, 4, M), dtype=acc), x
    return *(h.new_empty((Z, M), dtype=acc) for _ in range(2)), h.new_empty((Z, 3, M), dtype=acc), x


@op("linear_cross_entropy_loss", fake=_loss_fake, flops=lambda h, w, *_, out_shape: 2 * math.prod(h) * w[-1])
def loss(
    h: torch.Tensor,
    w: torch.Tensor,
    t: torch.Tensor,
    b: torch.Tensor | None,
    a: torch.Tensor | None,
    settings: Sequence[Number],
    part: Sequence[int] | None = None,
    kept: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y[Z M], n[Z M] = l^2, the row statistics s[Z 3 M] and x[Z M kept], of h[Z M K], w[Z K V], t[Z M], b[Z V], a[Z V].

    Any strides, 0 too; `settings` a `ClassLoss`, flat. In the accumulator's dtype. Of a `part`, a `ClassPart`, flat,
    s[Z 4 M] are the sums that `merge_parts` puts together, and y and n are empty. x, empty where none is kept, are the
    logits before the cap of the first `kept` classes.

    Raises:
        IndexError: a class that is neither in [0, V) nor ignore_index
            (gradlab/kernels/class_losses/class_range_triton.py says when).
    """
    (Z, M, K), V, ignore_index = h.shape, w.shape[-1], ClassLoss.of(settings).ignore_index
    refuse_out_of_range("linear_cross_entropy", t.reshape(-1), V if part is None else part[1], 1, ignore_index)
    y, n, s, x = _loss_fake(h, w, t, b, a, settings, part, kept)
    BM, BK, BV, warps, stages = tile(_kind(settings, b is None or not kept), h, M, K, V)
    h_way, w_way = ways(h, w)
    tiles = max(1, -(-V // BV))
    splits = max(1, min(tiles, fill(h.device) // max(1, Z * -(-M // BM))))
    each = -(-tiles // splits)
    splits = -(-tiles // each)
    last = splits == 1 and part is None
    p = s.new_empty((0, 0, 0, 0) if last else (Z, 4, splits, M))
    if part is not None and splits == 1:
        p = s.unsqueeze(2)
    # fmt: off
    launch(
        _statistics_kernel, [Z * -(-M // BM), splits],
        h, *h.stride(),
        w, *w.stride(),
        t, *t.stride(),
        *present(h, b),
        *present(h, a),
        y,
        n,
        s,
        p, *p.stride()[:3],
        x, *(x.stride()[:2] if kept else (0, 0)),
        M, K, V, each, kept, ignore_index, *part_numbers(part),
        **constants(settings, s.dtype, a), HAS_B=b is not None, LAST=last, KEEP=kept > 0, PART=part is not None,
        H=h_way, W=w_way, FULL_K=K % BK == 0, BM=BM, BK=BK, BV=BV, writes=[y, n, s, p, x], warps=warps, stages=stages,
    )
    if splits == 1:
        return y, n, s, x
    BM = block(M, 64)
    launch(
        _merge_kernel, [Z * -(-M // BM)],
        p, *p.stride()[:3],
        t, *t.stride(),
        y,
        n,
        s,
        M, V, splits, ignore_index,
        LAST=part is None, ACC=triton_dtype(s.dtype), BM=BM, writes=[y, n, s],
    )
    # fmt: on
    return y, n, s, x


def _backward_fake(dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, by_columns, part=None, x=None):
    return empty_gradients(h, w, need_h, need_w, need_b, by_columns, None if part is None else s.dtype)


def _backward_flops(
    dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, by_columns, part=None, x=None, *, out_shape
):
    # The logits once more, but for those that are kept, and what is needed of dgrad and wgrad.
    kept = 0 if x is None else x[-1]
    return 2 * math.prod(h) * (w[-1] * (1 + need_h + need_w) - kept)


@op("linear_cross_entropy_backward", fake=_backward_fake, flops=_backward_flops)
def backward(
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
    x: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dh[Z M K], dw[Z K V], db[Z V] of the cotangents dy[Z M] and dn[Z M].

    What is not needed is empty and costs nothing.

    `by_columns` lays dw out as a transposed weight lies. M Vc elements at once, dh in float32 (the module's docstring
    of linear_cross_entropy has the formula). dh of a `part` is a term of a sum over parts, not rounded yet. Chunks
    whose logits x[Z M kept] are given are not made again; the bits are the same.
    """
    (Z, M, K), V = h.shape, w.shape[-1]
    dh, dw, db = _backward_fake(dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, by_columns, part)
    if V == 0:
        return dh.zero_(), dw, db
    width = chunk(Z * M, K, V)
    buffer = h.new_empty((Z, M, width))
    dh_sum = dh if dh.dtype == s.dtype or width == V or not need_h else dh.new_empty(dh.shape, dtype=s.dtype)
    for first in range(0, V, width):
        columns = slice(first, min(first + width, V))
        w_, b_ = w[..., columns], None if b is None else b[..., columns]
        N = w_.shape[-1]
        d = buffer[..., :N]
        there = x is not None and columns.stop <= x.shape[-1]
        x_ = x[..., columns] if x is not None and there else None
        BM, BK, BV, warps, stages = tile(_kind(settings, a is None and b is None), h, M, K, N)
        if there:
            # No operand is shared by rows or columns: small tiles.
            BM, BV, warps = min(BM, 32), min(BV, 128), 4
        h_way, w_way = ways(h, w_)
        # fmt: off
        launch(
            _backward_kernel, [Z * -(-M // BM) * -(-N // BV)],
            dy, *dy.stride(),
            *present(dy, dn),
            h, *h.stride(),
            w_, *w_.stride(),
            t, *t.stride(),
            *present(h, b_),
            *present(h, a),
            s, *s.stride(),
            *((h, 0, 0, 0) if x_ is None else (x_, *x_.stride())),
            d, *d.stride(),
            M, K, N, V, first, ClassLoss.of(settings).ignore_index, *part_numbers(part),
            **constants(settings, s.dtype, a), HAS_B=b is not None, HAS_DN=dn is not None, KEPT=there,
            PART=part is not None, H=h_way, W=w_way, FULL_K=K % BK == 0, BM=BM, BK=BK, BV=BV, writes=[d],
            warps=warps, stages=stages,
        )
        # fmt: on
        if need_h:
            matmul_into(dh if columns.stop == V else dh_sum, d, w_.mT, dh_sum if first else None)
        if need_w:
            matmul_into(dw[..., columns], h.mT, d, None)
        if need_b:
            db[..., columns] = column_sum(d, None)
    return dh, dw, db


def _kind(settings: Sequence[Number], plain: bool) -> str:
    """The kind of tile: a large one where what is done with its logits leaves them in registers.

    `plain` says so of what is loaded and stored beside them.
    """
    loss = ClassLoss.of(settings)
    return "large logits" if plain and not loss.softcap and not loss.label_smoothing else "logits"
