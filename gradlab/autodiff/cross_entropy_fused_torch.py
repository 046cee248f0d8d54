"""cross_entropy in eager torch with its gradient computed on the way there, or written over the logits."""

import torch

from gradlab.autodiff.arguments import refuse
from gradlab.autodiff.class_losses import Options
from gradlab.autodiff.ranges_torch import Function
from gradlab.autodiff.row_sums_torch import Reduction, divisors, joined, reduced
from gradlab.kernels import cross_entropy_fused_triton as kernels
from gradlab.kernels import cross_entropy_triton as plain
from gradlab.kernels import row_sums_triton as sums

_OP = "cross_entropy"


class Fused(Function):
    """The sum or mean of y + z_loss z, and beside it the gradient; the first way back hands that over."""

    @staticmethod
    def forward(x, t, q, w, n, z_loss, inplace, pullback, options):
        if inplace:
            y, z, s = kernels.fused_(x, t, q, w, n, *options, z_loss)
            torch.autograd.graph.increment_version(x)
            g = x.new_empty(0)
        else:
            y, z, s, g = kernels.fused(x, t, q, w, n, *options, z_loss)
        loss, _ = joined([sums.total(part) for part in ((y, z) if z_loss else (y,))], n, z_loss)
        return loss, s, g

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, t, q, w, n, ctx.z_loss, ctx.inplace, ctx.pullback, ctx.options = inputs
        _, s, g = output
        ctx.mark_non_differentiable(s, g)
        ctx.gradient = x.detach() if ctx.inplace else g
        if not ctx.inplace:
            ctx.save_for_backward(x, s, t, q, w, n)

    @staticmethod
    def backward(ctx, dr, *_):
        g = ctx.gradient
        if ctx.inplace:
            _want_one_way_back(g is None)
            ctx.gradient = None
            kernels.scale_(g, dr)
            return g, *(None,) * 8
        x, s, t, q, w, n = ctx.saved_tensors
        c = (dr if n is None else dr / n[0]).expand(s.shape[1])
        e = None
        if ctx.z_loss:
            e = (ctx.z_loss * dr if n is None else ctx.z_loss * dr / n[1]).expand(s.shape[1])
        if g is None or torch.is_grad_enabled():
            return ctx.pullback.apply(c, e, x, s, t, q, w, ctx.options), *(None,) * 8
        # Handed over, not lent: what autograd does with it from here on changes nothing that is kept.
        ctx.gradient = None
        kernels.finish_(g, dr, c, e, x, s, t, q, w, *ctx.options)
        return g, *(None,) * 8


class Onto(Function):
    """y and z whose way back writes the gradient over the logits."""

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
        _want_one_way_back(ctx.taken)
        x, s, t, q, w = ctx.saved_tensors
        ctx.taken = True
        x = x.detach()
        if c is None:
            c = s.new_zeros(()).expand(s.shape[1])
        kernels.pullback_(c, e, x, s, t, q, w, *ctx.options)
        torch.autograd.graph.increment_version(x)
        return x, *(None,) * 4


def _want_one_way_back(taken: bool) -> None:
    if taken:
        raise RuntimeError(f"{_OP}: a second backward pass came after inplace=True, wanted one: the gradient took the "
                           "memory of the logits, and the first pass handed it over")  # fmt: skip
    if torch.is_grad_enabled():
        raise NotImplementedError(f"{_OP}: a second derivative came with inplace=True, wanted inplace=False: the "
                                  "gradient takes the memory of the logits")  # fmt: skip


def fused(x: torch.Tensor, t: torch.Tensor | None, q: torch.Tensor | None, w: torch.Tensor | None, options: Options,
          asked: Reduction, pullback: type[Function], inplace: bool, leaf: bool,
          ) -> tuple[torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """The loss of logits x[N V D], and what the z-loss added; None where the plain rules are to do it."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    if inplace:
        _want_place(x, q, leaf, traced)
    if traced or not (torch.is_grad_enabled() and x.requires_grad) or (q is not None and q.requires_grad):
        return None
    V = x.shape[1]
    early = asked.reduction != "none" and not asked.return_z_loss
    # A z-loss travels to the kernel in float32, which is too little for float64.
    early &= asked.z_loss == 0 or x.dtype != torch.float64
    # In place the gradient is scaled later, and in float16 it would underflow before.
    early &= not inplace or x.dtype != torch.float16
    if early:
        M = x.shape[0] * x.shape[2]
        n = divisors(x, M, t, w, V, options.ignore_index) if asked.reduction == "mean" else None
        loss, _, _ = Fused.apply(x, t, q, w, n, asked.z_loss, inplace, pullback, options)
        return loss, loss
    if not inplace:
        return None
    y, z, _ = Onto.apply(x, t, q, w, options)
    return reduced(y, z, t, w, V, options.ignore_index, asked)


def _want_place(x: torch.Tensor, q: torch.Tensor | None, leaf: bool, traced: bool) -> None:
    """Refuse logits whose memory cannot be given away."""
    if traced:
        refuse(_OP, "inplace", "True inside a compiler or a transform", "False: what it frees is theirs to know")
    if x.requires_grad and leaf:
        refuse(_OP, "inplace", "True for a leaf that requires a gradient", "False, or logits that were computed")
    if q is not None and q.requires_grad:
        refuse(_OP, "inplace", "True with soft targets that require a gradient", "False: they need the logits again")
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        refuse(_OP, "inplace", "True for expanded logits", "False, or logits with memory of their own")
