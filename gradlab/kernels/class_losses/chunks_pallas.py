"""The loop over chunks of classes that the backwards of linear_cross_entropy are made of, on Pallas."""

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
        grown: the shapes of the sums, which start at 0 in the accumulator's dtype.
        h: [M K], which says how long a chunk is.
    """
    (M, K), V = h.shape, next(a.shape[-1] for a in cut if a is not None)
    width = chunk(M, K, V)

    def run(cut: tuple, h: jax.Array, *operands: Any) -> tuple[tuple, tuple]:
        def part(first: Any, size: int) -> list[jax.Array | None]:
            return [None if a is None else jax.lax.dynamic_slice_in_dim(a, first, size, a.ndim - 1) for a in cut]

        def put(whole: jax.Array | None, piece: jax.Array | None, first: Any) -> jax.Array | None:
            if whole is None or piece is None:
                return None
            return jax.lax.dynamic_update_slice_in_dim(whole, piece, first, whole.ndim - 1)

        sums = tuple(jnp.zeros(shape, accumulator(h.dtype)) for shape in grown)
        if width == V:
            return body(jnp.int32(0), list(cut), sums, h, *operands)

        def step(i: Any, carry: tuple) -> tuple:
            sums, wholes = carry
            first = i * width
            sums, pieces = body(first, part(first, width), sums, h, *operands)
            return sums, tuple(put(a, piece, first) for a, piece in zip(wholes, pieces, strict=True))

        shapes = jax.eval_shape(lambda *a: body(jnp.int32(0), part(0, width), sums, *a)[1], h, *operands)
        wholes = tuple(None if a is None else jnp.zeros((*a.shape[:-1], V), a.dtype) for a in shapes)
        sums, wholes = jax.lax.fori_loop(jnp.int32(0), jnp.int32(V // width), step, (sums, wholes))
        if V % width:
            first = jnp.int32(V - V % width)
            sums, pieces = body(first, part(first, V % width), sums, h, *operands)
            wholes = tuple(put(a, piece, first) for a, piece in zip(wholes, pieces, strict=True))
        return sums, wholes

    return one_piece(run)(cut, h, *operands)
