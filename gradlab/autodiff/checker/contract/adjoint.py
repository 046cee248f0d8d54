"""Two properties of every pullback: linear in the cotangent, and deterministic."""

import time
from collections.abc import Sequence

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG
from gradlab.autodiff.checker.core.probe import split

# The fewest and most replays, and the seconds that they may take beyond the fewest.
REPLAYS = (2, 20)
SECONDS = 0.02


def linear(cmp: Comparison) -> None:
    """vjp(2 a - 3 b) = 2 vjp(a) - 3 vjp(b), for two random cotangents."""
    probe = cmp.probe
    a = probe.cotangents
    b = [cmp.rng.standard_normal(c.shape) for c in a]
    of_b = probe.subject.gradients(probe.arrays, b)
    of_sum = probe.subject.gradients(probe.arrays, [2 * x - 3 * y for x, y in zip(a, b, strict=True)])
    wanted = [2 * probe.gradients[i] - 3 * g for i, g in zip(probe.subject.wrt, of_b, strict=True)]
    how = "vjp(2a - 3b) against 2 vjp(a) - 3 vjp(b)"
    cmp.same_gradients("linear in dy", of_sum, probe.subject.wrt, how, wanted)


def replays(cmp: Comparison, most: int | None = None) -> bool:
    """Values and gradients have the same bits on every call; false if the values differ."""
    probe, subject = cmp.probe, cmp.probe.subject
    count, differs, worst = 0, 0, 0.0
    where: tuple[str, tuple[int, ...], float, float] = ("", (), 0.0, 0.0)
    start = time.perf_counter()
    least, limit = (most, most) if most else REPLAYS
    while count < least or (count < limit and time.perf_counter() - start < SECONDS):
        count += 1
        # Every gradient runs a forward too; the values alone are compared once.
        values = subject.values(probe.arrays) if count == 1 else split(probe.middle, cmp.values)
        for k, (y, want) in enumerate(zip(values, split(probe.middle, cmp.values), strict=True)):
            if not _same_bits(y, want):
                at = _first(y, want)
                detail = f"is {y[at]:.10g}, was {want[at]:.10g} in the first call with the same inputs: "
                cmp.record(
                    "deterministic", INCONCLUSIVE, detail + "the function is random or keeps state", cmp.result(k), at
                )
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
        detail = (
            f"is {got:.17g}, was {want_:.17g} in the first call with the same inputs and dy; "
            f"{differs} of {count} replays differ"
        )
        cmp.record("deterministic", WRONG, detail, name, at, {"error": worst, "got": got, "wanted": want_})
    else:
        # The highest rate of differing runs that would go unseen with a probability of 5 %.
        missed = 1 - 0.05 ** (1 / count)
        detail = f"{count} replays; a race in over {100 * missed:.0f} % of runs would show with 95 % probability"
        cmp.record("deterministic", OK, detail, "", (), {"error": 0.0, "replays": count})
    return True


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    # NaN equals NaN here, and 0 equals -0.
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=True))


def _first(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
    if a.shape != b.shape:
        return ()
    return tuple(int(k) for k in np.argwhere(~((a == b) | (np.isnan(a) & np.isnan(b))))[0])


def finite(cmp: Comparison, names: Sequence[str]) -> bool:
    """Whether the values at the given finite inputs are finite; if not, an inconclusive finding."""
    bad = ~np.isfinite(cmp.probe.middle)
    if bad.any():
        cmp.record(
            "finite",
            INCONCLUSIVE,
            f"{int(bad.sum())} of {bad.size} results are not finite at these inputs: nothing to differentiate there",
        )
    return not bad.any()
