"""The clock of the benchmarks, on a clock that only moves when it is told to."""

import gc

import pytest

from gradlab.profiling import timing
from gradlab.profiling.timing import Pairs, in_turns, spread


class World:
    """A clock, and members that take a given time a call; `calls` says who was called when, "|" where it was waited."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def clock(self):
        return self.now

    def member(self, name, *seconds):
        """Takes seconds[0] the first time, seconds[1] the second, ..., the last one from then on."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.calls.append(name)
            return name

        return call

    def wait(self, value):
        assert value == self.calls[-1]
        self.calls.append("|")

    def in_turns(self, first, second, budget):
        return in_turns(first, second, self.wait, budget, self.clock)


def test_spread_is_median_and_quartiles():
    found = spread([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.median, found.low, found.high, found.half) == (3.0, 2.0, 4.0, 1.0)


def test_ratio_is_taken_pair_by_pair():
    # A disturbance that hits both members of a pair leaves the ratio alone, whatever it does to the medians.
    pairs = Pairs(first=(2.0, 20.0, 200.0), second=(1.0, 10.0, 100.0), repeat=1)
    assert pairs.ratio().median == 2.0
    assert pairs.ratio().half == 0.0


def test_seconds_a_call_and_repeats_alike_for_both():
    world = World()
    pairs = world.in_turns(world.member("a", 10e-6), world.member("b", 50e-6), budget=1.0)
    assert pairs.repeat == 32  # the power of two that makes 200 µs of 10 µs
    assert len(pairs.first) == len(pairs.second) == timing.MOST
    assert pairs.first == pytest.approx([10e-6] * timing.MOST)
    assert pairs.second == pytest.approx([50e-6] * timing.MOST)
    assert pairs.ratio().median == pytest.approx(0.2)


def test_who_goes_first_alternates():
    world = World()
    pairs = world.in_turns(world.member("a", 1.0), world.member("b", 1.0), budget=4.0)
    assert len(pairs.first) == timing.LEAST
    assert world.calls[-16:] == list("a|b|b|a|a|b|b|a|")


def test_each_sample_waits_once_for_all_its_calls():
    world = World()
    # 122 µs, short: one call is untimed, then two are timed.
    pairs = world.in_turns(world.member("a", 2**-13), world.member("b", 2**-13), budget=1.0)
    assert pairs.repeat == 2
    assert "".join(world.calls).endswith("a|aa|b|bb|" + "b|bb|a|aa|")


def test_first_calls_are_not_measured():
    world = World()
    pairs = world.in_turns(world.member("a", 100.0, 7.0, 1.0), world.member("b", 50.0, 9.0, 2.0), budget=20.0)
    assert set(pairs.first) == {1.0}
    assert set(pairs.second) == {2.0}
    # Compiling is not paid from the budget: warm-up and calibration took 19 of these 20 seconds, and 4 pairs came.
    assert len(pairs.first) == timing.LEAST


def test_budget_ends_it_and_the_fewest_pairs_come_whatever_it_is():
    world = World()
    pairs = world.in_turns(world.member("a", 0.02), world.member("b", 0.03), budget=1.0)
    assert timing.LEAST < len(pairs.first) < timing.MOST
    assert world.now <= 0.05 + 1.0 + 0.05
    late = World()
    assert len(late.in_turns(late.member("a", 60.0), late.member("b", 1e-6), budget=0.1).first) == timing.LEAST


def test_slow_member_does_not_repeat_for_the_fast_one():
    world = World()
    assert world.in_turns(world.member("a", 0.5), world.member("b", 1e-6), budget=0.5).repeat == 1


def test_no_collection_while_measuring_and_again_afterwards():
    world = World()
    seen = []

    def member():
        seen.append(gc.isenabled())
        world.now += 1.0
        world.calls.append("a")
        return "a"

    world.in_turns(member, member, budget=1.0)
    assert seen[0]
    assert not any(seen[-2 * timing.LEAST :])
    assert gc.isenabled()

    def fails():
        if not gc.isenabled():
            raise RuntimeError
        return member()

    with pytest.raises(RuntimeError):
        world.in_turns(fails, member, budget=1.0)
    assert gc.isenabled()
