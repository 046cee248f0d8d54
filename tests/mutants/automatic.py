"""How many of the mutants that a machine makes of the rules the check finds: `python -m tests.mutants.automatic`."""

import argparse
import functools
import os
import random
import signal
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gradlab
from gradlab.autodiff.checker.function import PARTS, CheckPlan
from gradlab.autodiff.checker.ops import check_op
from gradlab.autodiff.checker.report import INCONCLUSIVE, OK, Finding, Report
from gradlab.autodiff.frameworks.side import Side, side
from gradlab.kernels.spec import spec, specs
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.operators import Mutant, mutants

ROOM = Path(gradlab.__file__).parent / "autodiff"
# The cheap parts first: most mutants do not get any further.
PASSES = (("derivative", "reference"), tuple(p for p in PARTS if p not in ("derivative", "reference")))


# A mutant that does not end by then is found too.
SECONDS = 120


class _Caught(BaseException):
    """The first finding that is not ok; no `except Exception` of the check stops it."""


class _UpToTheFirst(list):
    """Findings, up to the first that is not ok and that the rule as it stands does not have."""

    def __init__(self, usual: Callable[[], set[tuple]]) -> None:
        super().__init__()
        self.usual = usual

    def append(self, finding: Finding) -> None:
        if finding.verdict != OK and not (finding.verdict == INCONCLUSIVE and _key(finding) in self.usual()):
            raise _Caught(finding.message)
        super().append(finding)

    def extend(self, findings) -> None:
        for finding in findings:
            self.append(finding)

    def __iadd__(self, findings):
        self.extend(findings)
        return self


def file_of(name: str) -> Path:
    """Where the rule file of that name stands: an op's in `autodiff`, what several ops share in `autodiff/common`."""
    own = ROOM / f"{name}.py"
    return own if own.exists() else ROOM / "common" / f"{name}.py"


def build(name: str, source: str) -> types.ModuleType | None:
    """The module of a rule file with another source, beside the real one; None when it is no module."""
    module = types.ModuleType(f"gradlab.autodiff.{name}")
    module.__file__, module.__package__ = str(file_of(name)), "gradlab.autodiff"
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    except Exception:
        return None
    return module


@contextmanager
def in_place(on: Side, fn: Callable[..., Any]) -> Iterator[None]:
    """Within, `fn` is every op of the side."""
    on.op = lambda name: fn  # type: ignore[method-assign]
    try:
        yield
    finally:
        del on.op


def caught(op: str, on: Side, fn: Callable[..., Any]) -> str:
    """What the check says first against `fn` as the op on that side; "" when it says nothing."""
    one = spec(op)
    with in_place(on, fn), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parts in PASSES:
            plan = CheckPlan(order=1 if "derivative" in parts else 2, parts=parts)
            report = Report(findings=_UpToTheFirst(lambda parts=parts: _usual(op, on.name, parts)))
            try:
                check_op(one, [on], plan, report)
            except _Caught as found:
                return str(found)
            except Exception as error:
                return f"raises {type(error).__name__}: {error}"
    return ""


def caught_apart(op: str, on: Side, fn: Callable[..., Any]) -> bool:
    """`caught` in a process of its own where one can be had: a wrong kernel call may write anywhere, and end it."""
    # jax has threads that do not live on in a copy of the process; its kernels do not write past their arrays.
    if on.name == "jax" or not hasattr(os, "fork"):
        return bool(caught(op, on, fn))
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        os._exit(bool(caught(op, on, fn)))
    # Ended by a signal counts: nobody overlooks that.
    return os.waitpid(child, 0)[1] != 0


def listed(name: str, mutant: Mutant) -> bool:
    """Whether the mutant is known to change no number."""
    return any(
        fnmatchcase(name, file) and (mutant.text, mutant.change) == (text, change)
        for file, text, change, _ in EQUIVALENT
    )


def score(
    sides: Sequence[str],
    ops: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Make and check the mutants of each rule file.

    Args:
        limit: of mutants a file, drawn at random; all when None.
        seed: of that draw.
        say: called with each mutant that survives, and with each file's result.

    Returns:
        For each file: mutants made, equivalent, caught, survivors in words, seconds.
    """
    counts: dict[str, dict[str, Any]] = {}
    for framework in sides:
        for op in ops or specs():
            name, start = f"{op}_{framework}", time.perf_counter()
            every = list(mutants(file_of(name).read_text()))
            drawn = every if limit is None or limit >= len(every) else random.Random(seed).sample(every, limit)
            row: dict[str, Any] = {"made": 0, "equivalent": 0, "caught": 0, "survivors": []}
            for parts in PASSES:
                # What is loaded and compiled at first use is there for every mutant then.
                _usual(op, framework, parts)
            for mutant in drawn:
                module = build(name, mutant.source)
                if module is None:
                    continue
                row["made"] += 1
                if listed(name, mutant):
                    row["equivalent"] += 1
                elif caught_apart(op, side(framework), module.by_spec):
                    row["caught"] += 1
                else:
                    row["survivors"].append(f"{name}.py:{mutant}")
                    say(f"survives: {name}.py:{mutant}")
            row["seconds"] = time.perf_counter() - start
            say(f"{name}: {row['caught']} of {row['made'] - row['equivalent']} in {row['seconds']:.0f} s")
            counts[name] = row
    return counts


def share(rows: Sequence[dict[str, Any]]) -> float:
    """Caught in percent of those that are not equivalent."""
    real = sum(r["made"] - r["equivalent"] for r in rows)
    return 100 * sum(r["caught"] for r in rows) / real if real else 100.0


def table(counts: dict[str, dict[str, Any]]) -> Table:
    """One row a file, one for each side."""
    made = Table(title="mutants of the rules, and what the check says of them", title_justify="left")
    for column in ("file", "made", "equivalent", "caught", "survivors", "%", "s"):
        made.add_column(column, justify="left" if column == "file" else "right")
    for framework in ("torch", "jax"):
        rows = {name: row for name, row in counts.items() if name.endswith(framework)}
        for name, row in rows.items():
            _add(made, name, [row])
        if rows:
            _add(made, f"all of {framework}", list(rows.values()), style="bold", end_section=True)
    return made


def _add(made: Table, name: str, rows: list[dict[str, Any]], **style: Any) -> None:
    sums = [sum(r[key] for r in rows) for key in ("made", "equivalent", "caught")]
    left, seconds = sum(len(r["survivors"]) for r in rows), sum(r["seconds"] for r in rows)
    made.add_row(name, *map(str, sums), str(left), f"{share(rows):.1f}", f"{seconds:.0f}", **style)


@functools.cache
def _usual(op: str, framework: str, parts: tuple[str, ...]) -> set[tuple]:
    """What is inconclusive of the rule as it stands, so that it tells nothing of a mutant."""
    on, report = side(framework), Report()
    module = build(f"{op}_{framework}", file_of(f"{op}_{framework}").read_text())
    held = on.__dict__.pop("op", None)
    try:
        with in_place(on, module.by_spec):
            check_op(spec(op), [on], CheckPlan(order=1 if "derivative" in parts else 2, parts=parts), report)
    finally:
        if held is not None:
            on.op = held  # type: ignore[method-assign]
    return {_key(f) for f in report.findings if f.verdict == INCONCLUSIVE}


def _key(finding: Finding) -> tuple:
    return finding.case, finding.check, finding.input


def main() -> None:
    """The table, of what the command line asks for."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--side", action="append", choices=("torch", "jax"), help="one or both when not given")
    asked.add_argument("--op", action="append", help="all when not given")
    asked.add_argument("--limit", type=int, help="mutants a file, drawn at random")
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    counts = score(given.side or ("torch", "jax"), given.op, given.limit, given.seed)
    Console(width=120).print(table(counts))


if __name__ == "__main__":
    main()
