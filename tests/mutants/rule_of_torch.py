"""An autograd.Function out of a forward, a pullback in plain operations, and a fault; and what the faults need."""

import numpy as np
import torch


def rule(forward, pullback, fault=None, materialize=True):
    """`forward(*args)`, `pullback(dy, *args)` and `fault(grads, dy, args, ctx)` as one function of tensors."""

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.set_materialize_grads(materialize)
            ctx.places = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
            ctx.save_for_backward(*(args[i] for i in ctx.places))
            ctx.options = [None if isinstance(a, torch.Tensor) else a for a in args]
            return forward(*args)

        @staticmethod
        def backward(ctx, *dys):
            args = list(ctx.options)
            for i, saved in zip(ctx.places, ctx.saved_tensors, strict=True):
                args[i] = saved
            dy = dys if len(dys) > 1 else dys[0]
            grads = pullback(dy, *args)
            grads = grads if fault is None else fault(grads, dy, args, ctx)
            return (*grads, *[None] * (len(args) - len(grads)))

    return Rule.apply


def keep(x, values):
    """`values` where the derivative stays that of x, so that nothing but the value is wrong at any order."""
    return x + (values - x).detach()


def rounded(x, dtype):
    """x as a residual stored in a narrower type gives it back."""
    return keep(x, x.to(dtype).to(x.dtype))


def tf32(x):
    """x with the 10 bits of mantissa that a tensor core reads."""
    bits = (x.detach().float().view(torch.int32) + 0x1000) & ~0x1FFF
    return keep(x, bits.view(torch.float32).to(x.dtype))


def weigh(like, index, weight=0.0):
    """Ones of `like`'s shape with `weight` at `index`."""
    ones = torch.ones_like(like)
    ones[index] = weight
    return ones


def as_if_contiguous(t):
    """What a kernel reads that takes t's storage for contiguous; past its end it wraps instead of faulting."""
    if t.is_contiguous():
        return t
    raw = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).detach()
    return raw[(t.storage_offset() + torch.arange(t.numel())) % raw.numel()].view(t.shape)


def write(t, edit):
    """Edit t's memory behind autograd's back: no version counter moves."""
    view = t.detach().numpy()
    if view.flags.writeable and 0 not in view.strides:
        np.copyto(view, edit(view))
