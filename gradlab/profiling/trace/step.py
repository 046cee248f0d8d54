"""The profiled subprocess: warms up, reports ready, waits for its turn, runs a few steps, and writes a file.

A module that defines the step ends in `serve(make)`; the parent starts it with `python -m` and one argument, the job as
JSON.
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
# The names of the profile's own ranges.
MARKS = ("capture", "step", "dispatch", "wait")
# Steps before the profiled ones: the first compiles, the others fill caches.
WARM = 2


@dataclass(frozen=True)
class ProfileJob:
    """The job of a profiled subprocess.

    Attributes:
        tool: trace, nsys or ncu; the latter two attach from outside.
        steps: number of profiled steps.
        out: the result file.
    """

    target: str
    side: str
    mode: str
    case: str
    tool: str
    steps: int
    out: str


@dataclass(frozen=True)
class ProfiledStep:
    """One step of the profiled target.

    Attributes:
        call: runs it; on a GPU it may return before the device has finished.
        wait: returns once the device has finished the value that it is given.
        what: a description of the step.
        interpreted: whether its hand-written kernels are interpreted.
        program: the text of the compiled program, which maps jax's operations to kernel names.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    what: str
    interpreted: bool
    program: Callable[[], str] = lambda: ""


@runtime_checkable
class Spanning(Protocol):
    """A sink that also has process-wide ranges."""

    def span(self, side: str, label: Label) -> AbstractContextManager[None]: ...


class Counting:
    """A sink that passes ranges on and counts them: which kernels ran, and the bytes of their tensors."""

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


def serve(make: Callable[[ProfileJob], ProfiledStep]) -> None:
    """Do the job of `sys.argv[1]`; an error is its last line on stderr and exit code 1."""
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = ProfileJob(**json.loads(sys.argv[1]))
    # Keep other output off the pipe that carries the ready message.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve(job, make, messages)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        # A tool around this process must see the failure; do not wait for the frameworks' threads.
        sys.stderr.flush()
        os._exit(1)


def _serve(job: ProfileJob, make: Callable[[ProfileJob], ProfiledStep], messages: Any) -> None:
    watch: Any = importlib.import_module(f"gradlab.profiling.trace.traced_{job.side}")
    with ranges.off(), watch.Compilation() as compilation:
        step = make(job)
        for _ in range(WARM):
            step.wait(step.call())
        compilation.warm()
        print(READY, file=messages, flush=True)
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


def _captured(step: ProfiledStep, job: ProfileJob, sink: Counting) -> None:
    """Run the steps in ranges named `capture`, which nsys and ncu filter by.

    nsys starts and stops with a thread range. ncu filters kernels by the ranges of their own thread, and autograd has
    its
    own threads: for it there is a process-wide range.
    """
    with ranges.switched(sink), sink.span(job.side, mark("capture")), marked(sink, job.side, "capture"):
        run(step, job, sink)


def run(step: ProfiledStep, job: ProfileJob, sink: Sink) -> list[tuple[float, float, float]]:
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
