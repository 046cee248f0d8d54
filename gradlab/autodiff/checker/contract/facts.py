"""Adjoint facts: linear in the cotangent, and the same bits on every call."""

import time
from collections.abc import Sequence

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises
from gradlab.autodiff.checker.core.derivative import split
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG

# At least and at most this many replays, and the seconds they may take between the two.
REPLAYS = (2, 20)
SECONDS = 0.02


def linear(p: Promises) -> None:
    """vjp(2 a - 3 b) = 2 vjp(a) - 3 vjp(b), for two random cotangents."""
    probe = p.probe
    a = probe.cotangents
    b = [p.rng.standard_normal(c.shape) for c in a]
    of_b = probe.subject.gradients(probe.arrays, b)
    of_sum = probe.subject.gradients(probe.arrays, [2 * x - 3 * y for x, y in zip(a, b, strict=True)])
    wanted = [2 * probe.gradients[i] - 3 * g for i, g in zip(probe.subject.wrt, of_b, strict=True)]
    how = "vjp(2a - 3b) against 2 vjp(a) - 3 vjp(b)"
    p.same_gradients("linear in dy", of_sum, probe.subject.wrt, how, wanted)


def replays(p: Promises, most: int | None = None) -> bool:
    """Values and gradients have the same bits on every call; false when the values have not."""
    probe, subject = p.probe, p.probe.subject
    count, differs, worst = 0, 0, 0.0
    where: tuple[str, tuple[int, ...], float, float] = ("", (), 0.0, 0.0)
    start = time.perf_counter()
    least, limit = (most, most) if most else REPLAYS
    while count < least or (count < limit and time.perf_counter() - start < SECONDS):
        count += 1
        # Every gradient is a forward too; the values alone are looked at once.
        values = subject.values(probe.arrays) if count == 1 else split(probe.middle, p.values)
        for k, (y, want) in enumerate(zip(values, split(probe.middle, p.values), strict=True)):
            if not _same_bits(y, want):
                at = _first(y, want)
                said = f"is {y[at]:.10g}, was {want[at]:.10g} on the call before with the same inputs: "
                p.say("deterministic", INCONCLUSIVE, said + "the function is random or keeps state", p.result(k), at)
                return False
        found = subject.gradients(probe.arrays, probe.cotangents)
        off = False
        for i, g in zip(subject.wrt, found, strict=True):
            want = probe.gradients[i]
            if not _same_bits(g, want):
                off, at = True, _first(g, want)
                size = float(np.max(np.abs(want), initial=0.0)) or 1.0
                worst = max(worst, abs(float(g[at] - want[at])) / size)
                where = (subject.names[i], at, float(g[at]), float(want[at]))
        differs += off
    if differs:
        name, at, got, want_ = where
        said = f"is {got:.17g}, was {want_:.17g} before, same inputs and dy: {differs} of {count} replays differ"
        p.say("deterministic", WRONG, said, name, at, {"error": worst, "got": got, "wanted": want_})
    else:
        # The rate of differing runs that would still show no difference once in twenty.
        missed = 1 - 0.05 ** (1 / count)
        said = f"{count} replays; a race in more than {100 * missed:.0f} % of runs would have shown, 95 % sure"
        p.say("deterministic", OK, said, "", (), {"error": 0.0, "replays": count})
    return True


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    # NaN equals itself here, and 0 equals -0: a sign of zero is no race.
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=True))


def _first(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
    if a.shape != b.shape:
        return ()
    return tuple(int(k) for k in np.argwhere(~((a == b) | (np.isnan(a) & np.isnan(b))))[0])


def finite(p: Promises, names: Sequence[str]) -> bool:
    """The values at finite inputs are finite; false, and said, when none is."""
    bad = ~np.isfinite(p.probe.middle)
    if bad.any():
        p.say(
            "finite",
            INCONCLUSIVE,
            f"{int(bad.sum())} of {bad.size} results are not finite at these inputs: nothing to differentiate there",
        )
    return not bad.any()
