"""What a caller asks of the check, held against the function that it is asked of."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradlab.autodiff.checker.subject import Subject


def want_tiles(s: Subject, tiles: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError for a tile of no input of the subject, or of no shape of its own."""
    for name, tile in tiles.items():
        if name not in s.names:
            raise ValueError(f"check: tiles name {name!r}, {s.op} has {', '.join(s.names)}")
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
