"""Launches of elementwise optimizer kernels over one array, in place where its memory is donated.

On a GPU blocks cover the flattened array itself, the last one masked: nothing is padded, so nothing is copied, and a
donated array is stepped in its own memory. A TPU has no masked blocks, so there an odd array is padded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.common.reduce_pallas import sum_all
from gradlab.kernels.pallas_triton.backend_pallas import masks, pallas_triton
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import interpreted, launch, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import axes, sharded

# Elements of a GPU's program: 8 a thread, as Adam's pullback with its twelve arrays spills registers at 32; half as
# many in float64 for kernels of more arrays, as with amsgrad.
BE, MANY = 2048, 12
# Rows and columns of a TPU's block.
ROWS, COLUMNS = 32, 128


def step(
    kernel: Callable[..., None],
    shared: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    results: Sequence[Any],
    aliases: Mapping[int, int],
    sums: Any = None,
    numbered: bool = False,
    gradient: int | None = None,
) -> list[jax.Array]:
    """The results of `kernel(*shared, *operands, *results)`, arrays of the operands' shape.

    Args:
        shared: arrays of [1 k], which every program reads in full.
        operands: arrays of one shape, at least one.
        results: the results' dtypes.
        aliases: operand -> result that may take its memory.
        sums: a dtype, for one more result, which is summed over all elements to a scalar. The kernel must store 0
            there wherever all that it reads is 0, as in padding.
        numbered: whether to pass the kernel `numbers`, a function that returns the lower and upper 32 bits of its
            elements' indices.
        gradient: the operand that is brought to the devices' parts of the others.
    """
    shape = operands[0].shape
    places = [jnp.arange(n, dtype=jnp.uint32) for n in shape] if numbered else []
    return _step(kernel, shared, operands, results, aliases, sums, shape if numbered else None, places, gradient)


def _rule(kernel, shared, operands, results, aliases, sums, numbered, places, gradient) -> str:
    letters = axes("E", operands[0].ndim)
    ins = [f"s{i}[1 S{i}]" for i in range(len(shared))] + [f"x{i}[{letters}]" for i in range(len(operands))]
    ins += [f"c{i}[{letter}]" for i, letter in enumerate(letters.split()[: len(places)])]
    outs = [f"y{i}[{letters}]" for i in range(len(results))] + ([] if sums is None else ["s[]"])
    clauses = ("" if sums is None else f"; sums {letters}") + ("" if gradient is None else f"; follows x{gradient}")
    return f"{', '.join(ins)} -> {', '.join(outs)}" + clauses


@sharded(_rule)
def _step(
    kernel: Callable[..., None],
    shared: Sequence[jax.Array],
    operands: Sequence[jax.Array],
    results: Sequence[Any],
    aliases: Mapping[int, int],
    sums: Any,
    numbered: tuple[int, ...] | None,
    places: Sequence[jax.Array],
    gradient: int | None,
) -> list[jax.Array]:
    """`step` of arrays, or of a device's parts of them.

    Args:
        numbered: the shape of the whole arrays, whose elements are numbered, or None.
        places: for each axis the indices in the whole arrays, if they are numbered.
    """
    like = operands[0]
    if like.size == 0:
        return [jnp.zeros(like.shape, d) for d in results] + ([] if sums is None else [jnp.zeros((), sums)])

    shape, size, many = like.shape, like.size, len(operands) + len(results) > MANY
    first = []
    if numbered is not None and numbered != shape:
        # Where the part begins.
        first = [jnp.stack([place[0] for place in places]).reshape(1, -1)]
    is_part, single = bool(first), len(shared) + len(first)

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
            if platform == "cuda" and not masks():
                last = len(refs) - (sums is not None)
                refs[single:last] = [_Masked(ref, size, each) for ref in refs[single:last]]
            begin = refs.pop(0) if is_part else None
            numbers = lambda: _numbers(tile.block_shape, shape, numbered, begin)  # noqa: E731
            kernel(*refs, **({} if numbered is None else {"numbers": numbers}))

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
        # Interpreted, there is one program, and its part is the sum.
        return arrays + [
            t[0, 0] if interpreted(platform) else sum_all(t.reshape(t.shape[0], -1)) for t in found[len(results) :]
        ]

    return launch(call, *first, *shared, *operands)


def _cut(platform: str, operands: Sequence[jax.Array], each: int) -> tuple[list[jax.Array], pl.BlockSpec, int]:
    """The operands flattened for a kernel, the block of each, and the number of programs."""
    size = operands[0].size
    if platform == "cuda":
        return [t.reshape(-1) for t in operands], pl.BlockSpec((each,), lambda i: (i,)), -(-size // each)
    rows, columns = (1, size) if interpreted(platform) else (ROWS, COLUMNS)
    flat = [pad(t.reshape(-1), rows * columns).reshape(-1, columns) for t in operands]
    return flat, pl.BlockSpec((rows, columns), lambda i: (i, 0)), flat[0].shape[0] // rows


def _numbers(
    tile: tuple[int, ...], part: tuple[int, ...], array: tuple[int, ...] | None, begin: Any
) -> tuple[jax.Array, jax.Array]:
    """The indices of a tile's elements in the flattened array, the same for any tiling: lower and upper 32 bits.

    Of a part of the array that begins at begin[1 k], of fewer than 2^32 elements, each index is that in the whole one.
    """
    low, high = _numbers_in_part(tile)
    if begin is None or array is None:
        return low, high
    index = high = jnp.zeros_like(low)
    for axis in reversed(range(len(part))):
        place = low % jnp.uint32(part[axis]) + begin[0, axis]
        low = low // jnp.uint32(part[axis])
        index = index + place * jnp.uint32(math.prod(array[axis + 1 :]) % 2**32)
        # Past 32 bits the first axis tells the elements apart.
        high = place if math.prod(array) > 2**32 else high
    return index, high


def _numbers_in_part(tile: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    inside = jax.lax.broadcasted_iota(jnp.uint32, tile, len(tile) - 1)
    if len(tile) == 2:
        inside = inside + jax.lax.broadcasted_iota(jnp.uint32, tile, 0) * jnp.uint32(tile[1])
    if tile[0] == 1:
        # Interpreted, the tile is the full array.
        return inside, jnp.uint32(0)
    # Any other tile has a power of two of elements.
    program, bits = program_id(0).astype(jnp.uint32), math.prod(tile).bit_length() - 1
    return (program << jnp.uint32(bits)) + inside, program >> jnp.uint32(32 - bits)


class _Masked:
    """A GPU's block of an array of `size` elements, as a ref: masked past the array's end, where it reads zeros."""

    def __init__(self, ref: Any, size: int, each: int) -> None:
        self.dtype = ref.dtype
        self._ref = ref
        full, rest = divmod(size, each)
        # A mask that always holds would still split wide loads, so a full array has none.
        self._inside: Any = None
        if rest:
            here = jnp.where(program_id(0) < full, jnp.int32(each), jnp.int32(rest))
            self._inside = jax.lax.broadcasted_iota(jnp.int32, (each,), 0) < here

    def __getitem__(self, where: Any) -> jax.Array:
        if self._inside is None:
            return self._ref[...]
        return pallas_triton.load(self._ref, mask=self._inside, other=0)

    def __setitem__(self, where: Any, value: jax.Array) -> None:
        if self._inside is None:
            self._ref[...] = value
        else:
            pallas_triton.store(self._ref, value, mask=self._inside)


class _Summed:
    """A program's part of a sum, as a ref: stores the sum of the terms."""

    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def __setitem__(self, where: Any, terms: jax.Array) -> None:
        shape = self._ref.shape
        if math.prod(shape) == 1:
            self._ref[...] = jnp.sum(terms).reshape(shape)
        else:
            self._ref[...] = jnp.sum(terms.reshape(-1, *shape), axis=0)
