"""Backwards on torch whose first order is right and whose own derivative is not."""

import torch
from torch.autograd.function import once_differentiable

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.linear_torch import FAMILY, make_square, plain_linear, pullback
from tests.mutants.rule_of_torch import rule


def cotangent_detached(grads, dy, args, ctx):
    return grads[0], dy.detach().T @ args[0], grads[2]


def weight_detached(grads, dy, args, ctx):
    return dy @ args[1].detach(), *grads[1:]


def without_grad(grads, dy, args, ctx):
    with torch.no_grad():
        return pullback(dy, *args)


def by_numpy(grads, dy, args, ctx):
    dw = dy.detach().numpy().T @ args[0].detach().numpy()
    return grads[0], torch.from_numpy(dw), grads[2]


class Once(torch.autograd.Function):
    """Silent where the cotangent is a constant, and an error where it is not."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w, b)
        return plain_linear(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return pullback(dy, *ctx.saved_tensors)


def once(x, w, b):
    return Once.apply(x, w, b)


def inner(index, edit):
    """dw by a Function of its own, with a wrong backward: of dy at index 0, of x at 1."""
    product = rule(lambda dy, x: dy.T @ x, lambda ddw, dy, x: (x @ ddw.T, dy @ ddw), change(index, edit))
    return lambda grads, dy, args, ctx: (grads[0], product(dy, args[0]), grads[2])


def cube_pullback(dy, x):
    return (3 * x * x * dy,)


def build_cube(fault):
    """`fault` edits the derivatives of 3 x² dy with respect to dy and x."""
    slope = rule(
        lambda dy, x: 3 * x * x * dy,
        lambda ddx, dy, x: (3 * x * x * ddx, 6 * x * dy * ddx),
        fault or change(0, lambda g: g),
    )
    f = rule(lambda x: x**3, lambda dy, x: (slope(dy, x),))

    def cube(x):
        return f(x)

    return cube


CUBE = Family("cube", "torch", build_cube, lambda rng, size: (rng.normal(size=size),), lambda x: x**3)


def _(family, name, blames, fault, note, **fields):
    return family.wrong(name, "order-2", blames, fault, note, **{"shows": "second", **fields})


SUBJECTS: tuple[CheckSubject, ...] = (
    _(FAMILY, "cotangent-detached", "w", cotangent_detached, "dw takes dy for a constant"),
    _(FAMILY, "weight-detached", "x", weight_detached, "dx takes w for a constant"),
    _(FAMILY, "without-grad", "x w b", without_grad, "the whole backward runs under no_grad"),
    _(FAMILY, "by-numpy", "w", by_numpy, "dw is computed by NumPy"),
    _(FAMILY, "once", "x w b", None, "once_differentiable, so that a second derivative raises or is lost", fn=once),
    _(FAMILY, "inner-transposed", "w", inner(1, torch.t), "dw's own dx is transposed", make=make_square),
    _(CUBE, "inner-half", "x", change(1, lambda g: 0.5 * g), "6 x is 3 x in the second derivative"),
    _(CUBE, "inner-sign", "x", change(1, torch.neg), "the second derivative has the wrong sign"),
    _(CUBE, "inner-scale", "x", change(1, lambda g: 1.0005 * g), "the second derivative is 5e-4 too large"),
    _(CUBE, "inner-first", "x", change(0, torch.zeros_like), "the derivative by the cotangent is zero"),
)
