"""What the page shows of the data: tables of cells that know how they sort, and a section an op."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradlab.kernels.spec import spec
from gradlab.profiling.bench.numbers import FASTER, SLOWER, SUSPECT
from gradlab.profiling.bench.row import BACKWARD, FORWARD, GRADLAB, Group, Member
from gradlab.profiling.bench.words import duration, policy, ratio_in_words, seconds_in_words, size_in_words, three
from gradlab.profiling.report.collect import DONE, Data

NEEDS_GPU = "needs a GPU"
TONES = {
    "ok": "good",
    "holds": "good",
    FASTER: "good",
    DONE: "good",
    "wrong": "bad",
    "broken": "bad",
    SLOWER: "bad",
    "failed": "bad",
    "inconclusive": "doubt",
    "not finished": "doubt",
    SUSPECT: "doubt",
    "FAILED": "bad",
    "WRONG": "bad",
    "THROTTLED": "bad",
}


class Cell(NamedTuple):
    """A cell: its text, what it sorts by (a number, or its text), and the tone that it is shown in."""

    text: str
    key: float | str = ""
    tone: str = ""

    @property
    def number(self) -> bool:
        return isinstance(self.key, float)


class Table(NamedTuple):
    """A table that sorts; the caption says what it holds."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Listing(NamedTuple):
    """A kernel's source with the instructions of each line; `width` is the share of the most of any line."""

    side: str
    title: str
    file: str
    lines: tuple[tuple[int, str, int, float], ...]


class Op(NamedTuple):
    """An op's section."""

    name: str
    formula: str
    signature: str
    figures: tuple[tuple[str, str, str], ...]
    tables: tuple[Table, ...]
    listings: tuple[tuple[Listing, ...], ...]
    notes: tuple[str, ...]


def summary(data: Data, groups: Sequence[Group]) -> Table:
    """An op a row: is it right, how fast is it, what are its kernels like."""
    sides = tuple(data.scope["sides"])
    columns = (
        "op",
        "gradients",
        "worst error",
        *(f"{s}, {direction} / native" for s in sides for direction in ("fwd", "bwd")),
        "registers",
        "spill bytes",
        "bounds",
    )
    rows = []
    for name in data.scope["ops"]:
        cells = [Cell(name), *_checked(data, name)]
        cells += [_speed(groups, name, side, direction) for side in sides for direction in (FORWARD, BACKWARD)]
        kernels = [k for k in data.kernels if k["op"] == name and k["arch"] == "sm_90" and not k["error"]]
        for fact in ("registers", "spill_bytes"):
            most = max((k[fact] for k in kernels), default=None)
            cells.append(Cell("–") if most is None else number(most, "bad" if fact == "spill_bytes" and most else ""))
        checked = [p for p in data.bounds if p["op"] == name]
        broken = sum(bool(p["broken"]) for p in checked)
        text = f"{len(checked) - broken} of {len(checked)} hold"
        cells.append(Cell(text, float(broken), "bad" if broken else "good") if checked else Cell("–"))
        rows.append(tuple(cells))
    return Table(
        "Every op at a glance; registers and spills are the most of any kernel on sm_90",
        columns,
        tuple(rows),
    )


def op(data: Data, groups: Sequence[Group], name: str, figures: Iterable[tuple[str, str, str]]) -> Op:
    """A section: errors per input, times, kernels, and the two sources side by side."""
    checks = next((c for c in data.checks if c["op"] == name), None)
    own = [g for g in groups if g.op == name]
    kernels = [k for k in data.kernels if k["op"] == name]
    tables = [t for t in (_errors(checks), _times(own), _kernels(kernels), _bounds(data, name)) if t.rows]
    notes = [f["message"] for f in (checks or {}).get("findings", []) if f["verdict"] != "ok"]
    notes += [f"{g.side}, {g.direction}, {m.name}: {m.problem}: {m.note}" for g in own for m in g.members if m.problem]
    notes += [f"{k['side']} {k['kernel']}, {k['arch']}: {k['error']}" for k in kernels if k["error"]]
    about = spec(name)
    return Op(name, about.formula, about.signature, tuple(figures), tuple(tables), _listings(kernels), tuple(notes))


def environment(data: Data) -> Table:
    """Machine, versions, date, commit."""
    rows = [(Cell(key), Cell(value)) for key, value in data.machine.items()]
    rows.append((Cell("precision"), Cell(policy("float32"))))
    rows.append((Cell("scope"), Cell("a part of everything (--quick)" if data.scope["quick"] else "everything")))
    return Table("Where this was measured", ("what", "value"), tuple(rows))


def stages(data: Data) -> Table:
    """What became of each part of the report."""
    rows = []
    for name, stage in data.stages.items():
        became = Cell(stage["became"], stage["became"], TONES.get(stage["became"], ""))
        rows.append((Cell(name), became, number(round(stage["seconds"], 1)), Cell(stage.get("error", ""))))
    return Table("What was run", ("part", "became", "seconds", "error"), tuple(rows))


def training(data: Data) -> Table:
    """The four runs, as the comparison prints them."""
    found = data.training
    rows = tuple(tuple(Cell(str(cell)) for cell in row) for row in found.get("rows", ()))
    return Table(f"{found.get('name', '')}: one network, four runs", tuple(found.get("columns", ())), rows)


def number(value: float, tone: str = "") -> Cell:
    """A number that sorts as one."""
    return Cell(f"{value:g}", float(value), tone)


def _checked(data: Data, name: str) -> tuple[Cell, Cell]:
    found = next((c for c in data.checks if c["op"] == name), None)
    if found is None:
        return Cell("–"), Cell("–")
    verdicts = {f["verdict"] for f in found["findings"]}
    verdict = next((v for v in ("wrong", "inconclusive") if v in verdicts), "ok")
    errors = [_error(f) for f in found["findings"] if "vs finite differences" in f["check"]]
    worst = max(errors, default=0.0)
    return Cell(verdict, verdict, TONES[verdict]), Cell(f"{worst:.0e}", worst)


def _error(finding: dict[str, Any]) -> float:
    return float(finding["numbers"].get("error", 0.0))


def _speed(groups: Sequence[Group], name: str, side: str, direction: str) -> Cell:
    """The ratio to native of the largest case, the first mode."""
    own = [g for g in groups if (g.op, g.side, g.direction) == (name, side, direction)]
    for group in sorted(own, key=lambda g: -g.bytes)[:1]:
        for member in group.members:
            found = group.ratio(member) if member.implementation == GRADLAB else None
            if found:
                verdict = group.verdict(member)
                return Cell(f"{three(found.median)} {verdict}", found.median, TONES.get(verdict, ""))
            if member.implementation == GRADLAB and member.problem:
                return Cell(member.problem, math.inf, "bad")
    return Cell("–")


def _errors(checks: dict[str, Any] | None) -> Table:
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for f in (checks or {}).get("findings", []):
        key = f["side"], f["check"], f["input"]
        if key not in worst or (f["verdict"] != "ok", _error(f)) > (worst[key]["verdict"] != "ok", _error(worst[key])):
            worst[key] = f
    rows = [
        (
            Cell(side),
            Cell(check),
            Cell(name or "–"),
            Cell(f"{_error(f):.1e}", _error(f)),
            Cell(f["verdict"], f["verdict"], TONES[f["verdict"]]),
        )
        for (side, check, name), f in worst.items()
    ]
    columns = ("side", "check", "array", "worst error, relative", "verdict")
    return Table("Gradient error per input, the worst of all cases", columns, tuple(rows))


def _times(groups: Sequence[Group]) -> Table:
    columns = ("side", "pass", "sizes", "implementation", "time, ± half the 95 % interval", "/ native", "verdict",
               "of floor", "GB/s", "GFLOP/s", "memory", "first call", "cold", "host")  # fmt: skip
    rows = []
    for group in groups:
        for member in group.members:
            if member.warm:
                rows.append(_timed(group, member))
    return Table("Times: medians of interleaved rounds", columns, tuple(rows))


def _timed(group: Group, member: Member) -> tuple[Cell, ...]:
    time, ratio, share, verdict = member.time, group.ratio(member), group.share(member), group.verdict(member)
    nothing = Cell(member.interpreted * "interpreted" or "–")
    rates = [Cell(three(n / time.median / 1e9), n / time.median) for n in (group.bytes, group.flops)]
    of_device = [_of_device(kind) for kind in (member.cold, member.host)]
    return (
        Cell(group.side),
        Cell({FORWARD: "fwd", BACKWARD: "bwd"}.get(group.direction, "both")),
        Cell(group.words, float(group.bytes)),
        Cell(member.name),
        Cell(duration(time), time.median),
        Cell(ratio_in_words(ratio), ratio.median) if ratio else Cell("1", 1.0),
        Cell(verdict or "–", verdict, TONES.get(verdict, "")),
        nothing if share is None else Cell(f"{share:.0%}", share),
        *([nothing, nothing] if member.interpreted else rates),
        Cell(size_in_words(member.peak_bytes), float(member.peak_bytes or 0)),
        Cell(seconds_in_words(member.first_call), float(member.first_call or 0)),
        *of_device,
    )


def _of_device(seconds: Sequence[float]) -> Cell:
    """What only a GPU's clock can say."""
    if not seconds:
        return Cell(NEEDS_GPU, math.inf, "soft")
    median = float(np.median(seconds))
    return Cell(seconds_in_words(median), median)


def _kernels(kernels: Sequence[dict[str, Any]]) -> Table:
    columns = ("side", "kernel", "pass", "dtype", "arch", "registers", "spill bytes", "shared, B", "occupancy",
               "limited by", "tensor-core", "128-bit", "instructions", "executed", "sectors used", "bank conflicts",
               "waves", "runs at")  # fmt: skip
    rows = []
    for k in kernels:
        if k["error"]:
            continue
        name = k["kernel"] if k["variant"] == 1 else f"{k['kernel']} {k['variant']}"
        wide, moved = k["wide_loads"] + k["wide_stores"], k["loads"] + k["stores"]
        rows.append(
            (
                Cell(k["side"]),
                Cell(name),
                Cell(k["direction"]),
                Cell(k["dtype"]),
                Cell(k["arch"]),
                number(k["registers"]),
                number(k["spill_bytes"], "bad" if k["spill_bytes"] else ""),
                number(k["shared_static"] + k["shared_dynamic"]),
                Cell("–") if k["occupancy"] is None else Cell(f"{k['occupancy']:.0%}", k["occupancy"]),
                Cell(k["limiter"] or "–"),
                number(k["tensor"]),
                Cell(f"{wide} of {moved}", wide / moved if moved else 1.0),
                number(k["instructions"]),
                *_executed(k.get("executed")),
                Cell("–") if k["waves"] is None else Cell(three(k["waves"]), k["waves"]),
                Cell(NEEDS_GPU, "", "soft"),
            )
        )
    return Table(
        "Machine code, compiled without a GPU at the op's largest case; what a warp of its first program executes",
        columns,
        tuple(rows),
    )


def _executed(done: dict[str, Any] | None) -> tuple[Cell, Cell, Cell]:
    """What a warp of the first program executes, how much of its sectors it asked for, passes for one that would do."""
    if done is None:
        return Cell("–"), Cell("–"), Cell("–")
    tone = "bad" if done["ways"] >= 2 else ""
    ways = Cell(f"{done['ways']:.3g} ways", done["ways"], tone) if done["passes"] else Cell("–")
    used = Cell(f"{done['used']:.0%}", done["used"]) if done["sectors"] else Cell("–")
    return number(round(done["instructions"])), used, ways


def _bounds(data: Data, name: str) -> Table:
    rows = []
    for p in (p for p in data.bounds if p["op"] == name):
        word = "broken" if p["broken"] else "holds"
        rows.append(
            (
                Cell(p["side"]),
                Cell(p["bound"]),
                number(p["checked"]),
                Cell(word, word, TONES[word]),
                Cell("; ".join(p["broken"])),
            )
        )
    return Table("Codegen bounds", ("side", "bound", "kernels", "verdict", "by"), tuple(rows))


def _listings(kernels: Sequence[dict[str, Any]]) -> tuple[tuple[Listing, ...], ...]:
    """Kernels of one name beside each other, Triton and Pallas."""
    found: dict[str, list[Listing]] = {}
    for k in kernels:
        if k.get("source"):
            lines = [line for function in k["source"] for line in function]
            most = max((line["count"] for line in lines), default=0) or 1
            rows = tuple((n["number"], n["text"], n["count"], n["count"] / most) for n in lines)
            title = f"{k['kernel']}, {'Triton' if k['side'] == 'torch' else 'Pallas'}, {k['dtype']}, {k['arch']}"
            found.setdefault(k["kernel"], []).append(Listing(k["side"], title, k["file"], rows))
    return tuple(tuple(sorted(pair, key=lambda one: one.side, reverse=True)) for pair in found.values())
