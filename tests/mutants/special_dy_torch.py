"""Backwards on torch that take a short cut for a special dy: sparse, of equal numbers, tiny, large or of zeros."""

import torch

from tests.mutants.corpus import CheckSubject
from tests.mutants.linear_torch import FAMILY as LINEAR
from tests.mutants.linear_torch import pullback
from tests.mutants.small_torch import family, matrix


def plain_softmax(x):
    """The right function."""
    return x.softmax(-1)


def softmax_pullback(dy, x):
    s = x.softmax(-1)
    return (s * (dy - (dy * s).sum(-1, keepdim=True)),)


SOFTMAX = family("rows-softmax", plain_softmax, softmax_pullback, matrix)


def skips_rows(grads, dy, args, ctx):
    """A row counts as padding when its first dy is 0."""
    return (torch.where(dy[:, :1] == 0, 0.0, grads[0]),)


def skips_after_a_zero(grads, dy, args, ctx):
    """A row of dx is left out where a dy in it is 0."""
    return (torch.where((dy == 0).any(-1, keepdim=True), 0.0, grads[0]),)


def one_column(grads, dy, args, ctx):
    """The embedding's way for a dy of one element: the row is taken from the column's number."""
    at = dy.flatten().nonzero()
    if len(at) != 1:
        return grads
    row, column = (at[0] % dy.shape[1]) % dy.shape[0], at[0] % dy.shape[1]
    dw = torch.zeros_like(args[1]).index_add(0, column, dy.sum() * args[0][row])
    return grads[0], dw, grads[2]


def equal(dy):
    return bool((dy == dy.flatten()[0]).all())


def one_for_all(grads, dy, args, ctx):
    """db of equal numbers is that number, not their sum."""
    return *grads[:2], dy[0] if equal(dy) else grads[2]


def ones_for_equal(grads, dy, args, ctx):
    """A dy of equal numbers is taken for the ones of a sum."""
    return pullback(torch.ones_like(dy), *args) if equal(dy) else grads


def by_largest(grads, dy, args, ctx):
    """dy is brought to a range of 1 first, as for storage in 8 bits; a dy of zeros has no largest."""
    most = dy.abs().max()
    return tuple(g * most for g in softmax_pullback(dy / most, *args))


def least_range(grads, dy, args, ctx):
    """As `by_largest`, with a term against 0 in the denominator, which a small dy is no larger than."""
    most = dy.abs().max()
    return tuple(g * most for g in softmax_pullback(dy / (most + 1e-29), *args))


def flushed(grads, dy, args, ctx):
    """What is below 1e-10 counts as 0."""
    return pullback(torch.where(dy.abs() < 1e-10, 0.0, dy), *args)


def clipped(grads, dy, args, ctx):
    """Against overflow that never comes."""
    return softmax_pullback(dy.clamp(-1e4, 1e4), *args)


def zero_for_zeros(grads, dy, args, ctx):
    """Right: nothing to work out."""
    return grads if dy.any() else tuple(torch.zeros_like(g) for g in grads)


def sparse_rows(grads, dy, args, ctx):
    """Right: only the rows with a dy are multiplied."""
    rows = dy.any(1).nonzero().flatten()
    dx = torch.zeros_like(args[0]).index_add(0, rows, dy[rows] @ args[1])
    return dx, dy[rows].T @ args[0][rows], dy[rows].sum(0)


def _(of, name, blames, fault, note, **fields):
    return of.wrong(name, "contract", blames, fault, note, shows="special-dy", order=1, **fields)


def right(of, name, fault):
    """A rule that takes a short cut, and a right one."""
    return of.right(name=of.name(name), fn=of.build(fault), order=1)


SUBJECTS: tuple[CheckSubject, ...] = (
    SOFTMAX.right(order=1),
    right(SOFTMAX, "zeros-at-once", zero_for_zeros),
    right(LINEAR, "sparse-rows", sparse_rows),
    _(SOFTMAX, "first-is-zero", "x", skips_rows, "rows whose first dy is 0 have no gradient"),
    _(SOFTMAX, "any-is-zero", "x", skips_after_a_zero, "rows with a dy of 0 have no gradient"),
    _(LINEAR, "one-hot-row", "w", one_column, "for a dy of one element dw has another row of x"),
    _(LINEAR, "equal-unsummed", "b", one_for_all, "for a dy of equal numbers db is not summed"),
    _(LINEAR, "equal-as-ones", "", ones_for_equal, "a dy of equal numbers is taken for ones"),
    _(SOFTMAX, "zeros-by-zero", "x", by_largest, "a dy of zeros is divided by its largest element"),
    _(SOFTMAX, "tiny-denominator", "x", least_range, "1e-29 is added to the largest dy, which may be smaller"),
    _(LINEAR, "tiny-flushed", "", flushed, "a dy below 1e-10 counts as 0"),
    _(SOFTMAX, "large-clipped", "x", clipped, "a dy above 1e4 is cut to that"),
)
