"""relu for torch: y is saved, whose sign is the mask; masking is linear and its own pullback."""

import torch

from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import relu_triton as kernels


class ReluMask(Function):
    """y = x where mask > 0, else 0. Linear in x; the mask is a step function and has no gradient."""

    @staticmethod
    def forward(x, mask):
        return kernels.relu_mask(x, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, dy):
        (mask,) = ctx.saved_tensors
        return ReluMask.apply(dy, mask), None

    @staticmethod
    def vmap(info, in_dims, *args):
        return ReluMask.apply(*in_front(info.batch_size, in_dims, args)), 0


class Relu(Function):
    """y = max(x, 0)."""

    @staticmethod
    def forward(x):
        return kernels.relu_mask(x, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return ReluMask.apply(dy, y)

    @staticmethod
    def vmap(info, in_dims, x):
        return Relu.apply(x), in_dims[0]


@public("relu")
def relu(input: torch.Tensor) -> torch.Tensor:
    """y[...] = max(input[...], 0), as `torch.nn.functional.relu` out of place.

    Args:
        input: any shape and strides; float64, float32, float16 or bfloat16, on a CPU or CUDA.

    Returns:
        A new tensor laid out as the input. The derivative at 0 is 0; derivatives of every order are exact.

    Raises:
        TypeError: not a strided tensor of one of these dtypes.
        ValueError: on a device without kernels.
    """
    want_tensors("relu", {"input": input})
    want_floats("relu", {"input": input})
    return Relu.apply(input)


by_spec = relu
