"""linear for jax: a product whose two pullbacks are products again, so that any order of derivative is exact."""

import functools

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.autodiff.relu_jax import relu_mask
from gradlab.kernels import linear_pallas as kernels
from gradlab.kernels.common import column_sum_pallas
from gradlab.kernels.linear import MOVES
from gradlab.kernels.runtime.mesh_pallas import compiled

# The masked operand of a transposed product.
SWAPPED = {"": "", "y": "y", "a": "b", "b": "a"}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _product_rule(a, b, bias, mask, transposed_a, transposed_b, masked, relu):
    """y[M N] = a[M K] b[K N] + bias[N], then relu; `masked` ("a", "b", "y" or "") is zero where mask <= 0.

    The first axis of a stored operand may be several ones; so may M.
    """
    return kernels.matmul(a, b, bias, mask, transposed_a, transposed_b, masked, relu)


def _product_fwd(a, b, bias, mask, transposed_a, transposed_b, masked, relu):
    y = product(a, b, bias, mask, transposed_a, transposed_b, masked, relu)
    # With a fused relu, y is its own mask.
    return y, (a, b, bias, y if relu else mask)


def _product_bwd(transposed_a, transposed_b, masked, relu, saved, dy):
    a, b, bias, mask = saved
    masked = "y" if relu else masked
    in_dgrad, in_wgrad = MOVES[masked]
    # jax has no strides: the gradient of a transposed operand is the transposed product, its factors swapped.
    if transposed_a:
        da = product(b, dy, None, mask, transposed_b, True, SWAPPED[in_dgrad], False)
    else:
        da = product(dy, b, None, mask, False, not transposed_b, in_dgrad, False)
    if transposed_b:
        db = product(dy, a, None, mask, True, transposed_a, SWAPPED[in_wgrad], False)
    else:
        db = product(a, dy, None, mask, not transposed_a, False, in_wgrad, False)
    dbias = None if bias is None else column_sum(dy, mask if masked == "y" else None)
    return da, db, dbias, None


_product_rule.defvjp(_product_fwd, _product_bwd)
product = compiled(_product_rule, static_argnums=(4, 5, 6, 7))


@jax.custom_vjp
def _column_sum_rule(a, mask):
    """s[N] = sum over M of a[M N], zeros where mask <= 0. Linear in a: its pullback is a masked broadcast.

    M may be several axes.
    """
    return column_sum_pallas.column_sum(a, mask)


def _column_sum_fwd(a, mask):
    # Only the shape of a is needed: an array without elements carries it, and a is not kept alive.
    return column_sum_pallas.column_sum(a, mask), (jnp.empty((*a.shape, 0), a.dtype), mask)


def _column_sum_bwd(saved, ds):
    shape, mask = saved
    rows = jnp.broadcast_to(ds, shape.shape[:-1])
    return rows if mask is None else relu_mask(rows, mask), None


_column_sum_rule.defvjp(_column_sum_fwd, _column_sum_bwd)
column_sum = compiled(_column_sum_rule)


@public("linear")
def linear(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, activation: str | None = None
) -> jax.Array:
    """y[... N] = x[... K] kernel[K N] + bias[N], then the activation.

    Args:
        x: [... K], any leading axes, none or empty ones included.
        kernel: [K N], as flax and jax keep it.
        bias: [N].
        activation: "relu" fuses max(y, 0) into the same kernel, forward and backward.
            All of one dtype (float64, float32, float16, bfloat16). Sums are carried in float32 or better, never in
            TF32.

    Returns:
        A new array [... N] in the inputs' dtype. Reverse-mode derivatives of every order are exact.

    Raises:
        ValueError: shapes that do not fit, an unknown activation.
        TypeError: not an array, mixed or integer dtypes.
    """
    arrays = as_arrays("linear", {"x": x, "kernel": kernel} | ({} if bias is None else {"bias": bias}))
    want_floats("linear", arrays)
    want_choice("linear", "activation", activation, (None, "relu"))
    x, kernel, b = arrays["x"], arrays["kernel"], arrays.get("bias")
    if x.ndim == 0:
        refuse("linear", "x of shape []", "0-dimensional", "[... K]")
    want_rank("linear", "kernel", kernel, "[K N]", (2,))
    want_size("linear", "kernel", kernel, 0, "K", x.shape[-1], "like x's last axis")
    if b is not None:
        want_rank("linear", "bias", b, "[N]", (1,))
        want_size("linear", "bias", b, 0, "N", kernel.shape[1], "like kernel's last axis")
    y = product(x if x.ndim > 1 else x[None], kernel, b, None, False, False, "", activation == "relu")
    return y if x.ndim > 1 else y[0]


by_spec = linear
