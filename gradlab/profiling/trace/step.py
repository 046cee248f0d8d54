"""The process that is profiled: it warms up, says so, waits for its turn, runs a few steps, and leaves a file.

A module that knows what is to be run ends in `serve(make)`; the parent starts it with `python -m` and one argument, the
job as JSON.
"""

import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradlab.autodiff.frameworks.side import side
from gradlab.base.files import write_whole
from gradlab.profiling.ranges import ranges
from gradlab.profiling.ranges.label import Label, Sink

READY = "ready"
# The ranges of the profile's own.
MARKS = ("capture", "step", "dispatch", "wait")
# Steps before the profiled ones: the first compiles, the others fill caches.
WARM = 2


@dataclass(frozen=True)
class Job:
    """What the parent asks of the process.

    Attributes:
        tool: trace, nsys or ncu; the latter two watch the process from outside.
        steps: how many are profiled.
        out: the file to leave.
    """

    target: str
    side: str
    mode: str
    case: str
    tool: str
    steps: int
    out: str


@dataclass(frozen=True)
class Step:
    """One step of what is profiled.

    Attributes:
        call: runs it; on a GPU it may return before the device has finished.
        wait: returns once the device has finished the value that it is given.
        what: the step, in words.
        interpreted: whether its hand-written kernels are interpreted.
        program: the compiled program's text, from which jax's operations get the names of their kernels.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    what: str
    interpreted: bool
    program: Callable[[], str] = lambda: ""


@runtime_checkable
class Spanning(Protocol):
    """A sink that has ranges of the whole process too."""

    def span(self, side: str, label: Label) -> AbstractContextManager[None]: ...


class Counting:
    """A sink that passes ranges on and counts them: which kernels ran, and how many bytes they held."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self.counts: dict[Label, int] = {}

    def span(self, side: str, label: Label) -> AbstractContextManager[None]:
        """A range of the whole process, where the sink is NVTX."""
        return self._sink.span(side, label) if isinstance(self._sink, Spanning) else nullcontext()

    def push(self, side: str, label: Label) -> None:
        self.counts[label] = self.counts.get(label, 0) + 1
        if self._sink is not None:
            self._sink.push(side, label)

    def pop(self, side: str) -> None:
        if self._sink is not None:
            self._sink.pop(side)


def serve(make: Callable[[Job], Step]) -> None:
    """Do the job of `sys.argv[1]`; an error is its last line on stderr and exit code 1."""
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job(**json.loads(sys.argv[1]))
    # What is printed by others is not to be taken for the word that the parent waits for.
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve(job, make, said)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        # A tool around this process is to see that it failed; frameworks' own threads do not hold it up.
        sys.stderr.flush()
        os._exit(1)


def _serve(job: Job, make: Callable[[Job], Step], said: Any) -> None:
    watch: Any = importlib.import_module(f"gradlab.profiling.trace.traced_{job.side}")
    with ranges.off(), watch.Compilation() as compilation:
        step = make(job)
        for _ in range(WARM):
            step.wait(step.call())
        compilation.warm()
        print(READY, file=said, flush=True)
        if job.tool == "trace":
            sys.stdin.readline()
            counting = Counting(watch.sink())
            found = watch.trace(functools.partial(run, step, job, counting), counting, step.program)
        else:
            counting = Counting(ranges.sink())
            found = {"copy": watch.copy_rate()}
            _captured(step, job, counting)
        found |= {"what": step.what, "interpreted": step.interpreted, "device": side(job.side).device()}
        found |= {"pid": os.getpid(), **compilation.found()}
        found["labels"] = [[label._asdict(), count] for label, count in counting.counts.items()]
        found["job"] = asdict(job)
    write_whole(Path(job.out), json.dumps(found))


def _captured(step: Step, job: Job, sink: Counting) -> None:
    """The steps in ranges named `capture`, which is what nsys and ncu are told to look at.

    nsys begins and ends with a thread's range. ncu asks of each kernel which ranges its own thread is in, and autograd
    has threads of its own: for it there is one of the whole process.
    """
    with ranges.switched(sink), sink.span(job.side, mark("capture")), marked(sink, job.side, "capture"):
        run(step, job, sink)


def run(step: Step, job: Job, sink: Sink) -> list[tuple[float, float, float]]:
    """The profiled steps, each in a range of its own.

    Returns:
        For each the seconds of the call, those of the wait for the device after it, and when it began, by the date.
    """
    seconds = []
    for _ in range(job.steps):
        date = time.time()
        with marked(sink, job.side, "step"):
            start = time.perf_counter()
            with marked(sink, job.side, "dispatch"):
                value = step.call()
            called = time.perf_counter()
            with marked(sink, job.side, "wait"):
                step.wait(value)
            seconds.append((called - start, time.perf_counter() - called, date))
    return seconds


def mark(name: str) -> Label:
    """The label of a range of the profile's own."""
    return Label(name, "", "", (), "", 0, 0)


class marked:
    """A range of the profile's own, of no op and no pass."""

    def __init__(self, sink: Sink, side: str, name: str) -> None:
        self._sink, self._side, self._label = sink, side, mark(name)

    def __enter__(self) -> None:
        self._sink.push(self._side, self._label)

    def __exit__(self, *_: object) -> None:
        self._sink.pop(self._side)
