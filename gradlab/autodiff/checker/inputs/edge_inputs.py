"""Generates edge inputs: extremes, zeros, ties, ignored rows, unnormalised values, axes of other lengths."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.autodiff.checker.inputs.captured_arrays import captures_arrays

# Axes are cut to at most this length: an edge case needs no size.
MOST = 8
# Inputs of at most this many elements are not cut.
SMALL = 4096
IGNORED = -100
# Inputs of more than LARGE elements are reduced to REDUCED along each axis for checks that do not depend on the size.
LARGE, REDUCED = 2**16, 64


# The length of every axis from its given one.
_LENGTHS: dict[str, Callable[[int], int]] = {
    "axes of one": lambda n: 1,
    "axes of 3 and less": lambda n: min(n, 3),
    "axes one longer": lambda n: n + 1 if n < 64 else n,
}
# The factor of every float input.
_FACTORS = {"1000 times smaller": 1e-3, "1000 times larger": 1e3}


Edge = tuple[str, CheckSubject, list[np.ndarray], bool]


def edges(subject: CheckSubject, rng: np.random.Generator) -> Iterator[Edge]:
    """Edge inputs of the given shapes: the edge's name, the subject there, its values, and whether all elements of an
    input must move by the same step.

    Inputs for which the function raises or is not finite are skipped.
    """
    if _nonempty(subject) and _size(subject) <= SMALL:
        for name, arrays, alike in _drawn(subject, subject.arrays, rng):
            yield from _accepted(subject, name, arrays, alike)


def reshaped(subject: CheckSubject, rng: np.random.Generator) -> Iterator[Edge]:
    """The same at inputs that are shorter, longer or have other labels, which the function may not accept.

    A function that captures arrays is not given other shapes, which would not match them.
    """
    if not _nonempty(subject):
        return
    fits = fits_others(subject)
    small = subject.arrays if _size(subject) <= SMALL else None
    if small is None and fits:
        small = _resized(subject, lambda n: min(n, MOST))
        for name, arrays, alike in _drawn(subject, small, rng) if small is not None else ():
            yield from _accepted(subject, name, arrays, alike)
    # jax raises no error for a label out of bounds, so there only functions with an ignore_index are given one.
    ignores = _has_ignore_index(subject) or (subject.side.name == "torch" and _labels(subject, small or []))
    if small is not None and ignores:
        for name, arrays, alike in _ignoring(subject, small):
            yield from _accepted(subject, name, arrays, alike)
    if not fits:
        return
    for name, length in _LENGTHS.items():
        resized = _resized(subject, length)
        if resized is not None:
            yield from _accepted(subject, name, resized, False)
    yield from _one_length(subject)


def reduced_subject(subject: CheckSubject) -> CheckSubject | None:
    """A large subject at reduced inputs, for comparisons that do not depend on the size; None for a small one."""
    if _size(subject) <= LARGE or not fits_others(subject):
        return None
    arrays = _resized(subject, lambda n: min(n, REDUCED))
    if arrays is None:
        return None
    other = subject.with_arrays(arrays, f"{subject.case}, reduced to {REDUCED}")
    return other if all(np.isfinite(y).all() for y in other.values(other.arrays)) else None


def fits_others(subject: CheckSubject) -> bool:
    """Whether the function may be given other shapes: an op of this package, or one that captures no arrays."""
    return subject.trusted or not captures_arrays(subject.origin, subject.options)


def _drawn(
    subject: CheckSubject, small: list[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[str, list[np.ndarray], bool]]:
    def each(change: Callable[[np.ndarray], np.ndarray], only: int | None = None) -> list[Any]:
        return [change(a) if i in subject.wrt and only in (None, i) else a for i, a in enumerate(small)]

    # All inputs at once come first: a slow function gets only these.
    yield "scaled by 1.37 (not normalised)", each(lambda a: a * 1.37), False
    yield "all inputs 0", each(np.zeros_like), False
    if len(subject.wrt) > 1 or any(small[i].ndim > 1 for i in subject.wrt):
        yield "one row of zeros in all", each(_row_of_zeros), False
    yield "shifted by 10", each(lambda a: a + 10.0), False
    for name, factor in _FACTORS.items():
        yield name, each(functools.partial(np.multiply, factor)), False
    # exp overflows float64 past 709: scale the largest element beyond that, then the smallest.
    for sign in (1, -1):
        yield f"up to {sign * 800}", each(functools.partial(_stretched, sign)), False
    for i in subject.wrt:
        name = subject.names[i]
        yield f"{name} scaled by 1.37", each(lambda a: a * 1.37, i), False
        yield f"{name} scaled by 30", each(lambda a: a * 30, i), False
        yield f"{name} = 0", each(np.zeros_like, i), False
        yield f"{name} with some zeros", each(lambda a: np.where(rng.random(a.shape) < 0.3, 0.0, a), i), False
        yield f"{name} negated", each(np.negative, i), False
        yield f"{name} with ties", each(_tied, i), True


def _stretched(sign: int, a: np.ndarray) -> np.ndarray:
    """Scale so that the largest element, or the smallest, is 800 away from 0."""
    return a * (800 / max(float(np.max(sign * a, initial=0.0)), 1e-3))


def _tied(a: np.ndarray) -> np.ndarray:
    """Make all elements with one leading index equal."""
    if a.ndim == 0:
        return a
    if a.ndim == 1:
        return np.full_like(a, a[0] if a.size else 0.0)
    flat = a.reshape(len(a), -1).copy()
    flat[:] = flat[:, :1]
    return flat.reshape(a.shape)


def _row_of_zeros(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    if a.ndim:
        a[:1] = 0.0
    return a


def _labels(subject: CheckSubject, small: list[np.ndarray]) -> list[int]:
    """The integer arrays that may be class indices: more than one element, none negative."""
    return [
        i
        for i, a in enumerate(small)
        if i not in subject.wrt
        and isinstance(a, np.ndarray)
        and a.dtype.kind == "i"
        and a.ndim
        and a.size > 1
        and a.min() >= 0
    ]


def _has_ignore_index(subject: CheckSubject) -> bool:
    try:
        return "ignore_index" in inspect.signature(subject.fn).parameters
    except (TypeError, ValueError):
        return False


def _ignoring(subject: CheckSubject, small: list[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray], bool]]:
    """The first label set to ignore_index, if the results then do not depend on the first row of any float input."""
    value = IGNORED
    if _has_ignore_index(subject):
        default = inspect.signature(subject.fn).parameters["ignore_index"].default
        value = subject.options.get("ignore_index", default if isinstance(default, int) else IGNORED)
    for i in _labels(subject, small):
        labels = small[i].copy()
        labels[0] = value
        arrays = [labels if k == i else a for k, a in enumerate(small)]
        moved = list(arrays)
        for k in subject.wrt:
            if small[k].ndim and len(small[k]) == len(labels):
                moved[k] = small[k].copy()
                moved[k][0] += 1.0
        try:
            before, after = subject.with_arrays(arrays, "").both(moved)
        except Exception:
            continue
        # The ignored row must not change the loss; per-row losses are then 0 in its place.
        if all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
            yield f"{subject.names[i]} with an ignored row", arrays, False


def _accepted(
    subject: CheckSubject, name: str, arrays: list[np.ndarray], alike: bool
) -> Iterator[tuple[str, CheckSubject, list[np.ndarray], bool]]:
    """The subject at these inputs, if forward accepts them and its results are finite."""
    other = subject.with_arrays(arrays, name)
    try:
        values = other.values(other.arrays)
    except Exception:
        return
    if values and all(np.isfinite(y).all() for y in values):
        yield name, other, values, alike


def _size(subject: CheckSubject) -> int:
    return max(a.size for a in subject.arrays if isinstance(a, np.ndarray))


def _nonempty(subject: CheckSubject) -> bool:
    """Whether no array is empty."""
    return all(a.size for a in subject.arrays if isinstance(a, np.ndarray))


def _resized(subject: CheckSubject, length: Callable[[int], int]) -> list[np.ndarray] | None:
    """Every axis resized to `length` of its length, elements repeated where it grows; None if nothing changes."""
    arrays = []
    for a in subject.arrays:
        if not isinstance(a, np.ndarray):
            return None
        for axis, n in enumerate(a.shape):
            a = np.take(a, np.arange(length(n)) % max(n, 1), axis) if n else a
        arrays.append(a)
    # Class indices stay below every length that they may index: jax raises no error for one out of bounds.
    least = min((n for i in subject.wrt for n in arrays[i].shape if n), default=1)
    for i, a in enumerate(arrays):
        if i not in subject.wrt and a.dtype.kind in "iu":
            arrays[i] = np.where(a >= least, a % least, a)
    changed = any(a.shape != b.shape for a, b in zip(arrays, subject.arrays, strict=True))
    if not changed or (subject.side.name == "torch" and _collide(subject, arrays)):
        return None
    return arrays if _accepts(subject, arrays) else None


def _collide(subject: CheckSubject, arrays: list[np.ndarray]) -> bool:
    """Whether indices that were distinct no longer are: in torch the gradient of a repeated index write is undefined.

    jax defines it: the last write gets the gradient.
    """
    pairs = [(a, b) for i, (a, b) in enumerate(zip(subject.arrays, arrays, strict=True)) if i not in subject.wrt]
    return any(not _distinct(a) <= _distinct(b) or _moved(a, b) for a, b in pairs)


def _distinct(a: np.ndarray) -> set[int]:
    """The axes along which no number repeats."""
    if a.dtype.kind not in "iu":
        return set()
    return {k for k in range(a.ndim) if (np.diff(np.sort(a, k), axis=k) != 0).all()}


def _moved(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether indices of a multi-axis array changed: they may be positions in a layout."""
    return a.ndim > 1 and a.dtype.kind in "iu" and not set(b.flat) <= set(a.flat)


def _accepts(subject: CheckSubject, arrays: list[np.ndarray]) -> bool:
    try:
        subject.with_arrays(arrays, "").values(arrays)
    except Exception:
        return False
    return True


def _one_length(subject: CheckSubject) -> Iterator[tuple[str, CheckSubject, list[np.ndarray], bool]]:
    """Each length that occurs, cut to 1 or grown by 1: all axes that share it change together."""
    lengths = sorted({n for a in subject.arrays for n in np.shape(a) if n > 1})
    for n in lengths[:3] if len(lengths) > 1 else []:
        for name, to in (("cut to 1", 1), ("grown by 1", n + 1)):
            if to > MOST + 1:
                continue
            arrays = _resized(subject, functools.partial(_instead, n, to))
            if arrays is not None:
                yield from _accepted(subject, f"axes of {n} {name}", arrays, False)


def _instead(n: int, to: int, length: int) -> int:
    return to if length == n else min(length, MOST)
