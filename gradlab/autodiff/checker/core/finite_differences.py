"""Derivatives along a line by central differences, elementwise, each with an error estimate; NumPy float64."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EPS = float(np.finfo(np.float64).eps)
# The first step, relative to the input's scale: after two extrapolations a smooth function has a truncation error of
# h^6 and a rounding error of eps / h; at 4e-3 both stay below 1e-11.
STEP = 4e-3
# First steps of further windows where the first does not converge: large ones against noise, small ones against kinks.
DEEP = (0.25, 2.0**-12, 2.0**-16, 2.0**-20, 2.0**-24, 2.0**-28, 2.0**-32, 2.0**-36)
# A tiny step, taken once: where it disagrees the function has a feature narrower than the window.
TINY = 2.0**-27
# Results whose error estimate is below this share of the largest derivative have converged.
SETTLED = 1e-8


@dataclass
class LineDerivative:
    """f'(0), elementwise.

    Attributes:
        value: the derivative of every result.
        error: its estimated error; inf where no step size converges.
        largest: the largest magnitude of each result along the line, at least the typical one.
        step: the first step of the window chosen for most results.
        tried: every (step, central difference) that was taken.
        noise: relative noise of f's values; at least rounding.
    """

    value: np.ndarray
    error: np.ndarray
    largest: np.ndarray
    step: float
    tried: list[tuple[float, np.ndarray]]
    noise: float


def along(
    f: Callable[[float], np.ndarray],
    middle: np.ndarray,
    step: float = STEP,
    unit: float = 1.0,
    narrow: bool = True,
    thorough: bool = False,
    noise: float = EPS,
    least: float = 0.0,
) -> LineDerivative:
    """f'(0) for f from a number to an array, f(0) being `middle`.

    Central differences at a step, its half and, unless they agree, its quarter, extrapolated to step 0 (Ridders,
    Advances in Engineering Software 4, 1982). The error estimate adds the last change of the extrapolation, the
    rounding of f's values, and the difference of the one-sided slopes where it does not shrink with the step (at a
    kink central differences converge, but to no derivative). Where the estimate is large, or a tiny step disagrees,
    other windows are tried and each result takes its best one.

    Args:
        unit: the input's scale, which multiplies all steps.
        narrow: take the tiny step even if the first window has converged.
        thorough: try every window and measure f's noise even if the first has converged.
        noise: relative noise of f's values, where it is known to exceed rounding.
        least: the smallest step that still moves the input by many of its last bits.
    """
    tried: list[tuple[float, np.ndarray]] = []
    first = _window(f, middle, step, unit, noise, tried)
    noise = max(noise, first.grain)
    value, error = first.value, first.error
    size = float(np.max(np.abs(value[np.isfinite(value)]), initial=0.0))
    settled = not (thorough or (error > SETTLED * size + 64 * EPS * _sizes(middle) / (step * unit)).any())
    if settled and not narrow:
        return LineDerivative(value, error, first.largest, step, tried, noise)
    h = max(TINY * unit, least)
    up, down = f(h), f(-h)
    tiny = (up - down) / (2 * h)
    tried.append((h, tiny))
    rounding = 32 * noise * _sizes(middle, up, down) / h
    # A difference that is small beside the results themselves is no feature: the tiny step has its own truncation.
    missed = ~(np.abs(tiny - value) <= error + rounding + 1e-7 * first.largest / unit)
    if settled and not missed.any():
        return LineDerivative(value, error, first.largest, step, tried, noise)
    windows = [_window(f, middle, s, unit, noise, tried) for s in DEEP if s * unit / 4 >= least]
    # Values that small steps do not change show their precision only in the widest window.
    noise = max(noise, _noise(windows[2:], unit), windows[0].grain if windows else 0.0)
    error = np.where(missed, np.inf, first.with_noise(noise, unit))
    values, errors = [value], [error]
    for w in windows:
        # A window wider than a feature converges to a wrong number; only steps near the tiny one can tell.
        e = w.with_noise(noise, unit)
        wide = missed & (w.step > 2.0**-19) & ~(np.abs(tiny - w.value) <= e + rounding)
        values.append(w.value)
        errors.append(np.where(wide, np.inf, e))
    steps = np.array([step, *(w.step for w in windows)])
    order = np.argsort(-steps)
    value, error, best = _best(np.stack(values)[order], np.stack(errors)[order])
    chosen = float(np.median(steps[order][best])) if best.size else step
    return LineDerivative(value, error, first.largest, chosen, tried, noise)


def _best(values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per result the window of least error; its error is at least the distance to the nearer neighbouring window.

    A single window may converge by accident, as on a wave whose period its steps are multiples of.
    """
    best = np.argmin(errors, axis=0)
    value = np.take_along_axis(values, best[None], 0)[0]
    error = np.take_along_axis(errors, best[None], 0)[0]
    beside = []
    for by in (-1, 1):
        at = best + by
        there = np.take_along_axis(values, np.clip(at, 0, len(values) - 1)[None], 0)[0]
        with np.errstate(invalid="ignore"):
            off = np.abs(there - value)
        beside.append(np.where((at >= 0) & (at < len(values)) & np.isfinite(off), off, np.inf))
    error = np.maximum(error, np.minimum(*beside))
    for k in range(1, len(values)):
        # A finer window that converged to another number: the wide one may have stepped over whole waves.
        with np.errstate(invalid="ignore"):
            off = np.abs(values[k] - value)
            other = (best < k) & np.isfinite(errors[k]) & (off > 3 * (errors[k] + error))
        error = np.where(other, np.maximum(error, off), error)
    return value, error, best


@dataclass
class _Window:
    """A derivative from one window of steps, with its error estimate and what that consists of."""

    step: float
    value: np.ndarray
    error: np.ndarray
    largest: np.ndarray
    grain: float

    def with_noise(self, noise: float, unit: float) -> np.ndarray:
        """The error if f's values have this relative noise."""
        return self.error + 16 * noise * self.largest / (self.step * unit)


def _window(
    f: Callable[[float], np.ndarray],
    middle: np.ndarray,
    step: float,
    unit: float,
    noise: float,
    tried: list[tuple[float, np.ndarray]],
) -> _Window:
    rows: list[list[np.ndarray]] = []
    bends: list[np.ndarray] = []
    largest = _sizes(middle)
    grain = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for level in range(3):
            h = step * unit / 2**level
            up, down = f(h), f(-h)
            if level == 0:
                grain = _grain(middle, up, down)
            # Outside the domain a value is NaN, and so is its derivative; the sizes of the others stay numbers.
            largest = np.fmax(largest, np.fmax(np.abs(up), np.abs(down)))
            bends.append(np.abs(up - 2 * middle + down) / h)
            row = [(up - down) / (2 * h)]
            tried.append((h, row[0]))
            for k in range(level):
                factor = 4.0 ** (k + 1)
                row.append((factor * row[k] - rows[-1][k]) / (factor - 1))
            rows.append(row)
            rounding = 4 * max(noise, grain) * largest / h
            allowed = np.linalg.norm(rounding)
            # A bend that halves with the step is no kink, nor is one caused by rounding in a long sum.
            smooth = level == 1 and bool((bends[1] <= 0.55 * bends[0] + 32 * rounding).all())
            if smooth and np.linalg.norm(row[0] - rows[0][0]) <= 8 * allowed:
                # The differences agree to rounding and the function is smooth: no third step is needed.
                return _Window(step, row[1], np.abs(row[1] - row[0]) + rounding, largest, grain)
        error = np.abs(rows[-1][-1] - rows[-1][-2]) + rounding
        # On a smooth function the slopes' difference is h f'' and falls to a quarter over two halvings.
        kink = (bends[-1] > 0.6 * bends[0]) & (bends[-1] > 4 * rounding)
        # A bend that is tiny beside the slopes is rounding that does not shrink, and counts as such.
        slopes = np.abs(rows[-1][-1])
        typical = float(np.sqrt(np.mean(slopes[np.isfinite(slopes)] ** 2))) if np.isfinite(slopes).any() else 0.0
        sharp = bends[-1] > 1e-7 * np.maximum(slopes, typical)
        error = np.where(kink, np.where(sharp, np.inf, np.maximum(error, bends[-1])), error)
    return _Window(step, rows[-1][-1], np.where(np.isfinite(error), error, np.inf), largest, grain)


def _grain(middle: np.ndarray, up: np.ndarray, down: np.ndarray) -> float:
    """The rounding unit of the lowest precision in which all values are representable; 0 if that is float64."""
    bits = np.uint32(0)
    for a in (middle, up, down):
        single = np.ascontiguousarray(a, np.float32)
        if not np.array_equal(a, single, equal_nan=True):
            return 0.0
        bits |= np.bitwise_or.reduce(single.view(np.uint32), axis=None, initial=0)
    # Of the 23 bits behind the first: bfloat16 has 7, float16 10. Small whole numbers do not use the last of these.
    for unit, lost, own in ((2.0**-8, 0xFFFF, 0x30000), (2.0**-11, 0x1FFF, 0x6000), (2.0**-24, 0, 0x1FFF)):
        if not bits & lost and bits & own:
            return unit
    return 0.0


def _noise(windows: list[_Window], unit: float) -> float:
    """The relative noise of f's values, from windows of ever smaller steps, whose difference is mostly noise.

    The median over neighbours: a kink disturbs one pair, and where values are quantised the last pairs do not differ.
    """
    found = []
    for wide, fine in itertools.pairwise(windows):
        off = np.abs(wide.value - fine.value)
        valid = np.isfinite(off) & np.isfinite(fine.largest)
        size = float(np.linalg.norm(fine.largest[valid]))
        found.append(float(np.linalg.norm(off[valid])) * fine.step * unit / 4 / size if size else 0.0)
    return float(np.median(found)) if found else 0.0


def _sizes(*values: np.ndarray) -> np.ndarray:
    """The magnitude that each result's rounding is relative to: its own, or the typical one where it cancels."""
    largest = np.fmax.reduce([np.abs(v) for v in values])
    finite = largest[np.isfinite(largest)]
    return np.maximum(largest, np.sqrt(np.mean(finite**2)) if finite.size else 0.0)


def gradient(f: Callable[[np.ndarray], float], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of a scalar function, element by element, and its error estimate; both shaped as x."""
    value, error = np.zeros_like(x), np.zeros_like(x)
    middle = np.asarray(f(x))
    for index in np.ndindex(x.shape):

        def line(t: float, index: tuple[int, ...] = index) -> np.ndarray:
            moved = x.copy()
            moved[index] += t
            return np.asarray(f(moved))

        found = _window(line, middle, STEP, 1.0, EPS, [])
        value[index], error[index] = found.value, found.error
    return value, error
