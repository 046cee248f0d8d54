"""An op of the lab: every case against NumPy, element by element, through the parts, and both sides together."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradlab.autodiff.checker.core import differences
from gradlab.autodiff.checker.core.derivative import SENSITIVITY
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.autodiff.checker.function import Plan, Run
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.frameworks.side import Side, as_tuple
from gradlab.kernels.spec import Arrays, OpCase, Spec

# Judged on the case of the most elements: promises and precisions are slow to hold, and empty at a single element.
ONCE = ("facts", "contract", "precision", "edges")
DTYPES = ("float32", "float16", "bfloat16")


def check_op(op: Spec, sides: Sequence[Side], plan: Plan, report: Report) -> None:
    """Check every case of an op on these sides, and the sides against each other."""
    cases = [op.at(case) for case in op.select("check")]
    largest = max(cases, key=lambda at: sum(map(math.prod, at.shapes()[0])))
    for at in cases:
        arrays = at.make(plan.seed)
        seen = []
        for side in sides:
            with side.double():
                seen.append((side.name, *_case(at, side, arrays, plan, at is largest, report)))
        _between_sides(at, seen, report)


def _case(
    at: OpCase, side: Side, arrays: Arrays, plan: Plan, whole: bool, report: Report
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One case on one side; its values and gradients."""
    op, case = at.spec, at.case
    fn = at.bind(side.op(op.name))
    put = [side.put(a, "float64") for a in arrays.values()]
    subject = Subject(side, fn, put, {}, op.name, case.name, list(arrays), [a.name for a in at.results])
    subject.trusted = True
    subject.differentiate(list(at.wrt))
    parts = tuple(p for p in plan.parts if (whole or p not in ONCE) and p != "reference")
    own = replace(
        plan,
        order=min(plan.order, op.order),
        dtypes=DTYPES if plan.dtypes is None else plan.dtypes,
        parts=parts,
        tiles=op.tiles or plan.tiles,
        saved_slope=op.saved_slope,
    )
    run = Run(subject, own, report)
    if not run.begin():
        return [], []
    if "reference" in plan.parts:
        with run.part("NumPy"):
            _against_numpy(at, run, arrays, report)
    run.parts(None)
    return run.p.values, [run.probe.gradients[i] for i in subject.wrt]


def _against_numpy(at: OpCase, run: Run, arrays: Arrays, report: Report) -> None:
    """Values against the NumPy reference, gradients against differences of it, element by element."""
    given, names = list(arrays.values()), list(arrays)
    op, case, reference = at.spec, at.case, at.bind(at.spec.reference)
    wanted = [np.asarray(y, np.float64) for y in as_tuple(reference(*given))]
    tolerance = at.tolerance("float64")
    side = run.s.side.name
    for a, got, want in zip(at.results, run.p.values, wanted, strict=True):
        report.findings.append(compare(op.name, side, case.name, "value vs NumPy", a.name, got, want, 0.0, tolerance))
    cotangents = run.probe.cotangents
    for i in run.s.wrt:

        def paired(moved: np.ndarray, i: int = i) -> float:
            results = as_tuple(reference(*given[:i], moved, *given[i + 1 :]))
            return sum(float(np.sum(c * y)) for c, y in zip(cotangents, results, strict=True))

        want, error = differences.gradient(paired, given[i])
        got = run.probe.gradients[i]
        check = "gradient vs finite differences of NumPy"
        found = compare(op.name, side, case.name, check, names[i], got, want, error, SENSITIVITY)
        report.findings.append(found)


def _between_sides(at: OpCase, seen: list, report: Report) -> None:
    op, case = at.spec, at.case
    for one, other in itertools.pairwise(seen):
        label = f"{one[0]} and {other[0]}"
        # Each side may be off by the tolerance.
        allowed = 2 * at.tolerance("float64")
        for a, x, y in zip(at.results, one[1], other[1], strict=False):
            report.findings.append(
                compare(op.name, label, case.name, "value, torch vs jax", a.name, x, y, 0.0, allowed)
            )
        wrt = [at.inputs[i].name for i in at.wrt]
        for name, x, y in zip(wrt, one[2], other[2], strict=False):
            found = compare(op.name, label, case.name, "gradient, torch vs jax", name, x, y, 0.0, allowed)
            report.findings.append(found)


def compare(
    op: str,
    side: str,
    case: str,
    check: str,
    name: str,
    got: np.ndarray,
    wanted: np.ndarray,
    slack: np.ndarray | float,
    relative: float,
) -> Finding:
    """Judge `got` against `wanted`, elementwise.

    Args:
        slack: absolute error that `wanted` may have itself (an estimate by differences).
        relative: error allowed beside it, relative to the largest value or to 1.
    """
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1.0)
    if got.shape != wanted.shape:
        said = f"has the shape {list(got.shape)}, wanted {list(wanted.shape)}"
        return Finding(check, WRONG, name, (), said, {}, op, side, case)
    if got.size == 0:
        return Finding(check, OK, name, (), "empty", {"error": 0.0}, op, side, case)
    with np.errstate(invalid="ignore"):
        off = np.abs(got - wanted)
    off = np.where(np.isnan(got) & np.isnan(wanted) | (got == wanted), 0.0, off)
    off = np.where(np.isnan(off), np.inf, off)
    allowed = np.broadcast_to(slack + relative * scale, off.shape)
    worst = np.unravel_index(int(np.argmax(off - allowed)), off.shape)
    verdict = OK if off[worst] <= allowed[worst] else WRONG
    # Differences that do not settle (a kink, noise) prove nothing either way.
    if np.max(slack) > 1e-5 * scale and not np.isinf(off[worst]):
        verdict = INCONCLUSIVE
    numbers = {
        "error": float(off[worst] / scale),
        "allowed": float(allowed[worst] / scale),
        "got": float(got[worst]),
        "wanted": float(wanted[worst]),
    }
    margin = f"(error {numbers['error']:.1e}, allowed {numbers['allowed']:.1e})"
    said = f"is {got[worst]:.10g}, wanted {wanted[worst]:.10g} {margin}"
    return Finding(check, verdict, name, tuple(int(i) for i in worst), said, numbers, op, side, case)
