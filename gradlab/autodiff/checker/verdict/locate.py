"""Locates the wrong part of a gradient: bounding box by bisection, sampled elements, and the error pattern."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.probe import Pair, Probe, uneven
from gradlab.autodiff.checker.verdict.error_pattern import Box, pattern, tile_of

# Elements compared one by one: all of a box of this size, this many of a larger one.
EACH = 12


@dataclass(frozen=True)
class Place:
    """The first wrong element, its description, and the numbers in it."""

    first: tuple[int, ...]
    detail: str
    numbers: dict[str, float]


def locate(probe: Probe, i: int, rng: np.random.Generator, tile: Sequence[int] | None = None) -> Place | None:
    """Find the wrong elements of gradient `i` in O(log n) evaluations; None if no part is found wrong.

    Bisection tests one slab at a time: whether <gradient, d> is right for an uneven direction d within it. Twice per
    axis for the box, once more in C order for the first element.
    """
    g = probe.gradients[i]
    if g.ndim == 0:
        box: Box = ()
    else:
        box = _bounding_box(probe, i, rng)
    if any(b <= a for a, b in box):
        return None
    inside = tuple(slice(a, b) for a, b in box)
    probe.pairs.setdefault(i, []).append(_pair(probe, i, _within(g.shape, inside, rng) * probe.units(i)))
    first = _first(probe, i, box, rng)
    got, wanted, error = _element(probe, i, first)
    sampled = _sample(probe, i, box, first, rng)
    checked = {first: (got, wanted, error), **sampled}
    wrong = {at: v for at, v in checked.items() if abs(v[0] - v[1]) > v[2] + 1e-7 * abs(v[1])}
    if not wrong:
        return None
    size = math.prod(b - a for a, b in box)
    found = pattern(g, box, probe.pairs[i], wrong)
    count, about = (found.count, False) if found.count is not None else _count(len(wrong), len(checked), size)
    where = f"in {_written(box)}" if count != g.size else "everywhere"
    detail = f"is {got:.10g}, finite differences give {wanted:.10g}"
    if g.size > 1:
        detail += f"; {'about ' if about else ''}{count} of {g.size} elements are wrong, {where}"
    if found.detail:
        detail += f" ({found.detail})"
    if tile is not None and box:
        detail += f"; {tile_of(box, g.shape, tile)}"
    numbers = {"got": got, "wanted": wanted, "count": float(count), "of": float(g.size)}
    numbers |= {f"box_{k}_{end}": float(v) for k, pair in enumerate(box) for end, v in zip("ab", pair, strict=True)}
    return Place(first, detail, numbers)


def _pair(probe: Probe, i: int, d: np.ndarray) -> Pair:
    return probe.pair({i: d}, probe.slope({i: d}, probe.steps.get(i, 4e-3), narrow=False))


def _within(shape: tuple[int, ...], inside: tuple[slice, ...], rng: np.random.Generator) -> np.ndarray:
    d = np.zeros(shape)
    d[inside] = uneven(rng, d[inside].shape)
    return d


def _bounding_box(probe: Probe, i: int, rng: np.random.Generator) -> Box:
    """Per axis the first and one past the last index with an error, each by bisection over slabs."""
    g = probe.gradients[i]
    box = [(0, n) for n in g.shape]

    def wrong(axis: int, start: int, stop: int) -> bool:
        inside = tuple(slice(*((start, stop) if k == axis else box[k])) for k in range(g.ndim))
        return _pair(probe, i, _within(g.shape, inside, rng) * probe.units(i)).wrong

    for axis in range(g.ndim):
        a, b = box[axis]
        low, high = a, b - 1
        while low < high:
            middle = (low + high) // 2
            if wrong(axis, a, middle + 1):
                high = middle
            else:
                low = middle + 1
        a = low
        low, high = a, b - 1
        while low < high:
            middle = (low + high + 1) // 2
            if wrong(axis, middle, b):
                low = middle
            else:
                high = middle - 1
        box[axis] = (a, low + 1)
    return tuple(box)


def _first(probe: Probe, i: int, box: Box, rng: np.random.Generator) -> tuple[int, ...]:
    """The first wrong element in C order, by bisection over the box's elements."""
    shape = tuple(b - a for a, b in box)
    low, high = 0, math.prod(shape) - 1
    while low < high:
        middle = (low + high) // 2
        flat = np.zeros(math.prod(shape))
        flat[low : middle + 1] = uneven(rng, (middle + 1 - low,))
        d = np.zeros(probe.gradients[i].shape)
        d[tuple(slice(a, b) for a, b in box)] = flat.reshape(shape)
        if _pair(probe, i, d * probe.units(i)).wrong:
            high = middle
        else:
            low = middle + 1
    at = np.unravel_index(low, shape) if shape else ()
    return tuple(int(k) + a for k, (a, _) in zip(at, box, strict=True))


def _element(probe: Probe, i: int, at: tuple[int, ...]) -> tuple[float, float, float]:
    """One element of the gradient, the same by finite differences, and their error."""
    d = np.zeros(probe.gradients[i].shape)
    d[at] = probe.units(i)
    pair = _pair(probe, i, d)
    return float(probe.gradients[i][at]), pair.wanted / probe.units(i), pair.error / probe.units(i)


def _sample(
    probe: Probe, i: int, box: Box, first: tuple[int, ...], rng: np.random.Generator
) -> dict[tuple[int, ...], tuple[float, float, float]]:
    shape = tuple(b - a for a, b in box)
    size = math.prod(shape)
    flat = range(size) if size <= EACH else rng.choice(size, EACH, replace=False)
    places = [tuple(int(k) + a for k, (a, _) in zip(np.unravel_index(f, shape), box, strict=True)) for f in flat]
    return {at: _element(probe, i, at) for at in places if at != first}


def _count(wrong: int, checked: int, size: int) -> tuple[int, bool]:
    """The number of wrong elements in a box from those sampled, and whether it is an estimate."""
    return (wrong, False) if checked >= size else (max(1, round(size * wrong / checked)), True)


def _written(box: Box) -> str:
    return "[" + ", ".join(f"{a}" if b == a + 1 else f"{a}:{b}" for a, b in box) + "]"
