"""Backwards on jax that do not give the same gradient every time, by what Python keeps beside them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants.corpus import CheckSubject
from tests.mutants.linear_jax import FAMILY, tile
from tests.mutants.rule_of_jax import keep, weigh

# Not seeded: that is the fault.
CHANCE = np.random.default_rng()


def noise(grads, dy, args, ctx):
    return grads[0], grads[1] + 1e-3 * CHANCE.random(grads[1].shape), grads[2]


def every_third():
    """A tile that is lost every third time."""
    calls = itertools.count(1)

    def fault(grads, dy, args, ctx):
        dropped = next(calls) % 3 == 0
        return grads[0], grads[1] * weigh(grads[1], tile(grads[1])) if dropped else grads[1], grads[2]

    return fault


def any_order(grads, dy, args, ctx):
    """Rows are summed in float32 in any order."""
    rows = dy[CHANCE.permutation(len(dy))].astype(jnp.float32)
    total, _ = jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros_like(rows[0]), rows)
    return *grads[:2], keep(grads[2], total.astype(dy.dtype))


def dropout(grads, dy, args, ctx):
    """A mask drawn again in backward."""
    return grads[0] * (CHANCE.random(grads[0].shape) < 0.9) / 0.9, *grads[1:]


def carried():
    """A cache of x by its shape, never renewed."""
    cache: dict[tuple[int, ...], np.ndarray] = {}

    def fault(grads, dy, args, ctx):
        if isinstance(args[0], jax.core.Tracer):
            return grads
        x = cache.setdefault(args[0].shape, np.array(args[0]))
        return grads[0], dy.T @ keep(args[0], x), grads[2]

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
    _("carried", "w", carried(), "x is that of the first call with its shape", shows="stale"),
)
