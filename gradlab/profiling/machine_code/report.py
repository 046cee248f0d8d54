"""What was read, as tables for a terminal of 80 columns."""

import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.kernels.bounds import HALF, Bound
from gradlab.kernels.spec import specs
from gradlab.profiling.machine_code import report_cpu
from gradlab.profiling.machine_code.bounds import Verdict
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.source_view import source
from gradlab.profiling.machine_code.targets import CPUS

# Eleven columns and the spaces between them: 79 characters.
WIDTHS = {
    "kernel": 14,
    "pass": 8,
    "regs": 4,
    "spill": 6,
    "shared": 6,
    "occ": 4,
    "by": 6,
    "MMA": 4,
    "128-bit": 7,
    "instr": 5,
    "waves": 5,
}
EXECUTED_WIDTHS = {
    "kernel": 14,
    "pass": 8,
    "executed": 9,
    "lanes": 5,
    "sect": 4,
    "used": 5,
    "ways": 4,
    "FLOP": 14,
}
NOTES = (
    "regs: of a thread; spill: bytes moved; shared: of a block; occ, by: warps resident, of the most, and what "
    "allows no more; MMA: tensor-core instructions; 128-bit: global loads and stores that wide, of all; instr: as "
    "they stand in the code; waves: programs over what the GPU holds at once"
)
EXECUTED = (
    "executed: instructions of PTX that a warp of the first program executes; lanes: threads that took part; sect: "
    "sectors of 32 bytes that a warp's access of global memory wants; used: bytes asked for, of those of the sectors; "
    "ways: passes of shared memory for one without a bank conflict; FLOP: of tensor cores, of the program"
)
INDICATIVE = "jax: indicative, XLA compiles the same Triton IR with another revision of Triton"
_SHORT = {"registers": "regs", "shared memory": "shared"}
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def show(codes: Sequence[Code], console: Console, lines: bool = False) -> None:
    """A table for each op, side, dtype and architecture, then what the columns mean; with `lines` the sources too."""
    groups = itertools.groupby(codes, lambda c: (c.op, c.case, c.side, c.dtype, c.arch))
    for (op, case, side, dtype, arch), group in groups:
        rows = list(group)
        console.print(Text.assemble((f"{op} on {side}, {dtype}, {arch}", "bold"), f"; {_sizes(op, case)}"))
        console.print(report_cpu.table(rows, console.width) if arch in CPUS else _table(rows))
        if any(code.executed for code in rows):
            console.print(_executed(rows))
        for direction, floor, ceiling in dict.fromkeys((c.direction, c.floor, c.ceiling) for c in rows if c.floor):
            gpu = next(c.gpu for c in rows if c.gpu)
            console.print(Text(f"{direction}: at least {duration(floor)} on {gpu} ({ceiling})", "dim"))
        for words in report_cpu.words(rows):
            console.print(Text(words, "dim"))
        console.print()
        for code in rows if lines else ():
            _show_source(code, console)
    if any(code.arch not in CPUS for code in codes):
        console.print(Text(NOTES, "dim"))
    if any(code.executed for code in codes):
        console.print(Text(EXECUTED, "dim"))
    if any(code.arch in CPUS for code in codes):
        console.print(Text(report_cpu.notes(console.width), "dim"))
    if any(code.indicative for code in codes):
        console.print(Text(INDICATIVE, "dim"))
    for code in codes:
        if code.error:
            where = f"{code.op} on {code.side}, {code.name}, {code.dtype}, {code.arch}"
            console.print(Text(f"not compiled: {where}: {code.error}", "bold red"), soft_wrap=True)


def show_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """For each op and side one row for each bound; then the kernels that break one."""
    for (op, side), group in itertools.groupby(verdicts, lambda v: (v.op, v.side)):
        console.print(Text(f"{op} on {side}", "bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
        table.add_column(width=25, no_wrap=True)
        table.add_column(width=33, no_wrap=True, overflow="ellipsis")
        table.add_column(width=11, justify="right")
        table.add_column(width=6)
        for v in group:
            worst = "" if v.extreme is None else f"{v.checked}: {v.extreme:.3g}"
            stand = Text("broken", "bold red") if v.broken else Text("holds", "green")
            table.add_row(f"  {v.bound}", _of(v.bound), worst, stand)
        console.print(table)
    if verdicts:
        console.print(Text("beside each bound: kernels checked, and the number nearest to the bound", "dim"))
    broken = [(v, words) for v in verdicts for words in v.broken]
    for verdict, words in broken:
        console.print(
            Text(f"broken: {verdict.op} on {verdict.side}: {verdict.bound}: {words}", "bold red"), soft_wrap=True
        )
    good = sum(not v.broken for v in verdicts)
    checked = sum(v.checked for v in verdicts)
    console.print(f"{good} of {len(verdicts)} bounds met, in {checked} checks of a kernel", highlight=False)


def _of(bound: Bound) -> str:
    """The kernels that a bound applies to."""
    words = [*bound.kernels] or ["all"]
    half = set(HALF) <= set(bound.dtypes)
    words += ["half"] * half + [dtype for dtype in bound.dtypes if not half or dtype not in HALF]
    words += [f"case {bound.case}"] if bound.case else []
    return ", ".join(words)


def duration(seconds: float) -> str:
    """`278 µs`: three digits in the unit that suits."""
    scale, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{seconds / scale:.3g} {unit}"


def _table(codes: Sequence[Code]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in WIDTHS.items():
        left = name in ("kernel", "pass", "by")
        table.add_column(
            name,
            width=width,
            no_wrap=True,
            overflow="ellipsis" if left else "fold",
            justify="left" if left else "right",
        )
    for code in codes:
        table.add_row(*_cells(code))
    return table


def _cells(code: Code) -> tuple[str | Text, ...]:
    if code.error:
        return code.name, code.direction, Text("!", "bold red")
    n = code.counts
    spill = Text(report_cpu.size(n.spill_bytes), "bold red") if n.spill_bytes else "-"
    wide, accesses = n.wide_loads + n.wide_stores, n.loads + n.stores
    return (
        code.name,
        code.direction,
        str(code.registers),
        spill,
        report_cpu.size(code.shared_static + code.shared_dynamic),
        "-" if code.occupancy is None else f"{code.occupancy:.0%}",
        _SHORT.get(code.limiter, code.limiter or "-"),
        str(n.tensor or "-"),
        f"{wide}/{accesses}",
        str(n.instructions),
        "-" if code.waves is None else f"{code.waves:.3g}",
    )


def _executed(codes: Sequence[Code]) -> Table:
    """What the first programs did."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in EXECUTED_WIDTHS.items():
        left = name in ("kernel", "pass")
        table.add_column(name, width=width, no_wrap=True, justify="left" if left else "right", overflow="ellipsis")
    for code in codes:
        if code.executed is None:
            table.add_row(code.name, code.direction, "-")
            continue
        t = code.executed.totals
        table.add_row(
            code.name,
            code.direction,
            f"{code.executed.instructions:,.0f}",
            f"{t.active:.0%}",
            f"{t.sectors_per_request:.3g}" if t.requests else "-",
            f"{t.used:.0%}" if t.sectors else "-",
            Text(f"{t.ways:.3g}", "bold red" if t.ways >= 2 else "") if t.passes else "-",
            f"{t.operations:,}" if t.operations else "-",
        )
    return table


def _sizes(op: str, case: str) -> str:
    """The case with its sizes; a function that is no op of the lab has those that it was given."""
    cases = specs()[op].cases if op in specs() else ()
    found = [", ".join(f"{axis} {n}" for axis, n in c.sizes.items()) for c in cases if c.name == case]
    return ": ".join([case, *found])


def _show_source(code: Code, console: Console) -> None:
    counted = sum(code.lines.values())
    console.print(Text(f"{code.name} ({code.direction}), {code.file}: {counted} of {code.counts.instructions}", "bold"))
    most = max(code.lines.values(), default=0)
    executed = code.executed.lines if code.executed else {}
    if executed:
        console.print(
            Text("instructions in the code, and those of PTX that all warps of the first program execute", "dim")
        )
    for function in source(code):
        for line in function:
            style = "bold" if line.count and line.count >= most / 4 else "" if line.count else "dim"
            did = f"{executed.get(line.number, ''):>7} " if code.executed else ""
            row = Text(f"{line.count or '':>6} {did}{line.number:>4}  {line.text}", style)
            row.truncate(console.width, overflow="ellipsis")
            console.print(row)
        console.print()
