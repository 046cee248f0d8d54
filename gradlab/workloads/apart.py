"""A run in a process of its own: one framework there, its memory counted alone, its threads nobody else's."""

from collections.abc import Callable

from gradlab.profiling.apart import apart
from gradlab.workloads.training import Plan, Run, run


def run_apart(plan: Plan, told: Callable[[float], object]) -> Run:
    """`training.run` elsewhere; `told` hears the loss of every step as it is taken.

    Raises:
        RuntimeError: the run failed; its last line.
    """
    return apart(f"{plan.side} {plan.layers}", _run, plan, heard=told)


def _run(tell: Callable[[float], object], plan: Plan) -> Run:
    return run(plan, plan.workload.load(plan.seed, plan.path), tell)
