"""The clock of the benchmarks, on a clock that only moves when it is told to."""

import gc
from contextlib import contextmanager

import numpy as np
import pytest

from gradlab.profiling.bench import clock
from gradlab.profiling.bench.clock import LEAST, MOST, Host, in_turns
from gradlab.profiling.bench.timers import Dispatch


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

    def in_turns(self, *members, budget, **options):
        timers = options.pop("timers", {"warm": Host(self.wait, self.clock)})
        return in_turns(members, timers, self.wait, budget, clock=self.clock, **options)


def test_seconds_a_call_with_each_members_own_repeats():
    world = World()
    found = world.in_turns(world.member("a", 10e-6), world.member("b", 60e-6), budget=1.0)
    assert found.repeats == (32, 4)  # the powers of two that make 200 µs
    assert len(found.rounds) == MOST
    assert found.samples(0) == pytest.approx([10e-6] * MOST)
    assert found.samples(1) == pytest.approx([60e-6] * MOST)


def test_the_order_turns_round_from_round_to_round():
    world = World()
    found = world.in_turns(*(world.member(name, 1.0) for name in "abc"), budget=4.0)
    assert len(found.rounds) == LEAST
    assert "".join(world.calls).endswith("a|b|c|c|b|a|" * (LEAST // 2))


def test_short_calls_are_warmed_before_each_sample():
    world = World()
    # 122 µs, short: one call is untimed, then two are timed.
    world.in_turns(world.member("a", 2**-13), world.member("b", 2**-13), budget=1.0)
    assert "".join(world.calls).endswith("a|aa|b|bb|" + "b|bb|a|aa|")


def test_warm_up_is_not_measured():
    world = World()
    found = world.in_turns(world.member("a", 7.0, 1.0), world.member("b", 9.0, 2.0), budget=20.0)
    assert set(found.samples(0)) == {1.0}
    assert set(found.samples(1)) == {2.0}


def test_budget_ends_it_and_the_fewest_rounds_come_whatever_it_is():
    world = World()
    found = world.in_turns(world.member("a", 0.02), world.member("b", 0.03), budget=1.0)
    assert LEAST < len(found.rounds) < MOST
    assert world.now <= 1.0 + 0.05
    late = World()
    assert len(late.in_turns(late.member("a", 10.0), late.member("b", 10.0), budget=0.1).rounds) == LEAST


def test_it_stops_where_the_ratio_is_known():
    known = World()
    found = known.in_turns(known.member("a", 1.0), known.member("b", 2.0), budget=1000.0, pairs=[(0, 1)])
    assert len(found.rounds) == LEAST
    loose = World()
    wild = [float(s) for s in np.random.default_rng(0).uniform(0.5, 1.5, 3000)]
    found = loose.in_turns(loose.member("a", *wild), loose.member("b", 1.0), budget=300.0, pairs=[(0, 1)])
    assert len(found.rounds) > 10 * LEAST


def test_discarded_rounds_are_counted():
    world = World()
    slow = world.clock

    def discard(start, end):
        assert start < end <= slow()
        return 10 < start < 20

    found = world.in_turns(world.member("a", 0.5), world.member("b", 0.5), budget=40.0, discard=discard)
    assert found.dropped > 5
    assert all(not 10 < r.start < 20 for r in found.rounds)


def test_every_kind_of_time_is_taken_in_every_round():
    world = World()
    timers = {"warm": Host(world.wait, world.clock), "host": Dispatch(world.wait, world.clock)}

    def wait(value):
        world.now += 1.0
        world.wait(value)

    timers = {"warm": Host(wait, world.clock), "host": Dispatch(wait, world.clock)}
    found = world.in_turns(world.member("a", 2.0), budget=30.0, timers=timers)
    assert set(found.samples(0)) == {3.0}
    assert set(found.samples(0, "host")) == {2.0}
    assert found.samples(0, "cold") == ()


def test_what_a_member_needs_around_it_is_entered_outside_of_its_time():
    world = World()

    @contextmanager
    def around():
        world.now += 5.0
        world.calls.append("(")
        yield
        world.calls.append(")")

    found = world.in_turns(world.member("a", 1.0), budget=3.0, around=[around])
    assert set(found.samples(0)) == {1.0}
    assert "".join(world.calls).endswith("(a|)" * LEAST)


def test_the_share_of_the_budget_is_told():
    world, shares = World(), []
    world.in_turns(world.member("a", 1.0), budget=20.0, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] < 0.5


def test_no_garbage_is_collected_while_it_runs(monkeypatch):
    monkeypatch.setattr(clock, "WARM", 1)
    world, seen = World(), []

    def call():
        seen.append(gc.isenabled())
        return world.member("a", 1.0)()

    world.in_turns(call, budget=2.0)
    assert not any(seen[-LEAST:])
    assert gc.isenabled()

    def fails():
        if not gc.isenabled():
            raise RuntimeError
        return world.member("a", 1.0)()

    with pytest.raises(RuntimeError):
        world.in_turns(fails, budget=2.0)
    assert gc.isenabled()
