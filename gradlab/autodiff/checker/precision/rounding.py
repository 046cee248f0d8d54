"""Compares computations in a low precision with float64: only what rounding cannot explain is an error.

Rounding errors change from one input to the next: inputs and cotangents are perturbed by a few last bits of the low
precision, several times. A difference that keeps its sign, and exceeds several times the change that the perturbation
causes in float64, is an error; one that comes and goes is rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.finding import OK, WRONG

# How often inputs are perturbed, by how many rounding units, and how many times the rounding an error must exceed.
TIMES, UNITS_MOVED, FAR = 6, 2.0, 8.0
# Below this float16 may have lost terms of a gradient to underflow.
LEAST_HALF = 1e-3


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a function and its gradients, all as float64.

    Attributes:
        arrays, cotangents: the inputs as rounded to their dtypes.
        values: the float results; grads: the pullback, one for each of the subject's `wrt`.
    """

    arrays: list[np.ndarray]
    cotangents: list[np.ndarray]
    values: list[np.ndarray]
    grads: list[np.ndarray]


@dataclass(frozen=True)
class _Pairs:
    """One array in the low precision and in float64, at the given inputs and at perturbed ones."""

    got: list[np.ndarray]
    want: list[np.ndarray]


def compare_evaluations(
    cmp: Comparison, check: str, how: str, evaluate: Callable[[float], Evaluation], unit: float, half: bool = False
) -> None:
    """Compare gradients in a low precision with float64 at the same numbers; one finding for each input.

    Where the values differ by more than rounding it is another function in that precision, which becomes a note.

    Args:
        evaluate: evaluates the function, its inputs perturbed by that relative amount.
        unit: rounding unit of the lowest precision that occurs.
        half: whether it is float16, which underflows early.
    """
    s = cmp.probe.subject
    first = evaluate(0.0)
    if len(first.values) != len(cmp.values):
        cmp.note(f"{s.op}: {check}: {len(first.values)} results {how}, {len(cmp.values)} in float64")
        return
    exact = _exact(cmp, first)
    near: list[tuple[Evaluation, Evaluation]] = []

    def pairs(pick: Callable[[Evaluation], list[np.ndarray]], k: int) -> _Pairs:
        if not near:
            moved = [evaluate(UNITS_MOVED * unit) for _ in range(TIMES)]
            near.extend((m, _exact(cmp, m)) for m in moved)
        both = [(first, exact), *near]
        return _Pairs([pick(low)[k] for low, _ in both], [pick(high)[k] for _, high in both])

    for k, (y, want) in enumerate(zip(first.values, exact.values, strict=True)):
        if not _near(y, want, unit) and _beyond(pairs(_values, k), unit, half).any():
            cmp.note(f"{s.op}: {check}: {cmp.result(k)} differs {how} from float64, so gradients are not compared")
            return
    for k, i in enumerate(s.wrt):
        got, want = first.grads[k], exact.grads[k]
        size = float(np.max(np.abs(want), initial=0.0)) or 1.0
        if got.shape != want.shape:
            cmp.record(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}, {how}", s.names[i])
        elif not np.isfinite(got[np.isfinite(want)]).all():
            cmp.note(f"{s.op}: {check}: the gradient of {s.names[i]} is not finite {how}, but finite in float64")
        elif _near(got, want, unit) or not (bad := _beyond(pairs(_grads, k), unit, half)).any():
            cmp.record(check, OK, how, s.names[i], (), {"error": float(np.max(np.abs(got - want), initial=0.0)) / size})
        else:
            at = tuple(int(n) for n in np.argwhere(bad)[0])
            detail = (
                f"is {got[at]:.6g}, in float64 {want[at]:.6g}, {how}; {int(bad.sum())} of {got.size} elements are off "
                f"by more than rounding, and stay so as the inputs move by their last bits"
            )
            numbers = {"error": float(np.max(np.abs(got - want))) / size, "got": float(got[at])}
            cmp.record(
                check, WRONG, detail, s.names[i], at, {**numbers, "wanted": float(want[at]), "count": float(bad.sum())}
            )


def _exact(cmp: Comparison, worked: Evaluation) -> Evaluation:
    s = cmp.probe.subject
    values = s.values(worked.arrays)
    return Evaluation(worked.arrays, worked.cotangents, values, s.gradients(worked.arrays, worked.cotangents))


def _values(worked: Evaluation) -> list[np.ndarray]:
    return worked.values


def _grads(worked: Evaluation) -> list[np.ndarray]:
    return worked.grads


def _near(got: np.ndarray, want: np.ndarray, unit: float) -> bool:
    """Whether all elements are within a few roundings of the largest one."""
    if got.shape != want.shape or not np.isfinite(want).all():
        return False
    return bool((np.abs(got - want) <= 4 * unit * np.max(np.abs(want), initial=0.0)).all())


def _beyond(pairs: _Pairs, unit: float, half: bool) -> np.ndarray:
    """Elements whose error keeps its sign over all inputs and far exceeds the effect of their last bits."""
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


def perturb(
    arrays: Sequence[np.ndarray], places: Sequence[int], by: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """The arrays, those at `places` perturbed by that relative amount, up or down."""
    return [a * (1 + by * rng.choice([-1.0, 1.0], a.shape)) if by and i in places else a for i, a in enumerate(arrays)]
