"""The launching of the class losses' kernels on Pallas: an array's axes, as the Specs have them, say how it is cut."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.class_losses.rows_pallas import Constants
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_pallas import block, interpreted, launch, masks, pad, pallas

# The two axes of what a kernel sees of each array: rows stand in a column, what belongs to a class in a line.
AXES = {
    **dict.fromkeys(("x", "q", "u"), "MV"),
    **dict.fromkeys(("t", "dy", "dn", "row_max", "log_sum", "r_sum", "ddy", "P"), "M1"),
    **dict.fromkeys(("a", "b"), "1V"),
    "h": "MK",
    "w": "KV",
    "first": "11",
}
# Of each row the maximum, log sum exp(z - maximum) and the sum of its target probabilities: saved for backward.
Statistics = tuple[jax.Array, jax.Array, jax.Array]


def row_statistics(s: Statistics) -> dict[str, jax.Array]:
    """The row statistics by their names."""
    return dict(zip(("row_max", "log_sum", "r_sum"), s, strict=True))


def square_gradient(P: jax.Array, t: jax.Array | None, s: Statistics, settings: ClassLoss) -> jax.Array:
    """d(dn)[m] = 2 l[m] P[m], the second backward's gradient in the cotangent of n; 0 in ignored rows."""
    ddn = 2 * (s[0] + s[1]) * P
    return ddn if t is None else jnp.where(t == settings.ignore_index, jnp.zeros_like(P), ddn)


def padded(sizes: Mapping[str, int], steps: Mapping[str, int]) -> dict[str, int]:
    """The lengths of the axes grown to whole steps."""
    return {axis: n + -n % steps[axis] for axis, n in sizes.items()}


def cut(axes: str, whole: Mapping[str, int], steps: Mapping[str, int], grid: str) -> pl.BlockSpec:
    """The block of an array: one step of the axes in `grid`, all of the others."""
    places = [grid.find(axis) for axis in axes]
    shape = tuple(whole[axis] if i < 0 else steps[axis] for axis, i in zip(axes, places, strict=True))
    return pl.BlockSpec(shape, lambda *ids: tuple(0 if i < 0 else ids[i] for i in places))


def operands(
    arrays: Mapping[str, jax.Array],
    sizes: Mapping[str, int],
    steps: Mapping[str, int],
    grid: str,
    masked: bool = False,
) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
    """The arrays padded to whole steps, and their blocks.

    Args:
        masked: blocks may reach past the end of an array. Nothing is padded then, but for rows of a product, which
            begin at multiples of 16 bytes.
    """
    whole = padded(sizes, steps)
    found = []
    for name, array in arrays.items():
        axes = AXES[name]
        array = array.reshape([sizes[axis] for axis in axes])
        if not masked:
            array = pad(array, *(steps[axis] for axis in axes))
        elif "K" in axes:
            array = pad(array, 1, 16 // array.dtype.itemsize)
        found.append((array, cut(axes, whole, steps, grid)))
    given, specs = zip(*found, strict=True)
    return list(given), list(specs)


def launch_over(
    grid: str,
    kernel: Callable[..., None],
    arrays: Mapping[str, jax.Array | None],
    results: Sequence[tuple[str, Any]],
    sizes: Mapping[str, int],
    settings: ClassLoss,
    tile: Callable[[str], tuple[int, int, int, int, int]],
    V: int,
    aliases: Mapping[int, int] | None = None,
    tailed: bool = False,
    **constants: Any,
) -> list[jax.Array]:
    """What `kernel` makes in programs over the axes `grid`, "M" or "MV".

    Args:
        arrays: by their names in AXES; those that are None are not there.
        results: axes and dtype of each.
        sizes: the lengths of M, K, and V of the arrays, which may be a chunk of the V classes.
        tile: platform -> BM, BK, BV, warps, stages.
        aliases: operand -> result that takes its memory.
        tailed: whether the kernel takes the last tile of x by the name "tail" where it is a part and can be masked: the
            others need no mask then.
    """
    there = {name: array for name, array in arrays.items() if array is not None}
    names, sizes = tuple(there), {"K": 1, "1": 1, **sizes}

    def call(platform: str, *given: jax.Array) -> list[jax.Array]:
        BM, BK, BV, warps, stages = tile(platform)
        steps = {"M": BM, "K": BK, "V": BV, "1": 1}
        ins, specs = operands(dict(zip(names, given, strict=True)), sizes, steps, grid, masks(platform))
        whole = padded(sizes, steps)
        made = sizes if masks(platform) else whole
        group = 16 // given[0].dtype.itemsize if platform == "cuda" else 0
        if group and masks(platform) and sizes["V"] % group:
            # Rows begin at odd places, and each class is read by itself.
            group = 1
        o = Constants(settings, V, sizes["V"], BV, BK, interpreted(platform), group, 32 * warps)
        given_names, full = names, sizes["V"] // BV
        if tailed and masks(platform) and full and sizes["V"] % BV:
            given_names = (*names, "tail")
            ins.append(ins[names.index("x")])
            specs[names.index("x")] = pl.BlockSpec((BM, full * BV), lambda m: (m, 0))
            specs.append(pl.BlockSpec((BM, BV), lambda m: (m, full)))
        found = pallas(
            functools.partial(kernel, names=given_names, o=o, **constants),
            platform,
            [whole[axis] // steps[axis] for axis in grid],
            specs,
            [cut(axes, whole, steps, grid) for axes, _ in results],
            [jax.ShapeDtypeStruct(tuple(made[axis] for axis in axes), dtype) for axes, dtype in results],
            warps=warps,
            stages=stages,
            input_output_aliases=dict(aliases or {}),
        )(*ins)
        M, N = sizes["M"], sizes["V"]
        return [f[:M, 0] if axes == "M1" else f[:M, :N] for f, (axes, _) in zip(found, results, strict=True)]

    return launch(call, *there.values())


def row_tile(M: int, V: int, most: int, warps: int, platform: str) -> tuple[int, int, int, int, int]:
    """BM, BK, BV, warps, stages of kernels that read logits: one block if interpreted, or 8 rows of `most`."""
    return (M, 1, V, warps, 1) if interpreted(platform) else (8, 1, block(platform, V, most, least=128), warps, 3)
