"""cross_entropy on torch that gives away the memory of its logits: their gradient is written over them.

One array of M V elements is there before, between and after: the logits become the gradient, of a sum or a mean in the
forward pass, else in the backward pass. It is saved as autograd saves, so hooks, checkpoint and offload see it.
"""

from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.class_losses.row_sums_torch import Reduction, joined, mean_divisors
from gradlab.autodiff.class_losses.vocabulary_torch import flat
from gradlab.autodiff.frameworks.batched_torch import is_batched
from gradlab.kernels.class_losses import in_place_triton as kernels
from gradlab.kernels.class_losses import row_sums_triton as sums
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.private.private_torch import innermost_transform
from gradlab.kernels.runtime.plans_triton import unplanned

_OP = "cross_entropy"
# The version at which logits were given away: until somebody writes to them again, they hold no logits.
_given = WeakTensorKeyDictionary()


class InPlace(NamedTuple):
    """When the gradient takes the logits' memory: with the loss, or in the backward pass.

    With the loss, which is the sum of y / divisors[0] + z_loss n / divisors[1], or of y + z_loss n.
    """

    with_loss: bool
    divisors: torch.Tensor | None = None
    z_loss: float = 0.0


def in_place(x, t, q, a, settings: ClassLoss, how: Reduction, leaf: bool, whole: bool) -> InPlace | None:
    """How the gradient of logits x[N V D] takes their memory; None where no gradient is asked for.

    Unless `whole` they are a part of the classes: the gradient needs the statistics of all, and comes after the loss.

    Raises:
        ValueError: their memory cannot be given away.
    """
    # Which logits were given away is remembered.
    unplanned()
    _want_place(x, q, leaf)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return None
    # With the loss unless something is lost: a z-loss travels to the kernel in float32, which is too little for
    # float64, and in float16 a gradient that is scaled later underflows before.
    with_loss = how.reduction != "none" and not how.return_z_loss
    with_loss &= how.z_loss == 0 or x.dtype != torch.float64
    with_loss &= x.dtype != torch.float16 and whole
    if not with_loss:
        return InPlace(False)
    M, V = x.shape[0] * x.shape[2], x.shape[1]
    divisors = mean_divisors(x, M, t, a, V, settings.ignore_index) if how.reduction == "mean" else None
    return InPlace(True, divisors, how.z_loss)


def loss_with_gradient(x, t, q, a, settings: ClassLoss, place: InPlace) -> torch.Tensor:
    """The reduced loss; its gradient, for a cotangent of 1, is then what the logits' memory holds."""
    y, n = kernels.loss_with_gradient_(x, t, q, a, place.divisors, place.z_loss, settings.flat())
    _give_away(x)
    parts = [sums.sum_rows(part) for part in ((y, n) if place.z_loss else (y,))]
    return joined(parts, place.divisors, place.z_loss)[0]


def gradient(ctx: Any, dy: torch.Tensor | None, dn: torch.Tensor | None) -> torch.Tensor:
    """The gradient of the logits that `ctx` has saved, in their memory; of the reduced loss for its cotangent dy[]."""
    _want_one_backward(ctx.taken, dy, dn)
    x, *others = ctx.saved_tensors
    ctx.taken = True
    dx = x.detach()
    if ctx.place.with_loss:
        kernels.scale_(dx, dy)
    else:
        t, q, a, s = others
        dy = s.new_zeros(()).expand(s.shape[1:]) if dy is None else dy
        kernels.backward_(dy, dn, dx, t, q, a, s, ctx.settings.flat(), flat(ctx.part))
    _give_away(x)
    return dx


def _give_away(x: torch.Tensor) -> None:
    """Tell autograd, and whoever comes with these logits again, that their memory holds something else."""
    torch.autograd.graph.increment_version(x)
    _given[_base(x)] = x._version


def _base(x: torch.Tensor) -> torch.Tensor:
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
    if _given.get(_base(x)) == x._version:
        refuse(
            _OP,
            "inplace",
            "True for logits whose memory was given away before",
            "False, or logits computed anew, inside a checkpoint that computes again",
        )
