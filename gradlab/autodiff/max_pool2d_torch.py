"""max_pool2d for torch: the tap of each maximum is saved; gather and scatter by it are each other's pullbacks."""

from typing import Any, Literal, overload

import torch

from gradlab.autodiff.arguments.errors import refuse, want_bool, want_floats, want_rank
from gradlab.autodiff.arguments.shards_torch import on_parts
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.arguments.window_torch import pair_of
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import max_pool2d_triton as kernels
from gradlab.kernels.common.images_triton import suggests_channels_last
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.max_pool2d import geometry as geometry_of


class MaxPool2d(Function):
    """y[B C P Q] = the maximum of each window of x, and the tap k that it was."""

    @staticmethod
    def forward(x, geometry, channels_last):
        return kernels.forward(x, geometry, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.geometry, ctx.channels_last = inputs
        ctx.mark_non_differentiable(output[1])
        # Else backward would be handed zeros for the taps, as many as there are results.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, dy, _):
        (k,) = ctx.saved_tensors
        return None if dy is None else MaxPool2dScatter.apply(dy, k, ctx.geometry, ctx.channels_last), None, None

    @staticmethod
    def vmap(info, in_dims, x, geometry, channels_last):
        x = x.movedim(in_dims[0], 0)
        y, k = MaxPool2d.apply(x.flatten(0, 1), geometry, channels_last)
        return (y.unflatten(0, x.shape[:2]), k.unflatten(0, x.shape[:2])), (0, 0)


class MaxPool2dScatter(Function):
    """dx[B C H W] = the sum of u over the windows whose tap k is the pixel. Linear in u: its pullback is the gather."""

    @staticmethod
    def forward(u, k, geometry, channels_last):
        return kernels.scatter(u, k, geometry, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, k, ctx.geometry, ctx.channels_last = inputs
        ctx.save_for_backward(k)

    @staticmethod
    def backward(ctx, u):
        (k,) = ctx.saved_tensors
        return MaxPool2dGather.apply(u, k, ctx.geometry, ctx.channels_last), None, None, None

    @staticmethod
    def vmap(info, in_dims, u, k, geometry, channels_last):
        u, k = in_front(info.batch_size, in_dims[:2], (u, k))
        return MaxPool2dScatter.apply(u.flatten(0, 1), k.flatten(0, 1), geometry, channels_last).unflatten(
            0, u.shape[:2]
        ), 0


class MaxPool2dGather(Function):
    """y[B C P Q] = u at the taps k. Linear in u: its pullback is the scatter."""

    @staticmethod
    def forward(u, k, geometry, channels_last):
        return kernels.gather(u, k, geometry, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, k, ctx.geometry, ctx.channels_last = inputs
        ctx.save_for_backward(k)

    @staticmethod
    def backward(ctx, dy):
        (k,) = ctx.saved_tensors
        return MaxPool2dScatter.apply(dy, k, ctx.geometry, ctx.channels_last), None, None, None

    @staticmethod
    def vmap(info, in_dims, u, k, geometry, channels_last):
        u, k = in_front(info.batch_size, in_dims[:2], (u, k))
        return MaxPool2dGather.apply(u.flatten(0, 1), k.flatten(0, 1), geometry, channels_last).unflatten(
            0, u.shape[:2]
        ), 0


@overload
def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    *,
    return_indices: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Any: ...
@public("max_pool2d")
def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y[B C P Q] = the maximum of each window of input[B C H W]; as `torch.nn.functional.max_pool2d`.

    Args:
        input: [B C H W] or, unbatched, [C H W]; B may be 0; any strides; float64, float32, float16 or bfloat16, on a
            CPU or CUDA.
        kernel_size: the window, a positive number, or one for rows and one for columns.
        stride: pixels from window to window; the window's own size when not given.
        padding: border that no maximum is taken from, at most half the window.
        dilation: pixels from tap to tap.
        ceil_mode: keep the windows that start inside, or in the border before, and reach over the border behind.
        return_indices: give i * W + j of each maximum too, int64.

    Returns:
        A new tensor, channels last where torch's own is. Of equal maxima the first has the gradient, a NaN is over
        every number. Derivatives of every order are exact.

    Raises:
        ValueError: a shape, window, stride, padding or dilation out of range, another device.
        TypeError: not a strided tensor of one of these dtypes, a ceil_mode that is no boolean.
    """
    want_tensors("max_pool2d", {"input": input})
    want_floats("max_pool2d", {"input": input})
    want_rank("max_pool2d", "input", input, "[B C H W] or [C H W]", (3, 4))
    want_bool("max_pool2d", "ceil_mode", ceil_mode)
    if 0 in input.shape[-3:]:
        refuse("max_pool2d", f"input of shape {list(input.shape)}", "empty", "at least one channel and pixel")
    window = pair_of("max_pool2d", "kernel_size", kernel_size, 1)
    # torch takes an empty sequence for the window's own size too.
    given = window if stride is None or (isinstance(stride, (tuple, list)) and not stride) else stride
    step = pair_of("max_pool2d", "stride", given, 1)
    spread, edge = pair_of("max_pool2d", "dilation", dilation, 1), pair_of("max_pool2d", "padding", padding, 0)
    if any(p > k // 2 for p, k in zip(edge, window, strict=True)):
        refuse("max_pool2d", "padding", repr(padding), f"at most half of kernel_size {window}")
    geometry = geometry_of(tuple(input.shape[-2:]), window, step, edge, spread, ceil_mode)
    if min(geometry.result) < 1:
        padded = [n + 2 * p for n, p in zip(input.shape[-2:], edge, strict=True)]
        reach = [d * (k - 1) + 1 for k, d in zip(window, spread, strict=True)]
        refuse("max_pool2d", "the padded image", padded, f"at least the window's {reach}")
    x = input if input.ndim == 4 else input.unsqueeze(0)
    y, k = MaxPool2d.apply(x, geometry.flat(), suggests_channels_last(input))
    y, k = (t if input.ndim == 4 else t.squeeze(0) for t in (y, k))
    return (y, on_parts(lambda part: _indices(part, geometry), k)) if return_indices else y


def _indices(k: torch.Tensor, geo: Geometry) -> torch.Tensor:
    """i * W + j of the taps k[... P Q]; where a window holds no pixel, that of its first tap past the near border."""
    (P, Q), (top, _), (left, _) = geo.result, *geo.pads
    p = torch.arange(P, device=k.device)[:, None] * geo.stride[0] - top
    q = torch.arange(Q, device=k.device) * geo.stride[1] - left
    # A byte holds a tap, not a place.
    k = k.long()
    r, s = k // geo.window[1], k % geo.window[1]
    i = torch.where(k < 0, torch.where(p < 0, p % geo.dilation[0], p), p + r * geo.dilation[0])
    j = torch.where(k < 0, torch.where(q < 0, q % geo.dilation[1], q), q + s * geo.dilation[1])
    return i * geo.image[1] + j


by_spec = max_pool2d
