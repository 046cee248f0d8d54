"""conv2d for jax: forward, dgrad and wgrad are each other's pullbacks, so that any order of derivative is exact."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.arguments.window_jax import borders, is_integer, steps
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.autodiff.relu_jax import relu_mask
from gradlab.kernels import conv2d_pallas as kernels
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.mesh_pallas import compiled


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _forward_rule(x, w, bias, mask, geometry, relu):
    """y[B F P Q] = the correlation of x with w, plus bias, then relu; 0 where mask <= 0."""
    return kernels.forward(x, w, bias, mask, geometry, relu)


def _forward_fwd(x, w, bias, mask, geometry, relu):
    y = forward(x, w, bias, mask, geometry, relu)
    # With a fused relu, y is its own mask.
    return y, (x, w, bias, y if relu else mask)


def _forward_bwd(geometry, relu, saved, dy):
    x, w, bias, mask = saved
    dbias = None if bias is None else bias_sum(dy, mask)
    return dgrad(dy, w, mask, geometry), wgrad(dy, x, mask, geometry), dbias, None


_forward_rule.defvjp(_forward_fwd, _forward_bwd)
forward = compiled(_forward_rule, static_argnums=(4, 5))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dgrad_rule(dy, w, mask, geometry):
    """dx[B C H W] of the cotangent dy, zeros in place of dy where mask <= 0."""
    return kernels.dgrad(dy, w, mask, geometry)


def _dgrad_fwd(dy, w, mask, geometry):
    return dgrad(dy, w, mask, geometry), (dy, w, mask)


def _dgrad_bwd(geometry, saved, u):
    dy, w, mask = saved
    return forward(u, w, None, mask, geometry, False), wgrad(dy, u, mask, geometry), None


_dgrad_rule.defvjp(_dgrad_fwd, _dgrad_bwd)
dgrad = compiled(_dgrad_rule, static_argnums=(3,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _wgrad_rule(dy, x, mask, geometry):
    """dw[F D R S] of the cotangent dy, zeros in place of dy where mask <= 0."""
    return kernels.wgrad(dy, x, mask, geometry)


def _wgrad_fwd(dy, x, mask, geometry):
    return wgrad(dy, x, mask, geometry), (dy, x, mask)


def _wgrad_bwd(geometry, saved, v):
    dy, x, mask = saved
    return forward(x, v, None, mask, geometry, False), dgrad(dy, v, mask, geometry), None


_wgrad_rule.defvjp(_wgrad_fwd, _wgrad_bwd)
wgrad = compiled(_wgrad_rule, static_argnums=(3,))


@jax.custom_vjp
def _bias_sum_rule(dy, mask):
    """db[F] = sum over B, P and Q of dy, zeros where mask <= 0. Linear: its pullback is a masked broadcast."""
    return kernels.bias_sum(dy, mask)


def _bias_sum_fwd(dy, mask):
    # An array without elements remembers the shape for one that nothing else needs.
    return bias_sum(dy, mask), (jnp.empty((*dy.shape, 0), dy.dtype), mask)


def _bias_sum_bwd(saved, v):
    shape, mask = saved
    everywhere = jnp.broadcast_to(v, shape.shape[:4])
    return everywhere if mask is None else relu_mask(everywhere, mask), None


_bias_sum_rule.defvjp(_bias_sum_fwd, _bias_sum_bwd)
bias_sum = compiled(_bias_sum_rule)


@public("conv2d")
def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> jax.Array:
    """y[B P Q F] = the cross-correlation of x[B H W C] with kernel[R S D F], plus bias[F], then the activation.

    Args:
        x: [B H W C], or one image [H W C]; any B, 0 included.
        kernel: [R S D F], as flax and jax keep it, with C = groups D and F a multiple of groups.
        bias: [F].
        strides: pixels from window to window: a number, or one for rows and one for columns.
        padding: zeros around the image: "SAME" (P = H / stride, rounded up; the odd row goes behind), "VALID" (none), a
            number, one for rows and one for columns, or ((top, bottom), (left, right)).
        dilation: pixels from tap to tap: a number or a pair.
        groups: how many parts of the channels are saved apart; C of them is a depthwise convolution.
        activation: "relu" fuses max(y, 0) into the same kernel, forward and backward.
            All arrays of one dtype (float64, float32, float16, bfloat16). Sums are carried in float32 or better,
            never in TF32.

    Returns:
        A new array [B P Q F], or [P Q F], in the inputs' dtype. Reverse-mode derivatives of every order are exact.

    Raises:
        ValueError: shapes or settings that do not fit.
        TypeError: not an array, mixed or integer dtypes, settings that are not whole numbers.
    """
    arrays = as_arrays("conv2d", {"x": x, "kernel": kernel} | ({} if bias is None else {"bias": bias}))
    want_floats("conv2d", arrays)
    want_choice("conv2d", "activation", activation, (None, "relu"))
    x, kernel, b = arrays["x"], arrays["kernel"], arrays.get("bias")
    want_rank("conv2d", "x", x, "[B H W C] or [H W C]", (3, 4))
    want_rank("conv2d", "kernel", kernel, "[R S D F]", (4,))
    R, S, D, F = kernel.shape
    if 0 in (R, S):
        refuse("conv2d", f"kernel of shape {list(kernel.shape)}", f"a window of {R} x {S}", "at least 1 x 1")
    if not is_integer(groups):
        refuse("conv2d", "groups", repr(groups), "a whole number", TypeError)
    if groups < 1:
        refuse("conv2d", "groups", groups, "at least 1")
    want_size("conv2d", "x", x, -1, "C", groups * D, f"= {groups} groups of D = {D} like kernel")
    if F % groups:
        refuse("conv2d", f"kernel of shape {list(kernel.shape)}", f"F = {F}", f"a multiple of groups = {groups}")
    if b is not None:
        want_rank("conv2d", "bias", b, "[F]", (1,))
        want_size("conv2d", "bias", b, 0, "F", F, "like kernel's last axis")
    image = (x.shape[-3], x.shape[-2])
    step, spread = steps("conv2d", "strides", strides), steps("conv2d", "dilation", dilation)
    around = borders("conv2d", padding, (R, S), step, spread, image)
    for axis, n, k, d, pad in zip(("rows", "columns"), image, (R, S), spread, around, strict=True):
        if d * (k - 1) + 1 > n + sum(pad):
            reach = f"{d * (k - 1) + 1} {axis} wide with dilation {d}"
            wanted = f"at most the {n + sum(pad)} of the padded image"
            refuse("conv2d", f"kernel of shape {list(kernel.shape)}", reach, wanted)
    images = x if x.ndim == 4 else x[None]
    geometry = Geometry(step, spread, around, int(groups), image, (R, S))
    y = forward(images, kernel, b, None, geometry, activation == "relu")
    return y if x.ndim == 4 else y[0]


def by_spec(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """y[B F P Q] of x[B C H W], w[F D R S] and b[F]: the Spec's order of axes."""
    y = conv2d(
        x.transpose(0, 2, 3, 1),
        w.transpose(2, 3, 1, 0),
        b,
        strides=stride,
        padding=padding.upper() if isinstance(padding, str) else padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
    )
    return y.transpose(0, 3, 1, 2)
