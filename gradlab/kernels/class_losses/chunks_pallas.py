"""What linear_cross_entropy's backwards share: the cotangent of a tile of logits, and the loop over chunks, on Pallas."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.runtime.launch_pallas import accumulator, one_piece


# fmt: off
def cotangent(z, v, rows, c, *, V, ignore, hard, spread):
    """(p, r, g, a, R)[m v] of a tile of z: softmax, targets, g = a p - dy r, a = dy R + dl, sum of targets; NaN in unknown rows, 0 in ignored ones."""
    t, dy, dl, top, log_sum, R = rows
    zero = jnp.zeros_like(z)
    valid = t != ignore
    p = jnp.where(valid, jnp.where((t >= 0) & (t < V), jnp.exp((z - top) - log_sum), zero + jnp.nan), zero)
    r = hard * jnp.where(v == t, zero + 1, zero) + spread
    r = jnp.where(valid, r if c is None else c * r, zero)
    a = jnp.where(valid, dy * R + dl, jnp.zeros_like(dy))
    return p, r, jnp.where(valid, a * p - dy * r, zero), a, R
# fmt: on


def chunks(
    body: Callable[..., Any],
    cut: tuple[jax.Array | None, ...],
    grown: tuple[tuple[int, ...], ...],
    h: jax.Array,
    *operands: jax.Array,
) -> tuple[tuple, tuple]:
    """`body` for each chunk of classes, which are the last axis of `cut`: sums that grow, and what each chunk makes.

    Args:
        body: (first class, the chunk of each of `cut`, sums so far, h, operands) -> sums, and what the chunk makes, whose
            last axis is its classes; None may be one.
        grown: the shapes of the sums, which start at 0 in the accumulator's dtype.
        h: [M K], which says how long a chunk is.
    """
    (M, K), V = h.shape, next(a.shape[-1] for a in cut if a is not None)
    width = chunk(M, K, V)

    def run(cut: tuple, h: jax.Array, *operands: jax.Array) -> tuple[tuple, tuple]:
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
