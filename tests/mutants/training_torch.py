"""Backwards on torch that are right in one plain call, and wrong in what a training loop does around it."""

import torch

from tests.mutants.corpus import CheckSubject, Family


def plain_wave(x, w):
    """The right function of x [M, N] and w [M, N]."""
    return torch.sin(x) * w


class Parts:
    """What a mutant replaces: of the gradients and their vmap, of forward mode, of the backward as a whole."""

    def gradients(self, dy, x, w):
        return dy * w * torch.cos(x), dy * torch.sin(x)

    def mapped(self, dy, x, w, of_x, of_w):
        """Of samples along the first axis; `of_x`, `of_w` say whether these have one of their own."""
        return self.gradients(dy, x, w)

    def forward_mode(self, tx, tw, x, w):
        return tx * w * torch.cos(x) + tw * torch.sin(x)

    def backward(self, ctx, grads):
        return grads


def build(parts):
    """The function of these parts; the gradients are one kernel with a vmap of its own, as a fused one has."""

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(dy, x, w):
            return parts.gradients(dy, x, w)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def vmap(info, in_dims, dy, x, w):
            given = [t.unsqueeze(0) if d is None else t.movedim(d, 0) for t, d in zip((dy, x, w), in_dims, strict=True)]
            found = parts.mapped(*given, in_dims[1] is not None, in_dims[2] is not None)
            return tuple(g.expand(info.batch_size, *g.shape[1:]) for g in found), (0, 0)

    class Wave(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(x, w):
            return plain_wave(x, w)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.inputs, ctx.cast = inputs, torch.is_autocast_enabled("cpu")
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, dy):
            return parts.backward(ctx, Gradients.apply(dy, *ctx.saved_tensors))

        @staticmethod
        def jvp(ctx, tx, tw):
            return parts.forward_mode(tx, tw, *ctx.saved_tensors)

        @staticmethod
        def vmap(info, in_dims, x, w):
            x, w = (t.unsqueeze(0) if d is None else t.movedim(d, 0) for t, d in zip((x, w), in_dims, strict=True))
            return Wave.apply(x, w), 0

    def wave(x, w):
        return Wave.apply(x, w)

    return wave


class FirstSample(Parts):
    def mapped(self, dy, x, w, of_x, of_w):
        return self.gradients(dy, x, w[:1] if of_w else w)


class SummedForShared(Parts):
    def mapped(self, dy, x, w, of_x, of_w):
        dx, dw = self.gradients(dy, x, w)
        return dx, dw if of_w else dw.sum(0, keepdim=True)


class HalfUnderAutocast(Parts):
    def backward(self, ctx, grads):
        return grads[0], grads[1] * (0.5 if ctx.cast else 1)


class ClippedUnderAutocast(Parts):
    """The residual goes through a narrow range in the low precision's path."""

    def backward(self, ctx, grads):
        _, w = ctx.saved_tensors
        return (grads[0] / w * w.clamp(-0.5, 0.5) if ctx.cast else grads[0]), grads[1]


class AddsItself(Parts):
    """Adds to w.grad what autograd adds again, as a fused product with an accumulator does that also returns it."""

    def backward(self, ctx, grads):
        w = ctx.inputs[1]
        if isinstance(w.grad, torch.Tensor):
            w.grad.data += grads[1].detach()
        return grads


class AddsAsContiguous(Parts):
    """Adds to x.grad as if it were contiguous, and returns nothing for it."""

    def backward(self, ctx, grads):
        there = ctx.inputs[0].grad
        if there is None:
            return grads
        flat = there.detach() if there.is_contiguous() else there.detach().permute(*reversed(range(there.ndim)))
        flat += grads[0].detach().reshape(flat.shape)
        return None, grads[1]


class ForwardFactor(Parts):
    def forward_mode(self, tx, tw, x, w):
        return tx * w * torch.cos(x) + 1.001 * tw * torch.sin(x)


class ForwardTerm(Parts):
    """The tangent of x takes part where that of w is 0 alone."""

    def forward_mode(self, tx, tw, x, w):
        return tx * torch.cos(x) + tw * torch.sin(x)


FAMILY = Family(
    "wave-training",
    "torch",
    lambda fault: build(fault or Parts()),
    lambda r, n: tuple(r.normal(size=(2, 4, n))),
    plain_wave,
)


def _(name, parts, shows, blames, note):
    return FAMILY.wrong(name, "contract", blames, parts(), note, shows=shows, order=1)


SUBJECTS: tuple[CheckSubject, ...] = (
    FAMILY.right(order=1),
    _("first-sample", FirstSample, "per-sample", "x", "vmap of the gradients takes the first w for all samples"),
    _("sum-of-samples", SummedForShared, "per-sample", "w", "dw of a shared w is the sum over the samples"),
    _("autocast-half", HalfUnderAutocast, "autocast", "w", "dw is half where forward was under autocast"),
    _("autocast-clipped", ClippedUnderAutocast, "autocast", "x", "w is clipped where forward was under autocast"),
    _("adds-itself", AddsItself, "grad-there", "w", "adds dw to w.grad, and returns it too"),
    _("adds-as-contiguous", AddsAsContiguous, "grad-there", "x", "adds dx to x.grad as if that were contiguous"),
    _("jvp-factor", ForwardFactor, "forward-mode", "w", "forward mode has w's term 0.1 % too large"),
    _("jvp-term", ForwardTerm, "forward-mode", "x", "forward mode forgets the factor w"),
)
