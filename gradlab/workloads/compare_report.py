"""The comparison of runs as table rows, notes, violations, Markdown and JSON."""

import json
import math
from collections.abc import Sequence

import numpy as np

from gradlab.workloads.training import TrainingPlan, TrainingRun
from gradlab.workloads.workload import Workload, shown

COLUMNS = ("side", "layers", "kernels", "loss", "test", "max\n|dloss|\nearly", "max\n|dloss|\nall", "s", "MiB")


def abs_dloss(a: TrainingRun, b: TrainingRun) -> np.ndarray:
    """|dloss| = |loss of a - loss of b| at every step; NaN where both have overflowed."""
    with np.errstate(invalid="ignore"):
        return np.abs(np.subtract(a.losses, b.losses))


def reference(runs: Sequence[TrainingRun]) -> TrainingRun:
    """The run that |dloss| refers to in tables and figures: torch's native layers if they were trained."""
    return min(runs, key=lambda run: (run.layers != "native", run.side != "torch"))


def max_abs_dloss(run: TrainingRun, runs: Sequence[TrainingRun], within: int | None = None) -> float:
    """The largest |dloss| from the reference at any step, or in the first `within` steps."""
    # np.max, unlike max, carries a NaN through.
    return float(np.max(abs_dloss(run, reference(runs))[:within]))


def max_abs_dloss_of_all(runs: Sequence[TrainingRun], within: int | None = None) -> float:
    """The largest |dloss| between any two of the runs."""
    return float(np.max([abs_dloss(a, b)[:within] for a in runs for b in runs]))


def limit(plan: TrainingPlan) -> float:
    """The |dloss| allowed between two runs; unlimited in half precision, where runs round differently."""
    return plan.workload.max_dloss if plan.precision == "float32" else math.inf


def violations(runs: Sequence[TrainingRun], plan: TrainingPlan) -> list[str]:
    """One line for each violated expectation; NaN violates every one.

    The expected accuracy applies to the workload's default settings only.
    """
    workload = plan.workload
    least = workload.expected_accuracy if _uses_defaults(plan) else None
    found = [
        f"{run.name}: {shown(workload, run.score)} right on the test data is below {least:.0%}"
        for run in runs
        if least is not None and not run.score >= least
    ]
    most = limit(plan)
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            outside = ~(abs_dloss(a, b)[: workload.early_steps] <= most)
            if outside.any() and plan.precision == "float32":
                step = int(outside.argmax())
                found.append(
                    f"{a.name} and {b.name}: losses {a.losses[step]:.6f} and {b.losses[step]:.6f} at step {step + 1} "
                    f"differ by more than {most:g}"
                )
    return found


def _uses_defaults(plan: TrainingPlan) -> bool:
    workload = plan.workload
    settings = plan.epochs, plan.batch, plan.optimizer
    return settings == (workload.epochs, workload.batch, workload.optimizer)


def rows(runs: Sequence[TrainingRun], workload: Workload) -> list[tuple[str, ...]]:
    """The table's rows, in the order of COLUMNS."""
    found = []
    for run in runs:
        dloss = [f"{max_abs_dloss(run, runs, within):.1e}" for within in (workload.early_steps, None)]
        memory = f"{run.peak / 2**20:.0f}" if run.peak else "?"
        found.append(
            (
                *(run.side, run.layers, run.kernels, f"{run.losses[-1]:.6f}", shown(workload, run.score)),
                *(("-", "-") if run is reference(runs) else dloss),
                *(f"{run.seconds:.1f}", memory),
            )
        )
    return found


def notes(runs: Sequence[TrainingRun], plan: TrainingPlan) -> list[str]:
    """Notes that explain the table."""
    early_steps, most = plan.workload.early_steps, limit(plan)
    limit_text = f"the limit is {most:g}" if math.isfinite(most) else f"in {plan.precision} there is no limit"
    lines = [
        "loss: of the last batch; test: on the test data; s: seconds of training, compilation included",
        (
            f"max |dloss|: the largest |difference of losses| from {reference(runs).name}; early: in the first "
            f"{early_steps} steps"
        ),
        (
            f"max |dloss| of any two runs: {max_abs_dloss_of_all(runs, early_steps):.1e} early, {limit_text}; "
            f"{max_abs_dloss_of_all(runs):.1e} in all"
        ),
        "MiB: peak memory of the process beyond what it had before training, or of the framework on a GPU",
    ]
    if any(run.kernels == "interpreted" for run in runs):
        lines.append("interpreted: the kernels ran in Triton's interpreter, so their seconds are not a kernel's speed")
    return lines


def markdown(runs: Sequence[TrainingRun], plan: TrainingPlan, setting: str, machine: dict[str, str]) -> str:
    """The table as Markdown, with the training setting above it and the machine below it."""
    lines = [
        f"{setting}.",
        "",
        f"| {' | '.join(map(_heading, COLUMNS))} |",
        f"|{'|'.join(['---'] * 3 + ['---:'] * (len(COLUMNS) - 3))}|",
        *(f"| {' | '.join(row)} |" for row in rows(runs, plan.workload)),
        "",
        *(f"- {note}" for note in notes(runs, plan)),
        *(f"- {key}: {value}" for key, value in machine.items()),
    ]
    return "\n".join(lines) + "\n"


def _heading(column: str) -> str:
    return column.replace("|", r"\|").replace("\n", " ")


def results(
    runs: Sequence[TrainingRun], plan: TrainingPlan, setting: str, machine: dict[str, str], complete: bool
) -> str:
    """The runs as JSON with everything needed to repeat them; non-finite numbers become null."""
    early_steps = plan.workload.early_steps
    measured = [
        {
            "side": run.side,
            "layers": run.layers,
            "kernels": run.kernels,
            "final_loss": _finite(run.losses[-1]),
            "score": _finite(run.score),
            "max_dloss_early": _finite(max_abs_dloss(run, runs, early_steps)),
            "max_dloss": _finite(max_abs_dloss(run, runs)),
            "seconds": round(run.seconds, 3),
            "peak_bytes": run.peak,
            "losses": [_finite(loss) for loss in run.losses],
        }
        for run in runs
    ]
    workload = {key: value for key, value in plan.as_json().items() if key not in ("side", "layers", "path")}
    content = {
        "complete": complete,
        "setting": setting,
        "workload": workload,
        "reference": reference(runs).name,
        "runs": measured,
        "max_dloss_early_of_all": _finite(max_abs_dloss_of_all(runs, early_steps)),
        "max_dloss_of_all": _finite(max_abs_dloss_of_all(runs)),
        "limits": {
            "expected_accuracy": plan.workload.expected_accuracy,
            "max_dloss": _finite(limit(plan)),
            "early_steps": early_steps,
        },
        "violations": violations(runs, plan),
        "machine": machine,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
