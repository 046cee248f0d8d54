"""Measures one group of the benchmark: builds its members, checks each against native, times them interleaved."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradlab.profiling.bench.ceilings import Ceilings
from gradlab.profiling.bench.clock import Call, in_turns
from gradlab.profiling.bench.peak import peak_bytes
from gradlab.profiling.bench.row import BACKWARD, FAILED, GRADLAB, NATIVE, THROTTLED, WRONG, Group, Member
from gradlab.profiling.bench.subject import BenchSubject
from gradlab.profiling.bench.timers import timers
from gradlab.profiling.bench.watch import Watch
from gradlab.profiling.native.native import natives


@dataclass
class Built:
    """A member and its call."""

    member: Member
    call: Call = field(default=lambda: None)

    @property
    def sound(self) -> bool:
        return not self.member.problem


def measure(
    subject: BenchSubject,
    direction: str,
    modes: Sequence[str],
    budget: float,
    ceilings: Ceilings,
    watch: Watch,
    swept: float | None = None,
    fresh: bool = True,
    on_progress: Callable[[str, float], object] = lambda stage, share: None,
) -> Group:
    """Build, check and time every implementation of a subject in every mode, in one group.

    Args:
        budget: seconds of timing, besides compilation and checking.
        ceilings, watch: of the subject's device.
        swept: the size relative to the case of the Spec that was scaled.
        fresh: whether first calls are timed: each member is built twice, with in-memory caches cleared in between.
        on_progress: gets what is done, and the share of the timing that is over.
    """
    flops, moved = subject.work(direction)
    blank = Group(
        subject.op.name,
        subject.case.name,
        dict(subject.case.sizes),
        subject.side.name,
        direction,
        subject.dtype,
        subject.side.device(),
        subject.seed,
        flops,
        moved,
        ceilings.bandwidth(moved),
        ceilings.rate(),
        swept=swept,
    )
    with subject.precise():
        built = _build(subject, direction, modes, fresh, on_progress)
        return _time(subject, blank, built, budget, watch, functools.partial(on_progress, "timing"))


def _build(
    subject: BenchSubject,
    direction: str,
    modes: Sequence[str],
    fresh: bool,
    on_progress: Callable[[str, float], object],
) -> list[Built]:
    """Call every member twice, first with empty caches, then with the disk caches filled; or once, caches as they
    are."""
    built = []
    for mode in modes:
        for name, implementation in subject.implementations.items():
            interpreted = name == GRADLAB and subject.side.interpreted()
            built.append(Built(Member(name, implementation.label, mode, interpreted=interpreted)))
    for attempt in ("first_call", "cached_call") if fresh else ("",):
        natives(subject.side.name).forget()
        for one in built:
            on_progress(f"{one.member.name}: {attempt.replace('_', ' ') or 'call'}", 0.0)
            if one.sound:
                _call(subject, direction, one, attempt)
    return built


def _call(subject: BenchSubject, direction: str, one: Built, attempt: str) -> None:
    """Make and time the call, and compare its result with native's; an error becomes the member's problem."""
    member = one.member
    try:
        with subject.implementations[member.implementation].around():
            # Create the inputs before the clock starts.
            _ = subject.arrays
            start = time.perf_counter()
            one.call = subject.call(member.implementation, member.mode, direction)
            value = subject.side.wait(one.call())
            seconds = time.perf_counter() - start
        wrong = subject.difference(value, direction)
        changes: dict[str, Any] = {"problem": WRONG, "note": wrong} if wrong else {attempt: seconds} if attempt else {}
    except Exception as error:
        note = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        changes = {"problem": FAILED, "note": note}
    one.member = replace(member, **changes)


def _time(
    subject: BenchSubject,
    blank: Group,
    built: Sequence[Built],
    budget: float,
    watch: Watch,
    on_progress: Callable[[float], object],
) -> Group:
    """The group with its members' samples; those with a problem come without."""
    sound = [one for one in built if one.sound]
    if not sound:
        return replace(blank, members=tuple(one.member for one in built))
    calls, around = (
        [one.call for one in sound],
        [subject.implementations[one.member.implementation].around for one in sound],
    )
    base = next((one for one in sound if one.member.implementation == NATIVE), None)
    if base is not None:
        # Native once more as a separate call, at the other end of the round: its ratio to itself is the noise.
        calls.append(subject.call(NATIVE, base.member.mode, blank.direction))
        around.append(subject.implementations[NATIVE].around)
    wanted = [(i, j) for i, one in enumerate(sound) if (j := _base(sound, one)) is not None]
    if base is not None:
        subject.side.wait(calls[-1]())
        wanted.append((sound.index(base), len(sound)))
    # Autograd runs a backward on its forward's stream, which a capture on another stream cannot record.
    alone = "the forward of a backward alone was recorded on another stream" if blank.direction == BACKWARD else ""
    clocks = timers(subject.side, alone)
    start = time.perf_counter()
    rounds = in_turns(
        calls,
        clocks,
        subject.side.wait,
        budget,
        pairs=wanted,
        around=around,
        discard=watch.slowed,
        on_progress=on_progress,
    )
    replayed = getattr(clocks["warm"], "replayed", lambda call: False)
    launched = getattr(clocks["warm"], "launched", lambda call: "")
    members = []
    for one in built:
        if one.sound and rounds.rounds:
            i = sound.index(one)
            with subject.implementations[one.member.implementation].around():
                peak = peak_bytes(subject.side, one.call)
            members.append(
                replace(
                    one.member,
                    repeat=rounds.repeats[i],
                    warm=rounds.samples(i),
                    cold=rounds.samples(i, "cold"),
                    host=rounds.samples(i, "host"),
                    replayed=replayed(one.call),
                    launched=launched(one.call),
                    peak_bytes=peak,
                )
            )
        elif one.sound:
            note = f"the GPU was slowed down in all of {rounds.dropped} rounds"
            members.append(replace(one.member, problem=THROTTLED, note=note))
        else:
            members.append(one.member)
    repeated_native = rounds.samples(len(sound)) if base is not None else ()
    seen = watch.summary(start, time.perf_counter())
    return replace(blank, members=tuple(members), repeated_native=repeated_native, dropped=rounds.dropped, clocks=seen)


def _base(sound: Sequence[Built], one: Built) -> int | None:
    """The index of native in the same mode, unless it is this member."""
    for i, other in enumerate(sound):
        if other.member.implementation == NATIVE and other.member.mode == one.member.mode:
            return None if other is one else i
    return None
