"""Backwards on torch that do not give the same gradient every time."""

import itertools

import torch

from tests.mutants.corpus import CheckSubject
from tests.mutants.linear_torch import FAMILY, tile
from tests.mutants.rule_of_torch import keep, weigh


def noise(grads, dy, args, ctx):
    return grads[0], grads[1] + 1e-3 * torch.rand_like(grads[1]), grads[2]


def every_third():
    """A race that is lost every third time."""
    calls = itertools.count(1)

    def fault(grads, dy, args, ctx):
        dropped = next(calls) % 3 == 0
        return grads[0], grads[1] * weigh(grads[1], tile(grads[1])) if dropped else grads[1], grads[2]

    return fault


def any_order(grads, dy, args, ctx):
    """Atomic additions in float32: rows arrive in any order."""
    total = torch.zeros_like(dy[0], dtype=torch.float32)
    for row in dy.detach().float()[torch.randperm(len(dy))]:
        total = total + row
    return *grads[:2], keep(grads[2], total.to(dy.dtype))


def dropout(grads, dy, args, ctx):
    """A mask drawn again in backward."""
    return grads[0] * (torch.rand_like(grads[0]) < 0.9) / 0.9, *grads[1:]


def carried():
    """A cache of x by its shape, never renewed."""
    cache: dict[torch.Size, torch.Tensor] = {}

    def fault(grads, dy, args, ctx):
        x = cache.setdefault(args[0].shape, args[0].detach().clone())
        return grads[0], dy.T @ keep(args[0], x), grads[2]

    return fault


def leftover():
    """Of two workspaces in turn one is never cleared, so every second call adds a little of the one before."""
    left: dict[torch.Size, torch.Tensor] = {}

    def fault(grads, dy, args, ctx):
        db = grads[2]
        if db.shape in left:
            return *grads[:2], db + left.pop(db.shape)
        left[db.shape] = 1e-3 * db.detach()
        return grads

    return fault


def make_rows(rng, size):
    """Enough rows for their order to matter."""
    return rng.normal(size=(size + 32, size)), *FAMILY.make(rng, size)[1:]


def _(name, blames, fault, note, **fields):
    return FAMILY.wrong(name, "nondeterministic", blames, fault, note, **{"shows": "repeat", **fields})


SUBJECTS: tuple[CheckSubject, ...] = (
    _("noise", "w", noise, "noise of 1e-3 on dw"),
    _("every-third", "w", every_third(), "every third call leaves a tile of dw zero"),
    _("any-order", "b", any_order, "db is summed in float32, in any order", make=make_rows),
    _("dropout", "x", dropout, "dx has a mask of its own"),
    _("leftover", "b", leftover(), "a thousandth of the last db is added, every second call"),
    _("carried", "w", carried(), "x is that of the first call with its shape", shows="stale"),
)
