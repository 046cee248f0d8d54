"""Linear and cross-entropy in one, with both backwards, as Pallas kernels: the logits stay in a program's tile."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.chunks_pallas import chunks, cotangent
from gradlab.kernels.class_losses.rows_pallas import fold
from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.matmul_pallas import matmul, matmul_into
from gradlab.kernels.common.softcap_pallas import cap_slope, capped
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas

# What a program of `_statistics_kernel` writes for each row: max, sum exp(z - max), z[t], c[t], sum c (max - z), sum c.
PARTS = 6
# What `_finish` makes of them.
RESULTS = 5


# fmt: off
def _logits(h_ref, w_ref, b_ref, columns, BV, BK, acc):
    """x[m v] = sum_k h[m k] w[k v] + b[v] of the tile at `columns`."""
    precision = jax.lax.Precision.HIGHEST if h_ref.dtype in (jnp.float32, jnp.float64) else None
    contract = (((1,), (0,)), ((), ()))

    def step(i, total):
        k = pl.ds(i * BK, BK)
        return total + jax.lax.dot_general(
            h_ref[:, k], w_ref[k, columns], contract, precision=precision, preferred_element_type=acc
        )

    x = loop(h_ref.shape[1] // BK, step, jnp.zeros((h_ref.shape[0], BV), acc))
    return x if b_ref is None else x + b_ref[:, columns].astype(acc)


def _finish(carry, t, V, ignore, hard, spread):
    """(sum_v r (l - z), l, max, log sum exp(z - max), sum_v r) of rows, from sums over all classes."""
    top, total, picked, c, far, weight = carry
    zero = jnp.zeros_like(top)
    log_sum = jnp.log(total)
    y = hard * c * (log_sum + (top - picked))
    if spread:
        y = y + spread * (weight * log_sum + far)
    known = (t >= 0) & (t < V)
    valid = t != ignore
    y = jnp.where(known, y, zero + jnp.nan)
    lse = jnp.where(known, top + log_sum, zero + jnp.nan)
    return (jnp.where(valid, y, zero), jnp.where(valid, lse, zero), top, log_sum, hard * c + spread * weight)


def _statistics_kernel(*refs, V, apart, tiles, BV, BK, bias, weights, ignore, hard, spread, cap, last):
    """PARTS of each row over the s-th run of tiles of the V classes, or what `_finish` makes of them when S = 1; grid (M/BM, S); a program owns parts[s BM]."""
    h_ref, w_ref, t_ref, *others = refs
    count = RESULTS if last else PARTS
    others, outs = others[:-count], others[-count:]
    b_ref: Any = others.pop(0) if bias else None
    c_ref: Any = others.pop(0) if weights else None
    acc = outs[0].dtype
    t = t_ref[...]
    N = w_ref.shape[1]
    # Apart, w's block is this program's; else it is all of w, and the program's tiles start further on.
    first, start = (program_id(1) * N, 0) if apart else (0, program_id(1) * tiles)

    def step(i, carry):
        top, total, picked, chosen, far, weight = carry
        # The last tile moves left until it lies within, and what another tile has is masked there.
        due = (start + i) * BV
        at = jnp.minimum(due, N - BV) if N > BV else 0
        columns = pl.ds(at, BV) if N > BV else slice(None)
        z = capped(_logits(h_ref, w_ref, b_ref, columns, BV, BK, acc), cap)
        v = first + at + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        inside = (v >= first + due) & (v < V)
        zero = jnp.zeros_like(z)
        hit = inside & (v == t)
        c = jnp.ones_like(z) if c_ref is None else zero + c_ref[:, columns].astype(acc)
        picked = picked + jnp.sum(jnp.where(hit, z, zero), axis=1, keepdims=True)
        chosen = chosen + jnp.sum(jnp.where(hit, c, zero), axis=1, keepdims=True)
        share = jnp.where(inside, c, zero)
        top, total, far, weight = fold((top, total, far, weight), z, share, inside, bool(spread))
        return top, total, picked, chosen, far, weight

    zero = jnp.zeros(t.shape, acc)
    carry = loop(tiles, step, (zero - jnp.inf, *[zero] * 5))
    for ref, value in zip(outs, _finish(carry, t, V, ignore, hard, spread) if last else carry, strict=True):
        ref[...] = value


def _merge_kernel(*refs, V, ignore, hard, spread):
    """(sum_v r (l - z), l), (c[t], 1) or 0, (max, log sum exp(z - max), sum_v r) of rows; grid (M/BM); a program owns BM rows."""
    t_ref, *parts = refs[: 1 + PARTS]
    outs = refs[1 + PARTS :]
    t = t_ref[...]
    zero = jnp.zeros(t.shape, outs[0].dtype)

    def step(i, carry):
        top, total, picked, chosen, far, weight = carry
        other, more, z_t, c_t, beyond, heavy = (ref[pl.ds(i, 1), :] for ref in parts)
        higher = jnp.maximum(top, other)
        shift = jnp.where(higher == -jnp.inf, zero, higher)
        total = total * jnp.exp(top - shift) + more * jnp.exp(other - shift)
        far = far + weight * jnp.where(top == -jnp.inf, zero, shift - top)
        far = far + beyond + heavy * jnp.where(other == -jnp.inf, zero, shift - other)
        return higher, total, picked + z_t, chosen + c_t, far, weight + heavy

    carry = loop(parts[0].shape[0], step, (zero - jnp.inf, *[zero] * 5))
    for ref, value in zip(outs, _finish(carry, t, V, ignore, hard, spread), strict=True):
        ref[...] = value


def _pullback_kernel(*refs, V, BK, bias, weights, ignore, hard, spread, cap):
    """d[m v] = z' ((dy R + dl) p - dy r)[m v] of a chunk of the V classes; grid (M/BM, Vc/BV); a program owns d[BM BV]."""
    h_ref, w_ref, first_ref, *rows, d_ref = refs
    c_ref = rows.pop() if weights else None
    b_ref = rows.pop() if bias else None
    acc = rows[-1].dtype
    BV = d_ref.shape[1]
    x = _logits(h_ref, w_ref, b_ref, slice(None), BV, BK, acc)
    v = first_ref[...] + program_id(1) * BV + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    c = None if c_ref is None else c_ref[...].astype(acc)
    rows = [ref[...] for ref in rows]
    _, _, d, _, _ = cotangent(capped(x, cap), v, rows, c, V=V, ignore=ignore, hard=hard, spread=spread)
    d_ref[...] = (d * cap_slope(x, cap) if cap else d).astype(d_ref.dtype)
# fmt: on


def loss(
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    c: jax.Array | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> tuple[tuple[jax.Array, ...], ...]:
    """(loss, l) and s = (max, log sum exp, R), all [M], of h[M K], w[K V].

    softcap 0 is none. In the accumulator's dtype. A class outside [0, V) gives NaN.
    """
    (M, K), V, biased, weighted = h.shape, w.shape[1], b is not None, c is not None
    acc = accumulator(h.dtype)
    shared = {"ignore": ignore_index, "hard": 1 - label_smoothing, "spread": label_smoothing / V}
    if M == 0:
        return (jnp.zeros(0, acc),) * 2, (jnp.zeros(0, acc),) * 3

    def call(platform: str, h: jax.Array, w: jax.Array, t: jax.Array, *others: jax.Array) -> list[jax.Array]:
        BM, BK, BV, warps, stages = _tile(platform, h.dtype, M, K, V)
        h, t, rest = pad(h, BM, BK), pad(t.reshape(M, 1), BM, 1), [a.reshape(1, V) for a in others]
        rows, tiles = t.shape[0] // BM, -(-V // BV)
        # On a TPU a program sees its tiles alone, elsewhere all of w: no copy of it that is padded to whole tiles.
        apart = platform == "tpu" or V < BV
        w, rest = (pad(w, BK, BV), [pad(a, 1, BV) for a in rest]) if apart else (pad(w, BK, 1), rest)
        # About four programs for each multiprocessor of a large GPU, whatever the rows.
        splits = tiles if apart else max(1, min(tiles, 1 if interpreted(platform) else 512 // rows))
        each = -(-tiles // splits)
        splits = -(-tiles // each)
        N, place = (each * BV, lambda i, s: (0, s)) if apart else (V, lambda i, s: (0, 0))
        row = pl.BlockSpec((BM, 1), lambda i, s: (i, 0))
        specs = [
            pl.BlockSpec((BM, h.shape[1]), lambda i, s: (i, 0)),
            pl.BlockSpec((w.shape[0], N), place),
            row,
            *[pl.BlockSpec((1, N), place)] * len(rest),
        ]
        kernel = functools.partial(
            _statistics_kernel,
            V=V,
            apart=apart,
            tiles=each,
            BV=BV,
            BK=BK,
            bias=biased,
            weights=weighted,
            cap=softcap,
            last=splits == 1,
            **shared,
        )
        out = pl.BlockSpec((BM, 1), lambda i, s: (s * rows + i, 0))
        shape = jax.ShapeDtypeStruct((splits * t.shape[0], 1), acc)
        grid = (rows, splits)
        count = RESULTS if splits == 1 else PARTS
        parts = pallas(kernel, platform, grid, specs, [out] * count, [shape] * count, warps=warps, stages=stages)(
            h, w, t, *rest
        )
        if splits == 1:
            return [p[:M, 0] for p in parts]
        BM = block(platform, M, 128, least=128)
        parts = [pad(p.reshape(splits, -1)[:, :M], 1, BM) for p in parts]
        t = pad(t[:M].reshape(1, M), 1, BM)
        line = pl.BlockSpec((1, BM), lambda i: (0, i))
        whole = pl.BlockSpec((splits, BM), lambda i: (0, i))
        kernel = functools.partial(_merge_kernel, V=V, **shared)
        shape = jax.ShapeDtypeStruct(t.shape, acc)
        results = pallas(
            kernel, platform, [t.shape[1] // BM], [line] + [whole] * PARTS, [line] * RESULTS, [shape] * RESULTS
        )(t, *parts)
        return [r[0, :M] for r in results]

    y, lse, *s = launch(call, h, w, t, *(a for a in (b, c) if a is not None))
    return (y, lse), tuple(s)


def pullback(
    g: tuple[jax.Array, ...],
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    c: jax.Array | None,
    s: tuple[jax.Array, ...],
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """dh[M K], dw[K V], db[V] of the cotangents g = (dy, dl)[M] of (loss, l).

    M Vc elements at once, dh in float32 (the module's docstring of linear_cross_entropy has the formula).
    """
    (M, K), V = h.shape, w.shape[1]
    if M == 0:
        return h, jnp.zeros_like(w), None if b is None else jnp.zeros_like(b)
    numbers = {"V": V, "ignore": ignore_index, "hard": 1 - label_smoothing, "spread": label_smoothing / V}

    def body(first, parts, grown, h, t, *rows):
        w, b, c = parts
        d = _chunk(first, h, w, b, c, (t, *rows), softcap, numbers)
        dh = matmul_into(grown[0], d, w, transposed_b=True)
        return (dh,), (matmul(h, d, None, None, True, False, "", False), None if b is None else column_sum(d, None))

    (dh,), (dw, db) = chunks(body, (w, b, c), ((M, K),), h, t, *g, *s)
    return dh.astype(h.dtype), dw, db


def _chunk(
    first: jax.Array,
    h: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    c: jax.Array | None,
    rows: tuple[jax.Array, ...],
    cap: float,
    numbers: dict[str, Any],
) -> jax.Array:
    """dx[M N] of the N classes from `first` on; rows are t, dy, dl and s."""
    (M, K), N, biased, weighted, count = h.shape, w.shape[1], b is not None, c is not None, len(rows)

    def call(platform: str, first: jax.Array, h: jax.Array, w: jax.Array, *others: jax.Array) -> jax.Array:
        BM, BK, BV, warps, stages = _tile(platform, h.dtype, M, K, N)
        BV = N if interpreted(platform) else BV
        column, line = pl.BlockSpec((BM, 1), lambda i, j: (i, 0)), pl.BlockSpec((1, BV), lambda i, j: (0, j))
        columns = [pad(a.reshape(M, 1), BM, 1) for a in others[:count]]
        lines = [pad(a.reshape(1, N), 1, BV) for a in others[count:]]
        h, w = pad(h, BM, BK), pad(w, BK, BV)
        kernel = functools.partial(_pullback_kernel, BK=BK, bias=biased, weights=weighted, cap=cap, **numbers)
        specs = [
            pl.BlockSpec((BM, h.shape[1]), lambda i, j: (i, 0)),
            pl.BlockSpec((w.shape[0], BV), lambda i, j: (0, j)),
            pl.BlockSpec((1, 1), lambda i, j: (0, 0)),
            *[column] * len(columns),
            *[line] * len(lines),
        ]
        grid = (h.shape[0] // BM, w.shape[1] // BV)
        shape = jax.ShapeDtypeStruct((h.shape[0], w.shape[1]), h.dtype)
        out = pl.BlockSpec((BM, BV), lambda i, j: (i, j))
        d = pallas(kernel, platform, grid, specs, out, shape, warps=warps, stages=stages)(
            h, w, first.reshape(1, 1), *columns, *lines
        )
        return d[:M, :N]

    return launch(call, first, h, w, *rows, *(a for a in (b, c) if a is not None))


def _tile(platform: str, dtype: Any, M: int, K: int, V: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BV, warps, stages: one block of rows when interpreted; tensor-core tiles in half precision when compiled."""
    if interpreted(platform):
        # Of rows whose number an export leaves open there may be many.
        return M, max(K, 1), min(V, max(128, 2**20 // M if isinstance(M, int) else 0)), 4, 1
    if platform == "tpu":
        return 128, 128, 128, 4, 1
    if dtype in (jnp.float32, jnp.float64):
        # Fewer warps spill registers.
        return block(platform, M, 64), 32, block(platform, V, 64), 8, 3
    return block(platform, M, 128), block(platform, K, 64), block(platform, V, 128), 8, 3
