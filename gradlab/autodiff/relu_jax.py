"""relu for jax: y is saved, whose sign is the mask; masking is linear and its own pullback."""

import jax

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import relu_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled


@jax.custom_vjp
def _relu_mask_rule(x: jax.Array, mask: jax.Array) -> jax.Array:
    """y = x where mask > 0, else 0. Linear in x; the mask is a step function and has no gradient."""
    return kernels.relu_mask(x, mask)


def _relu_mask_fwd(x, mask):
    return relu_mask(x, mask), mask


def _relu_mask_bwd(mask, dy):
    return relu_mask(dy, mask), None


_relu_mask_rule.defvjp(_relu_mask_fwd, _relu_mask_bwd)
relu_mask = compiled(_relu_mask_rule)


@jax.custom_vjp
def _relu_rule(x: jax.Array) -> jax.Array:
    """y = max(x, 0)."""
    return kernels.relu_mask(x, x)


def _relu_fwd(x):
    y = _relu(x)
    return y, y


def _relu_bwd(y, dy):
    return (relu_mask(dy, y),)


_relu_rule.defvjp(_relu_fwd, _relu_bwd)
_relu = compiled(_relu_rule)


@public("relu")
def relu(x: jax.Array) -> jax.Array:
    """y[...] = max(x[...], 0), as `jax.nn.relu`.

    Args:
        x: any shape; float64, float32, float16 or bfloat16.

    Returns:
        A new array. The derivative at 0 is 0; reverse-mode derivatives of every order are exact.

    Raises:
        TypeError: not an array of one of these dtypes.
    """
    arrays = as_arrays("relu", {"x": x})
    want_floats("relu", arrays)
    return _relu(arrays["x"])


by_spec = relu
