"""Backwards on torch whose loss hides below 1e-8 of the whole: small rows, small columns, small elements."""

import numpy as np
import torch

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.linear_torch import plain_linear, pullback
from tests.mutants.rule_of_torch import rule


def plain_graded(x, s):
    """The right function: x [N], each element with its own size s [N]."""
    return torch.sin(x) * s


def graded_pullback(dy, x, s):
    return dy * torch.cos(x) * s, dy * torch.sin(x)


def build_graded(fault):
    f = rule(plain_graded, graded_pullback, fault)
    return lambda x, s: f(x, s)


def make_graded(rng, size):
    return rng.uniform(-1, 1, size), np.logspace(0, -12, size)


GRADED = Family("graded", "torch", build_graded, make_graded, plain_graded)


def small_doubled(grads, dy, args, ctx):
    return grads[0] * (1 + (args[1] < 1e-9)), grads[1]


def small_dropped(grads, dy, args, ctx):
    most = grads[0].abs().max()
    return torch.where(grads[0].abs() < 1e-9 * most, 0.0, grads[0]), grads[1]


def offset(grads, dy, args, ctx):
    """A term against 0 that is no longer small beside the gradient."""
    return grads[0] + 1e-11, grads[1]


def build_linear(fault):
    f = rule(plain_linear, pullback, fault)
    return lambda x, w, b: f(x, w, b)


def make_column(rng, size):
    """The last column of x is 4e-10 of the others: so is its column of dw."""
    x = rng.normal(size=(4, size))
    x[:, -1] *= 4e-10
    return x, rng.normal(size=(size, size)) / size**0.5, rng.normal(size=size)


COLUMN = Family("small-column", "torch", build_linear, make_column, plain_linear)


def last_column_twice(g):
    return torch.cat([g[:, :-1], 2 * g[:, -1:]], 1)


def last_column_zero(g):
    return torch.cat([g[:, :-1], 0 * g[:, -1:]], 1)


def _(of, name, blames, fault, note):
    return of.wrong(name, "small", blames, fault, note, shows="hidden", order=1)


SUBJECTS: tuple[CheckSubject, ...] = (
    GRADED.right(order=1),
    COLUMN.right(order=1),
    _(GRADED, "doubled", "x", small_doubled, "twice the gradient where s is below 1e-9"),
    _(GRADED, "dropped", "x", small_dropped, "no gradient below 1e-9 of the largest"),
    _(GRADED, "offset", "x", offset, "1e-11 is added to each"),
    _(COLUMN, "twice", "w", change(1, last_column_twice), "twice the gradient in the small column"),
    _(COLUMN, "zero", "w", change(1, last_column_zero), "no gradient in the small column"),
)
