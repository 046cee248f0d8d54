"""relu for jax: kept is y, whose sign is the gate; the gate is linear and its own pullback."""

import jax

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import relu_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled, parted_like


@jax.custom_vjp
def _gated_rule(x: jax.Array, gate: jax.Array) -> jax.Array:
    """y = x where gate > 0, else 0. Linear in x; the gate is a step and has no gradient."""
    return kernels.gate(x, gate)


def _gated_fwd(x, gate):
    return gated(x, gate), gate


def _gated_bwd(gate, dy):
    return gated(dy, gate), None


_gated_rule.defvjp(_gated_fwd, _gated_bwd)
gated = compiled(_gated_rule)


@jax.custom_vjp
def _relu_rule(x: jax.Array) -> jax.Array:
    """y = max(x, 0)."""
    return kernels.gate(x, x)


def _relu_fwd(x):
    y = _relu(x)
    return y, y


def _relu_bwd(y, dy):
    return (gated(dy, y),)


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
    return parted_like(_relu(arrays["x"]), x)


by_spec = relu
