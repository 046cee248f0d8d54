"""Statistics of samples: medians with intervals, paired ratios, and verdicts that respect the noise.

A median of n samples is uncertain; the percentile bootstrap says by how much without a model of the noise (Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 13). A ratio is taken within each round, so that what disturbs
one member of a round and the other alike cancels. The same function, timed as two members of one run, shows how far a
ratio strays from 1 when nothing differs: that is the run's noise, and no verdict is given within it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME, FASTER, SLOWER, UNCLEAR, SUSPECT = "SAME", "FASTER", "SLOWER", "UNCLEAR", "SUSPECT"
# Bootstrap resamples, and the confidence level of the interval.
RESAMPLES, CONFIDENCE = 999, 0.95
# A smaller relative difference is of no interest, however certain.
GRAIN = 0.01


@dataclass(frozen=True)
class Interval:
    """A median and the bounds of its 95 % interval, in the samples' unit."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else math.inf


def interval(samples: Sequence[float] | np.ndarray) -> Interval:
    """The median of one sample or more and its bootstrap interval; the same samples give the same interval."""
    values = np.asarray(samples, np.float64)
    drawn = np.random.default_rng(0).integers(0, values.size, (RESAMPLES, values.size))
    medians = np.median(values[drawn], axis=1)
    low, high = np.quantile(medians, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(np.median(values)), float(low), float(high))


def ratio(samples: Sequence[float], base: Sequence[float]) -> Interval:
    """The median of samples / base, round by round, and its interval."""
    return interval(np.divide(samples, base))


def noise(first: Sequence[float], second: Sequence[float]) -> float:
    """How far the ratio of one function to itself strays from 1: 0.03 when its interval reaches from 0.98 to 1.03."""
    found = ratio(first, second)
    return math.exp(max(abs(math.log(found.low)), abs(math.log(found.high)))) - 1


def verdict(found: Interval, floor: float) -> str:
    """FASTER or SLOWER when the whole interval lies beyond the noise, SAME when it lies within, else UNCLEAR.

    Args:
        found: a ratio, time over the baseline's time.
        floor: the run's noise, relative; GRAIN is the least that counts.
    """
    band = 1 + max(floor, GRAIN)
    if found.low > band:
        return SLOWER
    if found.high < 1 / band:
        return FASTER
    return SAME if found.low >= 1 / band and found.high <= band else UNCLEAR
