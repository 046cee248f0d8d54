"""Work in processes of its own: one framework there, its memory counted alone, its threads nobody else's."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, cast

Send = Callable[[Any], object]


@dataclass(frozen=True)
class Job:
    """`work(send, *args)` of a process.

    Attributes:
        name: what the work is, for its error.
        work: a function of a module, whose name it is found by; `args`, what it sends and returns are pickled.
        on_message: gets whatever the work sends, as it is sent.
        env: variables that the process has beside those of this one, set before any framework is imported.
    """

    name: str
    work: Callable[..., Any]
    args: tuple[Any, ...] = ()
    on_message: Send = lambda value: None
    env: Mapping[str, str] = field(default_factory=dict)


def run_in_process(
    name: str, work: Callable[..., Any], *args: Any, on_message: Send, env: Mapping[str, str] | None = None
) -> Any:
    """What one job returns.

    Raises:
        RuntimeError: the work failed; its last line.
    """
    (outcome,) = run_jobs([Job(name, work, args, on_message, env or {})])
    if isinstance(outcome, RuntimeError):
        raise outcome
    return outcome


def run_jobs(jobs: Sequence[Job], ended: Callable[[Job, Any], object] = lambda job, outcome: None) -> list[Any]:
    """Run jobs side by side; what each returns, or the RuntimeError that ended it. None is left when this returns.

    Args:
        ended: gets a job and its outcome as soon as it is there.
    """
    context = multiprocessing.get_context("spawn")
    outcomes: dict[int, Any] = {}
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        for i, job in enumerate(jobs):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(there, dict(job.env), job.work, job.args), daemon=True)
            process.start()
            # The child's copy is the only one that writes: its end is the end of the pipe.
            there.close()
            running[here] = i, process
        while running:
            for here in cast(list[Connection], wait(list(running))):
                i, process = running[here]
                kind, value = _received(here, process)
                if kind == "message":
                    jobs[i].on_message(value)
                else:
                    outcomes[i] = value if kind == "done" else RuntimeError(f"{jobs[i].name}: {value}")
                    _end(here, process)
                    del running[here]
                    ended(jobs[i], outcomes[i])
    finally:
        for here, (_, process) in running.items():
            _end(here, process)
    return [outcomes[i] for i in range(len(jobs))]


def _received(here: Connection, process: Any) -> tuple[str, Any]:
    try:
        return here.recv()
    except EOFError:
        process.join()
        return "failed", f"ended with exit code {process.exitcode}"


def _end(here: Connection, process: Any) -> None:
    process.terminate()
    process.join()
    here.close()


def _child(pipe: Connection, env: Mapping[str, str], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(env)
    try:
        pipe.send(("done", work(lambda value: pipe.send(("message", value)), *args)))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        pipe.send(("failed", f"{type(error).__name__}: {lines[0]}"))
