"""The benchmark's groups as tables for a terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.profiling.bench.compare import Change
from gradlab.profiling.bench.numbers import FASTER, SLOWER, SUSPECT
from gradlab.profiling.bench.row import BACKWARD, FORWARD, Group
from gradlab.profiling.bench.words import (
    TIMES,
    Rate,
    costs,
    not_replayed,
    notes,
    problem_line,
    ratio_in_words,
    three,
    times,
)

# From this width on both tables are printed side by side, below it one under the other.
WIDE = 132
SHORT = {FORWARD: "fwd", BACKWARD: "bwd"}
STYLES = {
    FASTER: "green",
    SLOWER: "red",
    SUSPECT: "bold magenta",
    "WRONG": "bold red",
    "FAILED": "bold red",
    "THROTTLED": "bold red",
}


def show(groups: Sequence[Group], console: Console) -> None:
    """Tables of each case, then what the columns mean and what went wrong; 80 columns hold it."""
    if not groups:
        return
    for section in _sections(groups):
        first = section[0]
        console.print(Text.assemble((f"{first.op} on {first.side}", "bold"), f", {first.case}: {first.words}"))
        for table in _tables(section, console.width >= WIDE):
            console.print(table)
        console.print(Text(_ceilings(section), "dim"))
        console.print()
    for note in notes(groups):
        console.print(Text(note, "dim"))
    for group in groups:
        for member in group.members:
            if member.problem or group.verdict(member) == SUSPECT:
                console.print(Text(problem_line(group, member), STYLES[group.verdict(member)]), soft_wrap=True)
            if member.launched:
                console.print(Text(not_replayed(group, member), "yellow"), soft_wrap=True)


def show_changes(found: Sequence[Change], console: Console) -> None:
    """What became faster or slower since the baseline, a line a member."""
    table = _table("", "pass", "implementation", "now / before", "verdict")
    for change in found:
        group = change.group
        what = f"{group.op} on {group.side}, {group.case}"
        quotient = ratio_in_words(change.quotient)
        table.add_row(what, _short(group), change.member, quotient, _styled(change.verdict))
    console.print(table)


def _tables(section: Sequence[Group], wide: bool) -> Iterator[Table]:
    columns, unit = ("pass", "implementation"), Rate.of(section)
    if wide:
        yield _filled(section, (*columns, *TIMES, *unit.costs), lambda g, m: (*times(g, m), *costs(g, m, unit)))
    else:
        yield _filled(section, (*columns, *TIMES), times)
        yield _filled(section, (*columns, *unit.costs), lambda g, m: costs(g, m, unit))


def _filled(section, columns, cells) -> Table:
    table = _table(*columns)
    for group in section:
        for i, member in enumerate(group.members):
            table.add_row("" if i else _short(group), member.name, *(_styled(c) for c in cells(group, member)))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in columns:
        left = name in ("", "pass", "implementation", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _ceilings(section: Sequence[Group]) -> str:
    group, unit = section[0], Rate.of(section)
    noises = ", ".join(f"{_short(g)} {g.noise:.1%}" for g in section if g.repeated_native)
    clocks = group.clocks
    # The seeds stand in the file.
    parts = [f"noise {noises or 'unknown'}"]
    parts += [f"ceilings {three(group.bandwidth / 1e9)} GB/s, {unit.words(group.rate)} {unit.name}"]
    parts += [f"{clocks['sm_mhz']:.0f} MHz, {clocks['celsius']:.0f} °C"] if clocks else []
    dropped = sum(g.dropped for g in section)
    return "; ".join(parts + [f"{dropped} throttled rounds dropped"] * (dropped > 0))


def _sections(groups: Sequence[Group]) -> Iterator[list[Group]]:
    for _, section in groupby(groups, lambda group: (group.op, group.side, group.case, group.words)):
        yield list(section)


def _short(group: Group) -> str:
    return SHORT.get(group.direction, "both")


def _styled(cell: str) -> Text:
    """A verdict in its colour, any other cell as it is."""
    return Text(cell, STYLES.get(cell, ""))
