"""Intervals, the run's noise, and verdicts that are never finer than it; drawn numbers, no clock."""

import numpy as np
import pytest

from gradlab.profiling.bench.numbers import (
    FASTER,
    GRAIN,
    SAME,
    SLOWER,
    UNCLEAR,
    Interval,
    interval,
    noise,
    ratio,
    verdict,
)


def drawn(rng, rounds=30, drift=0.0, factor=1.0, spread=0.05):
    """Seconds of one member: a drift that its neighbours share, and noise of its own."""
    return factor * (1 + drift) * rng.lognormal(0, spread, rounds)


def test_an_interval_holds_its_median_and_shrinks_with_the_samples():
    rng = np.random.default_rng(0)
    few, many = interval(drawn(rng, 10)), interval(drawn(rng, 1000))
    assert few.low < few.median < few.high
    assert many.width < few.width / 3
    assert interval([2.0]) == Interval(2.0, 2.0, 2.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [found.low <= 1.0 <= found.high for found in (interval(rng.lognormal(0, 0.2, 41)) for _ in range(300))]
    # 95 % of 300, and three deviations of a binomial.
    assert 0.90 < np.mean(covered) <= 1.0


def test_a_ratio_is_taken_round_by_round():
    # A disturbance that hits both members of a round leaves the ratio alone, whatever it does to the medians.
    found = ratio((2.0, 20.0, 200.0), (1.0, 10.0, 100.0))
    assert found == Interval(2.0, 2.0, 2.0)


def test_the_noise_is_the_far_end_of_the_interval_of_native_to_itself():
    assert noise((1.0,) * 9, (1.0,) * 9) == 0.0
    assert noise((1.1,) * 9, (1.0,) * 9) == pytest.approx(0.1)
    assert noise((1.0,) * 9, (1.1,) * 9) == pytest.approx(0.1)
    # The bound that is further from 1, whichever side it lies on.
    assert noise((0.8,) * 5 + (0.99,) * 4, (1.0,) * 9) == pytest.approx(1 / 0.8 - 1)
    assert noise((1.25,) * 5 + (1.01,) * 4, (1.0,) * 9) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("low", "high", "floor", "wanted"),
    [
        (0.99, 1.01, 0.02, SAME),
        (1.03, 1.05, 0.02, SLOWER),
        (0.90, 0.95, 0.02, FASTER),
        (0.95, 1.05, 0.02, UNCLEAR),
        (1.01, 1.05, 0.02, UNCLEAR),
        # Never finer than the noise, nor than what is of interest.
        (1.03, 1.05, 0.10, SAME),
        (1.002, 1.004, 0.0, SAME),
        (1.0 + GRAIN + 1e-6, 1.05, 0.0, SLOWER),
    ],
)
def test_verdicts(low, high, floor, wanted):
    assert verdict(Interval((low * high) ** 0.5, low, high), floor) == wanted


def test_the_same_function_is_never_called_faster_or_slower_and_five_percent_is_seen():
    rng, same, slower = np.random.default_rng(2), [], []
    for _ in range(200):
        shared = np.cumsum(rng.normal(0, 0.05, 60)).clip(-0.5, 5)
        a, repeated_native, b = (drawn(rng, 60, shared, spread=0.02) for _ in range(3))
        same.append(verdict(ratio(b, a), noise(a, repeated_native)))
        slower.append(verdict(ratio(b * 1.05, a), noise(a, repeated_native)))
    assert sum(v in (FASTER, SLOWER) for v in same) <= 2
    assert slower.count(SLOWER) > 190
