"""Two plots of the worst gradient: error against step size, and a map of relative errors with the kernel's tiles."""

import base64
import html
import io
import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.probe import Probe, uneven
from gradlab.autodiff.checker.verdict.first_derivative import View
from gradlab.base.files import whole

ENDINGS = (".png", ".svg", ".pdf")
# The map has at most this many cells along an axis, each one random direction within its block.
CELLS = 16
STEPS = np.logspace(-1, -10, 19)


# About how many calls of the function both plots take; a notebook draws them if these fit into SECONDS.
CALLS = 2000
SECONDS = 3.0


def draw(all_views: Sequence[View], path: Path, worst: Finding | None = None) -> Path:
    """Draw the worst of these gradients, titled with the worst finding; the file is complete or not written."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"plot: path is {path.name}, wanted a name that ends in {', '.join(ENDINGS)}")
    drawn = _figure(_drawable(all_views), worst)
    whole(path, lambda part: drawn.savefig(part, dpi=130))
    return path


def inline(all_views: Sequence[View], worst: Finding | None = None) -> str:
    """The same plots as an HTML image with its data inside, or a paragraph that says why there are none."""
    try:
        views = _drawable(all_views)
        view = views[0]
        with view.probe.subject.side.double():
            each = min(_seconds(view) for _ in range(3))
        if CALLS * each > SECONDS:
            return f"<p>report.plot(path) draws error against step size in about {CALLS * each:.0f} s.</p>"
        buffer = io.BytesIO()
        _figure(views, worst).savefig(buffer, dpi=90, format="png")
    except (ValueError, ModuleNotFoundError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="error against step, and the map of errors" src="data:image/png;base64,{data}">'


def _seconds(view: View) -> float:
    """Seconds of one call of the function."""
    start = time.perf_counter()
    view.probe.subject.values(view.probe.arrays)
    return time.perf_counter() - start


def _drawable(all_views: Sequence[View]) -> list[View]:
    views = [v for v in all_views if v.probe.arrays[v.input].size]
    if not views:
        raise ValueError("plot: report holds no gradient compared with finite differences, wanted at least one")
    return views


def _figure(views: Sequence[View], finding: Finding | None) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot needs matplotlib, which is not installed: pip install 'gradlab[demo]'"
        ) from error
    worst = max(views, key=lambda v: (v.finding.verdict == WRONG, v.finding.verdict != OK, v.finding.error))
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    s = worst.probe.subject
    same = [v for v in views if v.probe.subject is s]
    with s.side.double():
        _curves(left, same, worst)
        _map(right, worst)
    message = (
        f"{s.op} on {s.side.name}, case {s.case!r}: {worst.finding.verdict}" if finding is None else finding.message
    )
    figure.suptitle("\n".join(textwrap.wrap(message, 125, max_lines=3)), fontsize=11)
    return figure


class Curve(NamedTuple):
    """Relative error of central differences at each of STEPS, and after extrapolation from the chosen step."""

    name: str
    errors: list[float]
    chosen: int
    extrapolated: float


def curve(view: View) -> Curve:
    """The curve of one gradient along the direction it was checked in; call it within the side's `double`."""
    probe, i = view.probe, view.input
    c = np.concatenate([part.reshape(-1) for part in probe.cotangents])
    got = float(np.vdot(probe.gradients[i], view.direction))
    scale = float(np.linalg.norm(probe.gradients[i] * view.direction)) or 1.0
    errors = []
    for step in STEPS:
        h = step * probe.units(i)
        up, down = (_at(probe, i, t * view.direction) for t in (h, -h))
        errors.append(max(abs(float(np.dot(c, (up - down) / (2 * h))) - got) / scale, 1e-18))
    at = int(np.argmin(np.abs(np.log(STEPS) - math.log(view.slope.step / 2))))
    return Curve(probe.subject.names[i], errors, at, max(view.finding.error, 1e-18))


def _curves(axes: Any, views: Sequence[View], worst: View) -> None:
    """The error of a central difference falls with h^2, then rises with rounding; a wrong gradient adds a floor."""
    for view in views:
        drawn = curve(view)
        (line,) = axes.loglog(STEPS, drawn.errors, marker=".", markersize=5, label=drawn.name)
        at, colour = drawn.chosen, line.get_color()
        axes.plot(STEPS[at], drawn.errors[at], marker="o", markersize=9, fillstyle="none", color=colour)
        axes.plot(STEPS[at], drawn.extrapolated, marker="*", markersize=10, color=colour)
        allowed = view.finding.numbers.get("allowed", 0.0)
        if 0 < allowed < math.inf:
            axes.plot(STEPS[at], allowed, marker="_", markersize=16, markeredgewidth=2, color=colour)
    where = worst.finding.where
    if where:
        # Along a single element nothing cancels: the floor is that element's own relative error.
        name = f"{worst.probe.subject.names[worst.input]}[{', '.join(map(str, where))}] alone"
        direction = np.zeros(worst.direction.shape)
        direction[where] = worst.probe.units(worst.input)
        alone = curve(replace(worst, direction=direction))
        axes.loglog(STEPS, alone.errors, color="black", linestyle=":", linewidth=1.2, label=name)
    axes.set(
        xlabel="step, in units of the input's scale",
        ylabel="|gradient - central difference|, relative",
        title="ring: first step of the three used; star: extrapolated; bar: allowed",
    )
    axes.title.set_fontsize(10)
    axes.invert_xaxis()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _edges(n: int, tile: int) -> np.ndarray:
    """The edges of the map's blocks: aligned with tiles where these are few, else even."""
    tiles = -(-n // tile)
    if tiles > CELLS or tile >= n:
        return np.unique(np.linspace(0, n, min(n, CELLS) + 1).astype(int))
    within = np.unique(np.linspace(0, tile, min(tile, CELLS // tiles) + 1).astype(int))[:-1]
    return np.unique([*(min(k * tile + w, n) for k in range(tiles) for w in within), n])


def _at(probe: Probe, i: int, by: np.ndarray) -> np.ndarray:
    moved = [a + by if k == i else a for k, a in enumerate(probe.arrays)]
    return np.concatenate([y.reshape(-1) for y in probe.subject.values(moved)])


def _map(axes: Any, view: View) -> None:
    """Relative error over the gradient as a matrix: a cell for each element or, if it is large, for each block."""
    probe, i = view.probe, view.input
    g = probe.gradients[i]
    shape = (math.prod(g.shape[:-1]), g.shape[-1]) if g.ndim > 1 else (1, g.size)
    tile = view.tile[-2:] if len(view.tile) > 1 else (shape[0], *view.tile)[:2] if view.tile else shape
    edges = [_edges(n, t) for n, t in zip(shape, tile, strict=True)]
    rng = np.random.default_rng(0)
    size = float(np.sqrt(np.mean(g**2))) or 1.0
    cells = np.zeros((len(edges[0]) - 1, len(edges[1]) - 1))
    step = probe.steps.get(i, 4e-3)
    for r, k in np.ndindex(cells.shape):
        d = np.zeros(shape)
        block = (slice(edges[0][r], edges[0][r + 1]), slice(edges[1][k], edges[1][k + 1]))
        d[block] = uneven(rng, d[block].shape) * probe.units(i)
        pair = probe.pair({i: d.reshape(g.shape)}, probe.slope({i: d.reshape(g.shape)}, step, narrow=False))
        cells[r, k] = pair.off / (size * float(np.linalg.norm(d)))
    image = axes.pcolormesh(edges[1], edges[0], np.log10(np.maximum(cells, 1e-16)), vmin=-16, vmax=0, cmap="magma")
    axes.figure.colorbar(image, ax=axes, label="log10 of the relative error")
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    for axis, t, n in zip((axes.axhline, axes.axvline), tile, shape, strict=True):
        for at in range(t, n, t):
            axis(at, color="tab:cyan", linewidth=0.7)
    where = view.finding.where
    if where:
        row = int(np.ravel_multi_index(where[:-1], g.shape[:-1])) if g.ndim > 1 else 0
        axes.plot(where[-1] + 0.5, row + 0.5, marker="x", color="tab:cyan", markersize=9, markeredgewidth=2)
    blocks = "element by element" if cells.size == g.size else f"in {cells.shape[0]} x {cells.shape[1]} blocks"
    tiles = f", tiles of {' x '.join(map(str, view.tile))}" if view.tile else ""
    name = probe.subject.names[i]
    first = "; cross: the first that is wrong" if where else ""
    axes.set(
        title=f"gradient of {name} {list(g.shape)}, {blocks}{tiles}{first}", xlabel="last axis", ylabel="axes before it"
    )
    axes.title.set_fontsize(10)
