"""Work in a process of its own: one framework there, its memory counted alone, its threads nobody else's."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Tell = Callable[[Any], object]


def apart(name: str, work: Callable[..., Any], *args: Any, heard: Tell, env: Mapping[str, str] | None = None) -> Any:
    """`work(tell, *args)` elsewhere; `heard` gets whatever it tells, as it is told.

    Args:
        name: what the work is, for its error.
        work: a function of a module, whose name it is found by; `args`, what it tells and returns are pickled.
        env: variables that the process has beside those of this one, set before any framework is imported.

    Raises:
        RuntimeError: the work failed; its last line.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, dict(env or {}), work, args), daemon=True)
    process.start()
    # The child's copy is the only one that writes: its end is the end of the pipe.
    there.close()
    try:
        while True:
            kind, value = here.recv()
            if kind == "told":
                heard(value)
            elif kind == "done":
                return value
            else:
                raise RuntimeError(f"{name}: {value}")
    except EOFError:
        process.join()
        raise RuntimeError(f"{name}: ended with exit code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()
        here.close()


def _child(pipe: Connection, env: Mapping[str, str], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(env)
    try:
        pipe.send(("done", work(lambda value: pipe.send(("told", value)), *args)))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        pipe.send(("failed", f"{type(error).__name__}: {lines[0]}"))
