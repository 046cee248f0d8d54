"""The figure of `gradlab scale`: seconds of a step over devices, and efficiency below, one curve a strategy."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

from gradlab.profiling.scale.args import ScaleArgs
from gradlab.profiling.scale.model import Prediction
from gradlab.profiling.scale.table import WORDS, about, baseline, efficiency, hardware, seconds

# Okabe and Ito's colours; the best mix lies under the strategy that it is, so it is the widest line and comes first.
LOOKS: dict[str, dict[str, Any]] = {
    "mix": {"color": "#c9c9c9", "linewidth": 7.0, "marker": ""},
    "data": {"color": "#0072b2", "linewidth": 1.8, "marker": "o"},
    "sharded": {"color": "#d55e00", "linewidth": 1.8, "marker": "s"},
    "tensor": {"color": "#009e73", "linewidth": 1.8, "marker": "^"},
    "vocabulary": {"color": "#cc79a7", "linewidth": 1.8, "marker": "D"},
}


def draw(args: ScaleArgs, found: Mapping[str, Mapping[int, Prediction]], stamp: str, path: Path) -> None:
    """Write the figure as a PNG."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle("\n".join(wrap(f"Predicted: {about(args)}", 75)), fontsize=12, fontweight="bold")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    base = baseline(args, found)
    for name in (name for name in LOOKS if name in found):
        steps = {n: one for n, one in found[name].items() if not one.refused}
        look = {**LOOKS[name], "label": WORDS[name], "markersize": 5}
        above.plot(list(steps), [one.seconds for one in steps.values()], **look)
        below.plot(list(steps), [efficiency(one, base) for one in steps.values()], **look)
        large = {n: one for n, one in steps.items() if args.machine.memory and one.memory > args.machine.memory}
        above.plot(list(large), [one.seconds for one in large.values()], "x", color="0.15", markersize=9)
    if any(args.machine.memory and one.memory > args.machine.memory for of in found.values() for one in of.values()):
        above.plot([], [], "x", color="0.15", markersize=9, label="more memory than a device has")

    above.set_title("\n".join(wrap(hardware(args), 110)), fontsize=9, color="0.35")
    above.set_yscale("log")
    above.yaxis.set_major_formatter(lambda value, _: seconds(value))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("seconds of a step")
    above.legend(frameon=False, fontsize=10)
    below.set_ylabel("rows a second and device,\nover those of one")
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.set_ylim(bottom=0)
    below.set_xlabel("devices")
    below.set_xscale("log", base=2)
    below.set_xticks(args.devices, [str(n) for n in args.devices])
    below.xaxis.set_minor_locator(NullLocator())
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if args.devices[0] <= args.machine.node < args.devices[-1]:
            axes.axvline(args.machine.node, color="0.6", linestyle=":", linewidth=1)
    if args.devices[0] <= args.machine.node < args.devices[-1]:
        above.annotate("one node", (args.machine.node, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                       textcoords="offset points", fontsize=9, color="0.4")  # fmt: skip
    figure.supxlabel(stamp, fontsize=7, color="0.45")
    figure.savefig(path, dpi=120)
