"""Compares a run with an earlier one: not in seconds, which vary with the machine, but in ratios to native.

Both runs timed the hand-written op and the native in turns; the quotient of the two ratios says whether the op became
slower, and its uncertainty is that of both, with the noise of both.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.profiling.bench.file import read_json
from gradlab.profiling.bench.numbers import SLOWER, Interval, verdict
from gradlab.profiling.bench.row import Group

# What a baseline's machine has to share with this one's.
SAME_MACHINE = ("cpu", "cores", "gpu")


class Change(NamedTuple):
    """A member now and before: the quotient of its ratios to the native, below 1 when it became faster."""

    group: Group
    member: str
    quotient: Interval
    noise: float

    @property
    def verdict(self) -> str:
        return verdict(self.quotient, self.noise)


def baseline(path: Path, machine: Mapping[str, str]) -> list[Group]:
    """The groups of an earlier run on this machine.

    Raises:
        ValueError: it cannot be read, is no benchmark of gradlab, or is of another machine.
    """
    groups, head = read_json(path)
    for key in SAME_MACHINE:
        was, here = head.get("machine", {}).get(key, "none"), machine.get(key, "none")
        if was != here:
            raise ValueError(f"bench: --compare is {path}, of a machine with {key} {was}, wanted {here}")
    return groups


def changes(now: Sequence[Group], before: Sequence[Group]) -> list[Change]:
    """Every member with a ratio in both runs."""
    known = {(group.key, member.name): (group, member) for group in before for member in group.members}
    found = []
    for group in now:
        for member in group.members:
            ratio = group.ratio(member)
            old_group, old = known.get((group.key, member.name), (None, None))
            was = old_group.ratio(old) if old_group and old else None
            if ratio and was and old_group:
                noise = (1 + group.noise) * (1 + old_group.noise) - 1
                found.append(Change(group, member.name, _quotient(ratio, was), noise))
    return found


def slower(found: Sequence[Change]) -> bool:
    """Whether any member is slower beyond the noise."""
    return any(change.verdict == SLOWER for change in found)


def _quotient(now: Interval, before: Interval) -> Interval:
    """The quotient of two independent medians; their relative deviations add in squares."""
    middle = now.median / before.median

    def reach(a: float, b: float) -> float:
        return math.exp(math.hypot(math.log(a), math.log(b)))

    low = middle / reach(now.median / now.low, before.high / before.median)
    return Interval(middle, low, middle * reach(now.high / now.median, before.median / before.low))


def summary(found: Sequence[Change], base: Path) -> str:
    """The number of members with each verdict, in a line."""
    counts: dict[str, Any] = {}
    for change in found:
        counts[change.verdict] = counts.get(change.verdict, 0) + 1
    return f"beside {base}: " + (", ".join(f"{n} {word}" for word, n in counts.items()) or "no member in common")
