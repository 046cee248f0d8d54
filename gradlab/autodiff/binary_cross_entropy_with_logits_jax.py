"""binary_cross_entropy_with_logits for jax: the inputs are saved; each derivative is another kernel of the family."""

import functools

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_broadcast, want_floats
from gradlab.autodiff.arguments.reduction import divisor
from gradlab.autodiff.common.elementwise_jax import times
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import binary_cross_entropy_with_logits_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled

_OP = "binary_cross_entropy_with_logits"


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _losses_rule(x, t, w, p, den):
    """y = the sum of w G00, over den."""
    return kernels.losses(x, t, w, p, den)


def _losses_fwd(x, t, w, p, den):
    return losses(x, t, w, p, den), (x, t, w, p)


def _losses_bwd(den, saved, dy):
    x, t, w, p = saved
    spread = jnp.broadcast_to(dy, x.shape)
    dx, dt = (derivative(spread, x, t, w, p, j, 1 - j, den) for j in (1, 0))
    return dx, dt, None, None


_losses_rule.defvjp(_losses_fwd, _losses_bwd)
losses = compiled(_losses_rule, static_argnums=(4,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _derivative_rule(c, x, t, w, p, j, k, den):
    """y = c w G_jk / den. Linear in c; by x it is G_(j+1)k, by t G_j(k+1), which ends at G02 = 0 and here at G3k."""
    return kernels.derivative(c, x, t, w, p, j, k, den)


def _derivative_fwd(c, x, t, w, p, j, k, den):
    return derivative(c, x, t, w, p, j, k, den), (c, x, t, w, p)


def _derivative_bwd(j, k, den, saved, u):
    c, x, t, w, p = saved
    if j == 2:
        raise NotImplementedError(f"{_OP}: its third derivative is not implemented, wanted order 1 or 2")
    both = u if c is None else times(u, c)
    dc = None if c is None else derivative(u, x, t, w, p, j, k, den)
    dt = derivative(both, x, t, w, p, j, 1, den) if k == 0 else None
    return dc, derivative(both, x, t, w, p, j + 1, k, den), dt, None, None


_derivative_rule.defvjp(_derivative_fwd, _derivative_bwd)
derivative = compiled(_derivative_rule, static_argnums=(5, 6, 7))


@public("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    reduction: str = "mean",
    pos_weight: jax.Array | None = None,
) -> jax.Array:
    """Negative log-likelihood of labels[...] under sigmoid(logits[...]); `optax.sigmoid_binary_cross_entropy`, reduced.

    Args:
        logits: any shape; float64, float32, float16 or bfloat16.
        labels: probabilities of yes, of the same shape and dtype.
        weight: of each loss, broadcast to the logits.
        reduction: "mean" (over all elements, NaN when empty), "sum", or "none" for one loss an element.
        pos_weight: of each yes, broadcast to the logits.

    Returns:
        A scalar, or a new array of the logits' shape, in their dtype. First and second derivatives for logits and
        labels are exact; the two weights are constants.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction.
        TypeError: not arrays of one such dtype.
        NotImplementedError: a third derivative.
    """
    given = {"logits": logits, "labels": labels}
    given |= {k: v for k, v in (("weight", weight), ("pos_weight", pos_weight)) if v is not None}
    arrays = as_arrays(_OP, given)
    want_floats(_OP, arrays)
    x, t = arrays["logits"], arrays["labels"]
    if x.shape != t.shape:
        refuse(_OP, "shape of labels", list(t.shape), f"{list(x.shape)} like logits")
    weights = []
    for name in ("weight", "pos_weight"):
        value = arrays.get(name)
        if value is not None:
            want_broadcast(_OP, name, value, x.shape, "logits")
            # Said to be constants, so that nobody waits for a gradient that is not there.
            value = jnp.broadcast_to(jax.lax.stop_gradient(value), x.shape)
        weights.append(value)
    den = divisor(_OP, reduction, x.size)
    if reduction == "none":
        return derivative(None, x, t, *weights, 0, 0, 1)
    return losses(x, t, *weights, den)


def by_spec(x, t, w=None, p=None, *, reduction="mean"):
    """The loss with the Spec's names."""
    return binary_cross_entropy_with_logits(x, t, weight=w, reduction=reduction, pos_weight=p)
