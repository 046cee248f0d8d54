"""linear and conv2d behind jax.lax's own signatures, for layers that let their product be swapped, as Flax NNX's do."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments import refuse, want_rank
from gradlab.autodiff.arguments_jax import as_arrays
from gradlab.autodiff.conv2d_jax import conv2d
from gradlab.autodiff.linear_jax import linear


def dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, precision: Any = None,
                preferred_element_type: Any = None, *, out_sharding: Any = None) -> jax.Array:  # fmt: skip
    """y[... N ...] = lhs[... K] rhs[K N ...]; `jax.lax.dot_general` as `nnx.Linear(..., dot_general=...)` calls it.

    Args:
        lhs: [... K].
        rhs: [K N ...]; more than one axis behind K as in `nnx.LinearGeneral`.
        dimension_numbers: ((last axis of lhs,), (0,)), and no batch: what a linear layer asks for.
        precision: any; sums are carried in float32 or better, never in TF32.
        preferred_element_type: the result's dtype; the operands' own when not given.
        out_sharding: None.

    Raises:
        ValueError: other axes, a sharding.
        TypeError: mixed or integer dtypes.
    """
    _none("dot_general", "out_sharding", out_sharding)
    arrays = as_arrays("dot_general", {"lhs": lhs, "rhs": rhs})
    x, w = arrays["lhs"], arrays["rhs"]
    (left, right), batch = dimension_numbers
    asked = tuple(tuple(axes) for axes in (left, right, *batch))
    wanted = ((x.ndim - 1,), (0,), (), ())
    if x.ndim == 0 or w.ndim < 2 or asked != wanted:
        refuse(
            "dot_general", "dimension_numbers", repr(dimension_numbers), f"{(wanted[:2], wanted[2:])} and rhs[K N ...]"
        )
    y = linear(x, w.reshape(w.shape[0], math.prod(w.shape[1:])))
    y = y.reshape(*x.shape[:-1], *w.shape[1:])
    return y if preferred_element_type is None else y.astype(preferred_element_type)


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any,
                         lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
                         dimension_numbers: Any = None, feature_group_count: int = 1, batch_group_count: int = 1,
                         precision: Any = None, preferred_element_type: Any = None,
                         *, out_sharding: Any = None) -> jax.Array:  # fmt: skip
    """y[B P Q F] of lhs[B H W C], rhs[R S D F]; `jax.lax.conv_general_dilated` as `nnx.Conv` calls it.

    Args:
        lhs, rhs: images channels last and windows, two dimensions of space.
        window_strides, padding, rhs_dilation, feature_group_count: `conv2d`'s strides, padding, dilation and groups.
        lhs_dilation: ones; batch_group_count: 1; out_sharding: None.
        dimension_numbers: ("NHWC", "HWIO", "NHWC") or the ConvDimensionNumbers of it.
        precision: any; sums are carried in float32 or better, never in TF32.
        preferred_element_type: the result's dtype; the operands' own when not given.

    Raises:
        ValueError: another layout, a transposed convolution, a sharding; whatever `conv2d` refuses.
        TypeError: mixed or integer dtypes.
    """
    op = "conv_general_dilated"
    _none(op, "out_sharding", out_sharding)
    arrays = as_arrays(op, {"lhs": lhs, "rhs": rhs})
    x, w = arrays["lhs"], arrays["rhs"]
    want_rank(op, "lhs", x, "[B H W C]", (4,))
    want_rank(op, "rhs", w, "[R S D F]", (4,))
    wanted = jax.lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    if dimension_numbers is None or jax.lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers) != wanted:
        refuse(op, "dimension_numbers", repr(dimension_numbers), "('NHWC', 'HWIO', 'NHWC')")
    if lhs_dilation is not None and tuple(lhs_dilation) != (1, 1):
        refuse(op, "lhs_dilation", repr(lhs_dilation), "(1, 1)")
    if batch_group_count != 1:
        refuse(op, "batch_group_count", batch_group_count, "1")
    spread = 1 if rhs_dilation is None else tuple(rhs_dilation)
    around = padding if isinstance(padding, str) else tuple(tuple(p) for p in padding)
    y = conv2d(x, w, strides=tuple(window_strides), padding=around, dilation=spread, groups=feature_group_count)
    return y if preferred_element_type is None else y.astype(jnp.dtype(preferred_element_type))


def _none(op: str, argument: str, value: Any) -> None:
    if value is not None:
        refuse(op, argument, repr(value), "None")
