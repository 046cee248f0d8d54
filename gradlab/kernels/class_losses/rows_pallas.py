"""The formulas of the class losses for Pallas, once: what the kernels of cross_entropy and linear_cross_entropy call.

A tile has M rows and the classes v[1 V]; what belongs to a row is [M 1]. All numbers are in the accumulator's dtype.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.softcap_pallas import cap_slope, capped
from gradlab.kernels.runtime.launch_pallas import loop

# The refs of a kernel's operands by their names in the Specs.
Refs = Mapping[str, Any]
_LOG2_E = math.log2(math.e)
# row_max, sum_exp = sum_v exp(z - row_max), r_dot = sum_v r (row_max - z) and r_sum = sum_v r, each [M 1].
Sums = tuple[jax.Array, ...]


class Constants(NamedTuple):
    """What a kernel knows when it is built: V classes, the N of them in its arrays, and the blocks BV and BK.

    `gathers`: a program may read at indices that it computes, and has all classes: it is interpreted. `group`: the
    neighbouring classes that a thread of a GPU reads at once; 0 on other platforms. `apart`: where it is 1, how many
    classes lie between two of a thread.
    """

    settings: ClassLoss
    V: int
    N: int
    BV: int
    BK: int
    gathers: bool
    group: int = 0
    apart: int = 0


class Rows(NamedTuple):
    """What a backward kernel reads of its rows; t is None with soft targets, dn without a z-loss."""

    t: jax.Array | None
    dy: jax.Array
    dn: jax.Array | None
    row_max: jax.Array
    log_sum: jax.Array
    r_sum: jax.Array

    @classmethod
    def of(cls, refs: Refs) -> "Rows":
        """Those among a kernel's operands."""
        there: Any = {name: refs[name][...] if name in refs else None for name in cls._fields}
        return cls(**there)

    @property
    def lse(self) -> jax.Array:
        """l, the log-sum-exp."""
        return self.row_max + self.log_sum


class Tile(NamedTuple):
    """A tile of logits in a backward kernel: z, z' (1 without a cap), p, dy/dz = R p - r, and the cotangent of z."""

    z: jax.Array
    slope: jax.Array | float
    p: jax.Array
    y_by_z: jax.Array
    g: jax.Array


def masked(value: jax.Array, t: jax.Array | None, o: Constants) -> jax.Array:
    """The value of rows of classes t: NaN where t is out of range, 0 where it is ignored."""
    if t is None:
        return value
    value = jnp.where((t >= 0) & (t < o.V), value, jnp.full_like(value, jnp.nan))
    return jnp.where(t != o.settings.ignore_index, value, jnp.zeros_like(value))


def lanes(i: Any, refs: Refs, rows: int, o: Constants) -> tuple[jax.Array, jax.Array | None]:
    """The classes v of the lanes of the i-th tile, and which of them are inside the arrays: None where all are."""
    n = i * o.BV + jax.lax.broadcasted_iota(jnp.int32, (rows, o.BV), 1)
    return n + refs["first"][...] if "first" in refs else n, n < o.N if o.N % o.BV else None


def logits(refs: Refs, columns: Any, o: Constants, acc: Any) -> jax.Array:
    """x[m v] at `columns`: read, or the product sum_k h[m k] w[k v] + b[v]."""
    if "x" in refs:
        return refs["x"][:, columns].astype(acc)
    h_ref, w_ref = refs["h"], refs["w"]
    precision = jax.lax.Precision.HIGHEST if h_ref.dtype in (jnp.float32, jnp.float64) else None
    contract = (((1,), (0,)), ((), ()))

    def step(i: Any, total: jax.Array) -> jax.Array:
        k = pl.ds(i * o.BK, o.BK)
        return total + jax.lax.dot_general(
            h_ref[:, k], w_ref[k, columns], contract, precision=precision, preferred_element_type=acc
        )

    x = loop(h_ref.shape[1] // o.BK, step, jnp.zeros((h_ref.shape[0], o.BV), acc))
    return x + refs["b"][:, columns].astype(acc) if "b" in refs else x


def target_probabilities(
    t: jax.Array | None, refs: Refs, columns: Any, v: jax.Array, inside: jax.Array | None, o: Constants, acc: Any
) -> jax.Array:
    """r[m v] = a[v] ((1 - eps) q[m v] + eps / V), q the one-hot row of t if there is one; 0 in lanes not inside."""
    if t is None:
        r = refs["q"][:, columns].astype(acc)
    else:
        r = jnp.where(v == t, jnp.ones(v.shape, acc), jnp.zeros(v.shape, acc))
    eps = o.settings.label_smoothing
    if eps:
        r = r * (1 - eps) + eps / o.V
    if "a" in refs:
        r = r * refs["a"][:, columns].astype(acc)
    return r if inside is None else jnp.where(inside, r, jnp.zeros_like(r))


def online_softmax(sums: Sums, z: jax.Array, r: jax.Array | None, inside: jax.Array | None) -> Sums:
    """The sums of rows with one more tile of their classes; r_dot and r_sum stay as they are where r is None.

    Masked after whatever made z: a lane that is not inside must not enter a sum.
    """
    row_max, sum_exp, r_dot, r_sum = sums
    if inside is not None:
        z = jnp.where(inside, z, jnp.full_like(z, -jnp.inf))
    higher = jnp.maximum(row_max, jnp.max(z, axis=1, keepdims=True))
    shift = finite(higher)
    sum_exp = sum_exp * jnp.exp(row_max - shift) + row_sum(jnp.exp(z - shift))
    if r is None:
        return higher, sum_exp, r_dot, r_sum
    # A class of no probability costs nothing, also where its logit is -inf.
    cost = jnp.where(r == 0, jnp.zeros_like(r), r * (shift - z))
    return higher, sum_exp, r_dot + r_sum * (shift - finite(row_max)) + row_sum(cost), r_sum + row_sum(r)


def grouped_softmax(
    sums: tuple[jax.Array, jax.Array], z: jax.Array, inside: jax.Array | None, o: Constants
) -> tuple[jax.Array, jax.Array]:
    """row_max and sum_exp of groups of each row's classes, with one more tile of them.

    A group is what one thread of a GPU has, so that threads meet once, behind the loop over tiles: neighbours that are
    read at once, or classes far apart where each is read by itself.
    """
    row_max, sum_exp = sums
    if inside is not None:
        z = jnp.where(inside, z, jnp.full_like(z, -jnp.inf))
    axis = 2 if o.group > 1 else 1
    z = z.reshape(z.shape[0], -1, o.group if o.group > 1 else row_max.shape[1])
    higher = jnp.maximum(row_max, jnp.max(z, axis=axis))
    shift = finite(higher)
    each = jnp.sum(jnp.exp(z - jnp.expand_dims(shift, axis)), axis=axis)
    return higher, sum_exp * jnp.exp(row_max - shift) + each


def no_groups(like: jax.Array, o: Constants) -> tuple[jax.Array, jax.Array]:
    """The sums of groups over no class; `like` is [M 1]."""
    zero = jnp.zeros((like.shape[0], o.BV // o.group if o.group > 1 else min(o.BV, o.apart)), like.dtype)
    return zero - jnp.inf, zero


def of_groups(sums: tuple[jax.Array, jax.Array]) -> Sums:
    """The sums of rows of those of their groups, of no target yet."""
    each, sum_exp = sums
    row_max = jnp.max(each, axis=1, keepdims=True)
    zero = jnp.zeros_like(row_max)
    return row_max, row_sum(sum_exp * jnp.exp(each - finite(row_max))), zero, zero


def row_sum(a: jax.Array) -> jax.Array:
    """The sum of each row [M 1]."""
    return jnp.sum(a, axis=1, keepdims=True)


def merged(one: Sums, other: Sums) -> Sums:
    """The sums of rows over the classes of both."""
    row_max = jnp.maximum(one[0], other[0])
    shift = finite(row_max)
    moved = (
        (sum_exp * jnp.exp(m - shift), r_dot + r_sum * (shift - finite(m)), r_sum)
        for m, sum_exp, r_dot, r_sum in (one, other)
    )
    return row_max, *(a + b for a, b in zip(*moved, strict=True))


def of_class(sums: Sums, a: jax.Array, z: jax.Array, scale: float = 1.0, rest: float = 0.0) -> Sums:
    """The sums of r = scale a[t] at each row's class t, whose logit is z[m t], and `rest` times those of `sums`."""
    row_max, sum_exp, r_dot, r_sum = sums
    # A class of no probability costs nothing, also where its logit is -inf.
    cost = jnp.where(a == 0, jnp.zeros_like(a), a * (finite(row_max) - z))
    if not rest:
        return row_max, sum_exp, scale * cost, scale * a
    return row_max, sum_exp, scale * cost + rest * r_dot, scale * a + rest * r_sum


def finite(row_max: jax.Array) -> jax.Array:
    """What is subtracted of a row: its maximum; 0 where all is -inf so far, since -inf - -inf would be NaN."""
    return jnp.where(row_max == -jnp.inf, jnp.zeros_like(row_max), row_max)


def no_sums(like: jax.Array) -> Sums:
    """The sums of rows over no class."""
    zero = jnp.zeros_like(like)
    return zero - jnp.inf, zero, zero, zero


def store_rows(outs: Sequence[Any], sums: Sums, t: jax.Array | None, o: Constants) -> None:
    """Write y[m], n[m] = l[m]^2 and the row statistics, of the sums over all classes; of a part of them the sums."""
    if len(outs) == len(sums):
        for ref, total in zip(outs, sums, strict=True):
            ref[...] = total
        return
    row_max, sum_exp, r_dot, r_sum = sums
    log_sum = jnp.log(sum_exp)
    y, lse = r_dot + r_sum * log_sum, row_max + log_sum
    for ref, value in zip(outs, (masked(y, t, o), masked(lse * lse, t, o), row_max, log_sum, r_sum), strict=True):
        ref[...] = value


def logit_tile(refs: Refs, i: Any, columns: Any, x: jax.Array, rows: Rows, o: Constants) -> Tile:
    """What a backward kernel makes of the i-th tile x of the logits, which lies at `columns`."""
    cap = o.settings.softcap
    v, inside = lanes(i, refs, x.shape[0], o)
    r, z = target_probabilities(rows.t, refs, columns, v, inside, o, x.dtype), capped(x, cap)
    p = jnp.exp((z - rows.row_max) - rows.log_sum)
    # A lane that is not inside reads 0, which may stand far above the maximum.
    p = p if inside is None else jnp.where(inside, p, jnp.zeros_like(p))
    y_by_z = rows.r_sum * p - r
    g = rows.dy * y_by_z
    if rows.dn is not None:
        g = g + 2 * rows.dn * rows.lse * p
    return Tile(z, cap_slope(x, cap) if cap else 1.0, p, y_by_z, g)


def logit_gradient(tile: Tile, rows: Rows, o: Constants) -> jax.Array:
    """dx[m v] = z' (dy (R p - r) + 2 dn l p)."""
    return masked(tile.g * tile.slope, rows.t, o)


def class_gradient(refs: Refs, i: Any, x: jax.Array, t: jax.Array, rows: Rows, o: Constants) -> jax.Array:
    """`logit_gradient` of the i-th tile x where a row's target is its class t[M 1] alone: r is R at t, 0 elsewhere.

    What belongs to a row is worked out once: A p of every class, A = dy R + 2 dn l, and dy R less at the class.
    """
    cap = o.settings.softcap
    v, _ = lanes(i, refs, x.shape[0], o)
    z = capped(x, cap)
    # One product less than exp has: it is the power of 2 that a GPU computes.
    p = jnp.exp2((z - rows.row_max) * _LOG2_E - rows.log_sum * _LOG2_E)
    down = jnp.where((t >= 0) & (t < o.V), rows.dy * rows.r_sum, jnp.full_like(rows.dy, jnp.nan))
    up = down if rows.dn is None else down + 2 * rows.dn * rows.lse
    g = up * p
    g = jnp.where(v == t, g - down, g)
    if cap:
        g = g * cap_slope(x, cap)
    return jnp.where(t != o.settings.ignore_index, g, jnp.zeros_like(g))


def second_sums(sums: tuple[jax.Array, jax.Array], u: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
    """sum_v u z' (R p - r) and P = sum_v u z' p with one more tile of u, the cotangent of dx."""
    ddy, P = sums
    u = u * tile.slope
    return ddy + row_sum(u * tile.y_by_z), P + row_sum(u * tile.p)


def second_gradient(u: jax.Array, P: jax.Array, tile: Tile, rows: Rows, o: Constants) -> jax.Array:
    """z' ((dy R + 2 dn l) p (u z' - P) + 2 dn P p) + u g z'' of dx[m v].

    z'' = -2 z z' / cap^2 and g is the cotangent of z.
    """
    a, cap = rows.dy * rows.r_sum, o.settings.softcap
    if rows.dn is not None:
        a = a + 2 * rows.dn * rows.lse
    d = a * tile.p * (u * tile.slope - P)
    if rows.dn is not None:
        d = d + 2 * rows.dn * P * tile.p
    if cap:
        d = tile.slope * (d - u * tile.g * (2 * tile.z / (cap * cap)))
    return masked(d, rows.t, o)
