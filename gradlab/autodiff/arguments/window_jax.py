"""Checks of a window's settings in jax: numbers, pairs, borders."""

from typing import Any

import jax

from gradlab.autodiff.arguments.errors import refuse, want_choice
from gradlab.kernels.common.window import pads, pair


def is_integer(value: Any) -> bool:
    """Whether a setting is an integer, of Python or NumPy, and no boolean."""
    return hasattr(value, "__index__") and not isinstance(value, (bool, jax.Array))


def pair_of(op: str, argument: str, value: Any, wanted: str) -> tuple[int, int]:
    """(rows, columns) of a number or a pair of them."""
    both = (value, value) if is_integer(value) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2:
        refuse(op, argument, repr(value), wanted)
    if not all(map(is_integer, both)):
        refuse(op, argument, repr(value), wanted, TypeError)
    return pair(tuple(map(int, both)))


def steps(op: str, argument: str, value: Any) -> tuple[int, int]:
    """Strides or dilation as (rows, columns), at least 1 each."""
    found = pair_of(op, argument, value, "a whole number or a pair of them")
    if min(found) < 1:
        refuse(op, argument, repr(value), "at least 1")
    return found


def borders(op: str, padding: Any, window, steps, spread, image) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)), none negative."""
    if isinstance(padding, str):
        want_choice(op, "padding", padding, ("SAME", "VALID"))
        return pads(padding.lower(), window, steps, spread, image)
    wanted = "'SAME', 'VALID', a whole number, a pair of them or a pair of pairs"
    sides = (padding, padding) if is_integer(padding) else padding
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        refuse(op, "padding", repr(padding), wanted)
    rows, columns = (pair_of(op, "padding", side, wanted) for side in sides)
    if min(rows + columns) < 0:
        refuse(op, "padding", repr(padding), "at least 0")
    return rows, columns
