"""The options of a check validated against the function: tiles, cases, sizes."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.subject import CheckSubject


def validate_tiles(s: CheckSubject, tiles: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError for a tile of an unknown input or of another rank than its input."""
    for name, tile in tiles.items():
        if name not in s.names:
            raise ValueError(f"check: tiles name {name!r}, wanted one of {', '.join(s.names)}")
        shape = s.arrays[s.names.index(name)].shape
        if len(tile) != len(shape) or min(tile, default=1) < 1:
            raise ValueError(f"check: tile of {name} is {list(tile)}, wanted {len(shape)} lengths of at least 1")


def each_case(cases: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Options by name: the product of a mapping's lists, or a sequence of mappings."""
    if cases is None:
        yield "given", {}
        return
    if isinstance(cases, Mapping):
        each = [dict(zip(cases, values, strict=True)) for values in itertools.product(*cases.values())]
    else:
        each = [dict(case) for case in cases]
    if not each:
        raise ValueError("check: cases are empty, wanted option names with lists of values, or a list of mappings")
    for options in each:
        yield ", ".join(f"{k}={v}" for k, v in options.items()) or "given", options


Sizes = Mapping[int | tuple[str, int], int | Sequence[int]]


def each_size(s: CheckSubject, sizes: Sizes) -> dict[str, dict[tuple[int, int], int]]:
    """The requested sizes by name: lengths of axes, by leaf and axis.

    Raises:
        ValueError: a length that no axis has, an unknown argument or axis, or a length below 1.
    """
    shapes = {i: a.shape for i, a in enumerate(s.arrays) if isinstance(a, np.ndarray)}
    named = {}
    for key, value in sizes.items():
        if isinstance(key, int):
            axes = [(i, k) for i, shape in shapes.items() for k, n in enumerate(shape) if n == key]
            what = f"axes of {key}"
            if not axes:
                known = ", ".join(map(str, sorted({n for shape in shapes.values() for n in shape}))) or "none"
                raise ValueError(f"check: sizes name axes of {key}, wanted one of the lengths {known}")
        else:
            axes, what = [_axis(s, shapes, key)], f"{key[0]}[{key[1]}]"
        lengths = [value] if isinstance(value, int) else list(value)
        for length in lengths:
            if not isinstance(length, int) or length < 1:
                raise ValueError(f"check: sizes of {what} hold {length!r}, wanted whole numbers of at least 1")
            named[f"{what} = {length}"] = dict.fromkeys(axes, length)
    return named


def _axis(s: CheckSubject, shapes: Mapping[int, tuple[int, ...]], key: Any) -> tuple[int, int]:
    if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], int)):
        raise ValueError(f"check: sizes name {key!r}, wanted an axis length or (argument, axis)")
    name, axis = key
    if name not in s.names:
        raise ValueError(f"check: sizes name {name!r}, wanted one of {', '.join(s.names)}")
    i = s.names.index(name)
    rank = len(shapes.get(i, ()))
    if not -rank <= axis < rank:
        raise ValueError(f"check: sizes name axis {axis} of {name}, wanted one of its {rank} axes")
    return i, axis % rank


def parsed_sizes(text: str) -> dict[int | tuple[str, int], list[int]]:
    """`128: 127 129, x[0]: 1 257` as a mapping.

    Raises:
        ValueError: the text does not parse.
    """
    entry = r"\s*(?:(\d+)|([^\s,:\[\]]+)\s*\[\s*(-?\d+)\s*\])\s*:\s*(\d+(?:\s+\d+)*)\s*"
    if not re.fullmatch(f"{entry}(,{entry})*", text):
        raise ValueError(f'check: sizes are {text!r}, wanted for example "128: 127 129, x[0]: 1 257"')
    return {
        int(length) if length else (name, int(axis)): [int(n) for n in to.split()]
        for length, name, axis, to in re.findall(entry, text)
    }
