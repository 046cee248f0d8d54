"""Many right functions through the check, each guarded: how many are ok, and what is said of the others."""

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gradlab
from gradlab.autodiff.checker.inputs.isolated import run_isolated

# Samples that one process checks before the next is forked.
CHUNK = 40


@dataclass(frozen=True)
class Sample:
    """One right function and its arguments; `make` gives both when it is its turn."""

    name: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]


@dataclass(frozen=True)
class Outcome:
    """What became of a sample: ok, inconclusive, wrong, raised, died or not made, and why."""

    name: str
    verdict: str
    said: str = ""
    seconds: float = 0.0


def one(sample: Sample, seed: int = 0, **options: Any) -> Outcome:
    """Check one sample; nothing is raised."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fn, args = sample.make()
        except Exception as error:
            return Outcome(sample.name, "not made", repr(error)[:200])
        try:
            report = gradlab.check(fn, *args, seed=seed, raises=False, **options)
        except Exception as error:
            return Outcome(sample.name, "raised", repr(error)[:300], time.process_time() - start)
    said = report.wrong()[0].message if report.verdict != "ok" else ""
    return Outcome(sample.name, report.verdict, said, time.process_time() - start)


def sweep(samples: Iterable[Sample], isolated: bool = True, **options: Any) -> list[Outcome]:
    """Check all; isolated, in forked processes, so that one that dies takes no other with it."""
    todo = list(samples)
    found: list[Outcome] = []
    while todo:
        if not isolated:
            found.append(_shown(one(todo.pop(0), **options)))
            continue
        chunk = todo[:CHUNK]
        sent, died = run_isolated(lambda send, chunk=chunk: [send(one(s, **options)) for s in chunk], patience=300.0)
        found += [_shown(o) for o in sent]
        todo = todo[len(sent) :]
        print(f"... {len(found)} done", flush=True)
        if died:
            found.append(_shown(Outcome(chunk[len(sent)].name, "died", died)))
            todo = todo[1:]
    return found


def _shown(outcome: Outcome) -> Outcome:
    if outcome.verdict not in ("ok", "not made"):
        print(f"{outcome.verdict}: {outcome.name}: {outcome.detail}", flush=True)
    return outcome


def summary(found: Iterable[Outcome], known: dict[str, str]) -> str:
    """The counts in one line, and how many of the wrong ones are known to be true findings."""
    found = list(found)
    counts = Counter(o.verdict for o in found)
    true = {o.name for o in found if o.verdict == "wrong" and o.name.split(",")[0] in known}
    return (
        f"{len(found)} samples in {sum(o.seconds for o in found):.0f} CPU s: "
        + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        + f"; {len(true)} of the wrong are known true findings"
    )


def share(samples: list[Sample]) -> list[Sample]:
    """The samples that the command line asks for: all, or every n-th from a start (`START STEP`), or by name."""
    words = sys.argv[1:]
    if len(words) == 2 and all(w.isdigit() for w in words):
        return samples[int(words[0]) :: int(words[1])]
    return [s for s in samples if any(w in s.name for w in words)] if words else samples
