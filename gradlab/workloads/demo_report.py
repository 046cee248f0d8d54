"""What the demo says about its runs, and how it writes it: numbers, violations, whole files or none."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# What every run must reach: the share of test images named rightly, and the largest distance between two curves.
LEAST_ACCURACY = 0.95
MOST_DISTANCE = 5e-4

COLUMNS = ("side", "layers", "kernels", "final loss", "accuracy", "distance", "seconds")


@dataclass
class Run:
    """One training: the loss of every step, the accuracy on the test images, and how its kernels ran.

    `kernels` is "native" for the framework's own layers, else "compiled" or "interpreted"; an interpreted run's
    seconds are not a kernel's speed.
    """

    side: str
    layers: str
    kernels: str
    losses: list[float] = field(default_factory=list)
    accuracy: float = math.nan
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.side} {self.layers}"


def distance(a: Run, b: Run) -> np.ndarray:
    """|loss of a - loss of b| at every step; NaN where both have overflowed."""
    with np.errstate(invalid="ignore"):
        return np.abs(np.subtract(a.losses, b.losses))


def reference(runs: Sequence[Run]) -> Run:
    """The run that tables and figures measure distance from: torch's own layers where they were trained."""
    return min(runs, key=lambda run: (run.layers != "native", run.side != "torch"))


def far(run: Run, runs: Sequence[Run]) -> float:
    """The largest distance from the reference at any step."""
    # np.max, unlike max, carries a NaN through.
    return float(np.max(distance(run, reference(runs))))


def farthest(runs: Sequence[Run]) -> float:
    """The largest distance between any two of the runs at any step."""
    return float(np.max([distance(a, b) for a in runs for b in runs]))


def violations(runs: Sequence[Run]) -> list[str]:
    """One line for each promise that is broken; a NaN breaks every promise it meets."""
    found = [
        f"{run.name}: test accuracy {run.accuracy:.1%} is below {LEAST_ACCURACY:.0%}"
        for run in runs
        if not run.accuracy >= LEAST_ACCURACY
    ]
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            outside = ~(distance(a, b) <= MOST_DISTANCE)
            if outside.any():
                step = int(outside.argmax())
                found.append(
                    f"{a.name} and {b.name}: losses {a.losses[step]:.6f} and {b.losses[step]:.6f} at step {step + 1} "
                    f"are further apart than {MOST_DISTANCE:g}"
                )
    return found


def rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The table's rows, in the order of COLUMNS."""
    return [
        (
            *(run.side, run.layers, run.kernels, f"{run.losses[-1]:.6f}", f"{run.accuracy:.2%}"),
            "reference" if run is reference(runs) else f"{far(run, runs):.1e}",
            f"{run.seconds:.1f}",
        )
        for run in runs
    ]


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader of the table has to know."""
    apart = f"between any two curves it is {farthest(runs):.1e}, the limit is {MOST_DISTANCE:g}"
    lines = [f"distance: the largest from {reference(runs).name} at any step; {apart}"]
    if any(run.kernels == "interpreted" for run in runs):
        lines.append("interpreted kernels are proven here, not timed: their seconds are not a kernel's speed")
    return lines


def markdown(runs: Sequence[Run], setting: str, machine: dict[str, str]) -> str:
    """The table as Markdown, with what was trained above it and where below it."""
    lines = [
        f"{setting}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(['---'] * 3 + ['---:'] * (len(COLUMNS) - 3))}|",
        *(f"| {' | '.join(row)} |" for row in rows(runs)),
        "",
        *(f"- {note}" for note in notes(runs)),
        *(f"- {key}: {value}" for key, value in machine.items()),
    ]
    return "\n".join(lines) + "\n"


def results(runs: Sequence[Run], workload: dict[str, Any], machine: dict[str, str], complete: bool) -> str:
    """The runs as JSON, with all that is needed to run them again; numbers that JSON cannot hold become null."""
    measured = [
        {
            "side": run.side,
            "layers": run.layers,
            "kernels": run.kernels,
            "final_loss": _finite(run.losses[-1]),
            "test_accuracy": _finite(run.accuracy),
            "distance": _finite(far(run, runs)),
            "seconds": round(run.seconds, 3),
        }
        for run in runs
    ]
    limits = {"least_accuracy": LEAST_ACCURACY, "most_distance": MOST_DISTANCE}
    content = {
        "complete": complete, "workload": workload, "reference": reference(runs).name, "runs": measured,
        "largest_distance": _finite(farthest(runs)), "limits": limits, "violations": violations(runs),
        "machine": machine,
    }  # fmt: skip
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def claim(folder: Path) -> None:
    """Make the folder and try it with a file.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write(path: Path, save: Callable[[Path], object]) -> None:
    """`save` a file beside `path`, then move it there: a reader sees the old file or the new one, never a half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        # mkstemp makes files that only their owner may read.
        os.chmod(name, 0o644)
        save(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
