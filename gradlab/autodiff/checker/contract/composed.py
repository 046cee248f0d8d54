"""More than one call at a time: f(f(x)), and two calls whose backwards cross."""

from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises
from gradlab.autodiff.checker.core.derivative import joined
from gradlab.autodiff.checker.core.finding import OK, WRONG

COMPOSED, CROSSED = "f(f(x))", "two calls at once"
# The second of two points, so near that most domains hold it, so far that a gradient of the one is none of the other.
NEAR = 1 - 2.0**-6


def composed(p: Promises) -> None:
    """The gradient of the function of its own result is the product of its gradients at the two points.

    The result that is handed on is the first one that has the shape and the dtype of an input.
    """
    s, probe = p.probe.subject, p.probe
    fits = [
        (k, j)
        for j in s.wrt
        for k, y in enumerate(p.values)
        if y.size and y.shape == probe.arrays[j].shape and s.result_dtypes[k : k + 1] in ([], [s.working])
    ]
    if not fits:
        return
    k, j = fits[0]

    def twice(*leaves: Any) -> tuple[Any, ...]:
        return s.flat(*leaves[:j], s.flat(*leaves)[k], *leaves[j + 1 :])

    def chained(arrays: list[np.ndarray], between: np.ndarray) -> list[np.ndarray]:
        """The gradients by the chain rule, from two calls that know nothing of each other."""
        upper = s.gradients([*arrays[:j], between, *arrays[j + 1 :]], probe.cotangents)
        handed = [np.zeros_like(c) for c in probe.cotangents]
        handed[k] = upper[s.wrt.index(j)]
        lower = s.gradients(arrays, handed)
        return [g if i == j else g + above for i, g, above in zip(s.wrt, lower, upper, strict=True)]

    between = p.values[k]
    if not all(np.isfinite(y).all() for y in s.values([*probe.arrays[:j], between, *probe.arrays[j + 1 :]])):
        return
    wanted = chained(probe.arrays, between)
    if not all(np.isfinite(g).all() for g in wanted):
        return
    got = s.quickened(s.side.pullback(twice, s.wrt))(s.put(probe.arrays), s.put_like_results(probe.cotangents))
    moved = [a * (1 + 4 * probe.noise) if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    for n, i in enumerate(s.wrt):

        def grain(n: int = n, i: int = i) -> np.ndarray:
            return p.grain(i) + 16 * np.abs(chained(moved, between * (1 - 4 * probe.noise))[n] - wanted[n])

        how = f"of {s.names[j]} handed on to a second call, by the chain rule over two single calls"
        p.same(COMPOSED, s.names[i], s.side.take(got[n]), wanted[n], _slack(p, i), how, 0.0, grain)


def crossed(p: Promises) -> None:
    """Two calls, then the backward of the first, of the second, and of the first once more: nothing is shared."""
    s, probe = p.probe.subject, p.probe
    moved = [NEAR * a if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    if not all(np.isfinite(y).all() for y in s.values(moved)):
        return
    beside = s.gradients(moved, probe.cotangents)
    if not all(np.isfinite(g).all() for g in beside):
        return
    _kept(p, moved)
    cotangents = s.put_like_results(probe.cotangents)
    first = s.side.backward_alone(s.flat, s.wrt, s.put(probe.arrays), cotangents, False)
    second = s.side.backward_alone(s.flat, s.wrt, s.put(moved), cotangents, False)
    handed = [s.side.take(g) for g in first()]
    was = [g.copy() for g in handed]
    how = "when another call was made before its backward"
    if not p.same_gradients(CROSSED, was, s.wrt, how):
        return
    if not p.same_gradients(CROSSED, [s.side.take(g) for g in second()], s.wrt, "for the later of two calls", beside):
        return
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(handed, was, strict=True)):
        p.say(CROSSED, WRONG, "a gradient that was handed out changes when another call's backward runs")
        return
    p.same_gradients(CROSSED, [s.side.take(g) for g in first()], s.wrt, "when another call's backward ran before")


def _kept(p: Promises, moved: list[np.ndarray]) -> None:
    """Results keep their values when the function is called again; arrays of jax cannot change."""
    s = p.probe.subject
    if s.side.name == "jax":
        return
    results = s.flat(*s.put(p.probe.arrays))
    was = joined([s.side.take(y) for y in results]).copy()
    s.flat(*s.put(moved))
    if np.array_equal(was, joined([s.side.take(y) for y in results])):
        p.say(CROSSED, OK, "results keep their values when the function is called again", "", (), {"error": 0.0})
    else:
        p.say(CROSSED, WRONG, "a result changes when the function is called again: its memory is used twice")


def _slack(p: Promises, i: int) -> float:
    return max(p.slack(i), (8 + p.probe.middle.size) * p.probe.noise)
