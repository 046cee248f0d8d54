"""The comparison's figure: the loss of every run, and below it |dloss| from the reference."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gradlab.workloads.compare_report import abs_dloss, limit, reference
from gradlab.workloads.training import TrainingPlan, TrainingRun

# Curves may coincide, so each is thinner than the one before it.
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#a9cdf0", "linewidth": 8.0, "linestyle": "-"},
    {"color": "#1f4e8c", "linewidth": 4.2, "linestyle": "-"},
    {"color": "#ffb000", "linewidth": 2.4, "linestyle": (0, (3, 2))},
    {"color": "#d4123c", "linewidth": 0.9, "linestyle": "-"},
)
# Below it the scale is linear, down to 0 for equal losses; near 0.03 adjacent float32 numbers differ by 2e-9.
LINEAR = 1e-9


def draw(runs: Sequence[TrainingRun], plan: TrainingPlan, setting: str, stamp: str, path: Path) -> None:
    """Write the figure as a PNG; `setting` says in one line what was trained, `stamp` where and with what."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle("One network, trained with hand-written and with native layers", fontsize=15, fontweight="bold")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    against = reference(runs)

    for run, look in zip(runs, LOOKS, strict=False):
        label = f"{run.name} ({run.kernels})" if run.kernels != "native" else run.name
        steps = np.arange(1, len(run.losses) + 1)
        above.plot(steps, run.losses, label=label, solid_capstyle="round", **look)
        if run is not against:
            size = 2 + 2 * look["linewidth"] ** 0.5
            below.plot(steps, abs_dloss(run, against), ".", color=look["color"], markersize=size, label=label)

    above.set_title("\n".join(wrap(setting, 110)), fontsize=10, color="0.35")
    above.set_yscale("log")
    # Keep a loss of 1 in view, so that the shortest run has a labelled tick.
    above.update_datalim([(1, 1)])
    above.autoscale_view()
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("training loss of each batch")
    above.legend(frameon=False, handlelength=5, fontsize=11)

    below.set_title(f"|dloss| of each run from {against.name}", fontsize=11)
    below.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    seen = np.concatenate([abs_dloss(run, against) for run in runs])
    most = limit(plan)
    top = 40 * max(most if np.isfinite(most) else 0.0, 1e-6, seen[np.isfinite(seen)].max(initial=0))
    below.set_yticks([0, *(10.0**k for k in range(-9, 1 + int(np.log10(top))) if 10.0**k < top)])
    # Slightly below 0, so that markers at 0 are not cut.
    below.set_ylim(-0.4 * LINEAR, top)
    below.set_ylabel("|difference of losses|")
    below.set_xlabel("step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    if np.isfinite(most):
        early_steps = min(plan.workload.early_steps, len(against.losses))
        below.plot([1, early_steps], [most, most], color="0.2", linestyle="--", linewidth=1.2)
        below.annotate(
            f"limit {most:g} for {early_steps} steps",
            (early_steps, most),
            xytext=(4, -3),
            textcoords="offset points",
            fontsize=10,
        )
    if len(runs) > 1:
        below.legend(frameon=False, ncols=3, loc="upper left", fontsize=10, markerscale=2.5)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(stamp, fontsize=7, color="0.45")
    figure.savefig(path, dpi=120)
