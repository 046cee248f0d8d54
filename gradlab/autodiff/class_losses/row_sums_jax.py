"""How the losses of rows become one number on jax: a sum, or a mean over what the rows weigh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff.class_losses.class_axes_jax import same_on
from gradlab.kernels.class_losses import row_sums_pallas as kernels
from gradlab.kernels.class_losses.parts_pallas import ClassAxes
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_pallas import accumulator
from gradlab.kernels.runtime.mesh_pallas import compiled


class Reduction(NamedTuple):
    """What becomes of the losses y[M] and the squares n[M] of their rows' log-sum-exp."""

    reduction: str
    z_loss: float
    return_z_loss: bool

    @property
    def with_n(self) -> bool:
        """Whether n is in the result; without a z-loss it is neither read nor summed, and has no cotangent."""
        return bool(self.z_loss) or self.return_z_loss


@jax.custom_vjp
def _sum_rows_rule(y):
    """The sum of y[M]. Linear: its backward is a broadcast."""
    return kernels.sum_rows(y)


def _sum_rows_fwd(y):
    # An array without elements remembers the shape of one that nothing else needs.
    return sum_rows(y), jnp.empty((*y.shape, 0))


def _sum_rows_bwd(shape, dr):
    return (jnp.broadcast_to(dr, shape.shape[:-1]),)


_sum_rows_rule.defvjp(_sum_rows_fwd, _sum_rows_bwd)
sum_rows = compiled(_sum_rows_rule)


def mean_divisors(
    like: jax.Array,
    t: jax.Array | None,
    a: jax.Array | None,
    V: int,
    ignore_index: int,
    first: jax.Array | None = None,
    axes: ClassAxes | None = None,
) -> jax.Array:
    """What the means of y[M] and n[M] are sums over; both are M where targets are soft. In `like`'s accumulator."""
    acc = accumulator(like.dtype)
    if t is None:
        return jnp.full((2,), like.size, acc)
    return jax.lax.stop_gradient(kernels.mean_divisors(t, a, V, ignore_index, acc, first, axes))


def reduced(
    y: jax.Array,
    n: jax.Array,
    t: jax.Array | None,
    a: jax.Array | None,
    V: int,
    settings: ClassLoss,
    reduction: Reduction,
    dtype: Any,
    first: jax.Array | None = None,
    axes: ClassAxes | None = None,
) -> Any:
    """The loss y + z_loss n, each summed as asked, and what the second term has added to it where that is returned.

    M may be several axes. With `axes` the V classes of the weights are those from `first` on.
    """
    parts = [y, n] if reduction.with_n else [y]
    if reduction.reduction != "none":
        parts = [sum_rows(part) for part in parts]
    if reduction.reduction == "mean":
        divisors = mean_divisors(y, t, a, V, settings.ignore_index, first, axes)
        parts = [part / divisors[i] for i, part in enumerate(parts)]
    if reduction.with_n:
        added = reduction.z_loss * parts[1]
        parts = [parts[0] + added, added]
    parts = [part.astype(dtype) for part in parts]
    if axes is not None:
        parts = [same_on(part, axes) for part in parts]
    return (parts[0], parts[1]) if reduction.return_z_loss else parts[0]
