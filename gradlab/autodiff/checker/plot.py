"""Two pictures of the worst gradient: error against step, and a map of relative errors with the kernel's tiles."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradlab.autodiff.checker.derivative import Probe, uneven
from gradlab.autodiff.checker.finding import OK, WRONG
from gradlab.autodiff.checker.judge import View

ENDINGS = (".png", ".svg", ".pdf")
# The map has at most this many cells along an axis, each one random direction within its block.
CELLS = 16
STEPS = np.logspace(-1, -10, 19)


def draw(held: Sequence[View], path: Path) -> Path:
    """Draw the worst of these gradients; the file is whole or not there."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"plot: {path.name} ends in {path.suffix or 'nothing'}, wanted {', '.join(ENDINGS)}")
    views = [v for v in held if v.probe.arrays[v.input].size]
    if not views:
        raise ValueError("plot: the report holds no gradient that was held against differences")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot needs matplotlib, which is not installed: pip install 'gradlab[demo]'"
        ) from error
    worst = max(views, key=lambda v: (v.finding.verdict == WRONG, v.finding.verdict != OK, v.finding.error))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    s = worst.probe.subject
    same = [v for v in views if v.probe.subject is s]
    with s.side.double():
        _curves(left, same)
        _map(right, worst)
    figure.suptitle(f"{s.op} on {s.side.name}, case {s.case!r}: {worst.finding.verdict}", fontsize=12)
    fresh = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(fresh, dpi=130)
    os.replace(fresh, path)
    return path


class Curve(NamedTuple):
    """Error against step, both relative: of central differences at STEPS, and what extrapolation made of the chosen."""

    name: str
    errors: list[float]
    chosen: int
    extrapolated: float


def curve(view: View) -> Curve:
    """The curve of one gradient along the direction that judged it; call it within the side's `double`."""
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


def _curves(axes: Any, views: list[View]) -> None:
    """The V: the error of a central difference falls with h^2 and rises again with rounding; a fault is a floor."""
    for view in views:
        drawn = curve(view)
        (line,) = axes.loglog(STEPS, drawn.errors, marker=".", markersize=5, label=drawn.name)
        at, colour = drawn.chosen, line.get_color()
        axes.plot(STEPS[at], drawn.errors[at], marker="o", markersize=9, fillstyle="none", color=colour)
        axes.plot(STEPS[at], drawn.extrapolated, marker="*", markersize=10, color=colour)
    axes.axhline(1e-7, color="0.6", linewidth=0.8, linestyle="--")
    axes.text(
        0.99, 1.2e-7, "sensitivity 1e-7", transform=axes.get_yaxis_transform(), ha="right", color="0.4", fontsize=8
    )
    axes.set(xlabel="step, in units of the input's scale", ylabel="|gradient - central difference|, relative",
             title="error against step; ring: step chosen, star: extrapolated")  # fmt: skip
    axes.invert_xaxis()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _edges(n: int, tile: int) -> np.ndarray:
    """Where the map's blocks begin and end: within tiles where these are few, else evenly."""
    tiles = -(-n // tile)
    if tiles > CELLS or tile >= n:
        return np.unique(np.linspace(0, n, min(n, CELLS) + 1).astype(int))
    within = np.unique(np.linspace(0, tile, min(tile, CELLS // tiles) + 1).astype(int))[:-1]
    return np.unique([*(min(k * tile + w, n) for k in range(tiles) for w in within), n])


def _at(probe: Probe, i: int, by: np.ndarray) -> np.ndarray:
    moved = [a + by if k == i else a for k, a in enumerate(probe.arrays)]
    return np.concatenate([y.reshape(-1) for y in probe.subject.values(moved)])


def _map(axes: Any, view: View) -> None:
    """Relative error over the gradient, seen as a matrix: one cell an element or, of a larger one, a block."""
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
    blocks = "element by element" if cells.size == g.size else f"in {cells.shape[0]} x {cells.shape[1]} blocks"
    tiles = f", tiles of {' x '.join(map(str, view.tile))}" if view.tile else ""
    name = probe.subject.names[i]
    axes.set(title=f"gradient of {name} {list(g.shape)}, {blocks}{tiles}", xlabel="last axis", ylabel="axes before it")
