"""The benchmark's rows as tables for a terminal and as Markdown."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.profiling.bench_row import BOTH, OK, Row
from gradlab.profiling.timing import Spread

# Five columns and the spaces between them: 80 characters, what a pipe and a small terminal have.
WIDTHS = {"": 18, "hand": 14, "native": 14, "hand / native": 17, "GB/s  GFLOP/s": 13}
TIMES = "± half the interquartile range around the median call; hand / native: median over pairs (quartiles)"
RATES = "GB/s and GFLOP/s: the op's least bytes and FLOPs over the hand-written median"
INTERPRETED = "interpreted: the kernels' source ran in an interpreter, whose time is never a kernel's speed"
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def policy(dtype: str) -> str:
    """What both members of a row multiply and add in."""
    if dtype in ("float32", "float64"):
        return f"{dtype}: full precision in every product, no TF32"
    return f"{dtype}: products summed in float32 by hand, as the framework chooses by native; proven against float32"


def show(rows: Sequence[Row], console: Console) -> None:
    """A table a case and side, then what the columns mean and what went wrong; 80 columns hold it."""
    if not rows:
        return
    console.print(_columns(show_header=True))
    for (op, side, case, sizes), section in _sections(rows):
        console.print(Text.assemble((f"{op} on {side}", "bold"), f", {case}: {sizes}"))
        table = _columns(show_header=False)
        for row in section:
            table.add_row(f"  {_label(row)}", *_cells(row))
        console.print(table)
        console.print()
    for side in dict.fromkeys(row.side for row in rows):
        natives = dict.fromkeys(row.native for row in rows if row.side == side)
        console.print(Text(f"native on {side}: {', '.join(natives)}", "dim"))
    interpreted = any(row.interpreted for row in rows)
    for note in (TIMES, RATES, *([INTERPRETED] if interpreted else [])):
        console.print(Text(note, "dim"))
    for row in rows:
        if row.verdict != OK:
            console.print(Text(f"{row.verdict}: {_name(row)}: {row.note}", "bold red"), soft_wrap=True)


def markdown(rows: Sequence[Row], machine: Mapping[str, str]) -> str:
    """The same as a Markdown table with the machine above it, one line a row."""
    lines = [f"- {key}: {value}" for key, value in machine.items()]
    lines += [f"- precision: {policy(dtype)}" for dtype in dict.fromkeys(row.dtype for row in rows)]
    head = (
        "op",
        "case",
        "sizes",
        "dtype",
        "side",
        "mode",
        "pass",
        "hand",
        "native",
        "hand / native",
        "GB/s",
        "GFLOP/s",
    )
    lines += ["", _line((*head, "native is")), _line(["---"] * 7 + ["---:"] * 5 + ["---"])]
    for row in rows:
        what = (row.op, row.case, row.sizes, row.dtype, row.side, row.mode, row.direction)
        hand, native, ratio, rates = map(str, _cells(row))
        pair = (rates, "") if row.verdict != OK or row.interpreted else rates.split()
        lines.append(_line((*what, hand, native, ratio, *pair, f"`{row.native}`")))
    lines += ["", f"{TIMES}. {RATES}."]
    lines += [f"{INTERPRETED}."] if any(row.interpreted for row in rows) else []
    wrong = [row for row in rows if row.verdict != OK]
    return "\n".join([*lines, "", *(f"- {row.verdict}: {_name(row)}: `{row.note}`" for row in wrong)]).rstrip() + "\n"


def _name(row: Row) -> str:
    return f"{row.op} on {row.side}, {row.case}, {row.dtype}, {row.mode}, {row.direction}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _sections(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    for key, group in itertools.groupby(rows, lambda row: (row.op, row.side, row.case, row.sizes)):
        yield key, list(group)


def _columns(show_header: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=show_header)
    for name, width in WIDTHS.items():
        table.add_column(name, width=width, no_wrap=True, justify="right" if name else "left")
    return table


def _label(row: Row) -> str:
    return f"{row.mode:<8} {'fwd+bwd' if row.direction == BOTH else 'fwd'}"


def _cells(row: Row) -> tuple[Text | str, ...]:
    if row.verdict != OK:
        return Text(row.verdict, "bold red"), "", "", ""
    seconds = row.hand.median
    ratio = row.ratio
    rates = f"{_three(row.bytes / seconds / 1e9)}  {_three(row.flops / seconds / 1e9):>7}"
    quotient = f"{_three(ratio.median)} ({_three(ratio.low)}–{_three(ratio.high)})"
    return duration(row.hand), duration(row.natively), quotient, "interpreted" if row.interpreted else rates


def duration(seconds: Spread) -> str:
    """`12.3 ± 0.4 ms`: median and half the interquartile range, in the unit that suits the median."""
    scale, unit = next((u for u in _UNITS if seconds.median >= u[0]), _UNITS[-1])
    median, half = seconds.median / scale, seconds.half / scale
    # No more decimals than the median has.
    digits = min(len(_three(value).partition(".")[2]) for value in (median, half))
    return f"{_three(median)} ± {half:.{digits}f} {unit}"


def _three(value: float) -> str:
    """Three digits and never an exponent: 0.12, 4.56, 78.9, 123, 12345."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
