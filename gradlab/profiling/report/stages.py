"""The report's parts, each a piece of work in a process of its own that tells plain data as it finds it."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from gradlab.autodiff.checker.check import check
from gradlab.autodiff.checker.plot import STEPS, curve
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.checker.verdict.first_derivative import View
from gradlab.kernels.spec import spec
from gradlab.profiling.bench.row import BACKWARD, COMPILED, EAGER, FORWARD, MODES, PASSES
from gradlab.profiling.bench.worker import TimingJob
from gradlab.profiling.machine_code import bounds
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.inspection import InspectRequest, choose, read, targets
from gradlab.profiling.machine_code.source_view import source

# Sizes of a curve that has to be quick: three show whether it bends.
QUICK = (16, 4, 1)


@dataclass(frozen=True)
class Scope:
    """What a report is made of.

    Attributes:
        seed: of the benchmark's inputs.
        quick: a part of everything: derivatives of the first order, one mode a side, one architecture.
    """

    ops: tuple[str, ...]
    sides: tuple[str, ...]
    quick: bool
    seed: int = 0

    @property
    def archs(self) -> tuple[str, ...]:
        return ("sm_90",) if self.quick else ("sm_80", "sm_90", "sm_100", "gfx942")

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("bfloat16",) if self.quick else ("bfloat16", "float32")


Send = Callable[[tuple[str, Any]], object]


def checks(send: Send, scope: Scope) -> None:
    """Every op's check, with the curves of error against step; tells ("at", words) and ("check", data) an op."""
    for name in scope.ops:
        on_event = functools.partial(_on_event, send)
        options: dict[str, Any] = {"parts": ("derivative",), "order": 1} if scope.quick else {}
        report = check(name, side=scope.sides, raises=False, on_event=on_event, **options)
        send(("check", {"op": name, **json.loads(report.to_json()), "curves": _curves(report)}))


def _on_event(send: Send, what: str, spent: float) -> None:
    send(("at", what))


def _curves(report: Report) -> list[dict[str, Any]]:
    """Of the case with the worst gradient on each side, every input's curve."""
    found = []
    for side in dict.fromkeys(view.probe.subject.side.name for view in report.views):
        views = [v for v in report.views if v.probe.subject.side.name == side and v.probe.arrays[v.input].size]
        worst: View | None = max(views, key=lambda v: v.finding.error, default=None)
        if worst is not None:
            subject = worst.probe.subject
            with subject.side.double():
                lines = [curve(v)._asdict() for v in views if v.probe.subject is subject]
            found.append({"side": side, "case": subject.case, "steps": [float(s) for s in STEPS], "lines": lines})
    return found


def timings(scope: Scope) -> tuple[TimingJob, ...]:
    """What each side's benchmark process is to measure."""
    if not scope.quick:
        every = TimingJob(scope.ops, "", "float32", MODES, PASSES, 0.5, seed=scope.seed, swept=(FORWARD,))
        return tuple(replace(every, side=side) for side in scope.sides)
    some = TimingJob(scope.ops, "", "float32", (), (FORWARD, BACKWARD), 0.08, seed=scope.seed, swept=(FORWARD,))
    # The mode that people use a side in.
    modes = {"torch": (EAGER,), "jax": (COMPILED,)}
    return tuple(replace(some, side=side, modes=modes[side], factors=QUICK) for side in scope.sides)


def inspections(send: Send, scope: Scope) -> None:
    """Every kernel's machine code and bounds; tells ("at", words), ("kernel", data) each, ("bounds", data)."""
    ops = [spec(name) for name in scope.ops]
    chosen = choose(ops, scope.sides, scope.dtypes, None)
    # Bounds on other cases than the largest are left to `gradlab inspect --check` where it has to be quick.
    checked = () if scope.quick else bounds.subjects(ops, scope.sides, scope.dtypes)
    more = tuple(s for s in checked if s not in chosen)
    codes = []
    for code in read(InspectRequest(chosen + more, targets(scope.archs, None), lines=True, executed=not scope.quick)):
        send(("at", f"{code.op} on {code.side}, {code.name}, {code.dtype}, {code.arch}"))
        codes.append(code)
        send(("kernel", code.as_json() | {"source": _source(code)}))
    verdicts = bounds.hold(ops, scope.sides, codes)
    send(
        (
            "bounds",
            [
                {"op": v.op, "side": v.side, "bound": str(v.bound), "checked": v.checked, "broken": list(v.broken)}
                for v in verdicts
            ],
        )
    )


def _source(code: Code) -> list[list[dict[str, Any]]]:
    """The kernel's functions line by line with instruction counts, for the architecture that is shown with them."""
    shown = code.arch == "sm_90" and code.dtype == "bfloat16" and code.direction == FORWARD and code.variant == 1
    return [[asdict(line) for line in function] for function in source(code)] if shown else []
