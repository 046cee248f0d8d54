"""Runs the report's stages, in parallel unless they are timed, and saves their data as it arrives."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlab.base.processes import Job, run_jobs
from gradlab.profiling.bench.worker import ENVIRONMENT
from gradlab.profiling.bench.worker import work as benchmark
from gradlab.profiling.report.stages import Scope, checks, inspections, timings

KIND, SCHEMA = "gradlab report", 1
# The outcome of a stage: complete, ended by an error, or interrupted.
DONE, FAILED, STOPPED = "done", "failed", "not finished"


@dataclass
class Data:
    """All that the page shows, plain: what `results.json` holds.

    Attributes:
        stages: by name, what became of it, its seconds and its error.
        checks: an entry an op: findings, notes, curves.
        groups: the benchmark's groups.
        kernels, bounds: of the machine code.
        training: the name of the workload, its table's columns, rows and notes, and its figure's file.
    """

    machine: dict[str, str]
    scope: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    bounds: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"kind": KIND, "schema": SCHEMA, **vars(self)}

    def take(self, message: tuple[Any, ...]) -> None:
        """Keep what a stage tells."""
        match message:
            case ("check", found):
                self.checks.append(found)
            case ("kernel", found):
                self.kernels.append(found)
            case ("bounds", found):
                self.bounds += found
            case ("group", group):
                self.groups.append(group.as_json())


RunJobs = Callable[[Sequence[Job], Callable[[Job, Any], object]], object]


def collect(
    data: Data, scope: Scope, folder: str, on_stage: Callable[[str, str], object], run_jobs: RunJobs = run_jobs
) -> None:
    """Check and inspect beside each other, then time each side alone: nothing else may run while a clock does.

    A stage that fails leaves its error and stops no other; what an interrupted one had sent is in `data`.

    Args:
        folder: for the compilers' caches.
        on_stage: gets a stage's name and what it is at.
    """

    def job(name: str, work: Callable[..., None], *args: Any, env: dict[str, str] | None = None) -> Job:
        data.stages[name] = {"became": STOPPED, "seconds": 0.0}

        def on_message(message: tuple[Any, ...]) -> None:
            data.take(message)
            if message[0] == "at":
                on_stage(name, message[1])

        return Job(name, work, args, on_message, env or {})

    def ended(job: Job, outcome: Any) -> None:
        failed = isinstance(outcome, RuntimeError)
        data.stages[job.name] = {"became": FAILED if failed else DONE, "seconds": time.perf_counter() - begun}
        if failed:
            data.stages[job.name]["error"] = str(outcome)
        on_stage(job.name, data.stages[job.name]["became"])

    first = [job("check", checks, scope), job("inspect", inspections, scope)]
    alone = [job(f"bench {a.side}", benchmark, a, f"{folder}/{a.side}", env=ENVIRONMENT) for a in timings(scope)]
    for jobs in (first, *([one] for one in alone)):
        begun = time.perf_counter()
        run_jobs(jobs, ended)
