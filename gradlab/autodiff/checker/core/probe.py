"""A gradient against finite differences along random directions: a few evaluations whatever the size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core import finite_differences
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG
from gradlab.autodiff.checker.core.finite_differences import LineDerivative
from gradlab.autodiff.checker.core.subject import CheckSubject

# A gradient is wrong if it differs from the finite differences by more than their error plus this share of its norm.
SENSITIVITY = 1e-7
# Finite differences whose error exceeds this share of the norm are inconclusive.
SURE = 1e-6
# Values with relative noise from COARSE on are computed in a low precision; finite differences of them are accepted
# with an error up to SURE_COARSE of the norm.
COARSE, SURE_COARSE = 2.0**-26, 0.03
# The errors of single results add like independent random numbers, as the cotangent is random: six deviations.
DEVIATIONS = 6.0


@dataclass
class Pair:
    """One directional derivative computed twice: by the pullback and by finite differences.

    Attributes:
        direction: of each input that moves, by its index among the leaves.
        got, wanted: <gradient, direction> and <cotangent, slope>.
        error: estimated error of `wanted`.
        scale: the norm that errors are relative to.
        natural: the size of the results along the direction, per unit of the input.
        floor: rounding that may remain in a gradient where larger terms cancel.
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
    """A subject at one point with cotangents: compares directional derivatives along any direction.

    Attributes:
        cotangents: of every result; gradients: the pullback of these, by index among the leaves.
        steps: the step size that converged for each input, reused later.
        pairs: every pair so far, by input; joint: those along directions of all inputs.
        noise: relative noise of the values, as measured so far.
        outside: text of what the function raised at inputs moved by a finite difference.
        skipped: number of results whose derivatives do not converge, excluded by a cotangent of 0.
    """

    subject: CheckSubject
    arrays: list[np.ndarray]
    cotangents: list[np.ndarray]
    gradients: dict[int, np.ndarray]
    middle: np.ndarray
    steps: dict[int, float] = field(default_factory=dict)
    pairs: dict[int, list[Pair]] = field(default_factory=dict)
    joint: list[Pair] = field(default_factory=list)
    skipped: int = 0
    noise: float = finite_differences.EPS
    outside: str = ""

    def units(self, i: int) -> float:
        """The scale of an input, which steps are relative to: its root mean square without zeros, at most 1."""
        x = self.arrays[i]
        many = np.count_nonzero(x)
        return min(1.0, float(np.sqrt(np.vdot(x, x) / many))) if many else 1.0

    def slope(
        self,
        direction: Mapping[int, np.ndarray],
        step: float = finite_differences.STEP,
        narrow: bool = True,
        thorough: bool = False,
    ) -> LineDerivative:
        """The derivative of every result along a direction, by finite differences."""

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
        # A step of only a few last bits of the largest element would be rounded to another one.
        least = max(float(np.max(np.abs(self.arrays[i]), initial=0.0)) for i in direction) * 4096 * self.subject.eps
        slope = finite_differences.along(line, self.middle, step, unit, narrow, thorough, self.noise, least)
        self.noise = max(self.noise, slope.noise)
        return slope

    def pair(self, direction: Mapping[int, np.ndarray], slope: LineDerivative) -> Pair:
        """The pullback and the finite differences along a direction."""
        c = joined(self.cotangents)
        active = c != 0
        with np.errstate(invalid="ignore"):
            wanted = (
                float(np.dot(c[active], slope.value[active])) if not active.all() else float(np.dot(c, slope.value))
            )
            error = DEVIATIONS * float(np.linalg.norm(c * np.where(active, slope.error, 0.0)))
        got = float(sum(np.vdot(self.gradients[i], d) for i, d in direction.items()))
        norm = float(np.sqrt(sum(_norm2(self.gradients[i], d) for i, d in direction.items())))
        scale = max(norm, abs(wanted)) if np.isfinite(wanted) else norm
        unit = min(self.units(i) for i in direction)
        natural = float(np.linalg.norm(c[active] * slope.largest[active])) / unit
        sure = SURE_COARSE if self.coarse else SURE
        floor = 64 * self.subject.eps * natural
        return Pair(direction, got, wanted, error, scale, error <= sure * max(scale, natural), natural, floor)

    @property
    def coarse(self) -> bool:
        """Whether the values are computed in a low precision, which limits finite differences of them."""
        return self.noise >= COARSE

    def _outside(self, direction: Mapping[int, np.ndarray], t: float, error: Exception) -> str:
        """Where the function raised when an input was moved, and what."""
        i, d = next(iter(direction.items()))
        at = np.unravel_index(int(np.argmax(np.abs(d))), d.shape) if d.ndim and d.size else ()
        place = self.subject.names[i] + (f"[{', '.join(str(int(k)) for k in at)}]" if at else "")
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return f"a finite difference left the domain, at {place} by {t * float(d[at]):.1e} ({detail})"

    def settle(self, slope: LineDerivative) -> bool:
        """Zero the cotangent of results that do not converge, if most remain; true if any was zeroed."""
        c = joined(self.cotangents)
        active = c != 0
        size = float(np.max(np.abs(slope.value[active & np.isfinite(slope.value)]), initial=0.0))
        floor = 1e-7 * max(size, float(np.max(np.abs(self.middle), initial=0.0)))
        unsettled = active & ~(slope.error <= floor)
        if not unsettled.any() or 2 * unsettled.sum() > active.sum():
            return False
        c = np.where(unsettled, 0.0, c)
        self.skipped += int(unsettled.sum())
        self.pairs.clear()
        self.cotangents = split(c, self.cotangents)
        self.gradients = gradients(self.subject, self.arrays, self.cotangents)
        return True


def gradients(
    subject: CheckSubject, arrays: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """The pullback by index among the leaves."""
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
