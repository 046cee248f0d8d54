"""Several calls at once: f(f(x)), and two calls whose backwards interleave."""

from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.probe import joined

COMPOSED, CROSSED = "f(f(x))", "two calls at once"
# Factor of the second of two points: near enough for most domains, far enough for gradients to differ.
NEAR = 1 - 2.0**-6


def composition(cmp: Comparison) -> None:
    """The gradient of f(f(x)) is the product of the gradients at the two points.

    The result passed to the second call is the first one with the shape and dtype of an input.
    """
    s, probe = cmp.probe.subject, cmp.probe
    fits = [
        (k, j)
        for j in s.wrt
        for k, y in enumerate(cmp.values)
        if y.size and y.shape == probe.arrays[j].shape and s.result_dtypes[k : k + 1] in ([], [s.working_dtype])
    ]
    if not fits:
        return
    k, j = fits[0]

    def twice(*leaves: Any) -> tuple[Any, ...]:
        return s.flat(*leaves[:j], s.flat(*leaves)[k], *leaves[j + 1 :])

    def chained(arrays: list[np.ndarray], between: np.ndarray) -> list[np.ndarray]:
        """The gradients by the chain rule, from two separate calls."""
        upper = s.gradients([*arrays[:j], between, *arrays[j + 1 :]], probe.cotangents)
        returned = [np.zeros_like(c) for c in probe.cotangents]
        returned[k] = upper[s.wrt.index(j)]
        lower = s.gradients(arrays, returned)
        return [g if i == j else g + above for i, g, above in zip(s.wrt, lower, upper, strict=True)]

    between = cmp.values[k]
    if not all(np.isfinite(y).all() for y in s.values([*probe.arrays[:j], between, *probe.arrays[j + 1 :]])):
        return
    wanted = chained(probe.arrays, between)
    if not all(np.isfinite(g).all() for g in wanted):
        return
    got = s.jitted(s.side.pullback(twice, s.wrt))(s.put(probe.arrays), s.put_like_results(probe.cotangents))
    moved = [a * (1 + 4 * probe.noise) if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    for n, i in enumerate(s.wrt):

        def grain(n: int = n, i: int = i) -> np.ndarray:
            return cmp.grain(i) + 16 * np.abs(chained(moved, between * (1 - 4 * probe.noise))[n] - wanted[n])

        how = f"of f(f(x)) for {s.names[j]}, by the chain rule over two separate calls"
        cmp.same(COMPOSED, s.names[i], s.side.take(got[n]), wanted[n], _slack(cmp, i), how, 0.0, grain)


def interleaved(cmp: Comparison) -> None:
    """Two calls, then the backward of the first, of the second, and of the first again: they share no state."""
    s, probe = cmp.probe.subject, cmp.probe
    moved = [NEAR * a if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    if not all(np.isfinite(y).all() for y in s.values(moved)):
        return
    beside = s.gradients(moved, probe.cotangents)
    if not all(np.isfinite(g).all() for g in beside):
        return
    _results_unchanged(cmp, moved)
    cotangents = s.put_like_results(probe.cotangents)
    first = s.side.backward_alone(s.flat, s.wrt, s.put(probe.arrays), cotangents, False)
    second = s.side.backward_alone(s.flat, s.wrt, s.put(moved), cotangents, False)
    returned = [s.side.take(g) for g in first()]
    before = [g.copy() for g in returned]
    how = "when another call runs before its backward"
    if not cmp.same_gradients(CROSSED, before, s.wrt, how):
        return
    if not cmp.same_gradients(
        CROSSED, [s.side.take(g) for g in second()], s.wrt, "for the second of two calls", beside
    ):
        return
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(returned, before, strict=True)):
        cmp.record(CROSSED, WRONG, "a returned gradient changes when another call's backward runs")
        return
    cmp.same_gradients(CROSSED, [s.side.take(g) for g in first()], s.wrt, "after another call's backward")


def _results_unchanged(cmp: Comparison, moved: list[np.ndarray]) -> None:
    """Results keep their values when the function is called again; jax arrays are immutable."""
    s = cmp.probe.subject
    if s.side.name == "jax":
        return
    results = s.flat(*s.put(cmp.probe.arrays))
    before = joined([s.side.take(y) for y in results]).copy()
    s.flat(*s.put(moved))
    if np.array_equal(before, joined([s.side.take(y) for y in results])):
        cmp.record(CROSSED, OK, "results are unchanged by another call", "", (), {"error": 0.0})
    else:
        cmp.record(CROSSED, WRONG, "a result changes when the function is called again: its memory is reused")


def _slack(cmp: Comparison, i: int) -> float:
    return max(cmp.slack(i), (8 + cmp.probe.middle.size) * cmp.probe.noise)
