"""How a launch may be split over devices, said in axis letters; torch's DTensors and jax's meshes read it from here.

    "a[M K], b[K N], bias[N] -> y[M N]; sums K; adds bias"

Split along M each device has rows of a and of y, and all of b and bias. Split along K, which no result has, it makes a
term of a sum: results are partial sums, and `bias`, which is to be added once, belongs to one of the terms.

`follows g`: on jax's meshes, where the layout of the first arrays decides the split, that of g decides nothing, and g
is resharded. DTensors are resharded to the split that costs least in any case.

An axis letter may be split unless it is `whole`, or a result lacks it and it is not among `sums`. What depends on
settings or ranks is a function that returns such a text.
"""

import functools
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gradlab.base.signature import Array, arrays_of

# Where an array stands under a split: the axis that is split, "whole" on every device, or the term of a sum.
Part = int | Literal["whole", "term"]


@dataclass(frozen=True)
class Split:
    """One way to run a launch on several devices: along an axis, with the part of each input and result there."""

    axis: str
    inputs: tuple[Part, ...]
    results: tuple[Part, ...]


@dataclass(frozen=True)
class Sharding:
    """A launch's inputs and results in axis letters, and all ways to split it; framework-free.

    Attributes:
        follows: numbers of the inputs whose own layout decides nothing.
    """

    inputs: tuple[Array, ...]
    results: tuple[Array, ...]
    splits: tuple[Split, ...]
    follows: frozenset[int] = frozenset()


@functools.cache
def sharding(text: str) -> Sharding:
    """The sharding that a text means.

    Raises:
        ValueError: a letter or a name after the signature that is not in it.
    """
    signature, *clauses = (part.strip() for part in text.split(";"))
    inputs, results = (arrays_of(side) for side in signature.split("->"))
    words: dict[str, list[str]] = {"sums": [], "adds": [], "whole": [], "follows": []}
    for clause in clauses:
        word, *names = clause.split()
        words[word] += names
    letters = list(dict.fromkeys(axis for array in inputs for axis in array.axes))
    every = list(dict.fromkeys([*letters, *(axis for array in results for axis in array.axes)]))
    named = [array.name for array in inputs]
    known = {"sums": letters, "whole": every, "adds": named, "follows": named}
    for word, names in words.items():
        for name in names:
            if name not in known[word]:
                raise ValueError(f"sharding: {word} is {name}, wanted one of {', '.join(known[word])} of {signature!r}")
    found = []
    for axis in letters:
        missing = [array.name for array in results if axis not in array.axes]
        if axis in words["whole"] or axis.isdigit() or (missing and axis not in words["sums"]):
            continue
        summed = bool(missing)
        parts = tuple(_part(array, axis, summed and array.name in words["adds"]) for array in inputs)
        found.append(Split(axis, parts, tuple(_part(array, axis, summed) for array in results)))
    follows = frozenset(i for i, name in enumerate(named) if name in words["follows"])
    return Sharding(inputs, results, tuple(found), follows)


def elementwise(names: str) -> Callable[..., str]:
    """The text of an op over arrays of one shape, as of "x, mask -> y", as a function of its arguments.

    A name with brackets stays as it is: a number "s[]" among the results is a sum over all axes.
    """

    def text(*args: Any) -> str:
        axes = letters(next(a.ndim for a in args if hasattr(a, "ndim")))
        sums = f"; sums {axes}" if "[]" in names.split("->")[1] else ""
        return re.sub(r"(\w+)(?![\w\[])", rf"\1[{axes}]", names) + sums

    return text


def sums_rows(names: str) -> Callable[..., str]:
    """The text of an op that sums arrays of one shape over all axes but the first ones, whose number is an argument.

    That number stands behind the arrays.
    """
    count = len(names.split("->")[0].split(","))

    def text(*args: Any) -> str:
        axes, kept = letters(args[0].ndim), letters(args[count])
        inputs, results = names.split("->")
        inputs, results = re.sub(r"(\w+)", rf"\1[{axes}]", inputs), re.sub(r"(\w+)", rf"\1[{kept}]", results)
        return f"{inputs} -> {results}; sums {axes[len(kept) :]}"

    return text


def letters(count: int) -> str:
    """As many axes."""
    return " ".join(string.ascii_uppercase[:count])


def _part(array: Array, axis: str, summed: bool) -> Part:
    if axis in array.axes:
        return array.axes.index(axis)
    return "term" if summed else "whole"
