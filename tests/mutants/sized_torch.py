"""Backwards on torch that are wrong past a tile of 128, which is more than any drawn input has."""

from tests.mutants.corpus import CheckSubject
from tests.mutants.linear_torch import FAMILY as LINEAR
from tests.mutants.special_dy_torch import SOFTMAX

TILE = 128


def first_rows(grads, dy, args, ctx):
    """One tile of rows is summed."""
    return *grads[:2], dy[:TILE].sum(0)


def first_columns(grads, dy, args, ctx):
    """dx is summed over the whole tiles of dy's columns; what is left over is a tile where there is no other."""
    n = dy.shape[1]
    whole = n // TILE * TILE or n
    return dy[:, :whole] @ args[1][:whole], *grads[1:]


def sum_of_a_tile(grads, dy, args, ctx):
    s = args[0].softmax(-1)
    return (s * (dy - (dy * s)[:, :TILE].sum(-1, keepdim=True)),)


def rows(rng, size):
    x, w, b = LINEAR.make(rng, size)
    return rng.normal(size=(TILE + 1, x.shape[1])), w, b


def columns(rng, size):
    return LINEAR.make(rng, TILE + 8)


def long_rows(rng, size):
    return (rng.normal(size=(4, TILE + 1)),)


def _(of, name, blames, fault, trigger, sizes, note):
    return of.wrong(
        name, "input-dependent", blames, fault, note, shows="trigger", trigger=trigger, sizes=sizes, order=1
    )


ROWS, COLUMNS = {("x", 0): [TILE - 1, TILE, TILE + 1]}, {8: [TILE - 1, TILE + 1]}

SUBJECTS: tuple[CheckSubject, ...] = (
    LINEAR.right(name="linear-many-rows", sizes={**ROWS, **COLUMNS}, order=1),
    _(LINEAR, "rows-past-a-tile", "b", first_rows, rows, ROWS, "db is the sum of the first 128 rows"),
    _(LINEAR, "columns-past-a-tile", "x", first_columns, columns, COLUMNS, "dx without what is no whole tile"),
    _(SOFTMAX, "sum-past-a-tile", "x", sum_of_a_tile, long_rows, {("x", 1): TILE + 1}, "a sum of 128 columns"),
)
