"""The loop over chunks of classes that the backwards of linear_cross_entropy are made of, on Pallas."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.runtime.launch_pallas import accumulator, one_piece


def chunks(
    body: Callable[..., Any],
    cut: tuple[jax.Array | None, ...],
    grown: tuple[tuple[int, ...], ...],
    h: jax.Array,
    *operands: Any,
) -> tuple[tuple, tuple]:
    """`body` for each chunk of classes, which are the last axis of `cut`: sums that grow, and what each chunk makes.

    Args:
        body: (first class, the chunk of each of `cut`, sums so far, h, operands) -> sums, and what the chunk makes,
            whose last axis is its classes; None may be one.
        cut: arrays of all V classes, the last of which may have the first ones alone: None is its chunk where it has
            not all of it.
        grown: the shapes of the sums, which start at 0 in the accumulator's dtype.
        h: [M K], which says how long a chunk is.
    """
    (M, K), V = h.shape, next(a.shape[-1] for a in cut if a is not None)
    width, some = chunk(M, K, V), cut[-1]
    # Chunks that the last array has: all, or whole ones.
    there = 0 if some is None else -(-V // width) if some.shape[-1] == V else some.shape[-1] // width

    def run(cut: tuple, h: jax.Array, *operands: Any) -> tuple[tuple, tuple]:
        def part(first: Any, size: int, with_last: bool) -> list[jax.Array | None]:
            arrays = cut if with_last else (*cut[:-1], None)
            return [None if a is None else jax.lax.dynamic_slice_in_dim(a, first, size, a.ndim - 1) for a in arrays]

        def put(whole: jax.Array | None, piece: jax.Array | None, first: Any) -> jax.Array | None:
            if whole is None or piece is None:
                return None
            return jax.lax.dynamic_update_slice_in_dim(whole, piece, first, whole.ndim - 1)

        def one(first: Any, size: int, with_last: bool, carry: tuple) -> tuple:
            sums, wholes = carry
            sums, pieces = body(first, part(first, size, with_last), sums, h, *operands)
            return sums, tuple(put(a, piece, first) for a, piece in zip(wholes, pieces, strict=True))

        sums = tuple(jnp.zeros(shape, accumulator(h.dtype)) for shape in grown)
        if width == V:
            return body(jnp.int32(0), part(0, V, there > 0), sums, h, *operands)

        shapes = jax.eval_shape(lambda *a: body(jnp.int32(0), part(0, width, False), sums, *a)[1], h, *operands)
        wholes = tuple(None if a is None else jnp.zeros((*a.shape[:-1], V), a.dtype) for a in shapes)
        carry, turn = (sums, wholes), min(there, V // width)
        for start, stop, with_last in ((0, turn, True), (turn, V // width, False)):
            if start < stop:
                step = functools.partial(lambda with_last, i, carry: one(i * width, width, with_last, carry), with_last)
                carry = jax.lax.fori_loop(jnp.int32(start), jnp.int32(stop), step, carry)
        if V % width:
            carry = one(jnp.int32(V - V % width), V % width, there > V // width, carry)
        return carry

    return one_piece(run)(cut, h, *operands)
