"""Linear and cross-entropy in one, with its backward, as Pallas kernels: the logits stay in a program's tile."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses import rows_pallas as formulas
from gradlab.kernels.class_losses.backward_pallas import logit_gradients
from gradlab.kernels.class_losses.blocks_pallas import Statistics, operands, padded, row_statistics, row_tile
from gradlab.kernels.class_losses.chunks_pallas import chunks
from gradlab.kernels.class_losses.parts_pallas import ROWS, ClassAxes, merged, part_of, with_rows
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.matmul_pallas import matmul, matmul_add
from gradlab.kernels.common.softcap_pallas import capped
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import sharded

# What one program of several for a row writes: its sums, with r = a, and z and a of its class. Made of it: y, n, s.
PARTS, RESULTS = 6, 5


# fmt: off
def _statistics_kernel(*refs, names, o, apart, tiles, last, kept):
    """PARTS of each row over the s-th run of `tiles` tiles of the classes, or y, n and s when S = 1; grid (M/BM, S).

    A program owns BM rows of the s-th run; `apart`: its block of w is this run alone, else it is all of w. Where w has
    the classes from `first` on, the four sums that are merged with those of the others in place of y, n and s. Last of
    all x[M kept], if any is kept.
    """
    ins, outs = dict(zip(names, refs, strict=False)), refs[len(names):]
    x_ref: Any = outs[-1] if kept else None
    outs = outs[:-1] if kept else outs
    t, N, BV, acc = ins["t"][...], ins["w"].shape[1], o.BV, outs[0].dtype
    first, start = (program_id(1) * N, 0) if apart else (0, program_id(1) * tiles)
    here = t - ins["first"][...] if "first" in ins else t

    def step(i, parts):
        *sums, z_of_t, a_of_t = parts
        # The last tile moves left until it lies within, and what another tile has is masked there.
        due = (start + i) * BV
        at = jnp.minimum(due, N - BV) if N > BV else 0
        columns = pl.ds(at, BV) if N > BV else slice(None)
        x = formulas.logits(ins, columns, o, acc)
        if kept and apart:
            x_ref[...] = x
        elif kept:
            @pl.when(due < kept)
            def _keep():
                # A tile that moved left writes again what is there.
                x_ref[:, pl.ds(at, BV)] = x
        z = capped(x, o.settings.softcap)
        v = first + at + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        inside = (v >= first + due) & (v < o.N)
        hit, zero = inside & (v == here), jnp.zeros_like(z)
        a = zero + ins["a"][:, columns].astype(acc) if "a" in ins else jnp.ones_like(z)
        # Two numbers of the class and two of all weights take fewer registers than a tile of probabilities.
        z_of_t, a_of_t = (total + formulas.row_sum(jnp.where(hit, x, zero)) for total, x in ((z_of_t, z), (a_of_t, a)))
        weights = jnp.where(inside, a, zero) if o.settings.label_smoothing else None
        return *formulas.online_softmax(tuple(sums), z, weights, inside), z_of_t, a_of_t

    parts = loop(tiles, step, _no_parts(jnp.zeros(t.shape, acc)))
    if last:
        _store(outs, parts, t, o)
    else:
        for ref, value in zip(outs, parts, strict=True):
            ref[...] = value


def _merge_kernel(*refs, o):
    """y[m], n[m] and s[m] of the PARTS[S M] of S runs of classes; grid (M/BM); a program owns BM rows."""
    t, runs, outs = refs[0][...], refs[1 : 1 + PARTS], refs[1 + PARTS :]

    def step(i, parts):
        run = tuple(ref[pl.ds(i, 1), :] for ref in runs)
        return *formulas.merged(parts[:4], run[:4]), parts[4] + run[4], parts[5] + run[5]

    _store(outs, loop(runs[0].shape[0], step, _no_parts(jnp.zeros(t.shape, outs[0].dtype))), t, o)
# fmt: on


def _no_parts(like: jax.Array) -> tuple[jax.Array, ...]:
    return *formulas.no_sums(like), jnp.zeros_like(like), jnp.zeros_like(like)


def _store(outs: Any, parts: tuple[jax.Array, ...], t: jax.Array, o: formulas.Constants) -> None:
    *sums, z_of_t, a_of_t = parts
    s = o.settings.label_smoothing
    formulas.store_rows(outs, formulas.of_class(tuple(sums), a_of_t, z_of_t, 1 - s, s / o.V), t, o)


def loss(
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
    kept: int = 0,
) -> tuple[jax.Array, jax.Array, Statistics, jax.Array | None]:
    """Loss y[M] and n[M] = l^2 of the logits of h[M K], w[K V], b[V], the row statistics, and x[M kept].

    All in the accumulator's dtype. Targets are classes t[M]; weights a[V]. A class outside [0, V) gives NaN. With
    `axes` w, b and a are this device's part of the classes, from `first` on, and the results those of all parts.
    x, None where none is kept, are the logits before the cap of the first `kept` classes here.
    """
    return _loss(h, w, t, b, a, first, axes, settings, kept) if axes else _whole_loss(h, w, t, b, a, settings, kept)


def _loss(h, w, t, b, a, first, axes, settings, kept):
    (*rows, K), V, acc = h.shape, w.shape[1], accumulator(h.dtype)
    M = math.prod(rows)
    if 0 in rows:
        empty = jnp.zeros(rows, acc)
        return empty, empty, (empty,) * 3, jnp.zeros((*rows, kept), acc) if kept else None
    given = {"h": h, "w": w, "t": t, "b": b, "a": a, "first": first}
    there = {name: array for name, array in given.items() if array is not None}
    names, dtype, results, classes = tuple(there), h.dtype, 4 if axes else RESULTS, axes.V if axes else V

    sizes = {"M": M, "K": K, "V": V, "1": 1}

    def call(platform: str, *given: jax.Array) -> list[jax.Array]:
        BM, BK, BV, warps, stages = _tile(platform, dtype, M, K, V)
        tiles = -(-V // BV)
        # On a TPU a program sees its tiles alone, elsewhere all of w: no copy of it that is padded to whole tiles.
        apart = platform == "tpu" or V < BV
        steps = {"M": BM, "K": BK, "V": BV if apart else 1, "1": 1}
        rows, arrays = padded(sizes, steps)["M"] // BM, dict(zip(names, given, strict=True))
        ins, specs = operands(arrays, sizes, steps, "MV" if apart else "M")
        # About four programs for each multiprocessor of a large GPU, whatever the rows.
        splits = tiles if apart else max(1, min(tiles, 1 if interpreted(platform) else 512 // rows))
        each = -(-tiles // splits)
        splits = -(-tiles // each)
        o = formulas.Constants(settings, classes, V, BV, BK, False)
        kernel = functools.partial(
            _statistics_kernel, names=names, o=o, apart=apart, tiles=each, last=splits == 1, kept=kept
        )
        count = results if splits == 1 else PARTS
        outs = [pl.BlockSpec((BM, 1), lambda i, s: (s * rows + i, 0))] * count
        shapes = [jax.ShapeDtypeStruct((splits * rows * BM, 1), acc)] * count
        if kept:
            # Whole tiles: what is past those that are kept lies in one more, or behind them.
            whole = kept if kept == V and not apart else kept + -kept % BV
            width = whole + BV if apart and whole < splits * BV else whole
            kept_tiles = width // BV - 1
            block_of = (BM, BV) if apart else (BM, width)
            outs.append(pl.BlockSpec(block_of, lambda i, s: (i, jnp.minimum(s, kept_tiles) if apart else 0)))
            shapes.append(jax.ShapeDtypeStruct((rows * BM, width), acc))
        launched = {"warps": warps, "stages": stages}
        parts = list(pallas(kernel, platform, (rows, splits), specs, outs, shapes, **launched)(*ins))
        x = [parts.pop()[:M, :kept]] if kept else []
        if splits == 1:
            return [*(p[:M, 0] for p in parts), *x]
        # Rows along the lanes: one program merges what several have written one below the other.
        BM = block(platform, M, 128, least=128)
        t = pad(arrays["t"].reshape(1, M), 1, BM)
        parts = [pad(p.reshape(splits, -1)[:, :M], 1, BM) for p in parts]
        line, column = (pl.BlockSpec((n, BM), lambda i: (0, i)) for n in (1, splits))
        shapes = [jax.ShapeDtypeStruct(t.shape, acc)] * results
        kernel, specs = functools.partial(_merge_kernel, o=o), [line] + [column] * PARTS
        merge = pallas(kernel, platform, [t.shape[1] // BM], specs, [line] * results, shapes)
        return [*(r[0, :M] for r in merge(t, *parts)), *x]

    found = list(launch(call, *there.values()))
    x = found.pop().reshape(*t.shape, kept) if kept else None
    found = [y.reshape(t.shape) for y in found]
    if axes:
        return *merged(tuple(found), t, axes, settings), x
    y, n, *s = found
    return y, n, (s[0], s[1], s[2]), x


def _loss_of_part(names, h, w, t, b, a, settings, kept):
    # All are kept, or the classes would not be split.
    return _loss(h, w, t, b, a, *part_of(names, w.shape[1]), settings, kept and w.shape[1])


def _loss_rule(h, w, t, b, a, settings, kept):
    rule = f"h[M K], w[K V], t[M], b[V], a[V] -> y[M], n[M], {ROWS}"
    # Of some classes no device would have an equal part.
    logits = "" if not kept else ", x[M V]" if kept == w.shape[1] else ", x[M C]"
    return with_rows(f"{rule}{logits}; {'whole' if 'C' in logits else 'sums'} V", h)


@sharded(_loss_rule, own={"V": _loss_of_part})
def _whole_loss(h, w, t, b, a, settings, kept):
    return _loss(h, w, t, b, a, None, None, settings, kept)


def backward(
    dy: jax.Array,
    dn: jax.Array | None,
    h: jax.Array,
    w: jax.Array,
    t: jax.Array,
    b: jax.Array | None,
    a: jax.Array | None,
    first: jax.Array | None,
    s: Statistics,
    x: jax.Array | None,
    settings: ClassLoss,
    axes: ClassAxes | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """dh[M K], dw[K V], db[V] for the cotangents dy[M] of y and dn[M] of n.

    dx[M Vc] of one chunk of classes at once, dh in float32 (linear_cross_entropy's module has the formula). With `axes`
    dh is this part's term of a sum over the parts. Chunks whose logits x[M kept] are given are not made again.
    """
    if axes:
        return _backward(dy, dn, h, w, t, b, a, first, axes, s, x, settings)
    return _whole_backward(dy, dn, h, w, t, b, a, s, x, settings)


def _backward_of_part(names, dy, dn, h, w, t, b, a, s, x, settings):
    first, axes = part_of(names, w.shape[1])
    dh, dw, db = _backward(dy, dn, h, w, t, b, a, first, axes, s, x, settings)
    return axes.sum(dh), dw, db


def _backward_rule(dy, dn, h, w, t, b, a, s, x, settings):
    db = "" if b is None else ", db[V]"
    some = x is not None and x.shape[-1] < w.shape[1]
    inputs = f"dy[M], dn[M], h[M K], w[K V], t[M], b[V], a[V], {ROWS}, x[M {'C' if some else 'V'}]"
    return with_rows(f"{inputs} -> dh[M K], dw[K V]{db}; sums M{'; whole K V C' if some else ' V; whole K'}", h)


@sharded(_backward_rule, own={"V": _backward_of_part})
def _whole_backward(dy, dn, h, w, t, b, a, s, x, settings):
    return _backward(dy, dn, h, w, t, b, a, None, None, s, x, settings)


def _backward(dy, dn, h, w, t, b, a, first, axes, s, x, settings):
    shape, K, V = h.shape, h.shape[-1], w.shape[1]
    if 0 in shape[:-1]:
        return h, jnp.zeros_like(w), None if b is None else jnp.zeros_like(b)

    def body(chunk, parts, sums, h, rows, first):
        w, b, a, x = parts
        first = chunk if first is None else chunk + first
        arrays, sizes = {"a": a, "first": first, **rows}, {"M": M, "K": K, "V": w.shape[1]}
        if x is None:
            arrays = {"h": h, "w": w, "b": b, **arrays}
            tile = functools.partial(_backward_tile, h.dtype, M, K, w.shape[1])
        else:
            arrays = {"x": x, **arrays}
            sizes["K"] = 1
            tile = functools.partial(row_tile, M, w.shape[1], 512, 4)
        dx = logit_gradients(arrays, sizes, h.dtype, settings, tile, axes.V if axes else V)
        dw = matmul(h, dx, None, None, True, False, "", False)
        return (matmul_add(sums[0], dx, w, transposed_b=True),), (dw, None if b is None else column_sum(dx, None))

    h, M = h.reshape(-1, K), math.prod(shape[:-1])
    rows = {"t": t, "dy": dy, "dn": dn, **row_statistics(s)}
    x = None if x is None else x.reshape(M, -1)
    (dh,), (dw, db) = chunks(body, (w, b, a, x), ((M, K),), h, rows, first)
    return dh.astype(h.dtype).reshape(shape), dw, db


def _backward_tile(dtype: Any, M: int, K: int, N: int, platform: str) -> tuple[int, int, int, int, int]:
    BM, BK, BV, warps, stages = _tile(platform, dtype, M, K, N)
    return BM, BK, N if interpreted(platform) else BV, warps, stages


def _tile(platform: str, dtype: Any, M: int, K: int, V: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BV, warps, stages: a block of rows if interpreted; tensor-core tiles in half precision if compiled."""
    if interpreted(platform):
        # Of rows whose number an export leaves open there may be many.
        return M, max(K, 1), min(V, max(128, 2**20 // M if isinstance(M, int) else 0)), 4, 1
    if platform == "tpu":
        return 128, 128, 128, 4, 1
    if dtype in (jnp.float32, jnp.float64):
        # Fewer warps spill registers.
        return block(platform, M, 64), 32, block(platform, V, 64), 8, 3
    return block(platform, M, 128), block(platform, K, 64), block(platform, V, 128), 8, 3
