"""Candidates one after another until the time is up: which remain to be measured, and what ruled out the others."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gradlab.kernels.configs.tiles import Row
from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.tune.candidates import candidates, refusal, words
from gradlab.profiling.tune.predict import Facts, Key, Predictor, keys, ratio

# How far behind the best the model may put what is measured: it knows no latencies.
BEHIND = 0.25


@dataclass(frozen=True)
class Tried:
    """A row, and what is known of it.

    Attributes:
        ratio: the model's cycles over those of the row in use; None where the model has none.
        dropped: why it is not measured; empty if nothing is against it.
    """

    row: Row
    facts: Facts | None = None
    ratio: float | None = None
    dropped: str = ""


@dataclass
class Survey:
    """What was found out so far.

    Attributes:
        tried: the row in use first, then others as they were tried.
        missed: candidates that the time did not suffice for.
    """

    tried: list[Tried]
    missed: int = 0

    def ranked(self) -> list[Tried]:
        """Those to be measured, the model's best first and of equals the one that leaves room for most blocks; others.

        What the model puts more than BEHIND behind its best is among the others.
        """
        ratios = [one.ratio for one in self.tried if one.ratio is not None and not one.dropped]
        best = min(ratios, default=None)
        judged = [self._held(one, best) for one in self.tried]
        return sorted(
            judged, key=lambda one: (bool(one.dropped), one.ratio or 0.0, -one.facts.blocks if one.facts else 0)
        )

    def _held(self, one: Tried, best: float | None) -> Tried:
        if one is self.tried[0] or one.dropped or one.ratio is None or best is None or one.ratio <= best * (1 + BEHIND):
            return one
        return replace(one, dropped=f"model: {one.ratio / best:.2f} of best")


def survey(
    predictor: Predictor,
    row: Row,
    seconds: float,
    found: Survey,
    at_once: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Try a row's candidates, the nearest first; `found` is filled as they come, and whole at any time.

    Args:
        row: the one in use, of one dtype and for the places where launches look for one.
        seconds: after so many no candidate is begun; the row in use is looked at whatever it takes.
        at_once: candidates that are compiled together.
    """
    end = clock() + seconds
    own, *others = candidates(row)
    launches = predictor.launches(own)
    base = predictor.facts(launches)
    found.tried.append(Tried(own, base, 1.0 if base.cycles else None, base.error))
    seen: dict[Key, Row] = {keys(launches): own}
    # What is refused costs no time, so all of that is known before the first one is compiled.
    refused = [Tried(tried, dropped=refusal(tried, predictor.where)) for tried in others]
    found.tried += [one for one in refused if one.dropped]
    left = [one.row for one in refused if not one.dropped]
    for n in range(0, len(left), at_once):
        if clock() > end:
            found.missed = len(left) - n
            return
        found.tried += _judged(
            predictor, [(tried, predictor.launches(tried)) for tried in left[n : n + at_once]], base, seen
        )


def _judged(
    predictor: Predictor, several: Sequence[tuple[Row, list[list[Found]]]], base: Facts, seen: dict[Key, Row]
) -> Iterator[Tried]:
    """Rows with their launches, compiled together."""
    predictor.learn([launches for _, launches in several])
    for row, launches in several:
        same = seen.setdefault(keys(launches), row)
        if same is not row:
            yield Tried(row, dropped=f"the same launches as {words(same)}")
            continue
        facts = predictor.facts(launches)
        why = facts.error
        if not why and facts.spill > base.spill:
            why = f"spills {facts.spill} B, the row in use {base.spill}"
        yield Tried(row, facts, ratio(facts, base), why)
