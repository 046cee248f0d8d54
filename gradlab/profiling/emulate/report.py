"""What was executed, as tables for a terminal of 80 columns, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.base.files import write_whole
from gradlab.base.machine import describe
from gradlab.profiling.emulate.model import PARTS, Model, closest, model
from gradlab.profiling.emulate.result import CaseResult, Comparison, LaunchResult
from gradlab.profiling.emulate.words import paragraphs, shown
from gradlab.profiling.machine_code.gpus import GPU, gpu_for
from gradlab.profiling.machine_code.source_view import listing
from gradlab.profiling.machine_code.targets import target
from gradlab.profiling.ptx.totals import Totals, by_kind, by_line, totals

# Increased when a key is removed or changes its meaning, not for a new key.
SCHEMA = 1
# Eleven columns and the spaces between them: 79 characters.
WIDTHS = {
    "kernel": 14,
    "pass": 8,
    "blocks": 6,
    "instr": 7,
    "lanes": 5,
    "sect": 4,
    "used": 5,
    "again": 5,
    "ways": 4,
    "FLOP": 5,
    "bound": 7,
}
NOTES = (
    "instr: of warps, executed; lanes: threads that took part; sect: sectors of 32 bytes that a warp's access of "
    "global memory wants; used: bytes asked for, of those of the sectors; again: how often a sector is read; "
    "ways: passes of shared memory for one without a bank conflict; FLOP: of tensor cores; bound: of the model. A "
    "launch that did just what one above did has no row. right: as the compiler for CPUs computes it"
)
HINT = "perhaps programs race, or threads of one through global memory: gradlab sanitize looks for the former"
MODEL = (
    "model, no time: the least cycles of the part that bounds the launch, and the others' in percent of them, if "
    "nothing ever waited; issue, FMA, ALU, spec are of machine code, estimated by source line; L2 and mem as if "
    "caches held all that they could. What is less than a wave waits most of its time"
)
_SHORT = {"float64": "f64", "special": "spec", "shared": "shared", "memory": "mem"}


def show(case: CaseResult, console: Console, on: GPU | None = None, lines: bool = False, full: bool = True) -> None:
    """A case: its launches, their model, what was compared, every fault; a line for it alone where all is well.

    Args:
        on: the GPU of the model, if it has the architecture; else the architecture's usual one.
        lines: the source of each kernel too, with what its lines executed.
        full: everything although all is well.
    """
    if not full and not lines and case.ok:
        console.print(Text.assemble(_title(case), ": ", _verdict(case)), soft_wrap=True)
        return
    console.print(Text(_title(case), "bold"))
    launches = _once(case.launches)
    models = {id(launch): closest(launch, gpu_of(launch, on)) for launch in launches}
    if launches:
        console.print(_launches(launches, models))
    if any(models.values()):
        console.print(_models(launches, models))
    for comparison in case.comparisons:
        console.print(_comparison(comparison), soft_wrap=True)
    if case.unheld:
        console.print(Text(f"results are not compared: {case.unheld}", "yellow"), soft_wrap=True)
    if not all(c.ok for c in case.comparisons) and not any(launch.executed.faults for launch in launches):
        console.print(Text(HINT, "yellow"), soft_wrap=True)
    if case.error:
        console.print(Text(case.error, "bold red"), soft_wrap=True)
    for launch in launches:
        for words in paragraphs(launch.executed.faults, launch):
            console.print()
            console.print(Text(words), soft_wrap=True)
        for words in paragraphs(launch.executed.notes, launch):
            console.print()
            console.print(
                Text(f"note, made right by ptxas, which serialises wgmma here: {words}", "dim"), soft_wrap=True
            )
    for launch in launches if lines else ():
        console.print()
        _show_launch(launch, console)
    if case.launches:
        console.print(Text(NOTES, "dim"))
    if any(models.values()):
        console.print(Text(MODEL, "dim"))
    console.print()


def summary(results: Sequence[CaseResult], console: Console) -> None:
    """`3 cases, 7 launches, no fault; 4 of 4 results right`."""
    launches = [launch for case in results for launch in case.launches]
    faults = sum(len(paragraphs(launch.executed.faults, launch)) for case in results for launch in _once(case.launches))
    compared = [c for case in results for c in case.comparisons]
    stopped = sum(bool(case.error) for case in results)
    words = f"{_number(len(results), 'case')}, {_number(len(launches), 'launch')}, {_number(faults, 'fault')}"
    words += f"; {sum(c.ok for c in compared)} of {_number(len(compared), 'result')} right" if compared else ""
    console.print(words + (f"; {stopped} not executed to the end" if stopped else ""), highlight=False)


def gpu_of(launch: LaunchResult, on: GPU | None) -> GPU:
    """The GPU if it has the launch's architecture, else that architecture's usual one."""
    return gpu_for(target(launch.arch), on.name if on else None)


def _once(launches: Sequence[LaunchResult]) -> list[LaunchResult]:
    """Without those that did what an earlier one of the same kernel has done: a backward runs the forward again."""
    found: dict[Any, LaunchResult] = {}
    for launch in launches:
        did = totals(launch.executed.counts)
        faults = tuple((f.kind, f.place, f.text) for f in launch.executed.faults)
        found.setdefault((launch.kernel, launch.ptx, launch.grid, did, faults), launch)
    return list(found.values())


def _title(case: CaseResult) -> str:
    name = ": ".join([case.op, case.case] if case.case else [case.op])
    order = "" if case.order == "together" else f", {case.order} warp ahead"
    return f"{name} on {case.side}, {case.dtype}, {case.arch}{order}"


def _verdict(case: CaseResult) -> str:
    right = _number(len(case.comparisons), "result")
    return f"{_number(len(case.launches), 'launch')}, {right} right, {case.seconds:.1f} s"


def _number(number: int, of: str) -> str:
    """`no fault`, `1 launch`, `2 launches`."""
    plural = "" if number in (0, 1) else "es" if of.endswith("ch") else "s"
    return f"{number or 'no'} {of}{plural}"


def count(number: float) -> str:
    """`44.1k`: three digits, and what they are multiplied by."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or unit == "P":
            return f"{number:.3g}{unit}"
        number /= 1000
    return ""


def _table(columns: dict[str, int], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in columns.items():
        here = name in left
        table.add_column(
            name,
            width=width,
            no_wrap=True,
            overflow="ellipsis" if here else "fold",
            justify="left" if here else "right",
        )
    return table


def _launches(launches: Sequence[LaunchResult], models: Mapping[int, Model | None]) -> Table:
    table = _table(WIDTHS, ("kernel", "pass", "bound"))
    for launch in launches:
        sums = totals(launch.executed.counts)
        tensors = launch.executed.counts.traffic.tensors()
        read, distinct = sum(t.read for t in tensors), sum(t.distinct_read for t in tensors)
        bad = bool(launch.executed.faults)
        table.add_row(
            Text(launch.kernel, "bold red" if bad else ""),
            launch.direction,
            count(launch.grid[0] * launch.grid[1] * launch.grid[2]),
            count(sums.issued),
            f"{sums.active:.0%}",
            f"{sums.sectors_per_request:.3g}" if sums.requests else "-",
            f"{sums.used:.0%}" if sums.sectors else "-",
            f"{read / distinct:.3g}" if distinct else "-",
            f"{sums.ways:.3g}" if sums.passes else "-",
            count(sums.operations) if sums.operations else "-",
            bound.bound if (bound := models[id(launch)]) else "-",
        )
    return table


def _models(launches: Sequence[LaunchResult], models: Mapping[int, Model | None]) -> Table:
    there = [(launch, m) for launch in launches if (m := models[id(launch)])]
    parts = [part for part in PARTS if any(part in m.cycles for _, m in there)]
    gpu = there[0][1].gpu
    names = [_SHORT.get(part, part) for part in parts]
    table = _table({gpu: 14, "waves": 5, "cycles": 7} | {name: max(len(name), 5) for name in names}, (gpu,))
    for launch, m in there:
        cells: list[str | Text] = []
        for part in parts:
            words = f"{m.share(part):.0%}" if part in m.cycles else "-"
            cells.append(Text("bound", "bold") if part == m.bound else words)
        table.add_row(launch.kernel, f"{m.waves:.2g}" if m.waves >= 0.01 else "<.01", count(m.cycles[m.bound]), *cells)
    return table


def _comparison(c: Comparison) -> Text:
    words = f"{c.what}: largest difference {c.largest:.3g}, allowed {c.allowed:.3g}"
    return Text.assemble((words, ""), ("" if c.ok else ": wrong", "bold red"))


def _show_launch(launch: LaunchResult, console: Console) -> None:
    """Kinds of instructions, tensors, and the source with what each line did."""
    program, counts = launch.executed.program, launch.executed.counts
    everything = totals(counts)
    console.print(Text(f"{launch.kernel} ({launch.direction}), {shown(launch.file) or 'no file'}", "bold"))
    kinds = sorted(by_kind(program, counts).items(), key=lambda item: -item[1].issued)
    shares = [f"{name} {sums.issued / everything.issued:.0%}" for name, sums in kinds if sums.issued]
    console.print(Text(", ".join(shares), "dim"))
    if counts.in_flight:
        console.print(Text(f"asynchronous copies: at most {counts.in_flight:,} bytes of a block on their way", "dim"))
    table = _table({"tensor": 24, "bytes": 7, "read": 7, "again": 6, "written": 7}, ("tensor",))
    for t in counts.traffic.tensors():
        read = (count(t.read), f"{t.again:.3g}") if t.read else ("-", "-")
        table.add_row(t.name, count(t.size), *read, count(t.written) if t.written else "-")
    console.print(table)
    found = by_line(program, counts, launch.file)
    most = max((sums.issued for sums in found.values()), default=0)
    for function in listing(Path(launch.file), {line: sums.issued for line, sums in found.items()}):
        console.print(Text(f"{'instr':>7} {'sect':>4} {'ways':>4} line", "dim"))
        for line in function:
            sums = found.get(line.number)
            style = "bold" if sums and sums.issued >= most / 4 else "" if sums else "dim"
            row = Text(f"{_of_line(sums)} {line.number:>4}  {line.text}", style)
            row.truncate(console.width, overflow="ellipsis")
            console.print(row)
    console.print()


def _of_line(sums: Totals | None) -> str:
    if sums is None:
        return " " * 17
    sectors = f"{sums.sectors_per_request:.3g}" if sums.requests else ""
    ways = f"{sums.ways:.3g}" if sums.passes else ""
    return f"{count(sums.issued):>7} {sectors:>4} {ways:>4}"


def write_json(
    path: Path, results: Sequence[CaseResult], complete: bool = True, on: GPU | None = None, full: bool = True
) -> None:
    """Keep everything in a file, a case a line.

    Args:
        complete: whether it is all that was asked for.
        on: the GPU of the model, as for `show`.
        full: the model by machine code, which takes a second for each kernel; else by PTX.
    """
    head = json.dumps({"schema": SCHEMA, "machine": describe(), "complete": complete}, indent=1)[:-2]
    rows = ",\n".join(f"  {json.dumps(as_json(case, on, full))}" for case in results)
    write_whole(path, f'{head},\n "cases": [\n{rows}\n ]\n}}\n')


def as_json(case: CaseResult, on: GPU | None = None, full: bool = True) -> dict[str, Any]:
    """A case as plain values."""
    known = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)}
    return known | {
        "ok": case.ok,
        "launches": [_launch_json(launch, on, full) for launch in case.launches],
        "comparisons": [_comparison_json(c) for c in case.comparisons],
    }


def _comparison_json(c: Comparison) -> dict[str, Any]:
    # JSON has no NaN.
    return dataclasses.asdict(c) | {"largest": c.largest if math.isfinite(c.largest) else None}


def _launch_json(launch: LaunchResult, on: GPU | None, full: bool) -> dict[str, Any]:
    program, counts = launch.executed.program, launch.executed.counts
    without = ("executed", "ptx", "cubin")
    known = {f.name: getattr(launch, f.name) for f in dataclasses.fields(launch) if f.name not in without}
    estimate = (closest if full else model)(launch, gpu_of(launch, on))
    return known | {
        "grid": list(launch.grid),
        "totals": dataclasses.asdict(totals(counts)),
        "kinds": {name: sums.issued for name, sums in by_kind(program, counts).items()},
        "lines": {str(line): dataclasses.asdict(sums) for line, sums in by_line(program, counts, launch.file).items()},
        "tensors": [dataclasses.asdict(t) for t in counts.traffic.tensors()],
        "in_flight": counts.in_flight,
        "model": dataclasses.asdict(estimate) | {"bound": estimate.bound} if estimate else None,
        "faults": [dataclasses.asdict(f) for f in launch.executed.faults],
        "notes": [dataclasses.asdict(f) for f in launch.executed.notes],
    }
