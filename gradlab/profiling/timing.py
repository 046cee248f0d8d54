"""The clock: two functions timed side by side, in turns, so that what disturbs one disturbs the other. NumPy only.

Two sequential runs of one function differ by more than 5 % a third of the time on a shared machine; the ratios of
neighbours in an interleaved run do not. So the members take turns, who goes first alternates, and the ratio is taken
pair by pair.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Seconds that a sample should last, so that neither the clock's grain nor one synchronisation is what it shows.
SAMPLE = 200e-6
# Fewest and most pairs; the fewest are measured whatever the budget, both orders equally often.
LEAST, MOST = 4, 200
# Most calls of warm-up beside the first, and the share of the budget that they may take.
WARM, SHARE = 10, 0.05
# Seconds below which a call is made once untimed before each sample: the other member's long turn has put this one's
# threads to sleep and its data out of the caches, which a short call would show and a long one does not.
SHORT = 5e-3


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of a sample, in its unit."""

    median: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interquartile range: what stands after the ± sign."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Pairs:
    """Seconds a call, pair by pair; a sample is `repeat` calls back to back, then one wait for the device."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    repeat: int

    def ratio(self) -> Spread:
        """The spread of first / second within each pair."""
        return spread(np.divide(self.first, self.second))


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Median and quartiles of one number or more."""
    low, median, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def in_turns(first: Callable[[], Any], second: Callable[[], Any], wait: Callable[[Any], Any], budget: float,
             clock: Callable[[], float] = time.perf_counter) -> Pairs:  # fmt: skip
    """Time two functions in turns for about `budget` seconds.

    Args:
        first, second: what is timed, no arguments.
        wait: returns once the device has finished the value that it is given.
        budget: seconds, beside the first call of each, which may compile, and never less than LEAST pairs.
        clock: seconds, from any start.
    """
    members = (first, second)
    # The first calls compile and fill caches: they are neither measured nor paid from the budget.
    for member in members:
        wait(member())
    end = clock() + budget
    short = [_warm(member, wait, SHARE * budget, clock) < SHORT for member in members]

    def sample(i: int, repeat: int) -> float:
        if short[i]:
            wait(members[i]())
        start = clock()
        for _ in range(repeat):
            value = members[i]()
        wait(value)
        return clock() - start

    repeat = _repeat(lambda n: (sample(0, n), sample(1, n)), budget)
    seconds: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(seconds[0]) < LEAST or (len(seconds[0]) < MOST and clock() < end):
            for i in (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0):
                seconds[i].append(sample(i, repeat) / repeat)
    finally:
        if collecting:
            gc.enable()
    return Pairs(tuple(seconds[0]), tuple(seconds[1]), repeat)


def _warm(member: Callable[[], Any], wait: Callable[[Any], Any], budget: float, clock: Callable[[], float]) -> float:
    """Call a member until it is warm; the seconds of the last call."""
    start = before = clock()
    for _ in range(WARM):
        before = clock()
        wait(member())
        if clock() - start >= budget:
            break
    return clock() - before


def _repeat(round_of: Callable[[int], tuple[float, float]], budget: float) -> int:
    """Calls a sample, the same for both: enough for the faster one, unless the slower one then ate the budget."""
    repeat = 1
    while True:
        took = round_of(repeat)
        if min(took) >= SAMPLE or 2 * sum(took) > budget / (2 * LEAST):
            return repeat
        repeat *= 2
