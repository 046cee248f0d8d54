"""What a check found: one finding an input and comparison, and the report that prints them."""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, WRONG, INCONCLUSIVE = "ok", "wrong", "inconclusive"
_COLOURS = {OK: "green", WRONG: "bold red", INCONCLUSIVE: "yellow"}
_RANK = (OK, INCONCLUSIVE, WRONG)
SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One comparison of one array, or one promise that was kept or broken.

    Attributes:
        check: what was compared with what.
        verdict: "ok", "wrong", or "inconclusive" when nothing here can tell.
        input: the array compared: an input's name for a gradient, an output's for a value; "" for the whole function.
        where: index of the first wrong element, where it is known.
        said: the finding in words, after the name of what was checked.
        numbers: error and allowed (relative to the largest value), got and wanted where one element is meant, ...
        op, side, case: what was run, on which side, on which inputs.
    """

    check: str
    verdict: str
    input: str = ""
    where: tuple[int, ...] = ()
    said: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    op: str = ""
    side: str = ""
    case: str = ""

    @property
    def error(self) -> float:
        """Largest error, relative; 0 where there is none to speak of."""
        return self.numbers.get("error", 0.0 if self.verdict == OK else math.nan)

    @property
    def message(self) -> str:
        """The finding in one paragraph."""
        place = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        what = f"{self.input}{place} " if self.input else ""
        return f"{self.op} on {self.side}, case {self.case!r}, {self.check}: {what}{self.said}: {self.verdict}"


@dataclass
class Report:
    """All findings of a check; true when every one is ok.

    Attributes:
        findings: every comparison, in the order it was made.
        notes: what was looked at and could not be judged, or was not looked at, and why.
        seconds: time of each part.
        views: for each gradient that differences judged, what `plot` draws it from.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    views: list[Any] = field(default_factory=list, repr=False)

    def __bool__(self) -> bool:
        return all(f.verdict == OK for f in self.findings)

    def wrong(self) -> list[Finding]:
        """The findings that are not ok, the wrong ones first."""
        return sorted((f for f in self.findings if f.verdict != OK), key=lambda f: -_RANK.index(f.verdict))

    def add(self, other: "Report") -> None:
        """Take over everything that another report holds."""
        self.findings += other.findings
        self.notes += [n for n in other.notes if n not in self.notes]
        self.views += other.views
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def table(self) -> Table:
        """Worst relative error per input over all cases, one row a comparison, one section an op and side."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
        table.add_column("op and side", no_wrap=True)
        table.add_column("worst error per input, relative")
        table.add_column("verdict", no_wrap=True)
        for (op, side), section in _grouped(self.findings, "op", "side").items():
            cases = len({f.case for f in section})
            table.add_row(Text(f"{op}, {side} ({cases} case{'s' if cases > 1 else ''})", "bold"))
            for (check,), group in _grouped(section, "check").items():
                worst = {name: max(fs, key=_badness) for (name,), fs in _grouped(group, "input").items()}
                cells = Text(", ").join(_cell(name, f) for name, f in worst.items())
                verdict = max(group, key=_badness).verdict
                table.add_row(f"  {check}", cells, Text(verdict, _COLOURS[verdict]))
            table.add_section()
        return table

    def print(self, console: Console) -> None:
        """The table, then a line for each finding that is not ok, at most ten."""
        console.print(self.table())
        console.print("FD: finite differences, float64, with their own error estimate")
        if self.seconds:
            parts = ", ".join(f"{part} {s:.2f}" for part, s in self.seconds.items())
            console.print(Text(f"seconds: {parts}"), soft_wrap=True)
        for note in self.notes:
            console.print(Text(f"note: {note}"), soft_wrap=True)
        wrong = self.wrong()
        for f in wrong[:10]:
            console.print(Text(f.message, _COLOURS[f.verdict]), soft_wrap=True)
        if len(wrong) > 10:
            console.print(f"... and {len(wrong) - 10} more")

    def __str__(self) -> str:
        console = Console(width=120, file=io.StringIO(), no_color=True)
        self.print(console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def to_json(self) -> str:
        """Everything but the plots' data, as JSON text; numbers that JSON has not (nan, inf) as text."""

        def plain(value: Any) -> Any:
            if isinstance(value, float) and not math.isfinite(value):
                return str(value)
            if isinstance(value, Mapping):
                return {k: plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

        findings = [{**asdict(f), "message": f.message} for f in self.findings]
        whole = {"schema": SCHEMA, "ok": bool(self), "findings": findings, "notes": self.notes, "seconds": self.seconds}
        return json.dumps(plain(whole), indent=1)

    def plot(self, path: str | Path) -> Path:
        """Draw error against step and the map of relative errors of the worst gradient; .png, .svg or .pdf.

        Raises:
            ValueError: nothing was differentiated, or an ending that cannot be drawn.
            ModuleNotFoundError: matplotlib is not installed.
        """
        from gradlab.autodiff.checker.plot import draw

        return draw(self, Path(path))


class GradientError(AssertionError):
    """A check that asked to raise found a wrong gradient; the message is its first finding.

    Attributes:
        report: the whole Report.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report.wrong()[0].message)
        self.report = report


Judge = Callable[..., None]


def _badness(f: Finding) -> tuple[int, float]:
    error = f.error
    return _RANK.index(f.verdict), math.inf if math.isnan(error) else error


def _cell(name: str, f: Finding) -> Text:
    error = "" if "error" not in f.numbers else f"{f.error:.0e}" if f.error else "0"
    return Text(" ".join(word for word in (name, error) if word) or "-", _COLOURS[f.verdict])


def _grouped(findings: Iterable[Finding], *keys: str) -> dict[tuple[str, ...], list[Finding]]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in findings:
        groups.setdefault(tuple(getattr(f, key) for key in keys), []).append(f)
    return groups
