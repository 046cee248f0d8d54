"""The benchmark's part in one side's process: subjects one after another, sent group by group."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import Side
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import Case, Spec, spec
from gradlab.profiling.bench.ceilings import Ceilings
from gradlab.profiling.bench.measure import measure
from gradlab.profiling.bench.row import COMPILED
from gradlab.profiling.bench.sizes import sized
from gradlab.profiling.bench.subject import BenchSubject
from gradlab.profiling.bench.sweep import FACTORS, scaled
from gradlab.profiling.bench.timers import timers
from gradlab.profiling.bench.watch import Watch
from gradlab.profiling.native.native import natives
from gradlab.profiling.ranges import ranges


@dataclass(frozen=True)
class TimingJob:
    """What one process measures.

    Attributes:
        ops: names, in order.
        case: one case's name, or None for all that are timed on the side's device.
        budget: seconds of timing a group.
        seed: of all inputs: both sides get the same numbers.
        sizes: as `sizes.sized` takes them, for the largest case; nothing for the cases as they are.
        swept: passes that are timed along each op's largest case scaled down, instead of its cases as they are; the
            other passes are timed at that case alone.
        factors: how much smaller than that case along each axis, the smallest size first.
        largest: each op's largest case alone; or, tiny, its first checked one and tiny ceilings: all the same steps in
            no time.
        fresh: compilers find nothing in any group, which is what a first call is timed with; without it they keep what
            they made, and no first call is reported.
        done: (op, case, pass) of the groups that an earlier run has.
    """

    ops: tuple[str, ...]
    side: str
    dtype: str
    modes: tuple[str, ...]
    passes: tuple[str, ...]
    budget: float
    case: str | None = None
    seed: int = 0
    sizes: str = ""
    swept: tuple[str, ...] = ()
    factors: tuple[int, ...] = FACTORS
    largest: bool = False
    tiny: bool = False
    fresh: bool = True
    done: frozenset[tuple[str, str, str]] = frozenset()


# Variables of a measuring process, set before a framework is imported.
ENVIRONMENT = {
    # Memory is left to other processes.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # torch's profiler, which counts memory, says hello on stderr.
    "KINETO_LOG_LEVEL": "99",
}


def work(send: Callable[[Any], object], job: TimingJob, folder: str) -> None:
    """Measure everything in the job; sends ("groups", how many), ("at", words, share of the group), ("group", Group).

    Args:
        folder: where compilers keep what they make, a folder of its own for each group: a first call finds nothing.
    """
    side = side_of(job.side)
    plan = [
        (subject, direction)
        for subject in subjects(job, side)
        for direction in job.passes
        if not job.swept or direction in job.swept or subject[2] == 1
        if (subject[0].name, subject[1].name, direction) not in job.done
    ]
    send(("groups", len(plan)))
    compilers = natives(side.name)
    if COMPILED in job.modes and job.fresh:
        # The first of all looks for the machine's instructions and the C++ compiler: no member's first call.
        send(("at", f"{side.name}: compiler starts", 0.0))
        with compilers.fresh(f"{folder}/start"):
            side.wait(side.compiled(lambda x: x + x)(side.put(np.ones(8), job.dtype)))
    ceilings = Ceilings(side, job.dtype, timers(side)["warm"], job.tiny)
    with ranges.off(), Watch(side.device()) as watch:
        for i, ((op, case, share), direction) in enumerate(plan):
            what = f"{op.name} on {side.name}, {case.name}, {direction}"

            def on_progress(stage: str, share: float, what: str = what) -> None:
                send(("at", f"{what}: {stage}", share))

            on_progress("inputs and ceilings", 0.0)
            with compilers.fresh(f"{folder}/{i}") if job.fresh else nullcontext():
                subject = BenchSubject(op, case, side, job.dtype, job.seed)
                group = measure(
                    subject,
                    direction,
                    job.modes,
                    job.budget,
                    ceilings,
                    watch,
                    swept=share,
                    fresh=job.fresh,
                    on_progress=on_progress,
                )
            send(("group", group))


def subjects(job: TimingJob, side: Side) -> Iterator[tuple[Spec, Case, float | None]]:
    """Each op's cases, or the sizes that its largest one is scaled to."""
    for op in map(spec, job.ops):
        timed = cases(op, side.device()) if not job.tiny else op.select("check")[:1]
        if job.largest:
            timed = timed[-1:]
        if job.sizes:
            timed = (sized(op, timed[-1], job.sizes),)
        if job.swept:
            yield from ((op, case, share) for case, share in scaled(op, timed[-1], job.factors))
        else:
            yield from ((op, case, None) for case in timed if job.case in (None, case.name))


def cases(op: Spec, device: str) -> tuple[Case, ...]:
    """What is timed on a device: on CUDA also the cases that are too large for anything else."""
    return op.select("bench") + (op.select("bench gpu") if device == "cuda" else ())
