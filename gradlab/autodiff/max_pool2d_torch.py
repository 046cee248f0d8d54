"""max_pool2d for torch: kept is which tap was the maximum; gather and scatter by it are each other's pullbacks."""

import torch

from gradlab.autodiff.arguments import refuse, want_floats, want_rank
from gradlab.autodiff.arguments_torch import want_tensors
from gradlab.autodiff.mapped_torch import in_front
from gradlab.autodiff.window_torch import pair_of
from gradlab.kernels import max_pool2d_triton as kernels
from gradlab.kernels.images_triton import lies_channels_last
from gradlab.kernels.max_pool2d import geometry as geometry_of
from gradlab.kernels.window import Geometry


class Forward(torch.autograd.Function):
    """y[B C P Q] = the maximum of each window of x, and the tap k that it was."""

    @staticmethod
    def forward(x, geometry):
        return kernels.forward(x, geometry, lies_channels_last(x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.geometry = inputs
        ctx.channels_last = lies_channels_last(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, dy, _):
        (k,) = ctx.saved_tensors
        return Scatter.apply(dy, k, ctx.geometry, ctx.channels_last), None

    @staticmethod
    def vmap(info, in_dims, x, geometry):
        y, k = Forward.apply(x.movedim(in_dims[0], 0).flatten(0, 1), geometry)
        return (y.unflatten(0, (info.batch_size, -1)), k.unflatten(0, (info.batch_size, -1))), (0, 0)


class Scatter(torch.autograd.Function):
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
        return Gather.apply(u, k, ctx.geometry, ctx.channels_last), None, None, None

    @staticmethod
    def vmap(info, in_dims, u, k, geometry, channels_last):
        u, k = (t.flatten(0, 1) for t in in_front(info.batch_size, in_dims[:2], (u, k)))
        return Scatter.apply(u, k, geometry, channels_last).unflatten(0, (info.batch_size, -1)), 0


class Gather(torch.autograd.Function):
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
        return Scatter.apply(dy, k, ctx.geometry, ctx.channels_last), None, None, None

    @staticmethod
    def vmap(info, in_dims, u, k, geometry, channels_last):
        u, k = (t.flatten(0, 1) for t in in_front(info.batch_size, in_dims[:2], (u, k)))
        return Gather.apply(u, k, geometry, channels_last).unflatten(0, (info.batch_size, -1)), 0


def max_pool2d(input: torch.Tensor, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None,
               padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y[B C P Q] = the maximum of each window of input[B C H W]; as `torch.nn.functional.max_pool2d`.

    Args:
        input: [B C H W] or, unbatched, [C H W]; B may be 0; any strides; float64, float32, float16 or bfloat16, on a
            CPU or CUDA.
        kernel_size: the window, a positive number, or one for rows and one for columns.
        stride: pixels from window to window; the window's own size when not given.
        padding: border that no maximum is taken from, at most half the window.
        dilation: pixels from tap to tap.
        ceil_mode: keep the windows that start inside and reach over the lower border.
        return_indices: give i * W + j of each maximum too, int64.

    Returns:
        A new tensor, channels last where the input lies so. Of equal maxima the first has the gradient, a NaN is over
        every number. Derivatives of every order are exact.

    Raises:
        ValueError: a shape, window, stride, padding or dilation out of range, another device.
        TypeError: not a strided tensor of one of these dtypes.
    """
    want_tensors("max_pool2d", {"input": input})
    want_floats("max_pool2d", {"input": input})
    want_rank("max_pool2d", "input", input, "[B C H W] or [C H W]", (3, 4))
    if 0 in input.shape[-3:]:
        refuse("max_pool2d", f"input of shape {list(input.shape)}", "empty", "at least one channel and pixel")
    window = pair_of("max_pool2d", "kernel_size", kernel_size, 1)
    # torch takes an empty sequence for the window's own size too.
    given = window if stride is None or stride == () or stride == [] else stride
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
    y, k = Forward.apply(x, geometry.flat())
    y, k = (t if input.ndim == 4 else t.squeeze(0) for t in (y, k))
    return (y, _indices(k, geometry)) if return_indices else y


def _indices(k: torch.Tensor, geo: Geometry) -> torch.Tensor:
    """i * W + j of the taps k[... P Q]."""
    (P, Q), (top, _), (left, _) = geo.result, *geo.pads
    p, q = torch.arange(P, device=k.device)[:, None], torch.arange(Q, device=k.device)
    i = p * geo.stride[0] - top + k // geo.window[1] * geo.dilation[0]
    j = q * geo.stride[1] - left + k % geo.window[1] * geo.dilation[1]
    return i * geo.image[1] + j


by_spec = max_pool2d
