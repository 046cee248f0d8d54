"""cross_entropy on torch that gives away the memory of its logits: their gradient is written over them.

One array of M V elements is there before, between and after: the logits become the gradient, of a sum or a mean in the
forward pass, else in the backward pass. It is saved as autograd saves, so hooks, checkpoint and offload see it.
"""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.class_losses.row_sums_torch import Reduction, divisors, joined, reduced
from gradlab.autodiff.frameworks.batched_torch import is_batched
from gradlab.autodiff.frameworks.ranges_torch import Function
from gradlab.kernels import cross_entropy_triton as plain
from gradlab.kernels.class_losses import in_place_triton as kernels
from gradlab.kernels.class_losses import row_sums_triton as sums
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.private.private_torch import innermost_transform
from gradlab.kernels.runtime.plans_triton import unplanned

_OP = "cross_entropy"
# The version at which logits were given away: until somebody writes to them again, they hold no logits.
_given = WeakTensorKeyDictionary()


class CrossEntropyWithGradient(Function):
    """The sum or mean of y + z_loss z; its gradient, for a cotangent of 1, is then what the logits' memory holds."""

    @staticmethod
    def forward(x, t, q, w, n, z_loss, options):
        y, z = kernels.loss_with_gradient_(x, t, q, w, n, *options, z_loss)
        _give(x)
        loss, _ = joined([sums.sum_rows(part) for part in ((y, z) if z_loss else (y,))], n, z_loss)
        return loss

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.taken = False

    @staticmethod
    def backward(ctx, dr):
        _want_one_backward(ctx.taken, dr)
        (x,) = ctx.saved_tensors
        ctx.taken = True
        g = x.detach()
        kernels.scale_(g, dr)
        _give(x)
        return g, *(None,) * 6


class CrossEntropyInplace(Function):
    """y and z whose backward writes the gradient over the logits."""

    @staticmethod
    def forward(x, t, q, w, options):
        return plain.loss(x, t, q, w, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, t, q, w, ctx.options = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, output[2], t, q, w)
        ctx.taken = False

    @staticmethod
    def backward(ctx, c, e, _):
        _want_one_backward(ctx.taken, c, e)
        x, s, t, q, w = ctx.saved_tensors
        ctx.taken = True
        g = x.detach()
        if c is None:
            c = s.new_zeros(()).expand(s.shape[1])
        kernels.backward_(c, e, g, s, t, q, w, *ctx.options)
        _give(x)
        return g, *(None,) * 4


def _give(x: torch.Tensor) -> None:
    """Tell autograd, and whoever comes with these logits again, that their memory holds something else."""
    torch.autograd.graph.increment_version(x)
    _given[_whole(x)] = x._version


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x if x._base is None else x._base


def _want_one_backward(taken: bool, *cotangents: torch.Tensor | None) -> None:
    if taken:
        raise RuntimeError(
            f"{_OP}: a second backward pass came after inplace=True, wanted one: the gradient took the "
            "memory of the logits, and the first pass handed it over"
        )
    if any(is_batched(c) for c in cotangents):
        raise NotImplementedError(
            f"{_OP}: a batched backward pass came with inplace=True, wanted inplace=False: the "
            "memory of the logits holds one gradient"
        )
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{_OP}: a second derivative came with inplace=True, wanted inplace=False: the "
            "gradient takes the memory of the logits"
        )


def onto(
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    w: torch.Tensor | None,
    options: ClassLoss,
    asked: Reduction,
    leaf: bool,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The loss of logits x[N V D], and what the z-loss added; None where no gradient asks for their memory."""
    # Which logits were given away is remembered.
    unplanned()
    _want_place(x, q, leaf)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return None
    V = x.shape[1]
    # At once with the loss unless something is lost: a z-loss travels to the kernel in float32, which is too little for
    # float64, and in float16 a gradient that is scaled later underflows before.
    early = asked.reduction != "none" and not asked.return_z_loss
    early &= asked.z_loss == 0 or x.dtype != torch.float64
    early &= x.dtype != torch.float16
    if early:
        M = x.shape[0] * x.shape[2]
        n = divisors(x, M, t, w, V, options.ignore_index) if asked.reduction == "mean" else None
        loss = CrossEntropyWithGradient.apply(x, t, q, w, n, asked.z_loss, options)
        return loss, loss
    y, z, _ = CrossEntropyInplace.apply(x, t, q, w, options)
    return reduced(y, z, t, w, V, options.ignore_index, asked)


def _want_place(x: torch.Tensor, q: torch.Tensor | None, leaf: bool) -> None:
    """Refuse logits whose memory cannot be given away."""
    if torch.compiler.is_compiling() or innermost_transform() is not None:
        refuse(_OP, "inplace", "True inside a compiler or a transform", "False: what it frees is theirs to know")
    if x.requires_grad and leaf:
        refuse(_OP, "inplace", "True for a leaf that requires a gradient", "False, or logits that were computed")
    if q is not None and q.requires_grad:
        refuse(_OP, "inplace", "True with soft targets that require a gradient", "False: they need the logits again")
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        refuse(_OP, "inplace", "True for expanded logits", "False, or logits with memory of their own")
    if _given.get(_whole(x)) == x._version:
        refuse(
            _OP,
            "inplace",
            "True for logits whose memory was given away before",
            "False, or logits computed anew, inside a checkpoint that computes again",
        )
