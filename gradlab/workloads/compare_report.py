"""What a comparison says about its runs: rows, notes, violations, Markdown, JSON."""

import json
import math
from collections.abc import Sequence

import numpy as np

from gradlab.workloads.training import Plan, Run
from gradlab.workloads.workload import Workload, shown

COLUMNS = ("side", "layers", "kernels", "loss", "test", "Δloss early", "Δloss max", "s", "MiB")


def distance(a: Run, b: Run) -> np.ndarray:
    """|loss of a - loss of b| at every step; NaN where both have overflowed."""
    with np.errstate(invalid="ignore"):
        return np.abs(np.subtract(a.losses, b.losses))


def reference(runs: Sequence[Run]) -> Run:
    """The run that tables and figures measure distance from: torch's own layers where they were trained."""
    return min(runs, key=lambda run: (run.layers != "native", run.side != "torch"))


def largest(run: Run, runs: Sequence[Run], within: int | None = None) -> float:
    """The largest distance from the reference at any step, or at any of the first `within`."""
    # np.max, unlike max, carries a NaN through.
    return float(np.max(distance(run, reference(runs))[:within]))


def largest_of_all(runs: Sequence[Run], within: int | None = None) -> float:
    """The largest distance between any two of the runs."""
    return float(np.max([distance(a, b)[:within] for a in runs for b in runs]))


def limit(plan: Plan) -> float:
    """The distance that two curves must keep to; none is promised for half precision, whose runs round differently."""
    return plan.workload.most_distance if plan.precision == "float32" else math.inf


def violations(runs: Sequence[Run], plan: Plan) -> list[str]:
    """One line for each promise that is broken; a NaN breaks every promise it meets.

    The accuracy is promised for the workload's own settings alone.
    """
    workload = plan.workload
    least = workload.least_accuracy if _as_promised(plan) else None
    found = [
        f"{run.name}: {shown(workload, run.score)} right on the test data is below {least:.0%}"
        for run in runs
        if least is not None and not run.score >= least
    ]
    most = limit(plan)
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            outside = ~(distance(a, b)[: workload.near] <= most)
            if outside.any() and plan.precision == "float32":
                step = int(outside.argmax())
                found.append(
                    f"{a.name} and {b.name}: losses {a.losses[step]:.6f} and {b.losses[step]:.6f} at step {step + 1} "
                    f"are further apart than {most:g}"
                )
    return found


def _as_promised(plan: Plan) -> bool:
    workload = plan.workload
    asked = plan.epochs, plan.batch, plan.optimizer
    return asked == (workload.epochs, workload.batch, workload.optimizer)


def rows(runs: Sequence[Run], workload: Workload) -> list[tuple[str, ...]]:
    """The table's rows, in the order of COLUMNS."""
    found = []
    for run in runs:
        apart = [f"{largest(run, runs, within):.1e}" for within in (workload.near, None)]
        memory = f"{run.peak / 2**20:.0f}" if run.peak else "?"
        found.append(
            (
                *(run.side, run.layers, run.kernels, f"{run.losses[-1]:.6f}", shown(workload, run.score)),
                *(("-", "-") if run is reference(runs) else apart),
                *(f"{run.seconds:.1f}", memory),
            )
        )
    return found


def notes(runs: Sequence[Run], plan: Plan) -> list[str]:
    """What a reader of the table has to know."""
    near, most = plan.workload.near, limit(plan)
    promise = f"the limit is {most:g}" if math.isfinite(most) else f"in {plan.precision} there is no limit"
    lines = [
        "loss: of the last batch; test: on the test data; s: seconds of training, compilation included",
        f"Δloss max: the largest distance from the losses of {reference(runs).name}; early: in the first {near} steps",
        f"any two curves: {largest_of_all(runs, near):.1e} early, {promise}; {largest_of_all(runs):.1e} in all",
        "MiB: the most memory that the process took beyond what it had before, or on a GPU its framework there",
    ]
    if any(run.kernels == "interpreted" for run in runs):
        lines.append("interpreted kernels are proven here, not timed: their seconds are not a kernel's speed")
    return lines


def markdown(runs: Sequence[Run], plan: Plan, setting: str, machine: dict[str, str]) -> str:
    """The table as Markdown, with what was trained above it and where below it."""
    lines = [
        f"{setting}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(['---'] * 3 + ['---:'] * (len(COLUMNS) - 3))}|",
        *(f"| {' | '.join(row)} |" for row in rows(runs, plan.workload)),
        "",
        *(f"- {note}" for note in notes(runs, plan)),
        *(f"- {key}: {value}" for key, value in machine.items()),
    ]
    return "\n".join(lines) + "\n"


def results(runs: Sequence[Run], plan: Plan, setting: str, machine: dict[str, str], complete: bool) -> str:
    """The runs as JSON, with all that is needed to run them again; numbers that JSON cannot hold become null."""
    near = plan.workload.near
    measured = [
        {
            "side": run.side,
            "layers": run.layers,
            "kernels": run.kernels,
            "final_loss": _finite(run.losses[-1]),
            "score": _finite(run.score),
            "near": _finite(largest(run, runs, near)),
            "far": _finite(largest(run, runs)),
            "seconds": round(run.seconds, 3),
            "peak_bytes": run.peak,
            "losses": [_finite(loss) for loss in run.losses],
        }
        for run in runs
    ]
    asked = {key: value for key, value in plan.said().items() if key not in ("side", "layers", "path")}
    content = {
        "complete": complete,
        "setting": setting,
        "workload": asked,
        "reference": reference(runs).name,
        "runs": measured,
        "largest_near": _finite(largest_of_all(runs, near)),
        "largest_far": _finite(largest_of_all(runs)),
        "limits": {"least_accuracy": plan.workload.least_accuracy, "most_distance": _finite(limit(plan)), "near": near},
        "violations": violations(runs, plan),
        "machine": machine,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
