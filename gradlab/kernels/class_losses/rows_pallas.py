"""What the cross-entropy kernels for Pallas share: a row's shares, the running maximum, and their arguments."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.common.softcap_pallas import cap_slope, capped
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas

# Names of a row's statistics among a kernel's arrays: the maximum, the log of the sum of exponentials, sum r.
ROWS = ("s0", "s1", "s2")


class Settings(NamedTuple):
    """What a kernel knows when it is built: the class that is ignored, smoothing, the cap, V before the padding, BV.

    `copied`: an output's block does not begin as the memory it is aliased with; a program has to copy what stays.
    `gathers`: a program may read at indices that it computes, and has all classes: it is interpreted.
    """

    ignore_index: int
    eps: float
    cap: float
    V: int
    BV: int
    copied: bool
    gathers: bool

    @property
    def padded(self) -> bool:
        """Whether some lanes of a block may be past V."""
        return self.V % self.BV != 0


def standing(t: jax.Array | None, like: jax.Array, o: Settings) -> tuple[jax.Array, jax.Array]:
    """Whether each row has a class in [0, V), and whether it is not ignored; soft targets have every class."""
    if t is None:
        every = jnp.ones_like(like, dtype=bool)
        return every, every
    return (t >= 0) & (t < o.V), t != o.ignore_index


def lanes(start: Any, shape: tuple[int, ...]) -> jax.Array:
    """The class v of each lane of a block whose first class is `start`."""
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def shares(
    v: jax.Array, t: jax.Array | None, q: jax.Array | None, w: jax.Array | None, acc: Any, o: Settings
) -> jax.Array:
    """r[m v] = w[v] ((1 - eps) q[m v] + eps / V), q the one-hot row of t if it is None."""
    q = jnp.where(v == t, jnp.ones(v.shape, acc), jnp.zeros(v.shape, acc)) if q is None else q.astype(acc)
    r = q * (1 - o.eps)
    if o.eps:
        r = r + o.eps / o.V
    if w is not None:
        r = r * w.astype(acc)
    # Past V, where a class out of range may point too, nothing has a share.
    return r if not o.padded else jnp.where(v < o.V, r, jnp.zeros_like(r))


def fold(
    carry: tuple[jax.Array, ...], h: jax.Array, r: jax.Array, inside: jax.Array | None, dense: bool = True
) -> tuple[jax.Array, ...]:
    """One more block h of the rows' logits: their maximum, sum exp(h - max), and if dense sum r (max - h) and sum r.

    Masked after whatever made h: a lane that is not there must not enter the sum. All are where `inside` is None.
    """
    top, total, gap, mass = carry
    if inside is not None:
        h = jnp.where(inside, h, jnp.full_like(h, -jnp.inf))
    higher = jnp.maximum(top, jnp.max(h, axis=1, keepdims=True))
    # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN.
    shift = jnp.where(higher == -jnp.inf, jnp.zeros_like(higher), higher)
    total = total * jnp.exp(top - shift) + jnp.sum(jnp.exp(h - shift), axis=1, keepdims=True)
    if not dense:
        return higher, total, gap, mass
    before = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)
    # A class without a share costs nothing, also where its logit is -inf.
    moved = jnp.where(r == 0, jnp.zeros_like(r), r * (shift - h))
    gap = gap + mass * (shift - before) + jnp.sum(moved, axis=1, keepdims=True)
    return higher, total, gap, mass + jnp.sum(r, axis=1, keepdims=True)


def blocks(
    platform: str, M: int, V: int, arrays: Mapping[str, jax.Array], tiles: bool
) -> tuple[list[jax.Array], list[pl.BlockSpec], tuple[int, int]]:
    """The arrays as whole blocks: operands, their blocks, and (BM, BV).

    By its shape each is a number [], rows [M], weights [V], or a table [M V]; a program has BM rows, of a table BV columns if
    `tiles`, else all of them. Weights are named w: one number of rows could be that of classes.
    """
    BM, BV = (M, V) if interpreted(platform) else (8, block(platform, V, 512, least=128))
    operands, specs = [], []
    width = BV if tiles else V + -V % BV

    def at(row: bool, column: bool) -> Callable[..., tuple[Any, Any]]:
        """The block of a program (i) or (i, j)."""
        return lambda i, j=0: (i if row else 0, j if column else 0)

    for name, array in arrays.items():
        if name == "w":
            operands.append(pad(array.reshape(1, V), 1, BV))
            specs.append(pl.BlockSpec((1, width), at(False, tiles)))
        elif array.ndim == 0:
            operands.append(array.reshape(1, 1))
            specs.append(pl.BlockSpec((1, 1), at(False, False)))
        elif array.ndim == 2:
            operands.append(pad(array, BM, BV))
            specs.append(pl.BlockSpec((BM, width), at(True, tiles)))
        else:
            operands.append(pad(array.reshape(M, 1), BM, 1))
            specs.append(pl.BlockSpec((BM, 1), at(True, False)))
    return operands, specs, (BM, BV)


def statistics(ins: Mapping[str, Any], o: Settings, acc: Any) -> tuple[jax.Array, ...]:
    """A program's rows in one pass: the maximum, the log of the sum of exponentials, sum r, and sum r (l - h)."""
    t = ins["t"][...] if "t" in ins else None
    x_ref = ins["x"]
    # A class alone has a share: its logit is read where it lies, not found among all of them.
    alone = o.gathers and t is not None and o.eps == 0

    def step(i: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tile = {name: ins[name][:, pl.ds(i * o.BV, o.BV)] for name in ("x", "q", "w") if name in ins}
        h = capped(tile["x"].astype(acc), o.cap)
        v = lanes(i * o.BV, h.shape)
        r = shares(v, t, tile.get("q"), tile.get("w"), acc, o)
        return fold(carry, h, r, v < o.V if o.padded else None, not alone)

    zero = jnp.zeros((x_ref.shape[0], 1), acc)
    top, total, gap, mass = loop(x_ref.shape[1] // o.BV, step, (zero - jnp.inf, zero, zero, zero))
    log_sum = jnp.log(total)
    if alone:
        gap, mass = _picked(ins, jnp.clip(t, 0, o.V - 1), top, o)
    return top, log_sum, mass, gap + mass * log_sum


def _picked(ins: Mapping[str, Any], t: Any, top: jax.Array, o: Settings) -> tuple[jax.Array, jax.Array]:
    """w[t] (top - h[t]) and w[t] of each row's class t."""
    h = capped(jnp.take_along_axis(ins["x"][...], t, axis=1).astype(top.dtype), o.cap)
    mass = jnp.ones_like(top)
    if "w" in ins:
        mass = jnp.take(ins["w"][...][0], t).astype(top.dtype)
    shift = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)
    return jnp.where(mass == 0, jnp.zeros_like(mass), mass * (shift - h)), mass


def gradient(
    ins: Mapping[str, Any], tile: Mapping[str, jax.Array], v: jax.Array, s: Sequence[jax.Array], o: Settings
) -> jax.Array:
    """A tile of the gradient of c y + e z in the logits x: of the blocks x, q and w whose classes are v."""
    top, log_sum, mass = s
    acc = top.dtype
    t = ins["t"][...] if "t" in ins else None
    known, valid = standing(t, top, o)
    x = tile["x"].astype(acc)
    p = jnp.exp((capped(x, o.cap) - top) - log_sum)
    c = ins["c"][...].astype(acc)
    # All of a row whose class is out of range is NaN, which its cotangent tells.
    c = jnp.where(known, c, jnp.full_like(c, jnp.nan))
    d = c * (mass * p - shares(v, t, tile.get("q"), tile.get("w"), acc, o))
    if "e" in ins:
        d = d + 2 * ins["e"][...].astype(acc) * (top + log_sum) * p
    if o.cap > 0:
        d = d * cap_slope(x, o.cap)
    return jnp.where(valid, d, jnp.zeros_like(d))


def run(
    kernel: Callable[..., None],
    arrays: Mapping[str, jax.Array | None],
    results: Sequence[str],
    like: jax.Array,
    options: tuple[int, float, float],
    tiles: bool,
    **launching: Any,
) -> list[jax.Array]:
    """Launch `kernel` over rows of BM, and of columns of BV if `tiles`.

    Args:
        arrays: as `blocks` takes them; those that are None are not there.
        results: "rows" for [M] in the accumulator's dtype, "table" for [M V] in that of `like`.
        like: the logits.
        options: ignore_index, eps, cap.
    """
    (M, V), acc = like.shape, accumulator(like.dtype)
    dtype, there = like.dtype, {name: array for name, array in arrays.items() if array is not None}
    names = tuple(there)

    def call(platform: str, *given: jax.Array) -> list[jax.Array]:
        operands, specs, (BM, BV) = blocks(platform, M, V, dict(zip(names, given, strict=True)), tiles)
        o = Settings(*options, V, BV, platform == "tpu", interpreted(platform))
        rows, columns = M + -M % BM, V + -V % BV
        grid = (rows // BM, columns // BV) if tiles else (rows // BM,)
        kinds = {
            "rows": (pl.BlockSpec((BM, 1), lambda i, j=0: (i, 0)), jax.ShapeDtypeStruct((rows, 1), acc)),
            "table": (
                pl.BlockSpec((BM, BV if tiles else columns), lambda i, j=0: (i, j)),
                jax.ShapeDtypeStruct((rows, columns), dtype),
            ),
        }
        outs, shapes = zip(*(kinds[kind] for kind in results), strict=True)
        body = functools.partial(kernel, names=names, o=o)
        found = pallas(body, platform, grid, specs, list(outs), list(shapes), **launching)(*operands)
        return [f[:M, 0] if kind == "rows" else f[:M, :V] for kind, f in zip(results, found, strict=True)]

    return launch(call, *there.values())
