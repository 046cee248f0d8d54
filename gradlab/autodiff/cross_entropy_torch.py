"""cross_entropy for torch: kept are the logits and two numbers a row; the softmax is computed again on the way back."""

import torch

from gradlab.autodiff.arguments import dtype_name, refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.arguments_torch import want_tensors
from gradlab.autodiff.autocast_torch import raised
from gradlab.autodiff.mapped_torch import in_front, merged
from gradlab.autodiff.ranges_torch import Function, public
from gradlab.kernels import cross_entropy_triton as kernels


class Loss(Function):
    """y[M] = log sum_v exp x[m v] - x[m t[m]], and each row's maximum and log of its sum of exponentials."""

    @staticmethod
    def forward(x, t, ignore_index):
        return kernels.loss(x, t, ignore_index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, t, ctx.ignore_index = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], t)

    @staticmethod
    def backward(ctx, dy, _):
        return Pullback.apply(dy, *ctx.saved_tensors, ctx.ignore_index), None, None

    @staticmethod
    def vmap(info, in_dims, x, t, ignore_index):
        x, t = in_front(info.batch_size, in_dims[:2], (x, t))
        y, s = Loss.apply(x.flatten(0, 1), t.flatten(), ignore_index)
        return (y.reshape(t.shape), s.reshape(2, *t.shape)), (0, 1)


class Pullback(Function):
    """dx[m v] = dy[m] (softmax(x)[m v] - onehot(t)[m v])."""

    @staticmethod
    def forward(dy, x, s, t, ignore_index):
        return kernels.pullback(dy, x, s, t, ignore_index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.ignore_index = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, u):
        ddy, dx = Second.apply(u, *ctx.saved_tensors, ctx.ignore_index)
        return ddy, dx, None, None, None

    @staticmethod
    def vmap(info, in_dims, dy, x, s, t, ignore_index):
        dy, x, s, t = in_front(info.batch_size, in_dims[:4], (dy, x, s, t))
        dx = Pullback.apply(dy.flatten(), x.flatten(0, 1), _rows(s), t.flatten(), ignore_index)
        return dx.reshape(x.shape), 0


class Second(Function):
    """The pullback of the pullback: the row's dot product for dy, the Hessian-vector product for x."""

    @staticmethod
    def forward(u, dy, x, s, t, ignore_index):
        ddy, dx = kernels.second(u, dy, x, s, t, ignore_index)
        return ddy.to(dy.dtype), dx

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError("cross_entropy: its third derivative is not implemented, wanted order 1 or 2")

    @staticmethod
    def vmap(info, in_dims, u, dy, x, s, t, ignore_index):
        u, dy, x, s, t = in_front(info.batch_size, in_dims[:5], (u, dy, x, s, t))
        flat = u.flatten(0, 1), dy.flatten(), x.flatten(0, 1), _rows(s), t.flatten()
        ddy, dx = Second.apply(*flat, ignore_index)
        return (ddy.reshape(dy.shape), dx.reshape(x.shape)), (0, 0)


def _rows(s: torch.Tensor) -> torch.Tensor:
    """[2 Z*M] of the statistics [Z 2 M]."""
    return s.movedim(0, 1).flatten(1)


class Total(Function):
    """The sum of y[M], or its mean over the n rows that are not ignored, and n. Linear: its pullback is a broadcast.

    Both may have one more axis Z in front, which is what a mapped axis becomes.
    """

    @staticmethod
    def forward(y, t, ignore_index, mean):
        return kernels.total(y, t, ignore_index, mean)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, _, _, ctx.mean = inputs
        ctx.shape = y.shape
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, dr):
        (r,) = ctx.saved_tensors
        dy = dr[..., :1] / r.detach()[..., 1:] if ctx.mean else dr[..., :1]
        return dy.expand(ctx.shape), None, None, None

    @staticmethod
    def vmap(info, in_dims, y, t, ignore_index, mean):
        y, t = in_front(info.batch_size, in_dims[:2], (y, t))
        r = Total.apply(merged(y, 1), merged(t, 1), ignore_index, mean)
        return r.reshape(*y.shape[:-1], 2), 0


@public("cross_entropy")
def cross_entropy(input: torch.Tensor, target: torch.Tensor, *, ignore_index: int = -100,
                  reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """Negative log-likelihood of target[M] under softmax(input[M V]); as `torch.nn.functional.cross_entropy`.

    Args:
        input: logits [M V], V >= 1, M may be 0; any strides; float64, float32, float16, bfloat16, on a CPU or CUDA.
            Under `torch.autocast` it is cast to float32 first.
        target: classes [M] in [0, V), int64 or int32, on the same device.
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V).
        reduction: "mean" over the rows not ignored (NaN when there are none), "sum", or "none" for one loss a row.

    Returns:
        A scalar, or [M], in the logits' dtype, summed in float32 or better. First and second derivatives are exact,
        the input is never changed.

    Raises:
        ValueError: shapes that do not fit, another device, an unknown reduction.
        TypeError: not a strided tensor, logits not floating, classes not integer.
        IndexError: on a CPU, a class out of range. On CUDA asking would make the host wait: such a row's loss and
            gradient are NaN there.
        NotImplementedError: a third derivative.
    """
    (input,) = raised(input)
    want_tensors("cross_entropy", {"input": input, "target": target})
    want_floats("cross_entropy", {"input": input})
    if target.dtype not in (torch.int64, torch.int32):
        refuse("cross_entropy", "dtype of target", dtype_name(target), "int64 or int32", TypeError)
    want_choice("cross_entropy", "reduction", reduction, ("none", "mean", "sum"))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        refuse("cross_entropy", "ignore_index", repr(ignore_index), "an int", TypeError)
    want_rank("cross_entropy", "input", input, "[M V]", (2,))
    want_rank("cross_entropy", "target", target, "[M]", (1,))
    want_size("cross_entropy", "target", target, 0, "M", input.shape[0], "like input's first axis")
    if input.shape[1] == 0:
        refuse("cross_entropy", f"input of shape {list(input.shape)}", "V = 0", "at least one class")
    y, _ = Loss.apply(input, target, ignore_index)
    if reduction != "none":
        y = Total.apply(y, target, ignore_index, reduction == "mean")[0]
    return y.to(input.dtype)


by_spec = cross_entropy
