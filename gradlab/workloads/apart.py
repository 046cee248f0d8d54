"""A run in a process of its own: one framework there, its memory counted alone, its threads nobody else's."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from gradlab.workloads.training import Plan, Run, run


def run_apart(plan: Plan, told: Callable[[float], object]) -> Run:
    """`training.run` elsewhere; `told` hears the loss of every step as it is taken.

    Raises:
        RuntimeError: the run failed; its last line.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, plan), daemon=True)
    process.start()
    # The child's copy is the only one that writes: its end is the end of the pipe.
    there.close()
    try:
        while True:
            kind, value = here.recv()
            if kind == "loss":
                told(value)
            elif kind == "done":
                return value
            else:
                raise RuntimeError(f"{plan.side} {plan.layers}: {value}")
    except EOFError:
        process.join()
        raise RuntimeError(f"{plan.side} {plan.layers}: ended with exit code {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()
        here.close()


def _child(pipe: Connection, plan: Plan) -> None:
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        data = plan.workload.load(plan.seed, plan.path)
        result = run(plan, data, lambda loss: pipe.send(("loss", loss)))
        pipe.send(("done", result))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        pipe.send(("failed", f"{type(error).__name__}: {lines[0]}"))
