"""One step of an optimizer over one array: read and written where it lies, in place where that is allowed.

A GPU's blocks lie over the flattened array itself, the last one masked: nothing is padded, so nothing is copied, and
what is donated is stepped in its own memory. A TPU's blocks are whole, so there an odd array is padded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from gradlab.kernels.common.reduce_pallas import fold
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import interpreted, launch, pad, pallas

# Elements of a GPU's program: 8 a thread, because Adam's pullback has twelve arrays, and at 32 it spilled registers;
# half as many in float64 where there are more than that, as with amsgrad.
BE, MANY = 2048, 12
# Rows and columns of a TPU's.
ROWS, COLUMNS = 32, 128


def step(
    kernel: Callable[..., None],
    wholes: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    results: Sequence[Any],
    aliases: Mapping[int, int],
    sums: Any = None,
    numbered: bool = False,
) -> list[jax.Array]:
    """Arrays of `kernel(*wholes, *operands, *results)`, each of the operands' shape.

    Args:
        wholes: [1 k] each, whole in every program.
        operands: arrays of one shape, at least one.
        results: their dtypes.
        aliases: operand -> result that may take its memory.
        sums: a dtype: behind the results there is one more of it, whose sum over all elements is given as a number.
            What the kernel puts there must be 0 where everything that it reads is.
        numbered: hand the kernel `numbers`, a function that gives the lower and upper 32 bits of its elements' numbers.
    """
    like = operands[0]
    if like.size == 0:
        return [jnp.zeros(like.shape, d) for d in results] + ([] if sums is None else [jnp.zeros((), sums)])

    shape, size, single, many = like.shape, like.size, len(wholes), len(operands) + len(results) > MANY

    def call(platform: str, *given: jax.Array) -> list[jax.Array]:
        wide = many and given[single].dtype == jnp.float64
        flat, tile, grid = _cut(platform, given[single:], BE // 2 if wide else BE)
        each = math.prod(tile.block_shape)
        specs = [pl.BlockSpec(w.shape, lambda i: (0, 0)) for w in given[:single]] + [tile] * len(flat)
        shapes = [jax.ShapeDtypeStruct(flat[0].shape, d) for d in results]
        outs = [tile] * len(results)
        if sums is not None:
            block = {"cpu": (1, 1), "cuda": (1,), "tpu": (8, COLUMNS)}[platform]
            outs.append(pl.BlockSpec(block, lambda i: (i,) + (0,) * (len(block) - 1)))
            shapes.append(jax.ShapeDtypeStruct((grid * block[0], *block[1:]), sums))

        def body(*given: Any) -> None:
            refs = list(given)
            if sums is not None:
                refs[-1] = _Summed(refs[-1])
            if platform == "cuda":
                last = len(refs) - (sums is not None)
                refs[single:last] = [_Masked(ref, size, each) for ref in refs[single:last]]
            kernel(*refs, **({"numbers": lambda: _numbers(tile.block_shape)} if numbered else {}))

        body.__name__ = getattr(kernel, "func", kernel).__name__
        found = pallas(
            body,
            platform,
            [grid],
            specs,
            outs,
            shapes,
            warps=8,
            input_output_aliases={single + i: k for i, k in aliases.items()},
        )(*given[:single], *flat)
        arrays = [t.reshape(-1)[:size].reshape(shape) for t in found[: len(results)]]
        # Interpreted there is one program, and its part is the sum.
        return arrays + [
            t[0, 0] if interpreted(platform) else fold(t.reshape(t.shape[0], -1)) for t in found[len(results) :]
        ]

    return launch(call, *wholes, *operands)


def _cut(platform: str, operands: Sequence[jax.Array], each: int) -> tuple[list[jax.Array], pl.BlockSpec, int]:
    """The operands as a kernel takes them, what it sees of each, and how many programs there are."""
    size = operands[0].size
    if platform == "cuda":
        return [t.reshape(-1) for t in operands], pl.BlockSpec((each,), lambda i: (i,)), -(-size // each)
    rows, columns = (1, size) if interpreted(platform) else (ROWS, COLUMNS)
    flat = [pad(t.reshape(-1), rows * columns).reshape(-1, columns) for t in operands]
    return flat, pl.BlockSpec((rows, columns), lambda i: (i, 0)), flat[0].shape[0] // rows


def _numbers(tile: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The numbers of a tile's elements in the flattened array, which no cut changes: lower and upper 32 bits."""
    inside = jax.lax.broadcasted_iota(jnp.uint32, tile, len(tile) - 1)
    if len(tile) == 2:
        inside = inside + jax.lax.broadcasted_iota(jnp.uint32, tile, 0) * jnp.uint32(tile[1])
    if tile[0] == 1:
        # Interpreted, the tile is the array.
        return inside, jnp.uint32(0)
    # Any other one has a power of two.
    program, bits = program_id(0).astype(jnp.uint32), math.prod(tile).bit_length() - 1
    return (program << jnp.uint32(bits)) + inside, program >> jnp.uint32(32 - bits)


class _Masked:
    """A GPU's block of an array of that size, as a ref: zeros past the array's end, where nothing is written."""

    def __init__(self, ref: Any, size: int, each: int) -> None:
        self.dtype = ref.dtype
        self._ref = ref
        full, rest = divmod(size, each)
        # A mask that always holds would still split wide loads.
        self._inside: Any = None
        if rest:
            here = jnp.where(program_id(0) < full, jnp.int32(each), jnp.int32(rest))
            self._inside = jax.lax.broadcasted_iota(jnp.int32, (each,), 0) < here

    def __getitem__(self, where: Any) -> jax.Array:
        if self._inside is None:
            return self._ref[...]
        return pltriton.load(self._ref, mask=self._inside, other=0)

    def __setitem__(self, where: Any, value: jax.Array) -> None:
        if self._inside is None:
            self._ref[...] = value
        else:
            pltriton.store(self._ref, value, mask=self._inside)


class _Summed:
    """A program's part of a sum, as a ref that takes the terms."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def __setitem__(self, where: Any, terms: jax.Array) -> None:
        shape = self._ref.shape
        if math.prod(shape) == 1:
            self._ref[...] = jnp.sum(terms).reshape(shape)
        else:
            self._ref[...] = jnp.sum(terms.reshape(-1, *shape), axis=0)
