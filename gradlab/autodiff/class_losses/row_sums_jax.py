"""How the losses of rows become one number on jax: a sum, or a mean over what the rows weigh."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradlab.kernels.class_losses import row_sums_pallas as kernels
from gradlab.kernels.runtime.launch_pallas import accumulator
from gradlab.kernels.runtime.mesh_pallas import compiled


class Reduction(NamedTuple):
    """What is asked of the losses y[M] and the squares z[M] of their rows' log-sum-exp."""

    reduction: str
    z_loss: float
    return_z_loss: bool


@jax.custom_vjp
def _total_rule(y):
    """The sum of y[M]. Linear: its pullback is a broadcast."""
    return kernels.sum_rows(y)


def _total_fwd(y):
    # An array without elements remembers the shape of one that nothing else needs.
    return total(y), jnp.empty((*y.shape, 0))


def _total_bwd(shape, dr):
    return (jnp.broadcast_to(dr, shape.shape[:1]),)


_total_rule.defvjp(_total_fwd, _total_bwd)
total = compiled(_total_rule)


def divisors(like: jax.Array, M: int, t: jax.Array | None, w: jax.Array | None, V: int, ignore_index: int) -> jax.Array:
    """What the means of y[M] and z[M] are sums over; both are M where targets are soft. In `like`'s accumulator."""
    acc = accumulator(like.dtype)
    if t is None:
        return jnp.full((2,), M, acc)
    return jax.lax.stop_gradient(kernels.mean_divisors(t, w, V, ignore_index, acc))


def reduced(
    y: jax.Array, z: jax.Array, t: jax.Array | None, w: jax.Array | None, V: int, ignore_index: int, asked: Reduction
) -> tuple[jax.Array, jax.Array]:
    """The loss y + z_loss z, and what the second term has added to it, each summed as asked."""
    parts = [y]
    # Without a z-loss its squares are neither read nor summed.
    if asked.z_loss or asked.return_z_loss:
        parts.append(z)
    if asked.reduction != "none":
        parts = [total(part) for part in parts]
    n = divisors(y, y.shape[-1], t, w, V, ignore_index) if asked.reduction == "mean" else None
    return joined(parts, n, asked.z_loss)


def joined(parts: Sequence[jax.Array], n: jax.Array | None, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """The sum of y and, where it is among the parts, z_loss z, each over its place in n; and the last term."""
    if n is not None:
        parts = [part / n[i] for i, part in enumerate(parts)]
    if len(parts) == 1:
        return parts[0], parts[0]
    added = z_loss * parts[1]
    return parts[0] + added, added
