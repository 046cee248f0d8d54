"""binary_cross_entropy_with_logits for torch: the inputs are saved; each derivative is another kernel of the family."""

import torch

from gradlab.autodiff.arguments.errors import refuse, want_broadcast, want_floats
from gradlab.autodiff.arguments.reduction import divisor
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.common.elementwise_torch import Multiply
from gradlab.autodiff.frameworks.autocast_torch import to_float32
from gradlab.autodiff.frameworks.mapped_torch import in_front, spread
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import binary_cross_entropy_with_logits_triton as kernels

_OP = "binary_cross_entropy_with_logits"


class BinaryCrossEntropyWithLogits(Function):
    """y = the sum of w G00, over den.

    The sum is over all but the first `batch_axes` axes, which hold mapped axes.
    """

    @staticmethod
    def forward(x, t, w, p, batch_axes, den):
        return kernels.losses(x, t, w, p, batch_axes, den)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, ctx.den = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, dy):
        x, t, w, p = ctx.saved_tensors
        need_x, need_t, *_ = ctx.needs_input_grad
        c = spread(dy, x.shape)
        dx = BinaryCrossEntropyWithLogitsDerivative.apply(c, x, t, w, p, 1, 0, ctx.den) if need_x else None
        dt = BinaryCrossEntropyWithLogitsDerivative.apply(c, x, t, w, p, 0, 1, ctx.den) if need_t else None
        return dx, dt, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, t, w, p, batch_axes, den):
        tensors = in_front(info.batch_size, in_dims[:4], (x, t, w, p))
        return BinaryCrossEntropyWithLogits.apply(*tensors, batch_axes + 1, den), 0


class BinaryCrossEntropyWithLogitsDerivative(Function):
    """y = c w G_jk / den. Linear in c; by x it is G_(j+1)k, by t G_j(k+1), which ends at G02 = 0 and here at G3k."""

    @staticmethod
    def forward(c, x, t, w, p, j, k, den):
        return kernels.derivative(c, x, t, w, p, j, k, den)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.j, ctx.k, ctx.den = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, u):
        c, x, t, w, p = ctx.saved_tensors
        j, k, den, (need_c, need_x, need_t, *_) = ctx.j, ctx.k, ctx.den, ctx.needs_input_grad
        if need_x and j == 2:
            raise NotImplementedError(f"{_OP}: its third derivative is not implemented, wanted order 1 or 2")
        both = u if c is None else Multiply.apply(u, c) if need_x or need_t else None
        dc = BinaryCrossEntropyWithLogitsDerivative.apply(u, x, t, w, p, j, k, den) if need_c else None
        dx = BinaryCrossEntropyWithLogitsDerivative.apply(both, x, t, w, p, j + 1, k, den) if need_x else None
        dt = BinaryCrossEntropyWithLogitsDerivative.apply(both, x, t, w, p, j, 1, den) if need_t and k == 0 else None
        return dc, dx, dt, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return BinaryCrossEntropyWithLogitsDerivative.apply(*in_front(info.batch_size, in_dims, args)), 0


@public("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of target[...] under sigmoid(input[...]); as torch.nn.functional's function of that name.

    Args:
        input: logits, any shape, any strides; float64, float32, float16 or bfloat16, on a CPU or CUDA. Under
            `torch.autocast` all four are cast to float32 first.
        target: probabilities of yes, of the same shape.
        weight: of each loss, broadcast to the input.
        reduction: "mean" (over all elements, NaN when empty), "sum", or "none" for one loss an element.
        pos_weight: of each yes, broadcast to the input.

    Returns:
        A scalar, or a new tensor of the input's shape, in its dtype. First and second derivatives for input and
        target are exact; the two weights have none.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction, another device, a weight that requires a gradient.
        TypeError: not strided tensors of one such dtype.
        NotImplementedError: a third derivative.
    """
    input, target, weight, pos_weight = to_float32(input, target, weight, pos_weight)
    tensors = {"input": input, "target": target}
    weights = {k: v for k, v in (("weight", weight), ("pos_weight", pos_weight)) if v is not None}
    want_tensors(_OP, tensors | weights)
    want_floats(_OP, tensors | weights)
    if input.shape != target.shape:
        refuse(_OP, "shape of target", list(target.shape), f"{list(input.shape)} like input")
    for name, value in weights.items():
        if value.requires_grad:
            refuse(_OP, name, "a tensor that requires a gradient", "one without: weights have no derivative here")
        want_broadcast(_OP, name, value, input.shape, "input")
    w, p = (None if v is None else v.expand(input.shape) for v in (weight, pos_weight))
    den = divisor(_OP, reduction, input.numel())
    if reduction == "none":
        return BinaryCrossEntropyWithLogitsDerivative.apply(None, input, target, w, p, 0, 0, 1)
    return BinaryCrossEntropyWithLogits.apply(input, target, w, p, 0, den)


def by_spec(
    x: torch.Tensor,
    t: torch.Tensor,
    w: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss with the Spec's names."""
    return binary_cross_entropy_with_logits(x, t, w, reduction=reduction, pos_weight=p)
