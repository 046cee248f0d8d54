"""The elementwise product, which higher derivatives of elementwise ops use, for torch."""

from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function
from gradlab.kernels.common import elementwise_triton as kernels


class Multiply(Function):
    """y = a b. Its pullbacks are products again."""

    @staticmethod
    def forward(a, b):
        return kernels.times(a, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, u):
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return Multiply.apply(u, b) if need_a else None, Multiply.apply(u, a) if need_b else None

    @staticmethod
    def vmap(info, in_dims, *args):
        return Multiply.apply(*in_front(info.batch_size, in_dims, args)), 0
