"""Classes split over devices on Pallas: the sums of each device's part are exchanged, and merged to those of the rows.

cross_entropy's module has the derivation. What is exchanged are four numbers a row and part, never logits.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses import rows_pallas as formulas
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_pallas import block, launch, loop, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import axes as axes_of

# The row statistics in the rules of how launches are split over devices.
ROWS = "row_max[M], log_sum[M], r_sum[M]"


def with_rows(rule: str, x: jax.Array) -> str:
    """The rule with as many axes for M as x[... V] has before its last: each of them may be split."""
    return re.sub(r"\bM\b", axes_of("M", x.ndim - 1), rule)


class ClassAxes(NamedTuple):
    """The mesh axes that V classes are split over, in the order of `names`; hashable.

    `typed`: within `jax.shard_map(check_vma=True)`, where a type says along which axes an array varies.
    """

    names: tuple[str, ...]
    V: int
    typed: bool

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum of x over the parts."""
        return jax.lax.psum(x, self.names)


def part_of(names: tuple[str, ...], V: int) -> tuple[jax.Array, ClassAxes]:
    """The first of the V classes that this device has of those split over the axes, and the axes."""
    index = jax.lax.axis_index(names)
    typed = bool(jax.typeof(index).manual_axis_type.varying)
    return index.astype(jnp.int32) * V, ClassAxes(names, V * jax.lax.axis_size(names), typed)


# fmt: off
def _merge_kernel(*refs, names, o):
    """y[m], n[m] and s[m] of the sums [W M] of W parts of the classes; grid (M/BM); a program owns BM rows."""
    ins, outs = dict(zip(names, refs, strict=False)), refs[len(names):]
    t = ins["t"][...] if "t" in ins else None
    parts = [ins[name] for name in names if name != "t"]

    def step(i, sums):
        return formulas.merged(sums, tuple(ref[pl.ds(i, 1), :] for ref in parts))

    sums = loop(parts[0].shape[0], step, formulas.no_sums(jnp.zeros(outs[0].shape, outs[0].dtype)))
    formulas.store_rows(outs, sums, t, o)
# fmt: on


def merged(
    sums: formulas.Sums, t: jax.Array | None, axes: ClassAxes, settings: ClassLoss
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """y[M], n[M] and the row statistics of all parts, of the sums of this device's part; 4 W M numbers exchanged.

    Every device merges the same numbers in the same order, so that all have the same bits.
    """
    rows = sums[0].shape
    M = math.prod(rows)
    gathered = jax.lax.all_gather(jnp.stack(sums), axes.names, to="invarying" if axes.typed else "varying")
    arrays = {name: gathered[:, i].reshape(-1, M) for i, name in enumerate(("row_max", "sum_exp", "r_dot", "r_sum"))}
    if t is not None:
        arrays["t"] = t.reshape(1, M)
    names, acc = tuple(arrays), sums[0].dtype

    def call(platform: str, *given: jax.Array) -> list[jax.Array]:
        BM = block(platform, M, 128, least=128)
        ins = [pad(array, 1, BM) for array in given]
        o = formulas.Constants(settings, axes.V, axes.V, 1, 1, False)
        specs = [pl.BlockSpec((array.shape[0], BM), lambda i: (0, i)) for array in ins]
        padded = ins[0].shape[1]
        line, shape = pl.BlockSpec((1, BM), lambda i: (0, i)), jax.ShapeDtypeStruct((1, padded), acc)
        kernel = functools.partial(_merge_kernel, names=names, o=o)
        return [r[0, :M] for r in pallas(kernel, platform, [padded // BM], specs, [line] * 5, [shape] * 5)(*ins)]

    y, n, *s = (found.reshape(rows) for found in launch(call, *arrays.values()))
    return y, n, (s[0], s[1], s[2])
