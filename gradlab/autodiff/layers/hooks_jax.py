"""Hand-written `lax.dot_general` and `lax.conv_general_dilated`, as far as Flax's layers ask for them: hooks for these.

What such a layer asks is a product of the last axes with the first ones, and a convolution in 2-D with channels last;
anything else is refused in one line, never handed to the framework behind the user's back.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import dtype_name, refuse, want_floats
from gradlab.autodiff.conv2d_jax import conv2d
from gradlab.autodiff.linear_jax import linear

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    out_sharding: None = None,
) -> jax.Array:
    """y[... N...] = lhs[... K...] rhs[K... N...] summed over K; a hand-written `jax.lax.dot_general`, for layers.

    For `nnx.Linear(..., dot_general=gradlab.jax.dot_general)`, `nnx.LinearGeneral`, `nnx.MultiHeadAttention` and
    Linen's `Dense`.

    Args:
        lhs, rhs: of one dtype: float64, float32, float16 or bfloat16.
        dimension_numbers: ((axes of lhs, axes of rhs), ((), ())): the last axes of lhs with the first ones of rhs.
        precision: None or a `jax.lax.Precision`, by itself, by name or in a pair; the highest is what every one gets.
        preferred_element_type: None or the inputs' dtype.
        out_sharding: None.

    Returns:
        A new array in the inputs' dtype. Reverse-mode derivatives of every order are exact.

    Raises:
        ValueError: shapes that do not fit, anything else that `jax.lax.dot_general` can do.
        TypeError: not an array, mixed or integer dtypes.
    """
    op = "dot_general"
    lhs, rhs = _operands(op, lhs, rhs, precision, preferred_element_type, out_sharding)
    (of_lhs, of_rhs), batch = dimension_numbers
    if any(map(len, batch)):
        refuse(op, "dimension_numbers", f"one with batch axes {tuple(map(tuple, batch))}", "none: ((), ())")
    count = len(of_rhs)
    last = list(range(lhs.ndim - count, lhs.ndim))
    if not count or list(of_rhs) != list(range(count)) or list(of_lhs) != last:
        came = f"a sum over axes {list(of_lhs)} of lhs and {list(of_rhs)} of rhs"
        refuse(op, "dimension_numbers", came, "one over the last axes of lhs and the first ones of rhs, in order")
    if lhs.shape[-count:] != rhs.shape[:count]:
        refuse(
            op,
            f"rhs of shape {list(rhs.shape)}",
            f"{list(rhs.shape[:count])} where summed",
            f"{list(lhs.shape[-count:])} like lhs",
        )
    K = math.prod(rhs.shape[:count])
    y = linear(lhs.reshape(*lhs.shape[:-count], K), rhs.reshape(K, math.prod(rhs.shape[count:])))
    return y.reshape(*lhs.shape[:-count], *rhs.shape[count:])


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: None = None,
) -> jax.Array:
    """y[B P Q F] = the cross-correlation of lhs[B H W C] with rhs[R S D F]; `jax.lax.conv_general_dilated` for layers.

    For `nnx.Conv(..., conv_general_dilated=gradlab.jax.conv_general_dilated)` in 2-D and Linen's `Conv`.

    Args:
        lhs, rhs: of one dtype: float64, float32, float16 or bfloat16.
        window_strides, rhs_dilation: a pair of whole numbers.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        lhs_dilation, batch_group_count: 1.
        dimension_numbers: channels last: ("NHWC", "HWIO", "NHWC") or what jax makes of it.
        feature_group_count: as `groups` of `conv2d`.
        precision, preferred_element_type, out_sharding: as of `dot_general`.

    Returns:
        A new array in the inputs' dtype. Reverse-mode derivatives of every order are exact.

    Raises:
        ValueError: shapes that do not fit, anything else that `jax.lax.conv_general_dilated` can do.
        TypeError: not an array, mixed or integer dtypes.
    """
    op = "conv_general_dilated"
    lhs, rhs = _operands(op, lhs, rhs, precision, preferred_element_type, out_sharding)
    for name, array in (("lhs", lhs), ("rhs", rhs)):
        if array.ndim != 4:
            refuse(op, f"{name} of shape {list(array.shape)}", f"{array.ndim}-dimensional", "4 axes: 2-D convolutions")
    layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, CHANNELS_LAST)
    if dimension_numbers is None or jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != layout:
        refuse(op, "dimension_numbers", dimension_numbers, f"{CHANNELS_LAST}")
    if lhs_dilation is not None and any(d != 1 for d in lhs_dilation):
        refuse(op, "lhs_dilation", tuple(lhs_dilation), "1: no transposed convolution")
    if batch_group_count != 1:
        refuse(op, "batch_group_count", batch_group_count, "1")
    spread = (1, 1) if rhs_dilation is None else tuple(rhs_dilation)
    around = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    return conv2d(lhs, rhs, strides=tuple(window_strides), padding=around, dilation=spread, groups=feature_group_count)


def _operands(
    op: str, lhs: Any, rhs: Any, precision: Any, preferred_element_type: Any, out_sharding: Any
) -> tuple[jax.Array, jax.Array]:
    arrays = as_arrays(op, {"lhs": lhs, "rhs": rhs})
    want_floats(op, arrays)
    precisions = precision if isinstance(precision, tuple) else (precision,)
    for one in precisions:
        try:
            jax.lax.Precision(one)
        except (TypeError, ValueError):
            refuse(op, "precision", repr(precision), "None or a jax.lax.Precision, which is the least that is done")
    dtype = arrays["lhs"].dtype
    if preferred_element_type is not None and jnp.dtype(preferred_element_type) != dtype:
        refuse(op, "preferred_element_type", jnp.dtype(preferred_element_type), f"{dtype_name(arrays['lhs'])} like lhs")
    if out_sharding is not None:
        refuse(op, "out_sharding", out_sharding, "None")
    return arrays["lhs"], arrays["rhs"]
