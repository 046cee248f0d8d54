"""One part of the GPU run: a process of its own with a time limit, seen while it runs, and what became of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OK, FAILED, LATE, SKIPPED = "ok", "failed", "timed out", "skipped"
# Seconds that an interrupted part has to write what it has, before it is killed.
GRACE = 10
# The last lines of output that are saved.
KEPT = 30


@dataclass(frozen=True)
class Outcome:
    """What became of a part: its verdict, how long it took, the end of what it printed."""

    name: str
    verdict: str
    seconds: float
    tail: tuple[str, ...]


def execute(name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], limit: float) -> Outcome:
    """Run a command for at most `limit` seconds, its output shown as it comes; never raises for what it does."""
    print(f"\n== {name}, at most {limit:.0f} s: {' '.join(command)}", flush=True)
    start = time.monotonic()
    tail: deque[str] = deque(maxlen=KEPT)
    try:
        # A session of its own, so that its workers end with it.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(name, FAILED, 0.0, (str(error),))
    reader = threading.Thread(target=_pass_on, args=(process, tail), daemon=True)
    reader.start()
    try:
        late = _wait(process, limit)
    finally:
        _signal(process, signal.SIGKILL)
    # A worker that left the session may hold the pipe open: it is not waited for.
    reader.join(GRACE)
    verdict = LATE if late else OK if process.returncode == 0 else FAILED
    outcome = Outcome(name, verdict, time.monotonic() - start, tuple(tail))
    print(f"== {name}: {verdict} (exit {process.returncode}) after {outcome.seconds:.0f} s", flush=True)
    return outcome


def _wait(process: subprocess.Popen, limit: float) -> bool:
    """Whether it had to be stopped: interrupted first, as by Ctrl-C, then killed."""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()
        return True
    return False


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the process and all that it started in its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _pass_on(process: subprocess.Popen, tail: deque[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            tail.append(line.rstrip())
