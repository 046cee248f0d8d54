"""The report's figures: each drawn on axes by name, saved as SVG for the page and as PNG beside it."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.base.files import whole
from gradlab.profiling.bench.row import BACKWARD, FORWARD, GRADLAB, NATIVE, Group, Member
from gradlab.profiling.report import theme

Pen = Callable[[str], str]
SHAPES = {"torch": "o", "jax": "s"}


def save(name: str, size: tuple[float, float], draw: Callable[[Any, Pen], None], folder: Path) -> str:
    """Draw a figure twice: `<name>.png` in the folder, and the SVG that is returned, whose colours are the page's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    svg = io.StringIO()
    for pen in (theme.light, theme.stand_in):
        colours = {key: pen("ink") for key in ("text.color", "axes.labelcolor", "axes.titlecolor")}
        colours |= {key: pen("soft") for key in ("xtick.color", "ytick.color")}
        settings = {
            **colours, "axes.edgecolor": pen("line"), "grid.color": pen("line"), "axes.facecolor": "none",
            "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
            "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
            "legend.frameon": False, "font.family": "DejaVu Sans", "svg.fonttype": "none",
            # Identifiers within one page must differ from figure to figure, and be the same each time.
            "svg.hashsalt": name, "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True,
        }  # fmt: skip
        with rc_context(settings):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots(), pen)
            if pen is theme.light:
                png = functools.partial(figure.savefig, dpi=150, facecolor=pen("paper"), format="png")
                whole(folder / f"{name}.png", png)
            else:
                figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = svg.getvalue()
    return theme.named(text[text.index("<svg") :])


def steps(entry: dict[str, Any]) -> Callable[[Any, Pen], None]:
    """Error against step, a line an input, full on torch and dashed on jax; a ring at the step that was chosen."""

    def draw(axes: Any, pen: Pen) -> None:
        for found in entry["curves"]:
            style = "-" if found["side"] == "torch" else "--"
            for k, line in enumerate(found["lines"]):
                label = f"{line['name']}, {found['side']}"
                shade = 1 - 0.22 * (k % 4)
                axes.loglog(
                    found["steps"],
                    line["errors"],
                    style,
                    marker=".",
                    markersize=4,
                    linewidth=1.2,
                    color=pen(found["side"]),
                    alpha=shade,
                    label=label,
                )
                at = line["chosen"]
                axes.plot(
                    found["steps"][at],
                    line["errors"][at],
                    "o",
                    fillstyle="none",
                    markersize=9,
                    color=pen(found["side"]),
                )
        axes.axhline(1e-7, color=pen("soft"), linewidth=0.8, linestyle=":")
        axes.invert_xaxis()
        axes.set(
            xlabel="step, in units of the input's scale",
            ylabel="|gradient − difference|, relative",
            title="error against step: falls with h², then rounding rises; a fault is a floor",
        )
        axes.legend(ncols=2)

    return draw


def sizes(groups: Sequence[Group]) -> Callable[[Any, Pen], None]:
    """Forward time against bytes with 95 % bands, native and hand-written, and the floor that the ceilings set."""

    def draw(axes: Any, pen: Pen) -> None:
        for side in dict.fromkeys(g.side for g in groups):
            points = sorted((g for g in groups if g.side == side and g.direction == FORWARD), key=lambda g: g.bytes)
            x = [g.bytes for g in points]
            for name, style in ((NATIVE, "-"), (GRADLAB, "--")):
                found = _timed(points, name)
                if found:
                    times = [m.time for _, m in found]
                    where = [g.bytes for g, _ in found]
                    words = " (interpreted)" if found[0][1].interpreted else ""
                    axes.loglog(
                        where,
                        [t.median for t in times],
                        style,
                        marker=SHAPES[side],
                        markersize=4,
                        linewidth=1.2,
                        color=pen(side),
                        label=f"{side} {name}{words}",
                    )
                    axes.fill_between(
                        where, [t.low for t in times], [t.high for t in times], color=pen(side), alpha=0.2, linewidth=0
                    )
            axes.loglog(x, [g.floor for g in points], ":", color=pen(side), linewidth=1, label=f"{side} floor")
        axes.set(xlabel="least bytes moved", ylabel="seconds", title="forward time against size, 95 % bands")
        axes.legend(ncols=2)

    return draw


def roofline(groups: Sequence[Group]) -> Callable[[Any, Pen], None]:
    """Rates over arithmetic intensity under the ceilings measured in this run; hollow what was interpreted."""

    def draw(axes: Any, pen: Pen) -> None:
        for side in dict.fromkeys(g.side for g in groups):
            own = [g for g in groups if g.side == side]
            # The ceiling of the largest working set, which no cache holds.
            top = max(own, key=lambda g: g.bytes)
            intensity = np.array([g.flops / g.bytes for g in own])
            x = np.geomspace(intensity.min() / 2, max(intensity.max() * 2, 2 * top.rate / top.bandwidth), 64)
            axes.loglog(
                x,
                np.minimum(x * top.bandwidth, top.rate) / 1e9,
                color=pen(side),
                linewidth=1.2,
                label=f"{side}: {top.bandwidth / 1e9:.0f} GB/s, {top.rate / 1e9:.0f} GFLOP/s",
            )
            for name in (NATIVE, GRADLAB):
                found = _timed(own, name)
                words = ", interpreted" if any(m.interpreted for _, m in found) else ""
                axes.plot(
                    [g.flops / g.bytes for g, _ in found],
                    [g.flops / m.time.median / 1e9 for g, m in found],
                    SHAPES[side],
                    markersize=5,
                    color=pen(side),
                    fillstyle="none" if name == GRADLAB else "full",
                    linestyle="none",
                    label=f"{side} {name}{words}",
                )
        axes.set(xlabel="FLOPs a byte", ylabel="GFLOP/s", title="roofline: forward, the op's least work")
        axes.legend()

    return draw


def ratios(groups: Sequence[Group]) -> Callable[[Any, Pen], None]:
    """Time of gradlab over time of native, a bar an op, side and pass, with its interval and the band of the noise."""
    rows: list[tuple[Group, Member]] = []
    for group in groups:
        rows += [(group, m) for m in group.members if m.implementation == GRADLAB and group.ratio(m)]

    def draw(axes: Any, pen: Pen) -> None:
        for y, (group, member) in enumerate(rows):
            found = group.ratio(member)
            assert found is not None
            band = 1 + group.noise
            axes.barh(y, math.log2(band) * 2, left=-math.log2(band), height=0.9, color=pen("line"), linewidth=0)
            hatch = {"fill": False, "hatch": "////", "edgecolor": pen(group.side)} if member.interpreted else {}
            axes.barh(y, math.log2(found.median), height=0.55, **({"color": pen(group.side)} | hatch), linewidth=0.8)
            axes.plot([math.log2(found.low), math.log2(found.high)], [y, y], color=pen("ink"), linewidth=1.2)
        ways = {FORWARD: "fwd", BACKWARD: "bwd"}
        names = [f"{g.op}, {g.side} {m.mode} {ways.get(g.direction, 'both')}" for g, m in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        low, high = axes.get_xlim()
        ticks = range(math.floor(low), math.ceil(high) + 1, max(1, round((high - low) / 8)))
        axes.set_xticks(ticks, [f"1/{2**-t}" if t < 0 else str(2**t) for t in ticks])
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=pen("soft"), linewidth=1)
        axes.set(title="time of gradlab / native", xlabel="ratio, logarithmic")

    return draw


def ratio_height(groups: Sequence[Group]) -> float:
    """Inches that the bars take."""
    return 1.0 + 0.17 * sum(bool(g.ratio(m)) for g in groups for m in g.members if m.implementation == GRADLAB)


def _timed(groups: Sequence[Group], name: str) -> list[tuple[Group, Member]]:
    """An implementation's members in the first mode that there is: a curve is of one thing."""
    found = [(g, m) for g in groups for m in g.members if m.implementation == name and m.warm]
    return [(g, m) for g, m in found if m.mode == found[0][1].mode]
