"""Whether a gradient that looks wrong is proven so: the function is differentiable there, and the gradient is not it.

Where a function has a kink, a tie or a singular point, any convention of a gradient is right, and where numbers have
few digits left no gradient is. So a gradient is only called wrong when along several lines the differences forwards and
backwards agree at several steps, when the slopes along the sum and the difference of two lines are the sum and the
difference of theirs, and when the gradient is off by more than its own rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.derivative import SENSITIVITY, Probe, joined

# First steps, relative to the input's scale; each is halved three times and extrapolated. The finer ones see features
# that the others step over, the wide ones see through noise.
STEPS = (2.0**-8, 2.0**-14, 2.0**-20, 2.0**-26, 2.0**-5, 2.0**-2)
HALVINGS = 3
# How many times its own uncertainty a difference has to be to be one.
FAR = 8.0
# A gradient that is this many times the slopes may be right of ones that grow without bound, as the root's at 0.
HUGE = 1e3
# Further pairs of lines: at a tie the same element may be the median of a few lines by chance.
FURTHER = 4
# Steps, relative to the largest element, of at least eight and four stairs of bfloat16.
STAIRS = (2.0**-4, 2.0**-5)
# Relative to the slope, what a slope beside a gradient that is no number has to be sure of.
NEAR = 1e-3


Line = Mapping[int, np.ndarray]
_NOT_SMOOTH = "the function is not differentiable there, or differences do not show that it is"
_NOT_LINEAR = "slopes of two lines do not add up to the slope of their sum: the function is not differentiable there"


@dataclass(frozen=True)
class _Slope:
    """A slope from one first step: the mean of the two sides, and how far it may be off, their distance too.

    Attributes:
        natural: the size of the results on the way, for each unit of the input.
    """

    step: float
    value: float
    error: float
    natural: float


def proven(probe: Probe, i: int, draw: Callable[[], np.ndarray], draw_other: Callable[[int], np.ndarray]) -> str:
    """Why gradient `i` is not proven wrong; empty when it is.

    Args:
        draw: a random direction of the input, in its units; draw_other: of another one.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return _proven(probe, i, draw, draw_other)


def _proven(probe: Probe, i: int, draw: Callable[[], np.ndarray], draw_other: Callable[[int], np.ndarray]) -> str:
    finite = bool(np.isfinite(probe.gradients[i]).all())
    moved = shaken(probe, probe.cotangents).get(i) if finite else None
    first, second = draw(), draw()
    lines = [first, second, first + second, first - second]
    found: list[_Slope] = []
    offs: list[float] = []
    far = 0
    for d in lines:
        got = float(np.vdot(probe.gradients[i], d))
        least = _least(probe, i, d, moved)
        slopes = _slopes(probe, {i: d}, got, least, thorough=d is first)
        sure = _sure(slopes, got, least)
        if len(sure) < (1 if probe.coarse else 2):
            return _NOT_SMOOTH
        finest = min(sure, key=lambda s: s.step)
        off = abs(got - finest.value)
        # A finer step that sees another slope: the others stepped over something.
        if any(abs(s.value - finest.value) > max(_part(off, s) / FAR, FAR * (s.error + finest.error)) for s in sure):
            return "the slope depends on the step"
        found.append(finest)
        offs.append(_part(off, finest))
        far += not off <= least + FAR * finest.error
    if far < 2:
        return "the gradient is within its own rounding of the differences"
    if (
        finite
        and not any(s.value for s in found)
        and _on_a_stair(probe, {i: first}, float(np.vdot(probe.gradients[i], first)))
    ):
        return "the function is flat over small steps alone, as a cast to a low precision is"
    if offs[0] > HUGE * max(abs(s.value) for s in found) and not bounded(probe, {i: first}):
        return "slopes grow as the steps shrink"
    if not _add_up(found[2], found[0], found[1], offs[0]) or not _add_up(found[0], found[3], found[1], offs[0]):
        return _NOT_LINEAR
    if not all(_adds_up(probe, i, draw(), draw(), offs[0]) for _ in range(FURTHER)):
        return _NOT_LINEAR
    others = {k: draw_other(k) for k in probe.subject.wrt if k != i and probe.arrays[k].size}
    if not others:
        return ""
    # The same with the other inputs moving: at a tie of two inputs each alone may look smooth.
    both = [_slopes(probe, line, np.nan, 0.0, thorough=False) for line in (others, {i: first, **others})]
    settled = [[s for s in slopes if s.error <= max(offs[0] / FAR, NEAR * abs(s.value))] for slopes in both]
    if not all(settled):
        return _NOT_SMOOTH
    rest, whole = (min(slopes, key=lambda s: s.error) for slopes in settled)
    return "" if _add_up(whole, found[0], rest, offs[0]) else _NOT_LINEAR


def _adds_up(probe: Probe, i: int, one: np.ndarray, other: np.ndarray, off: float) -> bool:
    """Whether the slopes of two lines add up to that of their sum; true where one of the three does not settle."""
    found = [_slopes(probe, {i: d}, np.nan, 0.0, thorough=False) for d in (one + other, one, other)]
    if not all(found):
        return True
    whole, first, second = (min(slopes, key=lambda s: s.error) for slopes in found)
    return _add_up(whole, first, second, off)


def _add_up(whole: _Slope, one: _Slope, other: _Slope, off: float) -> bool:
    rest = abs(whole.value - one.value - other.value)
    return rest <= max(off / FAR, FAR * (whole.error + one.error + other.error))


def _part(off: float, slope: _Slope) -> float:
    """What the gradient is off by, or a part of the slope where it is no number."""
    return off if np.isfinite(off) else NEAR * abs(slope.value) + 1e-6 * slope.natural


def _sure(slopes: list[_Slope], got: float, least: float) -> list[_Slope]:
    """Slopes that are sure of themselves, and of a part of what the gradient is off by."""
    return [
        s
        for s in slopes
        if s.error <= max(_part(abs(got - s.value), s) / FAR, least)
        and s.error <= max(abs(s.value) / FAR, 1e-6 * s.natural, least)
    ]


def _least(probe: Probe, i: int, d: np.ndarray, moved: np.ndarray | None) -> float:
    """What a right gradient may be off by along a direction: the differences' finest, and its rounding."""
    if moved is None:
        return 0.0
    natural = float(np.linalg.norm(joined(probe.cotangents) * probe.middle)) / probe.units(i)
    return (
        max(SENSITIVITY, probe.subject.inside.slack) * float(np.linalg.norm(probe.gradients[i] * d))
        + FAR * float(np.linalg.norm(moved * d))
        + 64 * probe.subject.eps * natural
    )


def shaken(probe: Probe, cotangents: list[np.ndarray], times: int = 6) -> Mapping[int, np.ndarray]:
    """Per input, the most that each element of its gradient moves when inputs and cotangents move by their last bits.

    That is its rounding, its conditioning, and the size of the terms that it is a sum of.
    """
    rng = np.random.default_rng(0)
    s = probe.subject
    base = s.gradients(probe.arrays, cotangents)
    most = {i: np.zeros_like(g) for i, g in zip(s.wrt, base, strict=True)}
    by = 4 * max(s.eps, probe.noise)

    def move(a: np.ndarray) -> np.ndarray:
        return a * (1 + by * rng.choice([-1.0, 1.0], _rows(a)))

    for _ in range(times):
        arrays = [move(a) if i in s.wrt else a for i, a in enumerate(probe.arrays)]
        try:
            near = s.gradients(arrays, [move(c) for c in cotangents])
        except Exception:
            continue
        for i, g, was in zip(s.wrt, near, base, strict=True):
            with np.errstate(invalid="ignore"):
                most[i] = np.fmax(most[i], np.abs(g - was))
    return most


def _rows(a: np.ndarray) -> tuple[int, ...]:
    """One number for each element, or for each row where the elements of every row are tied."""
    if a.ndim < 1 or not a.size:
        return a.shape
    rows = a.reshape(len(a), -1) if a.ndim > 1 else a.reshape(1, -1)
    if rows.shape[1] < 2 or not (rows == rows[:, :1]).all():
        return a.shape
    return (len(a), *[1] * (a.ndim - 1)) if a.ndim > 1 else (1,)


class _Along:
    """The results, weighed by the cotangents, along a line; NaN where the function raises."""

    def __init__(self, probe: Probe, line: Line) -> None:
        self.probe, self.line = probe, line
        self.c = joined(probe.cotangents)
        self.held = self.c != 0
        self.middle = float(np.dot(self.c[self.held], probe.middle[self.held]))
        self.unit = min(probe.units(i) for i in line)
        # Of the results on the way: what their rounding is relative to.
        self.size = float(np.linalg.norm(self.c * probe.middle)) + abs(self.middle)
        largest = max(float(np.max(np.abs(probe.arrays[i]), initial=0.0)) for i in line)
        self.finest = largest * 4096 * probe.subject.eps

    def __call__(self, t: float) -> float:
        moved = list(self.probe.arrays)
        for i, d in self.line.items():
            moved[i] = moved[i] + t * d
        try:
            values = joined(self.probe.subject.values(moved))
        except Exception:
            return float("nan")
        if values.shape != self.c.shape:
            return float("nan")
        there = float(np.dot(self.c[self.held], values[self.held]))
        if np.isfinite(there):
            self.size = max(self.size, float(np.linalg.norm(self.c[self.held] * values[self.held])))
        return there

    def rounding(self, h: float) -> float:
        """What a difference over `h` may be off by."""
        return 24 * max(self.probe.noise, self.probe.subject.eps) * self.size / h


def bounded(probe: Probe, line: Line) -> bool:
    """Whether quotients over ever smaller steps, to either side, do not grow: the function is Lipschitz there.

    They may grow up to a scale of the function's own, as that of an eps under a root, when they stand still below it.
    """
    phi = _Along(probe, line)

    def sizes(exponents: Sequence[int]) -> list[tuple[float, float]]:
        steps = [h for h in (phi.unit * 2.0**-k for k in exponents) if h > phi.finest]
        with np.errstate(invalid="ignore", over="ignore"):
            return [(h, np.max(np.abs([phi(h) - phi.middle, phi(-h) - phi.middle])) / h) for h in steps]

    wide = sizes((4, 8, 12, 16, 20, 24))
    if len(wide) < 4 or not np.isfinite([s for _, s in wide]).all():
        return False
    rounding = 64 * probe.subject.eps * phi.size
    largest = max(s for _, s in wide[:2])
    if all(s <= 8 * largest + rounding / h for h, s in wide):
        return True
    fine = sizes((24, 28, 32))
    if len(fine) < 3:
        return False
    least, most = min(s for _, s in fine), max(s for _, s in fine)
    return most - least <= 1e-2 * most and rounding / fine[-1][0] <= 1e-2 * most


def _on_a_stair(probe: Probe, line: Line, got: float) -> bool:
    """Whether steps of many last bits of a low precision, beside the input, have the gradient's slope."""
    phi = _Along(probe, line)
    largest = max(float(np.max(np.abs(probe.arrays[i]), initial=0.0)) for i in line)
    steps = [part * largest / phi.unit for part in STAIRS]
    return all(h > 0 and abs((phi(h) - phi(-h)) / (2 * h) - got) <= abs(got) / 3 for h in steps)


def _slopes(probe: Probe, line: Line, got: float, least: float, thorough: bool) -> list[_Slope]:
    """Slopes along a line from several first steps; as few as decide it, or all."""
    phi = _Along(probe, line)
    found: list[_Slope] = []
    for step in STEPS:
        h = step * phi.unit
        if h / 2**HALVINGS < phi.finest:
            continue
        (right, e_right), (left, e_left) = (_one_sided(phi, phi.middle, sign * h) for sign in (1.0, -1.0))
        error = e_right + e_left + phi.rounding(h / 2**HALVINGS) + abs(right - left)
        if np.isfinite(error):
            found.append(_Slope(step, (right + left) / 2, error, phi.size / phi.unit))
        if len(_sure(found, got, least)) >= 2 and (not thorough or step <= STEPS[3]):
            break
    return found


def _one_sided(phi: Callable[[float], float], middle: float, h: float) -> tuple[float, float]:
    """The slope to one side, extrapolated to step 0, and the last change of the extrapolation."""
    rows: list[list[float]] = []
    for k in range(HALVINGS + 1):
        t = h / 2**k
        row = [(phi(t) - middle) / t]
        for m in range(k):
            row.append(row[m] + (row[m] - rows[-1][m]) / (2 ** (m + 1) - 1))
        rows.append(row)
    return rows[-1][-1], abs(rows[-1][-1] - rows[-1][-2]) + abs(rows[-1][-1] - rows[-2][-1])
