"""Backwards on torch that are right on contiguous inputs of one dtype, and wrong on what a user has."""

import torch

from tests.mutants.corpus import CheckSubject, Family
from tests.mutants.rule_of_torch import as_if_contiguous, rule


def plain_gate(x, w):
    """The right function of x [M, N] and w [M, N]: the result has w's dtype."""
    return torch.tanh(x.to(w.dtype)) * w


def gate_pullback(dy, x, w):
    y = torch.tanh(x.to(w.dtype))
    return (dy * w * (1 - y * y)).to(x.dtype), dy * y


def build_gate(fault):
    f = rule(plain_gate, gate_pullback, fault)

    def gate(x, w):
        return f(x, w)

    return gate


GATE = Family("gate", "torch", build_gate, lambda rng, n: tuple(rng.normal(size=(2, 4, n))), plain_gate)


def mixed(arrays):
    """x in bfloat16, w in float32."""
    return [arrays[0].bfloat16(), arrays[1].float()]


def one_row(arrays):
    """The first row of x, for all rows."""
    return [arrays[0][:1].expand_as(arrays[0]), arrays[1]]


def windows(arrays):
    """Rows of x that overlap, each one element on from the row before."""
    x, w = arrays
    return [x.flatten()[: x.shape[0] + x.shape[1] - 1].unfold(0, x.shape[1], 1), w]


def halved_where_cast(grads, dy, args, ctx):
    return grads[0], grads[1] * (1 if args[0].dtype == args[1].dtype else 0.5)


def saturates_where_cast(grads, dy, args, ctx):
    """The derivative is worked out in x's dtype, from 1 - |x| that is clipped where it is not float64's."""
    x, w = args
    small = (1 - x * x).clamp(min=0) if x.dtype != w.dtype else 1 - torch.tanh(x) ** 2
    return (dy * w * small).to(x.dtype), grads[1]


def summed_where_expanded(grads, dy, args, ctx):
    """dx is summed over rows that are one in memory; autograd sums it again."""
    return (grads[0].sum(0, keepdim=True).expand_as(dy) if 0 in args[0].stride() else grads[0]), grads[1]


def as_contiguous_where_they_overlap(grads, dy, args, ctx):
    x, w = args
    overlaps = x.ndim == 2 and 0 < x.stride(0) < x.shape[1]
    return gate_pullback(dy, as_if_contiguous(x) if overlaps else x, w)


SUBJECTS: tuple[CheckSubject, ...] = (
    GATE.right(),
    *(
        GATE.right(name=f"gate-by-hand-{given.__name__.replace('_', '-')}", given=given, order=1)
        for given in (mixed, one_row, windows)
    ),
    *(
        GATE.wrong(name, "contract", blames, fault, note, shows="given", given=given, order=1)
        for name, blames, fault, given, note in (
            ("mixed-half", "w", halved_where_cast, mixed, "dw is half where x and w are of two dtypes"),
            ("mixed-clipped", "x", saturates_where_cast, mixed, "another derivative where x is bfloat16"),
            ("expanded-sum", "x", summed_where_expanded, one_row, "dx is summed where x has a stride of 0"),
            (
                "overlapping",
                "x w",
                as_contiguous_where_they_overlap,
                windows,
                "takes x for contiguous where rows overlap",
            ),
        )
    ),
)
