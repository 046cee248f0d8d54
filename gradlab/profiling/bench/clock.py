"""Interleaved timing: all members are sampled in every round, so that a disturbance affects neighbours alike. NumPy
only.

Two sequential runs of one function differ by more than 5 % a third of the time on a shared machine; the ratios of
neighbours in an interleaved run do not. So every round takes one sample of each member, the order is reversed from
one round to the next, and a ratio is taken within a round. Rounds go on until every ratio is known closely enough or
the time is spent.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradlab.profiling.bench.numbers import ratio

Call = Callable[[], Any]

# Seconds that a sample should last, so that clock resolution and one synchronisation are negligible.
SAMPLE = 200e-6
# Fewest and most rounds; the fewest are measured whatever the budget, both orders equally often.
LEAST, MOST = 6, 200
# Most warm-up calls, and their share of the budget.
WARM, SHARE = 10, 0.1
# Seconds below which a call is made once untimed before each sample: the other members' turns have put this one's
# threads to sleep and its data out of the caches, which a short call would show and a long one does not.
SHORT = 5e-3
# Relative half-width of a ratio's interval at which timing stops.
CLOSE = 0.01


class Timer(Protocol):
    """Measures one kind of time: of warm calls, of cold ones, or of the host only."""

    def __call__(self, call: Call, repeat: int) -> float:
        """Seconds that `repeat` calls took."""
        ...


@dataclass(frozen=True)
class Host:
    """Wall-clock seconds of calls back to back and one wait for the device.

    Attributes:
        wait: returns once the device has finished the value that it is given.
        clock: seconds, from any start.
    """

    wait: Callable[[Any], Any]
    clock: Callable[[], float] = time.perf_counter

    def __call__(self, call: Call, repeat: int) -> float:
        start = self.clock()
        for _ in range(repeat):
            value = call()
        self.wait(value)
        return self.clock() - start


@dataclass(frozen=True)
class Round:
    """When a round ran, and seconds a call by kind of time, member by member."""

    start: float
    end: float
    seconds: tuple[Mapping[str, float], ...]


@dataclass
class Rounds:
    """What was measured.

    Attributes:
        rounds: the rounds that count.
        dropped: number of rounds discarded because the GPU throttled.
        repeats: calls a sample, by member.
    """

    rounds: list[Round] = field(default_factory=list)
    dropped: int = 0
    repeats: tuple[int, ...] = ()

    def samples(self, member: int, kind: str = "warm") -> tuple[float, ...]:
        """Seconds a call, round by round; nothing where that kind was not measured."""
        return tuple(r.seconds[member][kind] for r in self.rounds if kind in r.seconds[member])


def in_turns(
    calls: Sequence[Call],
    timers: Mapping[str, Timer],
    wait: Callable[[Any], Any],
    budget: float,
    *,
    pairs: Sequence[tuple[int, int]] = (),
    around: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
    discard: Callable[[float, float], bool] = lambda start, end: False,
    on_progress: Callable[[float], object] = lambda share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Time functions in turns until the ratios of `pairs` are known to CLOSE, for about `budget` seconds at most.

    Args:
        calls: the members, no arguments, each called before: whatever compiles has compiled.
        timers: by kind of time, "warm" among them; every kind of every member is taken in every round.
        wait: returns once the device has finished the value that it is given.
        budget: seconds, but never less than LEAST rounds.
        pairs: members whose ratio has to be known; none means that the time is used up.
        around: for each member what is entered, untimed, for its samples; nothing when not given.
        discard: whether a round, from and to these seconds of `clock`, is not to count.
        on_progress: gets the share of the budget that is spent, after each round.
        clock: seconds, from any start.
    """
    start = clock()
    end = start + budget
    around = around or [nullcontext] * len(calls)
    short, repeats = [], []
    for call, entered in zip(calls, around, strict=True):
        with entered():
            short.append(_warm(call, wait, SHARE * budget / len(calls), clock) < SHORT)
            repeats.append(_repeat(call, timers["warm"], budget / (4 * LEAST * len(calls))))
    found = Rounds(repeats=tuple(repeats))

    def sample(i: int) -> Mapping[str, float]:
        # One cold call or one host call is a sample: what makes it cold stands between two of them.
        many = {kind: repeats[i] if kind == "warm" else 1 for kind in timers}
        with around[i]():
            if short[i]:
                wait(calls[i]())
            return {kind: timer(calls[i], many[kind]) / many[kind] for kind, timer in timers.items()}

    rounds = 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        while rounds < LEAST or (
            rounds < MOST and clock() < end and not (rounds % LEAST == 0 and _close(found, pairs))
        ):
            order = range(len(calls)) if rounds % 2 == 0 else range(len(calls) - 1, -1, -1)
            before = clock()
            seconds = {i: sample(i) for i in order}
            one = Round(before, clock(), tuple(seconds[i] for i in range(len(calls))))
            rounds += 1
            if discard(one.start, one.end):
                found.dropped += 1
            else:
                found.rounds.append(one)
            on_progress(min(1.0, (clock() - start) / budget))
    finally:
        if collecting:
            gc.enable()
    return found


def _close(found: Rounds, pairs: Sequence[tuple[int, int]]) -> bool:
    if not pairs or len(found.rounds) < LEAST:
        return False
    return all(ratio(found.samples(a), found.samples(b)).width <= CLOSE for a, b in pairs)


def _warm(call: Call, wait: Callable[[Any], Any], budget: float, clock: Callable[[], float]) -> float:
    """Warm up a member; the seconds of its last call."""
    start = before = clock()
    for _ in range(WARM):
        before = clock()
        wait(call())
        if clock() - start >= budget:
            break
    return clock() - before


def _repeat(call: Call, timer: Timer, most: float) -> int:
    """Calls per sample: enough to last SAMPLE seconds, but at most `most` seconds."""
    repeat = 1
    while True:
        took = timer(call, repeat)
        if took >= SAMPLE or 2 * took > most:
            return repeat
        repeat *= 2
