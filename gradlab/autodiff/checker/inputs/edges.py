"""Inputs drawn on purpose: extremes, zeros, ties, ignored rows, nothing normalised, axes of one and one more."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.subject import Subject
from gradlab.autodiff.checker.inputs.captured import holds_arrays

# Inputs are cut to at most this many along every axis: an edge needs no size.
MOST = 8
# Inputs of at most this many elements are small enough as they are.
SMALL = 4096
IGNORED = -100
# Inputs of more elements than this are large; what does not depend on the size is held at a cut to this many an axis.
LARGE, HELD = 2**16, 64


# Every axis made that long.
_LENGTHS: dict[str, Callable[[int], int]] = {
    "axes of one": lambda n: 1,
    "axes of 3 and less": lambda n: min(n, 3),
    "axes one longer": lambda n: n + 1 if n < 64 else n,
}
# Every float input multiplied.
_FACTORS = {"1000 times smaller": 1e-3, "1000 times larger": 1e3}


Edge = tuple[str, Subject, list[np.ndarray], bool]


def edges(subject: Subject, rng: np.random.Generator) -> Iterator[Edge]:
    """The subject at other inputs of its own shapes: the edge's name, the subject there, its values, whether elements
    must move alike.

    Only inputs that the function takes without an error come out; what it makes of them is for the caller to judge.
    """
    if _held(subject) and _size(subject) <= SMALL:
        for name, arrays, alike in _drawn(subject, subject.arrays, rng):
            yield from _taken(subject, name, arrays, alike)


def reshaped(subject: Subject, rng: np.random.Generator) -> Iterator[Edge]:
    """The same at inputs that are cut, lengthened or have other labels, which nobody said that the function takes.

    A function that holds arrays of its own is not given other shapes: they would no longer fit these.
    """
    if not _held(subject):
        return
    fits = fits_others(subject)
    small = subject.arrays if _size(subject) <= SMALL else None
    if small is None and fits:
        small = _resized(subject, lambda n: min(n, MOST))
        for name, arrays, alike in _drawn(subject, small, rng) if small is not None else ():
            yield from _taken(subject, name, arrays, alike)
    # jax has no error for a label out of bounds, so there it is tried on those alone who say that they ignore one.
    ignores = _names_ignored(subject) or (subject.side.name == "torch" and _labels(subject, small or []))
    if small is not None and ignores:
        for name, arrays, alike in _ignoring(subject, small):
            yield from _taken(subject, name, arrays, alike)
    if not fits:
        return
    for name, length in _LENGTHS.items():
        resized = _resized(subject, length)
        if resized is not None:
            yield from _taken(subject, name, resized, False)
    yield from _one_length(subject)


def cut(subject: Subject) -> Subject | None:
    """A large subject at a cut of its inputs, where promises that do not depend on the size are held; else None."""
    if _size(subject) <= LARGE or not fits_others(subject):
        return None
    arrays = _resized(subject, lambda n: min(n, HELD))
    if arrays is None:
        return None
    other = subject.differently(arrays, f"{subject.case}, cut to {HELD}")
    return other if all(np.isfinite(y).all() for y in other.values(other.arrays)) else None


def fits_others(subject: Subject) -> bool:
    """Whether the function may be given inputs of other shapes: the lab's own ops, and who holds no arrays."""
    return subject.trusted or not holds_arrays(subject.origin, subject.options)


def _drawn(
    subject: Subject, small: list[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[str, list[np.ndarray], bool]]:
    def each(change: Callable[[np.ndarray], np.ndarray], only: int | None = None) -> list[Any]:
        return [change(a) if i in subject.wrt and only in (None, i) else a for i, a in enumerate(small)]

    # All inputs at once first: of a slow function no more is looked at.
    yield "scaled by 1.37, nothing normalised", each(lambda a: a * 1.37), False
    yield "all inputs 0", each(np.zeros_like), False
    if len(subject.wrt) > 1 or any(small[i].ndim > 1 for i in subject.wrt):
        yield "one row of zeros in all", each(_row_of_zeros), False
    yield "shifted by 10", each(lambda a: a + 10.0), False
    for name, factor in _FACTORS.items():
        yield name, each(functools.partial(np.multiply, factor)), False
    # exp overflows float64 past 709: the largest element goes there, and in turn the smallest.
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
    """Multiplied so that the largest element, or the smallest, is 800 from 0."""
    return a * (800 / max(float(np.max(sign * a, initial=0.0)), 1e-3))


def _tied(a: np.ndarray) -> np.ndarray:
    """All elements of the last axes one number, another for each leading index."""
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


def _labels(subject: Subject, small: list[np.ndarray]) -> list[int]:
    """Integer arrays that may be class indices: as many dimensions as rows have, none negative."""
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


def _names_ignored(subject: Subject) -> bool:
    try:
        return "ignore_index" in inspect.signature(subject.fn).parameters
    except (TypeError, ValueError):
        return False


def _ignoring(subject: Subject, small: list[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray], bool]]:
    """The first label ignored, if the function ignores: the first row of no float input may then matter to it."""
    value = IGNORED
    if _names_ignored(subject):
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
            before, after = subject.differently(arrays, "").both(moved)
        except Exception:
            continue
        # Only a whole loss says whether it ignores the row; per-row results say so by a 0 in their place.
        if all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
            yield f"{subject.names[i]} with an ignored row", arrays, False


def _taken(
    subject: Subject, name: str, arrays: list[np.ndarray], alike: bool
) -> Iterator[tuple[str, Subject, list[np.ndarray], bool]]:
    """The subject there, if forward takes it and most of what it gives is finite."""
    other = subject.differently(arrays, name)
    try:
        values = other.values(other.arrays)
    except Exception:
        return
    if values and all(np.isfinite(y).all() for y in values):
        yield name, other, values, alike


def _size(subject: Subject) -> int:
    return max(a.size for a in subject.arrays if isinstance(a, np.ndarray))


def _held(subject: Subject) -> bool:
    """Whether no array is empty."""
    return all(a.size for a in subject.arrays if isinstance(a, np.ndarray))


def _resized(subject: Subject, length: Callable[[int], int]) -> list[np.ndarray] | None:
    """Every axis made `length` of its length, elements repeated where it grows; None when nothing changes."""
    arrays = []
    for a in subject.arrays:
        if not isinstance(a, np.ndarray):
            return None
        for axis, n in enumerate(a.shape):
            a = np.take(a, np.arange(length(n)) % max(n, 1), axis) if n else a
        arrays.append(a)
    # Class indices stay below every length that they may index: jax has no error for one that does not.
    least = min((n for i in subject.wrt for n in arrays[i].shape if n), default=1)
    for i, a in enumerate(arrays):
        if i not in subject.wrt and a.dtype.kind in "iu":
            arrays[i] = np.where(a >= least, a % least, a)
    changed = any(a.shape != b.shape for a, b in zip(arrays, subject.arrays, strict=True))
    if not changed or (subject.side.name == "torch" and _collide(subject, arrays)):
        return None
    return arrays if _takes(subject, arrays) else None


def _collide(subject: Subject, arrays: list[np.ndarray]) -> bool:
    """Whether indices that were distinct no longer are: torch's writes to a place twice have no gradient to speak of.

    jax gives the gradient of such a write to who wrote last.
    """
    places = [(a, b) for i, (a, b) in enumerate(zip(subject.arrays, arrays, strict=True)) if i not in subject.wrt]
    return any(not _distinct(a) <= _distinct(b) or _moved(a, b) for a, b in places)


def _distinct(a: np.ndarray) -> set[int]:
    """The axes along which no number comes twice."""
    if a.dtype.kind not in "iu":
        return set()
    return {k for k in range(a.ndim) if (np.diff(np.sort(a, k), axis=k) != 0).all()}


def _moved(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether indices of several axes had to be made smaller: they may be places of a layout."""
    return a.ndim > 1 and a.dtype.kind in "iu" and not set(b.flat) <= set(a.flat)


def _takes(subject: Subject, arrays: list[np.ndarray]) -> bool:
    try:
        subject.differently(arrays, "").values(arrays)
    except Exception:
        return False
    return True


def _one_length(subject: Subject) -> Iterator[tuple[str, Subject, list[np.ndarray], bool]]:
    """Every length that occurs cut to 1 or grown by 1, one at a time: the axes that share it go together."""
    lengths = sorted({n for a in subject.arrays for n in np.shape(a) if n > 1})
    for n in lengths[:3] if len(lengths) > 1 else []:
        for name, to in (("cut to 1", 1), ("grown by 1", n + 1)):
            if to > MOST + 1:
                continue
            arrays = _resized(subject, functools.partial(_instead, n, to))
            if arrays is not None:
                yield from _taken(subject, f"axes of {n} {name}", arrays, False)


def _instead(n: int, to: int, length: int) -> int:
    return to if length == n else min(length, MOST)
