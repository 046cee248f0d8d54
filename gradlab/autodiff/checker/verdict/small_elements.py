"""Checks elements of a gradient, and results, that are too small to show beside the largest ones.

An error below 1e-7 of a gradient's norm does not show in a sum over all of it. Where the slopes of the results differ
by that much, results are weighted by one over their slope; where elements of one gradient do, small ones are moved
alone. Only confirmed errors are reported; elements too small for finite differences are not checked.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.differentiability import why_not_wrong
from gradlab.autodiff.checker.core.finding import WRONG
from gradlab.autodiff.checker.core.finite_differences import STEP
from gradlab.autodiff.checker.core.probe import Probe, gradients, joined, split, uneven

CHECK = "small elements"
# An element is small below SMALL of the largest, or CHANCE / size; at the next levels below NEXT of the largest left.
SMALL, CHANCE, NEXT, LEVELS = 1e-6, 0.01, 1e-3, 3
# An error counts if it exceeds ERRORS times that of the central difference plus PART of the gradient's norm.
ERRORS, PART = 10.0, 1e-6
# First steps, relative to the input's scale.
STEPS = (STEP, 2.0**-5, 2.0**-2)
# Small elements change the results little: where these are linear, longer lines resolve it.
WIDE = 8.0


def small_elements(cmp: Comparison, known: Collection[str]) -> None:
    """Check the elements that a sum over the whole gradient cannot resolve; `known` inputs are already wrong."""
    probe, s = cmp.probe, cmp.probe.subject
    if probe.coarse or probe.skipped:
        return
    inputs = [
        i for i in s.wrt if probe.arrays[i].size and s.names[i] not in known and np.isfinite(probe.gradients[i]).all()
    ]
    for i in inputs:
        size, whole = np.abs(probe.gradients[i]), np.ones(probe.arrays[i].shape, bool)
        equalised = _equalised(cmp, i)
        if equalised is not None and _wrong(
            cmp, equalised, i, whole, "for a dy that weights results by one over their slope"
        ):
            continue
        for small in _levels(size):
            how = f"one of {small.sum()} elements that are small beside the largest, {size.max():.3g}"
            if _wrong(cmp, probe, i, small, how):
                break


def _equalised(cmp: Comparison, i: int) -> Probe | None:
    """The probe with every result weighted by one over its slope; None if all slopes are of similar size."""
    probe, unit = cmp.probe, cmp.probe.units(i)
    line = {i: _within(probe, i, None, cmp.rng)}
    up, down = (_values(probe, line, sign * STEP * unit) for sign in (1, -1))
    if up is None or down is None:
        return None
    moved = np.abs(up - down) / (2 * STEP * unit)
    c = joined(probe.cotangents)
    weighted = np.abs(c) * moved
    if not (weighted[moved > 0] < SMALL * np.max(weighted, initial=0.0)).any():
        return None
    # A slope too small beside the result itself is not resolved, and its rounding would hide the others.
    scale = np.maximum(moved, SMALL * np.abs(probe.middle) / unit)
    weights = uneven(cmp.rng, c.shape) / np.where(moved > 0, scale, np.max(moved))
    cotangents = split(weights, probe.cotangents)
    found = gradients(probe.subject, probe.arrays, cotangents)
    if not all(np.isfinite(g).all() for g in found.values()):
        return None
    return replace(probe, cotangents=cotangents, gradients=found, pairs={})


def _levels(size: np.ndarray) -> Iterator[np.ndarray]:
    """The small elements, then the small ones among these."""
    small, part = np.ones(size.shape, bool), min(SMALL, CHANCE / size.size)
    for _ in range(LEVELS):
        small = small & (size < part * float(np.max(size[small])))
        if not small.any():
            return
        yield small
        part = NEXT


def _within(probe: Probe, i: int, small: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    d = uneven(rng, probe.arrays[i].shape) * probe.units(i)
    return d if small is None else np.where(small, d, 0.0)


def _values(probe: Probe, line: Mapping[int, np.ndarray], t: float) -> np.ndarray | None:
    """The results at a step along a line; None where the function has none."""
    moved = [a + t * line[i] if i in line else a for i, a in enumerate(probe.arrays)]
    try:
        values = joined(probe.subject.values(moved))
    except Exception:
        return None
    return values if values.shape == probe.middle.shape and np.isfinite(values).all() else None


def _slope(probe: Probe, line: Mapping[int, np.ndarray], step: float) -> tuple[float, float]:
    """The slope of <cotangents, results> by central differences, and its error; NaN if there is none."""
    c, unit = joined(probe.cotangents), min(probe.units(i) for i in line)
    quotients, size = [], 0.0
    for h in (step * unit, step * unit / 2):
        up, down = _values(probe, line, h), _values(probe, line, -h)
        if up is None or down is None:
            return np.nan, np.nan
        quotients.append(float(np.dot(c, up - down)) / (2 * h))
        size = max(size, float(np.linalg.norm(c * up)), float(np.linalg.norm(c * down)))
    change = (quotients[1] - quotients[0]) / 3
    return quotients[1] + change, abs(change) + 24 * probe.noise * size / (step * unit)


def _slopes(probe: Probe, line: Mapping[int, np.ndarray], got: float, norm: float) -> tuple[float, float]:
    """The slope of least error; wider steps are tried while rounding leaves the comparison open."""
    best = (np.nan, np.inf)
    for step in STEPS:
        found = _slope(probe, line, step)
        best = found if found[1] < best[1] else best
        off = abs(got - best[0])
        if not best[1] + PART * norm < off <= ERRORS * best[1] + PART * norm:
            break
    return best


def _off(probe: Probe, line: Mapping[int, np.ndarray]) -> bool:
    """Whether the gradient looks wrong along a line."""
    got = sum(float(np.vdot(probe.gradients[i], d)) for i, d in line.items())
    norm = float(np.sqrt(sum(float(np.sum((probe.gradients[i] * d) ** 2)) for i, d in line.items())))
    wanted, error = _slopes(probe, line, got, norm)
    return abs(got - wanted) > ERRORS * error + PART * norm


def _wrong(cmp: Comparison, probe: Probe, i: int, small: np.ndarray, how: str) -> bool:
    """Whether these elements of a gradient are confirmed wrong; the finding names the first of them."""
    rng = cmp.rng
    if not _off(probe, {i: _within(probe, i, small, rng)}):
        return False
    if not any(_proven(probe, i, small, rng, wide) for wide in (1.0, WIDE)):
        return False
    at = _first(probe, i, np.argwhere(small), rng)
    d = np.zeros(small.shape)
    d[at] = probe.units(i)
    got = float(probe.gradients[i][at])
    wanted = _slopes(probe, {i: d}, got * probe.units(i), 0.0)[0] / probe.units(i)
    largest = float(np.max(np.abs(probe.gradients[i])))
    numbers = {"got": got, "wanted": wanted, "error": abs(got - wanted) / (largest or 1.0)}
    cmp.record(
        CHECK, WRONG, f"is {got:.6g}, finite differences give {wanted:.6g}; {how}", probe.subject.names[i], at, numbers
    )
    return True


def _proven(probe: Probe, i: int, small: np.ndarray, rng: np.random.Generator, wide: float) -> bool:
    """Whether finite differences confirm it, along lines `wide` times as long as usual."""

    def draw() -> np.ndarray:
        return wide * _within(probe, i, small, rng)

    return not why_not_wrong(probe, i, draw, lambda k: _within(probe, k, None, rng))


def _first(probe: Probe, i: int, places: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
    """The first wrong element of these, by bisection."""
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        part = np.zeros(probe.arrays[i].shape, bool)
        part[tuple(places[low : middle + 1].T)] = True
        if _off(probe, {i: _within(probe, i, part, rng)}):
            high = middle
        else:
            low = middle + 1
    return tuple(int(k) for k in places[low])
