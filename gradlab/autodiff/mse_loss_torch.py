"""mse_loss for torch: x and t are saved; the pullbacks of a product of differences are such products again."""

import torch

from gradlab.autodiff.arguments.errors import refuse, want_floats
from gradlab.autodiff.arguments.reduction import divisor
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.frameworks.autocast_torch import to_float32
from gradlab.autodiff.frameworks.mapped_torch import in_front, spread
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import mse_loss_triton as kernels


class MSELoss(Function):
    """y = the sum of (x - t)^2, over den.

    The sum is over all but the first `batch_axes` axes, which hold mapped axes.
    """

    @staticmethod
    def forward(x, t, batch_axes, den):
        return kernels.squares(x, t, batch_axes, den)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, t, ctx.batch_axes, ctx.den = inputs
        ctx.save_for_backward(x, t)

    @staticmethod
    def backward(ctx, dy):
        x, t = ctx.saved_tensors
        need_x, need_t, *_ = ctx.needs_input_grad
        c = spread(dy, x.shape)
        dx = MSELossBackward.apply(c, None, x, t, 2, ctx.den) if need_x else None
        dt = MSELossBackward.apply(c, None, x, t, -2, ctx.den) if need_t else None
        return dx, dt, None, None

    @staticmethod
    def vmap(info, in_dims, x, t, batch_axes, den):
        x, t = in_front(info.batch_size, in_dims[:2], (x, t))
        return MSELoss.apply(x, t, batch_axes + 1, den), 0


class MSELossBackward(Function):
    """y = num / den (a - b) (x - t), zeros for b or t that is None. Bilinear: its pullbacks are of its kind."""

    @staticmethod
    def forward(a, b, x, t, num, den):
        return kernels.differences(a, b, x, t, num, den)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.num, ctx.den = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, u):
        a, b, x, t = ctx.saved_tensors
        num, den, (need_a, need_b, need_x, need_t, *_) = ctx.num, ctx.den, ctx.needs_input_grad
        da = MSELossBackward.apply(u, None, x, t, num, den) if need_a else None
        db = MSELossBackward.apply(u, None, x, t, -num, den) if need_b else None
        dx = MSELossBackward.apply(u, None, a, b, num, den) if need_x else None
        dt = MSELossBackward.apply(u, None, a, b, -num, den) if need_t else None
        return da, db, dx, dt, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return MSELossBackward.apply(*in_front(info.batch_size, in_dims, args)), 0


@public("mse_loss")
def mse_loss(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    """The mean of (input[...] - target[...])^2; as `torch.nn.functional.mse_loss`.

    Args:
        input, target: any one shape, any strides; both of float64, float32, float16 or bfloat16, on a CPU or CUDA.
            Under `torch.autocast` they are cast to float32 first.
        reduction: "mean" (NaN when empty), "sum", or "none" for one loss an element.

    Returns:
        A scalar, or a new tensor of the inputs' shape, in their dtype. Derivatives of every order, for both inputs,
        are exact.

    Raises:
        ValueError: shapes that differ (torch broadcasts them, with a warning), an unknown reduction, another device.
        TypeError: not strided tensors of one such dtype.
    """
    input, target = to_float32(input, target)
    want_tensors("mse_loss", {"input": input, "target": target})
    want_floats("mse_loss", {"input": input, "target": target})
    if input.shape != target.shape:
        refuse("mse_loss", "shape of target", list(target.shape), f"{list(input.shape)} like input")
    den = divisor("mse_loss", reduction, input.numel())
    if reduction == "none":
        return MSELossBackward.apply(input, target, input, target, 1, 1)
    return MSELoss.apply(input, target, 0, den)


by_spec = mse_loss
