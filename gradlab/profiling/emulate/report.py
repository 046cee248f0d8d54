"""What was executed, as tables for a terminal of 80 columns, and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.base.files import write_whole
from gradlab.base.machine import describe
from gradlab.profiling.emulate.model import PARTS
from gradlab.profiling.emulate.result import CaseResult, Comparison, LaunchResult
from gradlab.profiling.emulate.words import paragraph
from gradlab.profiling.machine_code.source_view import listing
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
    "instr: of warps, executed; lanes: threads that took part; sect: sectors of 32 bytes that a warp's access of global "
    "memory wants; used: bytes asked for, of those of the sectors; again: how often a sector that is read is read; "
    "ways: passes of shared memory for one without a bank conflict; FLOP: of tensor cores; bound: of the model"
)
MODEL = (
    "model, no time: the least cycles of the part that bounds the launch, and the others' in percent of them, if "
    "nothing ever waited; issue, FMA, ALU and special are of machine code, estimated by source line; L2 and memory as if "
    "caches held all that they could"
)
_SHORT = {"float64": "f64", "special": "spec", "shared": "shared", "memory": "mem"}


def show(results: Sequence[CaseResult], console: Console, lines: bool = False) -> None:
    """For each case its launches, their model, what was compared and every fault; with `lines` the sources too."""
    for case in results:
        name = ": ".join([case.op, case.case] if case.case else [case.op])
        order = "" if case.order == "together" else f", warps {case.order}"
        console.print(Text.assemble((f"{name} on {case.side}, {case.dtype}, {case.arch}{order}", "bold")))
        if case.launches:
            console.print(_launches(case.launches))
            if any(launch.model for launch in case.launches):
                console.print(_models(case.launches))
        for comparison in case.comparisons:
            console.print(_comparison(comparison), soft_wrap=True)
        if case.error:
            console.print(Text(case.error, "bold red"), soft_wrap=True)
        console.print()
        for launch in case.launches if lines else ():
            _show_launch(launch, console)
        for launch in case.launches:
            for fault in launch.executed.faults:
                console.print(Text(paragraph(fault, launch)), soft_wrap=True)
                console.print()
    launches = [launch for case in results for launch in case.launches]
    if launches:
        console.print(Text(NOTES, "dim"))
    if any(launch.model for launch in launches):
        console.print(Text(MODEL, "dim"))
    console.print(summary(results), highlight=False)


def summary(results: Sequence[CaseResult]) -> str:
    """`7 launches, no fault; 4 of 4 results right`."""
    launches = sum(len(case.launches) for case in results)
    faults = sum(len(launch.executed.faults) for case in results for launch in case.launches)
    compared = [c for case in results for c in case.comparisons]
    stopped = sum(bool(case.error) for case in results)
    words = f"{launches} launch{'es' * (launches != 1)}, {faults or 'no'} fault{'s' * (faults > 1)}"
    words += f"; {sum(c.ok for c in compared)} of {len(compared)} results right"
    return words + (f"; {stopped} not executed to the end" if stopped else "")


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


def _launches(launches: Sequence[LaunchResult]) -> Table:
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
            launch.model.bound if launch.model else "-",
        )
    return table


def _models(launches: Sequence[LaunchResult]) -> Table:
    there = [launch for launch in launches if launch.model]
    parts = [part for part in PARTS if any(part in launch.model.cycles for launch in there if launch.model)]
    gpu = there[0].model.gpu if there[0].model else ""
    short = {part: _SHORT.get(part, part) for part in parts}
    table = _table({gpu: 14, "waves": 5, "cycles": 7} | {name: max(len(name), 5) for name in short.values()}, (gpu,))
    for launch in there:
        if (m := launch.model) is None:
            continue
        cells: list[str | Text] = []
        for part in parts:
            words = "-" if part not in m.cycles else f"{m.share(part):.0%}"
            cells.append(Text("bound", "bold") if part == m.bound else words)
        table.add_row(launch.kernel, f"{m.waves:.2g}", count(m.cycles[m.bound]), *cells)
    return table


def _comparison(c: Comparison) -> Text:
    words = f"{c.what}: largest difference {c.largest:.3g}, allowed {c.allowed:.3g}"
    return Text.assemble((words, ""), ("" if c.ok else ": wrong", "bold red"))


def _show_launch(launch: LaunchResult, console: Console) -> None:
    """Kinds of instructions, tensors, and the source with what each line did."""
    program, counts = launch.executed.program, launch.executed.counts
    everything = totals(counts)
    console.print(Text(f"{launch.kernel} ({launch.direction}), {launch.file or 'no file'}", "bold"))
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


def write_json(path: Path, results: Sequence[CaseResult], complete: bool = True) -> None:
    """Keep everything in a file, a case a line; `complete` says whether it is all that was asked for."""
    head = json.dumps({"schema": SCHEMA, "machine": describe(), "complete": complete}, indent=1)[:-2]
    rows = ",\n".join(f"  {json.dumps(as_json(case))}" for case in results)
    write_whole(path, f'{head},\n "cases": [\n{rows}\n ]\n}}\n')


def as_json(case: CaseResult) -> dict[str, Any]:
    """A case as plain values."""
    plain = {
        f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name not in ("launches", "comparisons")
    }
    compared = [dataclasses.asdict(c) for c in case.comparisons]
    return plain | {"ok": case.ok, "launches": [_launch_json(n) for n in case.launches], "comparisons": compared}


def _launch_json(launch: LaunchResult) -> dict[str, Any]:
    program, counts = launch.executed.program, launch.executed.counts
    plain = {f.name: getattr(launch, f.name) for f in dataclasses.fields(launch) if f.name not in ("executed", "model")}
    model = launch.model
    return plain | {
        "grid": list(launch.grid),
        "totals": dataclasses.asdict(totals(counts)),
        "kinds": {name: sums.issued for name, sums in by_kind(program, counts).items()},
        "lines": {str(line): dataclasses.asdict(sums) for line, sums in by_line(program, counts, launch.file).items()},
        "tensors": [dataclasses.asdict(t) for t in counts.traffic.tensors()],
        "in_flight": counts.in_flight,
        "model": dataclasses.asdict(model) | {"bound": model.bound} if model else None,
        "faults": [dataclasses.asdict(f) for f in launch.executed.faults],
    }
