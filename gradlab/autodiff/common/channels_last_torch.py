"""A cotangent copied to channels last once, with relu's mask applied, for all the gradients that read it."""

from gradlab.autodiff.common.conv2d_mapped_torch import as_images, from_images
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function
from gradlab.kernels.common.images_triton import channels_last


class ChannelsLast(Function):
    """y[B C H W] = x, 0 where mask <= 0, with channels contiguous. Linear in x: masking is its own pullback."""

    @staticmethod
    def forward(x, mask):
        return channels_last(x, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, dy):
        (mask,) = ctx.saved_tensors
        return dy if mask is None else ChannelsLast.apply(dy, mask), None

    @staticmethod
    def vmap(info, in_dims, x, mask):
        x, mask = as_images(*in_front(info.batch_size, in_dims, (x, mask)))
        return from_images(ChannelsLast.apply(x, mask), info.batch_size), 0
