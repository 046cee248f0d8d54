"""Derivatives along a line by central differences, elementwise, each with an error estimate; NumPy float64."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EPS = float(np.finfo(np.float64).eps)
# The first step, relative to the input's scale: smooth functions lose h^6 to truncation after two extrapolations and
# eps / h to rounding; at 4e-3 both stay below 1e-11.
STEP = 4e-3
# Where the first window does not settle: larger steps against noise, smaller ones against kinks and narrow features.
DEEP = (0.25, 2.0**-12, 2.0**-16, 2.0**-20, 2.0**-24, 2.0**-28, 2.0**-32, 2.0**-36)
# A step that no smooth feature needs, taken once: where it disagrees there is a feature narrower than the window.
TINY = 2.0**-27
# Results whose estimate is below this part of the largest slope are settled; the rest are looked at more closely.
SETTLED = 1e-8


@dataclass
class Slope:
    """f'(0), elementwise.

    Attributes:
        value: the derivative of every result.
        error: its estimated error; inf where no step settles.
        largest: the largest magnitude of each result on the way, at least the typical one.
        step: the first step of the window that most results were taken from.
        tried: every (step, central difference) that was taken.
        noise: of f's values, relative; rounding when nothing else showed.
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
) -> Slope:
    """f'(0) for f from a number to an array, f(0) being `middle`.

    Central differences at a step, its half and, unless they agree, its quarter, extrapolated to step 0 (Ridders,
    Advances in Engineering Software 4, 1982). The estimate is the last change of the extrapolation, what rounding f's
    values can do, and the difference of the one-sided slopes where that does not shrink with the step (a kink, which
    central differences settle on). Where that is large, or a tiny step disagrees, other windows are tried and each
    result keeps the one that is best for it.

    Args:
        unit: the input's scale, which all steps are multiplied with.
        narrow: take the tiny step although the window has settled.
        thorough: try every window and measure f's noise although the first has settled.
        noise: of f's values, relative, where it is known to be more than rounding.
        least: the smallest step that still moves the input by many of its last bits.
    """
    tried: list[tuple[float, np.ndarray]] = []
    first = _window(f, middle, step, unit, noise, tried)
    noise = max(noise, first.grain)
    value, error = first.value, first.error
    size = float(np.max(np.abs(value[np.isfinite(value)]), initial=0.0))
    settled = not (thorough or (error > SETTLED * size + 64 * EPS * _sizes(middle) / (step * unit)).any())
    if settled and not narrow:
        return Slope(value, error, first.largest, step, tried, noise)
    h = max(TINY * unit, least)
    up, down = f(h), f(-h)
    tiny = (up - down) / (2 * h)
    tried.append((h, tiny))
    rounding = 32 * noise * _sizes(middle, up, down) / h
    # Less than a feature is what does not show beside the results themselves: the tiny step has a truncation too.
    missed = ~(np.abs(tiny - value) <= error + rounding + 1e-7 * first.largest / unit)
    if settled and not missed.any():
        return Slope(value, error, first.largest, step, tried, noise)
    windows = [_window(f, middle, s, unit, noise, tried) for s in DEEP if s * unit / 4 >= least]
    # Values that small steps do not move show only on the widest window which precision they are numbers of.
    noise = max(noise, _noise(windows[2:], unit), windows[0].grain if windows else 0.0)
    error = np.where(missed, np.inf, first.with_noise(noise, unit))
    values, errors = [value], [error]
    for w in windows:
        # A window wider than a feature is settled on the wrong number; only steps near its tiny step can tell.
        e = w.with_noise(noise, unit)
        wide = missed & (w.step > 2.0**-19) & ~(np.abs(tiny - w.value) <= e + rounding)
        values.append(w.value)
        errors.append(np.where(wide, np.inf, e))
    steps = np.array([step, *(w.step for w in windows)])
    order = np.argsort(-steps)
    value, error, best = _best(np.stack(values)[order], np.stack(errors)[order])
    chosen = float(np.median(steps[order][best])) if best.size else step
    return Slope(value, error, first.largest, chosen, tried, noise)


def _best(values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per result the window of the least error, and that error or how far the nearer of its neighbours is from it.

    One window alone may look settled by accident, as on a wave that its steps are multiples of.
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
        # A finer window that is sure of another number: the wide one may have stepped over whole waves.
        with np.errstate(invalid="ignore"):
            off = np.abs(values[k] - value)
            other = (best < k) & np.isfinite(errors[k]) & (off > 3 * (errors[k] + error))
        error = np.where(other, np.maximum(error, off), error)
    return value, error, best


@dataclass
class _Window:
    """A derivative from one window of steps, its error estimate and what that is made of."""

    step: float
    value: np.ndarray
    error: np.ndarray
    largest: np.ndarray
    grain: float

    def with_noise(self, noise: float, unit: float) -> np.ndarray:
        """The error when f's values are no surer than `noise`."""
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
            # Outside the domain a value is NaN: its slope then is too, but not the size of the others.
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
            # A bend that halves with the step is no kink, nor is one that rounding makes in a long sum.
            smooth = level == 1 and bool((bends[1] <= 0.55 * bends[0] + 32 * rounding).all())
            if smooth and np.linalg.norm(row[0] - rows[0][0]) <= 8 * allowed:
                # The differences agree to rounding and the function is smooth: a third step adds nothing.
                return _Window(step, row[1], np.abs(row[1] - row[0]) + rounding, largest, grain)
        error = np.abs(rows[-1][-1] - rows[-1][-2]) + rounding
        # On a smooth function the slopes' difference is h f'' and falls to a quarter over two halvings.
        kink = (bends[-1] > 0.6 * bends[0]) & (bends[-1] > 4 * rounding)
        # Where the bend is no part of the slopes it is rounding that has not fallen, and weighs as such.
        slopes = np.abs(rows[-1][-1])
        typical = float(np.sqrt(np.mean(slopes[np.isfinite(slopes)] ** 2))) if np.isfinite(slopes).any() else 0.0
        sharp = bends[-1] > 1e-7 * np.maximum(slopes, typical)
        error = np.where(kink, np.where(sharp, np.inf, np.maximum(error, bends[-1])), error)
    return _Window(step, rows[-1][-1], np.where(np.isfinite(error), error, np.inf), largest, grain)


def _grain(middle: np.ndarray, up: np.ndarray, down: np.ndarray) -> float:
    """The unit of the lowest precision that all values are numbers of, whatever their dtype, and use the digits of."""
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
    """The noise of f's values, relative, from windows of ever smaller steps, where little else is left.

    The median over neighbours: a kink disturbs one pair, and where noise is a grain that steps no longer reach, the
    last pairs show none.
    """
    found = []
    for wide, fine in itertools.pairwise(windows):
        off = np.abs(wide.value - fine.value)
        held = np.isfinite(off) & np.isfinite(fine.largest)
        size = float(np.linalg.norm(fine.largest[held]))
        found.append(float(np.linalg.norm(off[held])) * fine.step * unit / 4 / size if size else 0.0)
    return float(np.median(found)) if found else 0.0


def _sizes(*values: np.ndarray) -> np.ndarray:
    """The magnitude that each result's rounding is relative to: its own, or the typical one where it is cancelled."""
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
