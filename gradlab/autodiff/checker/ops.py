"""Checks an op of this package: every case against NumPy element by element, every part, and torch against jax."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradlab.autodiff.checker.core import finite_differences
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.core.probe import SENSITIVITY
from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.autodiff.checker.function import CheckPlan, FunctionCheck
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.frameworks.side import Side, as_tuple
from gradlab.kernels.spec import Arrays, OpCase, Spec

# These parts run on the case of most elements only: they are slow, and say nothing at a single element.
ONCE = ("facts", "contract", "precision", "edges")
DTYPES = ("float32", "float16", "bfloat16")


def check_op(op: Spec, sides: Sequence[Side], plan: CheckPlan, report: Report) -> None:
    """Check every case of an op on these sides, and compare the sides with each other."""
    cases = [op.at(case) for case in op.select("check")]
    largest = max(cases, key=lambda at: sum(map(math.prod, at.shapes()[0])))
    for at in cases:
        arrays = at.make(plan.seed)
        results = []
        for side in sides:
            with side.double():
                results.append((side.name, *_case(at, side, arrays, plan, at is largest, report)))
        _between_sides(at, results, report)


def _case(
    at: OpCase, side: Side, arrays: Arrays, plan: CheckPlan, largest: bool, report: Report
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One case on one side; its values and gradients."""
    op, case = at.spec, at.case
    fn = at.bind(side.op(op.name))
    put = [side.put(a, "float64") for a in arrays.values()]
    subject = CheckSubject(side, fn, put, {}, op.name, case.name, list(arrays), [a.name for a in at.results])
    subject.trusted = True
    subject.differentiate(list(at.wrt))
    parts = tuple(p for p in plan.parts if (largest or p not in ONCE) and p != "reference")
    op_plan = replace(
        plan,
        order=min(plan.order, op.order),
        dtypes=DTYPES if plan.dtypes is None else plan.dtypes,
        parts=parts,
        tiles=op.tiles or plan.tiles,
        saved_slope=op.saved_slope,
    )
    run = FunctionCheck(subject, op_plan, report)
    if not run.begin():
        return [], []
    if "reference" in plan.parts:
        with run.part("NumPy"):
            _against_numpy(at, run, arrays, report)
    run.parts(None)
    return run.cmp.values, [run.probe.gradients[i] for i in subject.wrt]


def _against_numpy(at: OpCase, run: FunctionCheck, arrays: Arrays, report: Report) -> None:
    """Values against the NumPy reference, gradients against differences of it, element by element."""
    given, names = list(arrays.values()), list(arrays)
    op, case, reference = at.spec, at.case, at.bind(at.spec.reference)
    wanted = [np.asarray(y, np.float64) for y in as_tuple(reference(*given))]
    tolerance = at.tolerance("float64")
    side = run.s.side.name
    for a, got, want in zip(at.results, run.cmp.values, wanted, strict=True):
        report.findings.append(compare(op.name, side, case.name, "value vs NumPy", a.name, got, want, 0.0, tolerance))
    cotangents = run.probe.cotangents
    for i in run.s.wrt:

        def weighted_sum(moved: np.ndarray, i: int = i) -> float:
            results = as_tuple(reference(*given[:i], moved, *given[i + 1 :]))
            return sum(float(np.sum(c * y)) for c, y in zip(cotangents, results, strict=True))

        want, error = finite_differences.gradient(weighted_sum, given[i])
        got = run.probe.gradients[i]
        check = "gradient vs finite differences of NumPy"
        found = compare(op.name, side, case.name, check, names[i], got, want, error, SENSITIVITY)
        report.findings.append(found)


def _between_sides(at: OpCase, results: list, report: Report) -> None:
    op, case = at.spec, at.case
    for one, other in itertools.pairwise(results):
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
        slack: absolute error of `wanted` itself, where it is an estimate by finite differences.
        relative: further error allowed, relative to the largest value or to 1.
    """
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1.0)
    if got.shape != wanted.shape:
        detail = f"has the shape {list(got.shape)}, wanted {list(wanted.shape)}"
        return Finding(check, WRONG, name, (), detail, {}, op, side, case)
    if got.size == 0:
        return Finding(check, OK, name, (), "empty", {"error": 0.0}, op, side, case)
    with np.errstate(invalid="ignore"):
        off = np.abs(got - wanted)
    off = np.where(np.isnan(got) & np.isnan(wanted) | (got == wanted), 0.0, off)
    off = np.where(np.isnan(off), np.inf, off)
    allowed = np.broadcast_to(slack + relative * scale, off.shape)
    worst = np.unravel_index(int(np.argmax(off - allowed)), off.shape)
    verdict = OK if off[worst] <= allowed[worst] else WRONG
    # Finite differences that do not converge (a kink, noise) prove nothing.
    if np.max(slack) > 1e-5 * scale and not np.isinf(off[worst]):
        verdict = INCONCLUSIVE
    numbers = {
        "error": float(off[worst] / scale),
        "allowed": float(allowed[worst] / scale),
        "got": float(got[worst]),
        "wanted": float(wanted[worst]),
    }
    margin = f"(error {numbers['error']:.1e}, allowed {numbers['allowed']:.1e})"
    detail = f"is {got[worst]:.10g}, wanted {wanted[worst]:.10g} {margin}"
    return Finding(check, verdict, name, tuple(int(i) for i in worst), detail, numbers, op, side, case)
