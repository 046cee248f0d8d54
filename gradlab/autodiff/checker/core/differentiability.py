"""Confirms that a gradient is wrong: the function is differentiable at the point, and the gradient differs.

At a kink, a tie or a singular point every convention for the gradient is right, and without significant digits none is.
A gradient is therefore called wrong only if along several lines the forward and backward differences agree at several
steps, if the slopes along the sum and the difference of two lines are the sum and the difference of their slopes, and
if the gradient is off by more than its own rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.probe import SENSITIVITY, Probe, joined

# First steps, relative to the input's scale; each is halved three times and extrapolated. Small steps resolve narrow
# features, large ones average out noise.
STEPS = (2.0**-8, 2.0**-14, 2.0**-20, 2.0**-26, 2.0**-5, 2.0**-2)
HALVINGS = 3
# A difference counts if it is this many times its own error.
FAR = 8.0
# A gradient this many times the slopes may be right if the slopes grow without bound, as of a square root at 0.
HUGE = 1e3
# Further pairs of lines: at a tie a few lines may pick the same element by chance.
FURTHER = 4
# Steps, relative to the largest element, that span at least eight and four steps of bfloat16.
STAIRS = (2.0**-4, 2.0**-5)
# Relative error allowed in a slope that is compared with a gradient of NaN.
NEAR = 1e-3


Line = Mapping[int, np.ndarray]
_NOT_SMOOTH = "the function is not differentiable there, or finite differences cannot show that it is"
_NOT_LINEAR = "slopes of two lines do not add up to the slope of their sum: the function is not differentiable there"


@dataclass(frozen=True)
class _TwoSidedSlope:
    """A slope from one first step: the mean of both sides, with an error that includes their difference.

    Attributes:
        natural: the size of the results along the line, per unit of the input.
    """

    step: float
    value: float
    error: float
    natural: float


def why_not_wrong(probe: Probe, i: int, draw: Callable[[], np.ndarray], draw_other: Callable[[int], np.ndarray]) -> str:
    """The reason why gradient `i` cannot be called wrong; empty if it is confirmed wrong.

    Args:
        draw: returns a random direction of the input, in its units; draw_other: of another input.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return _why_not_wrong(probe, i, draw, draw_other)


def _why_not_wrong(
    probe: Probe, i: int, draw: Callable[[], np.ndarray], draw_other: Callable[[int], np.ndarray]
) -> str:
    finite = bool(np.isfinite(probe.gradients[i]).all())
    moved = perturbed(probe, probe.cotangents).get(i) if finite else None
    first, second = draw(), draw()
    lines = [first, second, first + second, first - second]
    found: list[_TwoSidedSlope] = []
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
        # A smaller step finds another slope: the larger ones stepped over a feature.
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
        and _is_staircase(probe, {i: first}, float(np.vdot(probe.gradients[i], first)))
    ):
        return "the function is flat only over small steps, as a cast to a low precision makes it"
    if offs[0] > HUGE * max(abs(s.value) for s in found) and not is_lipschitz(probe, {i: first}):
        return "slopes grow as the steps shrink"
    if not _add_up(found[2], found[0], found[1], offs[0]) or not _add_up(found[0], found[3], found[1], offs[0]):
        return _NOT_LINEAR
    if not all(_adds_up(probe, i, draw(), draw(), offs[0]) for _ in range(FURTHER)):
        return _NOT_LINEAR
    others = {k: draw_other(k) for k in probe.subject.wrt if k != i and probe.arrays[k].size}
    if not others:
        return ""
    # The same with all inputs moving: at a tie between two inputs each alone may look smooth.
    both = [_slopes(probe, line, np.nan, 0.0, thorough=False) for line in (others, {i: first, **others})]
    settled = [[s for s in slopes if s.error <= max(offs[0] / FAR, NEAR * abs(s.value))] for slopes in both]
    if not all(settled):
        return _NOT_SMOOTH
    rest, joint_slope = (min(slopes, key=lambda s: s.error) for slopes in settled)
    return "" if _add_up(joint_slope, found[0], rest, offs[0]) else _NOT_LINEAR


def _adds_up(probe: Probe, i: int, one: np.ndarray, other: np.ndarray, off: float) -> bool:
    """Whether the slopes of two lines add up to that of their sum; true if one of the three does not converge."""
    found = [_slopes(probe, {i: d}, np.nan, 0.0, thorough=False) for d in (one + other, one, other)]
    if not all(found):
        return True
    joint_slope, first, second = (min(slopes, key=lambda s: s.error) for slopes in found)
    return _add_up(joint_slope, first, second, off)


def _add_up(joint_slope: _TwoSidedSlope, one: _TwoSidedSlope, other: _TwoSidedSlope, off: float) -> bool:
    rest = abs(joint_slope.value - one.value - other.value)
    return rest <= max(off / FAR, FAR * (joint_slope.error + one.error + other.error))


def _part(off: float, slope: _TwoSidedSlope) -> float:
    """The error of the gradient, or a share of the slope if the gradient is NaN."""
    return off if np.isfinite(off) else NEAR * abs(slope.value) + 1e-6 * slope.natural


def _sure(slopes: list[_TwoSidedSlope], got: float, least: float) -> list[_TwoSidedSlope]:
    """Slopes whose error is small beside themselves and beside the error of the gradient."""
    return [
        s
        for s in slopes
        if s.error <= max(_part(abs(got - s.value), s) / FAR, least)
        and s.error <= max(abs(s.value) / FAR, 1e-6 * s.natural, least)
    ]


def _least(probe: Probe, i: int, d: np.ndarray, moved: np.ndarray | None) -> float:
    """The error that a correct gradient may have along a direction: sensitivity of the check plus rounding."""
    if moved is None:
        return 0.0
    natural = float(np.linalg.norm(joined(probe.cotangents) * probe.middle)) / probe.units(i)
    return (
        max(SENSITIVITY, probe.subject.internals.slack) * float(np.linalg.norm(probe.gradients[i] * d))
        + FAR * float(np.linalg.norm(moved * d))
        + 64 * probe.subject.eps * natural
    )


def perturbed(probe: Probe, cotangents: list[np.ndarray], times: int = 6) -> Mapping[int, np.ndarray]:
    """Per input, the most that each element of its gradient changes when inputs and cotangents change in their last
    bits.

    This measures its rounding, its conditioning, and the size of the terms that it is a sum of.
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
    """The shape of one number per element, or per row where the elements of every row are equal."""
    if a.ndim < 1 or not a.size:
        return a.shape
    rows = a.reshape(len(a), -1) if a.ndim > 1 else a.reshape(1, -1)
    if rows.shape[1] < 2 or not (rows == rows[:, :1]).all():
        return a.shape
    return (len(a), *[1] * (a.ndim - 1)) if a.ndim > 1 else (1,)


class _WeightedLine:
    """<cotangents, results> along a line; NaN where the function raises."""

    def __init__(self, probe: Probe, line: Line) -> None:
        self.probe, self.line = probe, line
        self.c = joined(probe.cotangents)
        self.active = self.c != 0
        self.middle = float(np.dot(self.c[self.active], probe.middle[self.active]))
        self.unit = min(probe.units(i) for i in line)
        # The size of the results along the line, which their rounding is relative to.
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
        value = float(np.dot(self.c[self.active], values[self.active]))
        if np.isfinite(value):
            self.size = max(self.size, float(np.linalg.norm(self.c[self.active] * values[self.active])))
        return value

    def rounding(self, h: float) -> float:
        """The rounding error of a difference quotient with step `h`."""
        return 24 * max(self.probe.noise, self.probe.subject.eps) * self.size / h


def is_lipschitz(probe: Probe, line: Line) -> bool:
    """Whether difference quotients stay bounded as the step shrinks, to either side: the function is Lipschitz there.

    They may grow down to a scale of the function itself, as an eps under a root, if they are constant below it.
    """
    phi = _WeightedLine(probe, line)

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


def _is_staircase(probe: Probe, line: Line, got: float) -> bool:
    """Whether steps that span several bfloat16 steps of the input show the gradient's slope."""
    phi = _WeightedLine(probe, line)
    largest = max(float(np.max(np.abs(probe.arrays[i]), initial=0.0)) for i in line)
    steps = [part * largest / phi.unit for part in STAIRS]
    return all(h > 0 and abs((phi(h) - phi(-h)) / (2 * h) - got) <= abs(got) / 3 for h in steps)


def _slopes(probe: Probe, line: Line, got: float, least: float, thorough: bool) -> list[_TwoSidedSlope]:
    """Slopes along a line from several first steps: as few as are needed, or all if `thorough`."""
    phi = _WeightedLine(probe, line)
    found: list[_TwoSidedSlope] = []
    for step in STEPS:
        h = step * phi.unit
        if h / 2**HALVINGS < phi.finest:
            continue
        (right, e_right), (left, e_left) = (_one_sided(phi, phi.middle, sign * h) for sign in (1.0, -1.0))
        error = e_right + e_left + phi.rounding(h / 2**HALVINGS) + abs(right - left)
        if np.isfinite(error):
            found.append(_TwoSidedSlope(step, (right + left) / 2, error, phi.size / phi.unit))
        if len(_sure(found, got, least)) >= 2 and (not thorough or step <= STEPS[3]):
            break
    return found


def _one_sided(phi: Callable[[float], float], middle: float, h: float) -> tuple[float, float]:
    """The one-sided slope extrapolated to step 0, and the last change of the extrapolation."""
    rows: list[list[float]] = []
    for k in range(HALVINGS + 1):
        t = h / 2**k
        row = [(phi(t) - middle) / t]
        for m in range(k):
            row.append(row[m] + (row[m] - rows[-1][m]) / (2 ** (m + 1) - 1))
        rows.append(row)
    return rows[-1][-1], abs(rows[-1][-1] - rows[-1][-2]) + abs(rows[-1][-1] - rows[-2][-1])
