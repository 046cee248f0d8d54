"""The parent's handle on profiled subprocesses: they warm up one by one, then are traced one by one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradlab.profiling.ranges.ranges import VARIABLE
from gradlab.profiling.trace.step import READY, ProfileJob

# Two frameworks share the GPU's memory, and caches of an earlier profile would hide the cost of compiling.
ENV = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "KINETO_LOG_LEVEL": "99"}
ROOT = Path(__file__).resolve().parents[3]


class ChildError(ValueError):
    """A profiled process ended without a result: its last line."""


def command(module: str, job: ProfileJob) -> list[str]:
    """What runs the job."""
    return [sys.executable, "-m", module, json.dumps(asdict(job))]


def environment() -> dict[str, str]:
    """This process' environment, with the package on PYTHONPATH and NVTX ranges off until the profile starts."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, **ENV, "PYTHONPATH": path, VARIABLE: ""}


def traced(module: str, jobs: Sequence[ProfileJob], on_progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Trace each job in a subprocess; the results by side.

    They warm up one after another, so that compile times are undisturbed; then each is traced while the others wait, so
    that the traces follow each other on one clock.

    Raises:
        ChildError: one of them failed.
    """
    with ExitStack() as stack:
        children = []
        for job in jobs:
            on_progress(f"{job.side}: warm-up")
            child = Child(command(module, job))
            stack.callback(child.end)
            child.ready(job)
            children.append(child)
        found = {}
        for job, child in zip(jobs, children, strict=True):
            on_progress(f"{job.side}: {job.steps} steps")
            found[job.side] = child.result(job)
    return found


class Child:
    """One subprocess: standard output carries its messages, standard error is shown if it fails."""

    def __init__(self, words: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            words,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def ready(self, job: ProfileJob) -> None:
        """Wait until it has warmed up."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == READY:
                return
        self._fail(job)

    def result(self, job: ProfileJob) -> dict[str, Any]:
        """Let it continue, wait for its end, and read its result file."""
        with suppress(BrokenPipeError):
            self._process.communicate("go\n")
        if self._process.returncode or not Path(job.out).exists():
            self._fail(job)
        found: dict[str, Any] = json.loads(Path(job.out).read_text(encoding="utf-8"))
        return found

    def end(self) -> None:
        """Kill it and its own subprocesses."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _fail(self, job: ProfileJob) -> None:
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        why = lines[-1] if lines else f"exit code {self._process.returncode}"
        raise ChildError(f"profile: {job.target} on {job.side}, {job.mode}: {why}")
