"""The report of a check: all findings, as a table, as JSON and as a plot."""

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding

_COLOURS = {OK: "green", WRONG: "bold red", INCONCLUSIVE: "yellow"}
_RANK = (OK, INCONCLUSIVE, WRONG)
SCHEMA = 2


@dataclass
class Report:
    """All findings of a check; true when every one is ok.

    Attributes:
        findings: every comparison, in the order it was made.
        notes: what could not be checked or was left out, and why.
        seconds: time of each part.
        views: for each gradient compared with finite differences, the data that `plot` draws.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    views: list[Any] = field(default_factory=list, repr=False)

    def __bool__(self) -> bool:
        return all(f.verdict == OK for f in self.findings)

    @property
    def verdict(self) -> str:
        """The worst verdict of all findings: "ok", "inconclusive" or "wrong"."""
        return max((f.verdict for f in self.findings), key=_RANK.index, default=OK)

    def wrong(self) -> list[Finding]:
        """The findings that are not ok, the wrong ones first."""
        return sorted((f for f in self.findings if f.verdict != OK), key=lambda f: -_RANK.index(f.verdict))

    def add(self, other: "Report") -> None:
        """Append everything in another report."""
        self.findings += other.findings
        self.notes += [n for n in other.notes if n not in self.notes]
        self.views += other.views
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def table(self) -> Table:
        """Worst relative error per input over all cases: a row for each comparison, a section for each op and side."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
        table.add_column("op and side", no_wrap=True)
        table.add_column("worst relative error per input")
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
        console.print("finite differences are taken in float64, each with its own error estimate")
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
        """Everything but the plots' data as JSON text; nan and inf, which JSON lacks, are strings."""

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

        A correct gradient's error falls with the step size down to rounding; a wrong one's stops at a floor above the
        tolerance.

        Raises:
            ValueError: the report holds no gradient, or the file name has another suffix.
            ModuleNotFoundError: matplotlib is not installed.
        """
        from gradlab.autodiff.checker.plot import draw

        return draw(self.views, Path(path), next(iter(self.wrong()), None))

    def _repr_html_(self) -> str:
        """For a notebook: the table and notes, and both plots if they take at most 3 s."""
        from gradlab.autodiff.checker.plot import inline

        console = Console(width=120, file=io.StringIO(), record=True)
        self.print(console)
        text = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return f"{text}\n{inline(self.views, next(iter(self.wrong()), None))}"


class GradientError(AssertionError):
    """A check with `raises` found a wrong gradient; the message is its first finding.

    Attributes:
        report: the complete Report.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report.wrong()[0].message)
        self.report = report


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
