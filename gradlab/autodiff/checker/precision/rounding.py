"""What is worked out in a low precision against float64: a fault is only what no rounding explains.

Rounding differs from one input to the next: inputs and cotangents are moved by a few last bits of the low precision,
several times. An error that stays where it is, by several times what these last bits move in float64, is no rounding;
one that comes and goes is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises
from gradlab.autodiff.checker.core.finding import OK, WRONG

# Times that inputs are moved, by how many units of the low precision, and how many times its rounding an error must be.
TIMES, UNITS_MOVED, FAR = 6, 2.0, 8.0
# Below it float16 may have lost the terms of a gradient on the way: they were smaller than its least number.
LEAST_HALF = 1e-3


@dataclass(frozen=True)
class Worked:
    """A function and its gradients worked out once, all as float64.

    Attributes:
        arrays, cotangents: what was given, as it was rounded.
        values: the float results; grads: the pullback, one for each of the subject's `wrt`.
    """

    arrays: list[np.ndarray]
    cotangents: list[np.ndarray]
    values: list[np.ndarray]
    grads: list[np.ndarray]


@dataclass(frozen=True)
class _Pairs:
    """One array by the low precision and by float64, at the inputs themselves and at those nearby."""

    got: list[np.ndarray]
    want: list[np.ndarray]


def held(p: Promises, check: str, how: str, work: Callable[[float], Worked], unit: float, half: bool = False) -> None:
    """Hold gradients in a low precision to those in float64 at the same numbers; one finding an input.

    Where the values are not float64's, by more than rounding, it is another function there, and that is a note.

    Args:
        work: works the function out, its inputs moved by that part of each element, at random.
        unit: of the lowest precision that is met, relative.
        half: it is float16, whose small numbers are 0.
    """
    s = p.probe.subject
    first = work(0.0)
    if len(first.values) != len(p.values):
        p.note(f"{s.op}: {check}: {len(first.values)} results {how}, {len(p.values)} in float64")
        return
    exact = _exact(p, first)
    near: list[tuple[Worked, Worked]] = []

    def pairs(pick: Callable[[Worked], list[np.ndarray]], k: int) -> _Pairs:
        if not near:
            moved = [work(UNITS_MOVED * unit) for _ in range(TIMES)]
            near.extend((m, _exact(p, m)) for m in moved)
        both = [(first, exact), *near]
        return _Pairs([pick(low)[k] for low, _ in both], [pick(high)[k] for _, high in both])

    for k, (y, want) in enumerate(zip(first.values, exact.values, strict=True)):
        if not _near(y, want, unit) and _beyond(pairs(_values, k), unit, half).any():
            p.note(f"{s.op}: {check}: {p.result(k)} is another {how} than in float64, so gradients are not held to it")
            return
    for k, i in enumerate(s.wrt):
        got, want = first.grads[k], exact.grads[k]
        size = float(np.max(np.abs(want), initial=0.0)) or 1.0
        if got.shape != want.shape:
            p.say(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}, {how}", s.names[i])
        elif not np.isfinite(got[np.isfinite(want)]).all():
            p.note(f"{s.op}: {check}: the gradient of {s.names[i]} is not finite {how}, in float64 it is")
        elif _near(got, want, unit) or not (bad := _beyond(pairs(_grads, k), unit, half)).any():
            p.say(check, OK, how, s.names[i], (), {"error": float(np.max(np.abs(got - want), initial=0.0)) / size})
        else:
            at = tuple(int(n) for n in np.argwhere(bad)[0])
            said = (
                f"is {got[at]:.6g}, in float64 {want[at]:.6g}, {how}; {int(bad.sum())} of {got.size} elements are off "
                f"by more than rounding, and stay so as the inputs move by their last bits"
            )
            numbers = {"error": float(np.max(np.abs(got - want))) / size, "got": float(got[at])}
            p.say(check, WRONG, said, s.names[i], at, {**numbers, "wanted": float(want[at]), "count": float(bad.sum())})


def _exact(p: Promises, worked: Worked) -> Worked:
    s = p.probe.subject
    values = s.values(worked.arrays)
    return Worked(worked.arrays, worked.cotangents, values, s.gradients(worked.arrays, worked.cotangents))


def _values(worked: Worked) -> list[np.ndarray]:
    return worked.values


def _grads(worked: Worked) -> list[np.ndarray]:
    return worked.grads


def _near(got: np.ndarray, want: np.ndarray, unit: float) -> bool:
    """Whether all elements are within a few roundings of the largest."""
    if got.shape != want.shape or not np.isfinite(want).all():
        return False
    return bool((np.abs(got - want) <= 4 * unit * np.max(np.abs(want), initial=0.0)).all())


def _beyond(pairs: _Pairs, unit: float, half: bool) -> np.ndarray:
    """The elements whose error has the same sign at all inputs, and is far more than these inputs' last bits move."""
    want = pairs.want[0]
    if any(a.shape != want.shape for a in (*pairs.got, *pairs.want)):
        return np.zeros(want.shape, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.stack(pairs.got) - np.stack(pairs.want)
        moved = np.max(np.abs(np.stack(pairs.want) - want), axis=0)
        typical = float(np.sqrt(np.mean(want**2))) if want.size else 0.0
        allowed = FAR * (moved + unit * np.maximum(np.abs(want), typical))
        one_sided = (errors > 0).all(0) | (errors < 0).all(0)
        beyond: np.ndarray = one_sided & np.isfinite(errors).all(0) & (np.min(np.abs(errors), axis=0) > allowed)
    if half:
        beyond &= (np.abs(want) >= LEAST_HALF) | (pairs.got[0] != 0)
    return beyond


def shaken(
    arrays: Sequence[np.ndarray], places: Sequence[int], by: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Arrays of which those at `places` are moved by that part of each element, up or down."""
    return [a * (1 + by * rng.choice([-1.0, 1.0], a.shape)) if by and i in places else a for i, a in enumerate(arrays)]
