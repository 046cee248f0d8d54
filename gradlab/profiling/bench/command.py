"""`gradlab bench`: times every op beside the native function of its framework, each framework in a subprocess."""

import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gradlab.autodiff.arguments.errors import FLOATS
from gradlab.autodiff.frameworks.side import known
from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.base.files import writable
from gradlab.base.machine import describe
from gradlab.base.processes import run_in_process
from gradlab.kernels.spec import Spec, spec, specs
from gradlab.profiling.bench import compare
from gradlab.profiling.bench.file import write
from gradlab.profiling.bench.row import GRADLAB, MODES, NATIVE, PASSES, Group
from gradlab.profiling.bench.sizes import sized
from gradlab.profiling.bench.table import show, show_changes
from gradlab.profiling.bench.words import policy
from gradlab.profiling.bench.worker import ENVIRONMENT, TimingJob, work
from gradlab.profiling.ranges import ranges


@dataclass(frozen=True)
class BenchArgs:
    """The arguments of the command line.

    Attributes:
        ops: names; none for every op.
        sides: "torch", "jax" or both.
        dtype: float64, float32, float16 or bfloat16.
        modes, passes: of MODES and PASSES; none for all.
        case: one case's name.
        budget: seconds of timing per group, besides compilation and checking.
        seed: of all inputs; None draws one for the run.
        sizes: other sizes of one op's largest case, as "M=512 K=64".
        sweep: time against size.
        json, csv, markdown: files to write; json has the raw samples, json and markdown the machine.
        base: an earlier run's JSON to compare with.
    """

    ops: tuple[str, ...]
    sides: tuple[str, ...]
    dtype: str = "float32"
    modes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    case: str | None = None
    budget: float = 1.0
    seed: int | None = None
    sweep: bool = False
    sizes: str = ""
    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    base: Path | None = None

    def jobs(self, seed: int) -> tuple[TimingJob, ...]:
        """The job of each side's process.

        Raises:
            ValueError: an unknown op, side, dtype, mode, pass or case, a budget that is not positive.
        """
        if self.dtype not in FLOATS:
            raise ValueError(f"bench: dtype is {self.dtype!r}, wanted one of {', '.join(FLOATS)}")
        if not self.budget > 0:
            raise ValueError(f"bench: budget is {self.budget}, wanted a number of seconds above 0")
        chosen = [spec(name) for name in self.ops] or list(specs().values())
        _among("mode", self.modes, MODES)
        _among("pass", self.passes, PASSES)
        if self.case is not None:
            _among("case", (self.case,), tuple(dict.fromkeys(c.name for op in chosen for c in _timed(op))))
            chosen = [op for op in chosen if self.case in {c.name for c in _timed(op)}]
        if self.sizes:
            if len(chosen) != 1 or self.case is not None:
                raise ValueError(f"bench: sizes are {self.sizes!r}, wanted none without a single op and no case")
            sized(chosen[0], _timed(chosen[0])[-1], self.sizes)
        return tuple(
            TimingJob(
                tuple(op.name for op in chosen),
                known(side),
                self.dtype,
                self.modes or MODES,
                self.passes or PASSES,
                self.budget,
                self.case,
                seed,
                self.sizes,
                (self.passes or PASSES) if self.sweep else (),
            )
            for side in self.sides
        )


def run(command: BenchArgs, console: Console, run_in_process: Callable[..., Any] = run_in_process) -> int:
    """Measure, print, and write what was measured after each group.

    Returns:
        0; 1 when a hand-written or native function is wrong or failed, or slower than in the baseline beyond the
        noise; 130 when interrupted, the finished groups printed and written.

    Raises:
        ValueError: bad input, before anything is measured.
    """
    seed = secrets.randbits(32) if command.seed is None else command.seed
    plan = command.jobs(seed)
    files = {"json": command.json, "csv": command.csv, "markdown": command.markdown}
    for path in files.values():
        writable("bench", path)
    machine = describe()
    before = None if command.base is None else compare.baseline(command.base, machine)
    head = {"machine": machine, "dtype": command.dtype, "precision": policy(command.dtype), "seed": seed}
    groups: list[Group] = []

    def save(complete: bool) -> None:
        write(groups, head | {"complete": complete}, files)

    about = f"{machine.get('gpu') or machine['cpu']}; {', '.join(command.sides)}; {policy(command.dtype)}; seed {seed}"
    console.print(about, highlight=False, soft_wrap=True)
    if busy := _busy():
        console.print(busy, style="yellow")
    if ranges.requested():
        console.print(f"{ranges.VARIABLE} is set, but ranges are off while timing", style="yellow")
    interrupted, ended = False, []
    try:
        ended = measured(plan, groups, console, lambda: save(False), run_in_process)
        save(not ended)
    except KeyboardInterrupt:
        interrupted = True
    show(groups, console)
    for line in ended:
        console.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if interrupted:
        console.print(f"interrupted: the {len(groups)} groups above are finished", style="bold red")
        return INTERRUPTED
    if not groups and not ended:
        raise ValueError(f"bench: case is {command.case!r}, which runs on CUDA only, wanted one for this device")
    # A peer that cannot run is reported, but is no failure.
    checked = [m for group in groups for m in group.members if m.implementation in (GRADLAB, NATIVE)]
    bad = bool(ended) or any(member.problem for member in checked)
    if before is not None and command.base is not None:
        found = compare.changes(groups, before)
        show_changes(found, console)
        console.print(compare.summary(found, command.base), highlight=False, soft_wrap=True)
        bad = bad or compare.slower(found)
    return FOUND if bad else OK


def measured(
    plan: tuple[TimingJob, ...],
    groups: list[Group],
    console: Console,
    save: Callable[[], object],
    run_in_process: Callable[..., Any] = run_in_process,
) -> list[str]:
    """Run each side's process; its groups are appended as they come, and `save` is called after each.

    Returns:
        A line for each process that ended before its time; the others went on.
    """
    ended = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        for job in plan:
            with tempfile.TemporaryDirectory(prefix="gradlab-bench-", ignore_cleanup_errors=True) as folder:
                messages = Messages(progress, progress.add_task(f"{job.side} starts", total=None), groups, save)
                try:
                    run_in_process(f"bench, {job.side}", work, job, folder, on_message=messages, env=ENVIRONMENT)
                except RuntimeError as error:
                    ended.append(str(error))
            progress.remove_task(messages.task)
    return ended


@dataclass
class Messages:
    """Handles the messages of a measuring process: progress and finished groups."""

    progress: Progress
    task: TaskID
    groups: list[Group]
    save: Callable[[], object]
    done: int = 0

    def __call__(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("groups", total):
                self.progress.update(self.task, total=total)
            case ("at", words, share):
                self.progress.update(self.task, description=words[:50], completed=self.done + share)
            case ("group", group):
                self.done += 1
                self.groups.append(group)
                self.progress.update(self.task, completed=self.done)
                self.save()


def _timed(op: Spec) -> tuple[Any, ...]:
    return op.select("bench") + op.select("bench gpu")


def _among(what: str, given: tuple[str, ...], choices: tuple[str, ...]) -> None:
    for name in given:
        if name not in choices:
            raise ValueError(f"bench: {what} is {name!r}, wanted one of {', '.join(choices)}")


def _busy() -> str:
    """A warning if other work runs on the machine, which makes short calls wait for a core."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    return (
        f"load average {load:.1f} on {cores} cores: other work is running, times will vary" if load > cores / 2 else ""
    )
