"""What a check found: one finding an input and comparison, and the report that prints them."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, WRONG, INCONCLUSIVE = "ok", "wrong", "inconclusive"
_COLOURS = {OK: "green", WRONG: "bold red", INCONCLUSIVE: "yellow"}
_RANK = (OK, INCONCLUSIVE, WRONG)


@dataclass(frozen=True)
class Finding:
    """One comparison of one array.

    Attributes:
        op, side, case: what was run, on which side, on which inputs.
        check: what was compared with what.
        input: the array compared: an input's name for a gradient, an output's for a value.
        verdict: "ok", "wrong", or "inconclusive" when differences cannot tell.
        error, allowed: largest error and the largest that is explained, relative to the largest value compared.
        where: index of the worst element; got and wanted are its two numbers.
    """

    op: str
    side: str
    case: str
    check: str
    input: str
    verdict: str
    error: float
    allowed: float
    where: tuple[int, ...]
    got: float
    wanted: float

    @property
    def message(self) -> str:
        """The finding in one sentence."""
        place = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        return (
            f"{self.op} on {self.side}, case {self.case!r}, {self.check}: {self.input}{place} is {self.got:.10g}, "
            f"wanted {self.wanted:.10g} (error {self.error:.1e}, allowed {self.allowed:.1e}): {self.verdict}"
        )


def compare(op: str, side: str, case: str, check: str, name: str, got: np.ndarray, wanted: np.ndarray,
            slack: np.ndarray | float, relative: float, floor: float) -> Finding:  # fmt: skip
    """Judge `got` against `wanted`, elementwise.

    Args:
        slack: absolute error that `wanted` may have itself (an estimate by differences).
        relative: error allowed beside it, relative to the largest value.
        floor: least scale that errors are relative to, so that arrays of zeros have one.
    """
    scale = max(float(np.abs(wanted).max(initial=0.0)), floor)
    if got.shape != wanted.shape:
        return Finding(op, side, case, f"{check} (shape {got.shape} for {wanted.shape})", name, WRONG,
                       np.inf, relative, (), np.nan, np.nan)  # fmt: skip
    if got.size == 0:
        return Finding(op, side, case, check, name, OK, 0.0, relative, (), 0.0, 0.0)
    off = np.abs(got - wanted)
    off = np.where(np.isnan(got) & np.isnan(wanted) | (got == wanted), 0.0, off)
    off = np.where(np.isnan(off), np.inf, off)
    allowed = np.broadcast_to(slack + relative * scale, off.shape)
    worst = np.unravel_index(int(np.argmax(off - allowed)), off.shape)
    verdict = OK if off[worst] <= allowed[worst] else WRONG
    # Differences that do not settle (a kink, noise) prove nothing either way.
    if np.max(slack) > 1e-5 * scale and not np.isinf(off[worst]):
        verdict = INCONCLUSIVE
    return Finding(
        op, side, case, check, name, verdict, float(off[worst] / scale), float(allowed[worst] / scale),
        tuple(int(i) for i in worst), float(got[worst]), float(wanted[worst]),
    )  # fmt: skip


@dataclass
class Report:
    """All findings of a check; true when every one is ok."""

    findings: list[Finding] = field(default_factory=list)

    def __bool__(self) -> bool:
        return all(f.verdict == OK for f in self.findings)

    def wrong(self) -> list[Finding]:
        """The findings that are not ok, the wrong ones first."""
        return sorted((f for f in self.findings if f.verdict != OK), key=lambda f: -_RANK.index(f.verdict))

    def table(self) -> Table:
        """Worst relative error per input over all cases, one row a comparison, one section an op and side."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
        table.add_column("op and side", no_wrap=True)
        table.add_column("worst error per input, relative")
        table.add_column("verdict", no_wrap=True)
        for (op, side), section in _grouped(self.findings, "op", "side").items():
            table.add_row(Text(f"{op}, {side} ({len({f.case for f in section})} cases)", "bold"))
            for (check,), group in _grouped(section, "check").items():
                worst = {name: max(fs, key=_badness) for (name,), fs in _grouped(group, "input").items()}
                cells = Text(", ").join(Text(f"{n} {_short(f.error)}", _COLOURS[f.verdict]) for n, f in worst.items())
                verdict = max(group, key=_badness).verdict
                table.add_row(f"  {check}", cells, Text(verdict, _COLOURS[verdict]))
            table.add_section()
        return table

    def print(self, console: Console) -> None:
        """The table, then a line for each finding that is not ok, at most ten."""
        console.print(self.table())
        console.print("FD: finite differences, float64, with their own error estimate")
        wrong = self.wrong()
        for f in wrong[:10]:
            console.print(Text(f.message, _COLOURS[f.verdict]), soft_wrap=True)
        if len(wrong) > 10:
            console.print(f"... and {len(wrong) - 10} more")

    def __str__(self) -> str:
        console = Console(width=120, file=io.StringIO(), no_color=True)
        self.print(console)
        return console.file.getvalue()  # type: ignore[attr-defined]


def _badness(f: Finding) -> tuple[int, float]:
    return _RANK.index(f.verdict), f.error


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def _grouped(findings: Iterable[Finding], *keys: str) -> dict[tuple[str, ...], list[Finding]]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in findings:
        groups.setdefault(tuple(getattr(f, key) for key in keys), []).append(f)
    return groups


class GradientError(AssertionError):
    """A check that asked to raise found a wrong gradient; the message is its first finding."""
