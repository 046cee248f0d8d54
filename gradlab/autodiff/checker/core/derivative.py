"""The gradient against differences along random directions: a handful of evaluations whatever the size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core import differences
from gradlab.autodiff.checker.core.differences import Slope
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG
from gradlab.autodiff.checker.core.subject import Subject

# A gradient is wrong when it is further from the differences than their own error and this part of its norm.
SENSITIVITY = 1e-7
# Differences that are not surer than this part of the norm decide nothing.
SURE = 1e-6
# Values no surer than this, relative, are worked out in a low precision; differences of them decide what they can see,
# down to a part of the norm this large.
COARSE, SURE_COARSE = 2.0**-26, 0.03
# Errors of single results add like random numbers, because the cotangent that weighs them is random: six deviations.
DEVIATIONS = 6.0


@dataclass
class Pair:
    """One number twice: the pullback along a direction, and differences along it.

    Attributes:
        direction: of each input that moved, by its place among the leaves.
        got, wanted: <gradient, direction> and <cotangent, slope>.
        error: what `wanted` may be off by.
        scale: the norm that errors are relative to.
        natural: the size of the results it moves, for each unit of the input.
        floor: what rounding may leave of a gradient where larger terms cancel.
    """

    direction: Mapping[int, np.ndarray]
    got: float
    wanted: float
    error: float
    scale: float
    sure: bool = True
    natural: float = 0.0
    floor: float = 0.0

    @property
    def off(self) -> float:
        return abs(self.got - self.wanted)

    @property
    def allowed(self) -> float:
        return self.error + SENSITIVITY * self.scale + self.floor

    @property
    def wrong(self) -> bool:
        return not self.off <= self.allowed

    @property
    def verdict(self) -> str:
        if not np.isfinite(self.error) or (self.wrong and self.off <= 10 * self.error):
            return INCONCLUSIVE
        return WRONG if self.wrong else OK if self.sure else INCONCLUSIVE


@dataclass
class Probe:
    """A subject at a point with cotangents: pairs along any direction.

    Attributes:
        cotangents: of every result; gradients: the pullback of these, by place among the leaves.
        steps: the window that suited each input, for what follows.
        pairs: every pair that was made, by input; joint: those of all inputs at once.
        noise: of the values, relative, as far as it has shown.
        outside: what the function raised where differences moved its inputs to.
        skipped: number of results whose slopes do not settle, taken out by a cotangent of 0.
    """

    subject: Subject
    arrays: list[np.ndarray]
    cotangents: list[np.ndarray]
    gradients: dict[int, np.ndarray]
    middle: np.ndarray
    steps: dict[int, float] = field(default_factory=dict)
    pairs: dict[int, list[Pair]] = field(default_factory=dict)
    joint: list[Pair] = field(default_factory=list)
    skipped: int = 0
    noise: float = differences.EPS
    outside: str = ""

    def units(self, i: int) -> float:
        """The scale of an input that steps are relative to: its root mean square without zeros, at most 1."""
        x = self.arrays[i]
        many = np.count_nonzero(x)
        return min(1.0, float(np.sqrt(np.vdot(x, x) / many))) if many else 1.0

    def slope(
        self,
        direction: Mapping[int, np.ndarray],
        step: float = differences.STEP,
        narrow: bool = True,
        thorough: bool = False,
    ) -> Slope:
        """Slopes of all results along a direction, in units of the inputs it moves."""

        def line(t: float) -> np.ndarray:
            moved = list(self.arrays)
            for i, d in direction.items():
                moved[i] = moved[i] + t * d
            try:
                values = joined(self.subject.values(moved))
            except Exception as error:
                self.outside = self.outside or self._outside(direction, t, error)
                return np.full(self.middle.shape, np.nan)
            return values if values.shape == self.middle.shape else np.full(self.middle.shape, np.nan)

        unit = min(self.units(i) for i in direction)
        # A step that is a few last bits of the largest element is not the step that was asked for.
        least = max(float(np.max(np.abs(self.arrays[i]), initial=0.0)) for i in direction) * 4096 * self.subject.eps
        slope = differences.along(line, self.middle, step, unit, narrow, thorough, self.noise, least)
        self.noise = max(self.noise, slope.noise)
        return slope

    def pair(self, direction: Mapping[int, np.ndarray], slope: Slope) -> Pair:
        """What the pullback and the slope say of a direction."""
        c = joined(self.cotangents)
        held = c != 0
        with np.errstate(invalid="ignore"):
            wanted = float(np.dot(c[held], slope.value[held])) if not held.all() else float(np.dot(c, slope.value))
            error = DEVIATIONS * float(np.linalg.norm(c * np.where(held, slope.error, 0.0)))
        got = float(sum(np.vdot(self.gradients[i], d) for i, d in direction.items()))
        norm = float(np.sqrt(sum(_norm2(self.gradients[i], d) for i, d in direction.items())))
        scale = max(norm, abs(wanted)) if np.isfinite(wanted) else norm
        unit = min(self.units(i) for i in direction)
        natural = float(np.linalg.norm(c[held] * slope.largest[held])) / unit
        sure = SURE_COARSE if self.coarse else SURE
        floor = 64 * self.subject.eps * natural
        return Pair(direction, got, wanted, error, scale, error <= sure * max(scale, natural), natural, floor)

    @property
    def coarse(self) -> bool:
        """Whether the values are worked out in a low precision, and differences of them no surer than that."""
        return self.noise >= COARSE

    def _outside(self, direction: Mapping[int, np.ndarray], t: float, error: Exception) -> str:
        """Where the inputs were moved to when the function raised, and what."""
        i, d = next(iter(direction.items()))
        at = np.unravel_index(int(np.argmax(np.abs(d))), d.shape) if d.ndim and d.size else ()
        place = self.subject.names[i] + (f"[{', '.join(str(int(k)) for k in at)}]" if at else "")
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return f"the check stepped outside the domain, at {place} by {t * float(d[at]):.1e} ({said})"

    def settle(self, slope: Slope) -> bool:
        """Take results that do not settle out of the cotangent, when most are left; true if any were."""
        c = joined(self.cotangents)
        held = c != 0
        size = float(np.max(np.abs(slope.value[held & np.isfinite(slope.value)]), initial=0.0))
        floor = 1e-7 * max(size, float(np.max(np.abs(self.middle), initial=0.0)))
        loose = held & ~(slope.error <= floor)
        if not loose.any() or 2 * loose.sum() > held.sum():
            return False
        c = np.where(loose, 0.0, c)
        self.skipped += int(loose.sum())
        self.pairs.clear()
        self.cotangents = split(c, self.cotangents)
        self.gradients = gradients(self.subject, self.arrays, self.cotangents)
        return True


def gradients(
    subject: Subject, arrays: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """The pullback by place among the leaves."""
    return dict(zip(subject.wrt, subject.gradients(arrays, cotangents), strict=True))


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A direction of +1 and -1."""
    return rng.integers(0, 2, shape, dtype=np.int8) * 2.0 - 1.0


def uneven(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs times random lengths: equal and opposite errors cancel along half of all even directions."""
    return (rng.random(shape) + 0.5) * signs(rng, shape)


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All results as one vector."""
    return arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([a.reshape(-1) for a in arrays])


def split(vector: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The reverse of `joined`."""
    parts, start = [], 0
    for a in like:
        parts.append(vector[start : start + a.size].reshape(a.shape))
        start += a.size
    return parts


def _norm2(gradient: np.ndarray, direction: np.ndarray) -> float:
    part = gradient if direction.all() else gradient[direction != 0]
    return float(np.vdot(part, part))
