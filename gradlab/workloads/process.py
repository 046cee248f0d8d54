"""A training run in a subprocess: a single framework, its own memory count and threads."""

from collections.abc import Callable

from gradlab.base.processes import run_in_process
from gradlab.workloads.training import TrainingPlan, TrainingRun, run


def run_in_subprocess(plan: TrainingPlan, on_loss: Callable[[float], object]) -> TrainingRun:
    """`training.run` in a subprocess; `on_loss` is called with the loss of every step.

    Raises:
        RuntimeError: the run failed; its last line.
    """
    return run_in_process(f"{plan.side} {plan.layers}", _run, plan, on_message=on_loss)


def _run(send: Callable[[float], object], plan: TrainingPlan) -> TrainingRun:
    return run(plan, plan.workload.load(plan.seed, plan.path), send)
