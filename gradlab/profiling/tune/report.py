"""A survey, and what was measured, as a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.kernels.configs.tiles import Row
from gradlab.profiling.tune.measure import Measured
from gradlab.profiling.tune.survey import Survey

NOTES = (
    "regs, spill, shared: the most of any launch; blocks: on a multiprocessor, the fewest; model: cycles over those of "
    "the row in use, latencies not in them; measured: time over that of the row in use, case by case; "
    "128x64x128/8/3: a tile, its warps and its stages"
)


def show(title: str, survey: Survey, measured: Sequence[Measured], console: Console) -> None:
    """The row in use and every candidate: how it did, or what is against it."""
    times = {one.row: one for one in measured}
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tile", no_wrap=True)
    for name in ("warps", "stages", "regs", "spill", "shared", "blocks", "model"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("measured" if measured else "")
    uncompiled: dict[str, list[str]] = {}
    own = survey.tried[0].row
    for one in survey.ranked():
        row, facts = one.row, one.facts
        if facts is None or facts.error:
            uncompiled.setdefault(one.dropped, []).append(_short(row))
            continue
        table.add_row(
            f"{row.M} x {row.K} x {row.N}",
            *map(str, (row.warps, row.stages, facts.registers, facts.spill)),
            f"{facts.shared // 1024} K",
            str(facts.blocks),
            "-" if one.ratio is None else f"{one.ratio:.2f}",
            "in use" if row is own else one.dropped or _time(times.get(row)),
            style="dim" if one.dropped else "bold" if row is own else None,
        )
    console.print(Text(title, "bold"))
    console.print(table)
    for why, rows in uncompiled.items():
        console.print(Text(f"{why}: {', '.join(rows)}", "dim"))
    if survey.missed:
        console.print(Text(f"{survey.missed} more were not reached within the limit", "dim"))


def _short(row: Row) -> str:
    return f"{row.M}x{row.K}x{row.N}/{row.warps}/{row.stages}"


def _time(one: Measured | None) -> str:
    if one is None:
        return ""
    return one.problem or ", ".join(f"{r.median:.3f}" for r in one.ratios)
