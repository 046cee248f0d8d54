"""Rows measured on the device, in turns with the row in use: forward and backward of an op's cases."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlab.autodiff.frameworks.side import Side
from gradlab.base.terminal import first_line
from gradlab.kernels.configs.tiles import Row, trying
from gradlab.kernels.spec import Case, Spec
from gradlab.profiling.bench.clock import Call, in_turns
from gradlab.profiling.bench.numbers import FASTER, SLOWER, Interval, noise, ratio, verdict
from gradlab.profiling.bench.row import BOTH, EAGER, GRADLAB
from gradlab.profiling.bench.subject import BenchSubject
from gradlab.profiling.bench.timers import timers
from gradlab.profiling.bench.watch import Watch


@dataclass(frozen=True)
class Measured:
    """A row beside the row in use.

    Attributes:
        ratios: its time over the other's, case by case.
        noise: how far a ratio strays from 1 where nothing differs, case by case.
        problem: why there are no ratios: it is wrong, or does not run.
    """

    row: Row
    ratios: tuple[Interval, ...] = ()
    noise: tuple[float, ...] = ()
    problem: str = ""

    @property
    def mean(self) -> float:
        """The geometric mean of the ratios; infinite without any."""
        if self.problem or not self.ratios:
            return math.inf
        return math.exp(sum(math.log(r.median) for r in self.ratios) / len(self.ratios))

    @property
    def better(self) -> bool:
        """Whether it is faster in a case, beyond the noise, and slower in none."""
        verdicts = [verdict(*both) for both in zip(self.ratios, self.noise, strict=True)]
        return not self.problem and FASTER in verdicts and SLOWER not in verdicts


@dataclass(frozen=True)
class Job:
    """What rows are measured on; the inputs follow from `seed`."""

    op: Spec
    cases: tuple[Case, ...]
    side: Side
    dtype: str
    seed: int


def measured(job: Job, base: Row, rows: Sequence[Row], seconds: float) -> list[Measured]:
    """Time rows in turns with `base`, for about so many seconds in all; each result is compared with native's first."""
    found = [Measured(row) for row in rows]
    with Watch(job.side.device()) as watch:
        for case in job.cases:
            sound = [i for i, one in enumerate(found) if not one.problem]
            results = _case(job, case, base, [rows[i] for i in sound], seconds / len(job.cases), watch)
            for i, result in zip(sound, results, strict=True):
                before = found[i]
                found[i] = Measured(
                    before.row, before.ratios + result.ratios, before.noise + result.noise, result.problem
                )
    return found


def _case(job: Job, case: Case, base: Row, rows: Sequence[Row], seconds: float, watch: Watch) -> list[Measured]:
    subject = BenchSubject(job.op, case, job.side, job.dtype, job.seed)
    with subject.precise():
        # The row in use at both ends of a round: its ratio to itself is the noise.
        members = [base, *rows, base]
        built = [_call(subject, row) for row in members]
        problems = [problem for _, problem in built]
        if problems[0]:
            raise ValueError(f"tune: the row in use came with {problems[0]}, wanted one that computes {job.op.name}")
        sound = [i for i, problem in enumerate(problems) if not problem]
        last = len(sound) - 1
        rounds = in_turns(
            [built[i][0] for i in sound],
            {"warm": timers(job.side)["warm"]},
            job.side.wait,
            seconds,
            pairs=[(n, 0) for n in range(1, last)],
            around=[functools.partial(trying, members[i]) for i in sound],
            discard=watch.slowed,
        )
    results = [Measured(row, problem=problem) for row, problem in zip(members, problems, strict=True)]
    for n, i in enumerate(sound):
        if rounds.rounds:
            samples, own = rounds.samples(n), rounds.samples(0)
            results[i] = Measured(members[i], (ratio(samples, own),), (noise(rounds.samples(last), own),))
        else:
            results[i] = Measured(members[i], problem=f"the GPU was slowed down in all of {rounds.dropped} rounds")
    return results[1:-1]


def _call(subject: BenchSubject, row: Row) -> tuple[Call, str]:
    """The op, forward and backward, as a call of its own; and why it cannot be timed with this row."""
    call = subject.call(GRADLAB, EAGER, BOTH)
    try:
        with trying(row):
            return call, subject.difference(subject.side.wait(call()), BOTH)
    except Exception as error:
        return call, f"{type(error).__name__}: {first_line(error)}"
