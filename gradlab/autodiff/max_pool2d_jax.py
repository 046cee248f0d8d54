"""max_pool2d for jax: the tap of each maximum is saved; gather and scatter by it are each other's pullbacks."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_floats, want_rank
from gradlab.autodiff.arguments.window_jax import borders, steps
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import max_pool2d_pallas as kernels
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.max_pool2d import geometry as geometry_of
from gradlab.kernels.runtime.mesh_pallas import compiled


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _forward_rule(x, geometry):
    """y[B C P Q] = the maximum of each window of x, and the tap k that it was."""
    return kernels.forward(x, geometry)


def _forward_fwd(x, geometry):
    y, k = forward(x, geometry)
    return (y, k), k


def _forward_bwd(geometry, k, cotangents):
    return (scatter(cotangents[0], k, geometry),)


_forward_rule.defvjp(_forward_fwd, _forward_bwd)
forward = compiled(_forward_rule, static_argnums=(1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scatter_rule(u, k, geometry):
    """dx[B C H W] = the sum of u over the windows whose tap k is the pixel. Linear in u: its pullback is the gather."""
    return kernels.scatter(u, k, geometry)


def _scatter_fwd(u, k, geometry):
    return scatter(u, k, geometry), k


def _scatter_bwd(geometry, k, u):
    return gather(u, k, geometry), None


_scatter_rule.defvjp(_scatter_fwd, _scatter_bwd)
scatter = compiled(_scatter_rule, static_argnums=(2,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather_rule(u, k, geometry):
    """y[B C P Q] = u at the taps k. Linear in u: its pullback is the scatter."""
    return kernels.gather(u, k, geometry)


def _gather_fwd(u, k, geometry):
    return gather(u, k, geometry), k


def _gather_bwd(geometry, k, dy):
    return scatter(dy, k, geometry), None


_gather_rule.defvjp(_gather_fwd, _gather_bwd)
gather = compiled(_gather_rule, static_argnums=(2,))


@public("max_pool2d")
def max_pool2d(
    x: jax.Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence = "VALID",
    dilation: int | Sequence[int] = 1,
) -> jax.Array:
    """y[B P Q C] = the maximum of each window of x[B H W C]; Flax's max_pool, with torch's default for the strides.

    Args:
        x: [B H W C], or one image [H W C]; any B, 0 included; float64, float32, float16 or bfloat16.
        window: a positive number, or one for rows and one for columns.
        strides: pixels from window to window; the window's own size when not given.
        padding: border that no maximum is taken from: "VALID" (none), "SAME" (P = H / stride, rounded up; the odd row
            goes behind), a number, one for rows and one for columns, or ((top, bottom), (left, right)). torch's
            `ceil_mode` is a larger bottom and right.
        dilation: pixels from tap to tap.

    Returns:
        A new array in x's dtype. Of equal maxima the first has the gradient, a NaN is over every number. Reverse-mode
        derivatives of every order are exact.

    Raises:
        ValueError: shapes or settings that do not fit.
        TypeError: not an array of one of these dtypes, settings that are not whole numbers.
    """
    arrays = as_arrays("max_pool2d", {"x": x})
    want_floats("max_pool2d", arrays)
    x = arrays["x"]
    want_rank("max_pool2d", "x", x, "[B H W C] or [H W C]", (3, 4))
    if 0 in x.shape[-3:]:
        refuse("max_pool2d", f"x of shape {list(x.shape)}", "empty", "at least one pixel and channel")
    size = steps("max_pool2d", "window", window)
    step = size if strides is None else steps("max_pool2d", "strides", strides)
    spread = steps("max_pool2d", "dilation", dilation)
    image = (x.shape[-3], x.shape[-2])
    around = borders("max_pool2d", padding, size, step, spread, image)
    reach = [d * (k - 1) + 1 for k, d in zip(size, spread, strict=True)]
    for name, n, k, pad in zip(("rows", "columns"), image, reach, around, strict=True):
        if max(pad) >= k and pad != (0, 0):
            refuse("max_pool2d", "padding", repr(padding), f"less than the {k} {name} of a window on each side")
        if k > n + sum(pad):
            refuse("max_pool2d", "window", repr(window), f"at most the {n + sum(pad)} {name} of the padded image")
    y, _ = forward(x if x.ndim == 4 else x[None], Geometry(step, spread, around, 1, image, size))
    return y if x.ndim == 4 else y[0]


def by_spec(x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """y[B C P Q] of x[B C H W]: the Spec's order of axes and options."""
    geo = geometry_of(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    # A border below zero is a rest that no window reaches.
    around = tuple((before, max(after, 0)) for before, after in geo.pads)
    y = max_pool2d(
        jnp.transpose(x, (0, 2, 3, 1)), geo.window, strides=geo.stride, padding=around, dilation=geo.dilation
    )
    return y.transpose(0, 3, 1, 2)
