"""sigmoid for torch: y is saved, and every derivative is a polynomial of y."""

import torch

from gradlab.autodiff.arguments.errors import want_floats
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.common.elementwise_torch import Multiply
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import sigmoid_triton as kernels


class Sigmoid(Function):
    """y = sigmoid(x)."""

    @staticmethod
    def forward(x):
        return kernels.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return SigmoidBackward.apply(dy, y, 0)

    @staticmethod
    def vmap(info, in_dims, x):
        return Sigmoid.apply(x), in_dims[0]


class SigmoidBackward(Function):
    """d = a s_k(y). Linear in a; in y its slope is s_(k+1), and s_3 is 0."""

    @staticmethod
    def forward(a, y, k):
        return kernels.slope(a, y, k)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, y, ctx.k = inputs
        ctx.save_for_backward(a, y)

    @staticmethod
    def backward(ctx, u):
        a, y = ctx.saved_tensors
        need_a, need_y, _ = ctx.needs_input_grad
        da = SigmoidBackward.apply(u, y, ctx.k) if need_a else None
        dy = SigmoidBackward.apply(Multiply.apply(u, a), y, ctx.k + 1) if need_y and ctx.k < 2 else None
        return da, dy, None

    @staticmethod
    def vmap(info, in_dims, a, y, k):
        return SigmoidBackward.apply(*in_front(info.batch_size, in_dims, (a, y, k))), 0


@public("sigmoid")
def sigmoid(input: torch.Tensor) -> torch.Tensor:
    """y[...] = 1 / (1 + exp(-input)); as `torch.sigmoid`.

    Args:
        input: any shape and strides; float64, float32, float16 or bfloat16, on a CPU or CUDA.

    Returns:
        A new tensor laid out as the input. Derivatives of every order are exact.

    Raises:
        TypeError: not a strided tensor of one of these dtypes.
        ValueError: on a device without kernels.
    """
    want_tensors("sigmoid", {"input": input})
    want_floats("sigmoid", {"input": input})
    return Sigmoid.apply(input)


by_spec = sigmoid
