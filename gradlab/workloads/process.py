"""A run in a process of its own: one framework there, its memory counted alone, its threads nobody else's."""

from collections.abc import Callable

from gradlab.base.processes import run_in_process
from gradlab.workloads.training import Plan, Run, run


def run_elsewhere(plan: Plan, on_loss: Callable[[float], object]) -> Run:
    """`training.run` elsewhere; `on_loss` gets the loss of every step as it is taken.

    Raises:
        RuntimeError: the run failed; its last line.
    """
    return run_in_process(f"{plan.side} {plan.layers}", _run, plan, on_message=on_loss)


def _run(send: Callable[[float], object], plan: Plan) -> Run:
    return run(plan, plan.workload.load(plan.seed, plan.path), send)
