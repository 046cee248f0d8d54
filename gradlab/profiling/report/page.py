"""The page: figures drawn, tables filled in, all of it in one file that needs no network."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradlab.base.files import write_whole
from gradlab.base.machine import stamp
from gradlab.profiling.bench.row import FORWARD, Group
from gradlab.profiling.report import figures, theme, view
from gradlab.profiling.report.collect import DONE, Data

HERE = Path(__file__).parent


def write(data: Data, folder: Path) -> Path:
    """Draw every figure into the folder and write `report.html` there, each file whole or not there."""
    import jinja2

    groups = [Group.from_json(values) for values in data.groups]
    # Curves over sizes take all points; every other view is of the largest, or of the cases as they are.
    shown = [g for g in groups if g.swept in (None, 1.0)]
    drawn = _overall(shown, folder)
    ops = [view.op(data, shown, name, _of_op(data, groups, name, folder)) for name in data.scope["ops"]]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["breakable"] = _breakable
    template = environment.from_string((HERE / "page.html").read_text(encoding="utf-8"))
    files = {name: _safe(HERE / f"page.{name}") for name in ("css", "js")}
    colours = {"light": _markup(theme.variables(dark=False)), "dark": _markup(theme.variables(dark=True))}
    training = view.training(data) if data.training else None
    html = template.render(
        **files,
        **colours,
        stamp=stamp(data.machine),
        headlines=_headlines(data, groups),
        ops=ops,
        figures=drawn,
        summary=view.summary(data, shown),
        stages=view.stages(data),
        environment=view.environment(data),
        training=training,
        training_figure=_embedded(folder, data.training.get("figure")),
        training_notes=data.training.get("notes", ()),
        training_size=data.training.get("size", (0, 0)),
    )
    path = folder / "report.html"
    write_whole(path, html)
    return path


def _overall(groups: Sequence[Group], folder: Path) -> list[tuple[str, str, str]]:
    timed = [g for g in groups if any(m.warm for m in g.members)]
    if not timed:
        return []
    forward = [g for g in timed if g.direction == FORWARD]
    found = []
    if forward:
        svg = figures.save("roofline", (7, 4.4), figures.roofline(forward), folder)
        found.append(("roofline", svg, "Ceilings of this run: a stream and a product. Hollow: gradlab."))
    svg = figures.save("ratios", (7, figures.ratio_height(timed)), figures.ratios(timed), folder)
    words = "Gradlab over native in the same mode, each op's largest case here. Line: 95 % interval; grey: the noise"
    hatched = any(m.interpreted for g in timed for m in g.members)
    found.append(("ratios", svg, words + ("; hatched: interpreted, never a kernel's speed." if hatched else ".")))
    return found


def _of_op(data: Data, groups: Sequence[Group], name: str, folder: Path) -> list[tuple[str, str, str]]:
    found = []
    entry = next((c for c in data.checks if c["op"] == name), None)
    if entry and entry["curves"]:
        svg = figures.save(f"{name}-steps", (6.5, 3.8), figures.steps(entry), folder)
        cases = ", ".join(f"{c['case']!r} on {c['side']}" for c in entry["curves"])
        found.append((f"{name}-steps", svg, f"Case {cases}. Ring: the step that the check chose."))
    own = [g for g in groups if g.op == name and g.direction == FORWARD and any(m.warm for m in g.members)]
    if own:
        svg = figures.save(f"{name}-sizes", (6.5, 3.8), figures.sizes(own), folder)
        found.append((f"{name}-sizes", svg, "Full lines native, dashed gradlab, dotted the floor."))
    return found


def _headlines(data: Data, groups: Sequence[Group]) -> list[dict[str, str]]:
    """What a reader has to know before any number."""
    lines = []
    unfinished = [name for name, stage in data.stages.items() if stage["became"] != DONE]
    if unfinished:
        lines.append({"tone": "bad", "text": f"Not all of it is here: {', '.join(unfinished)} did not finish."})
    if any(m.interpreted for g in groups for m in g.members):
        text = "Hand-written kernels ran in Triton's interpreter, whose time is never a kernel's speed. "
        lines.append({"tone": "soft", "text": text + "Their machine code below was compiled all the same."})
    return lines


def _embedded(folder: Path, name: str | None) -> str:
    """A PNG as an address that holds it, so that the page is one file; nothing where there is none."""
    if name is None:
        return ""
    return f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"


def _breakable(text: str) -> Any:
    """A name that may be broken behind each underscore, where its cell may be broken at all."""
    from markupsafe import escape

    return _markup(escape(text).replace("_", _markup("_<wbr>")))


def _safe(path: Path) -> Any:
    return _markup(path.read_text(encoding="utf-8"))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
