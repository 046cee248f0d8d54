"""The check: an op or any function against NumPy, its gradients against differences, both sides against each other.

One comparison a kind, for each case: values against the reference; the gradient against differences of the reference,
element by element; the gradient against differences of the function itself, along random directions; the second
derivative against differences of the gradient. Differences come with their own error estimate, so that nothing here is
tuned by hand: a gradient is wrong when it is further from them than that estimate and 1e-7 of its largest value.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradlab.autodiff import check_differences as differences
from gradlab.autodiff.check_report import GradientError, Report, compare
from gradlab.autodiff.side import SIDES, Side, as_tuple, installed
from gradlab.autodiff.side import side as side_of
from gradlab.kernels.spec import Case, Spec, spec, specs

SENSITIVITY = 1e-7
# Random directions an input: for the gradient, and for the second derivative, whose every step is a whole pullback.
DIRECTIONS, DIRECTIONS_SECOND = 2, 1


def check(target: str | Callable[..., Any] | None = None, *args: Any, side: str | Sequence[str] | None = None,
          reference: Callable[..., Any] | None = None, order: int = 2, seed: int = 0, raises: bool = True,
          started: Callable[[str], None] = lambda what: None) -> Report:  # fmt: skip
    """Prove the gradients of an op of the lab, or of any function of torch tensors or jax arrays.

    Args:
        target: an op's name, None for every op, or a function.
        args: for a function: its arguments, float64; integer arrays are constants.
        side: for an op: "torch", "jax" or several; all that are installed when not given.
        reference: for a function: the same in NumPy, compared with by value and by differences.
        order: 1 for the gradient, 2 for the second derivative too.
        seed: of the inputs, cotangents and directions.
        raises: raise instead of returning a report that is not true.
        started: called with a line before each case, for a progress display.

    Returns:
        A Report: prints as a table, true when all is well, `.findings` holds every comparison.

    Raises:
        GradientError: something is not ok, and `raises`.
        ValueError: an unknown op or side, no float64 argument, an order other than 1 or 2.
        TypeError: arguments that are not arrays of one framework.
    """
    if order not in (1, 2):
        raise ValueError(f"check: order is {order!r}, wanted 1 or 2")
    report = Report()
    if target is None or isinstance(target, str):
        chosen = specs().values() if target is None else [spec(target)]
        names = installed() if side is None else (side,) if isinstance(side, str) else tuple(side)
        for one in chosen:
            _check_op(one, [side_of(name) for name in names], order, seed, report, started)
    else:
        _check_function(target, args, reference, order, seed, report)
    if raises and not report:
        raise GradientError(report.wrong()[0].message)
    return report


def _check_op(op: Spec, sides: Sequence[Side], order: int, seed: int, report: Report,
              started: Callable[[str], None]) -> None:  # fmt: skip
    for case in op.select("check"):
        arrays = op.make(case, seed)
        options = op.options(case)
        names = list(arrays)
        wrt = [i for i, name in enumerate(names) if name in op.wrt]
        outputs = [a.name for a in op.outputs]
        reference = functools.partial(op.reference, **options)
        seen = []
        for side in sides:
            started(f"{op.name} on {side.name}: {case.name}")
            with side.double():
                fn = functools.partial(side.op(op.name), **options)
                run = _Run(op.name, side, case.name, fn, names, wrt, outputs, seed, report)
                put = [side.put(a, "float64") for a in arrays.values()]
                run.against_reference(put, reference, op.tolerance(case, "float64"))
                run.against_itself(put)
                if order == 2 and op.order >= 2:
                    run.second(put)
                seen.append((side.name, run.values(put), run.gradients(put)))
        _between_sides(op, case, seen, names, wrt, outputs, report)


def _between_sides(op: Spec, case: Case, seen: list, names: list[str], wrt: list[int], outputs: list[str],
                   report: Report) -> None:  # fmt: skip
    for one, other in itertools.pairwise(seen):
        label = f"{one[0]} and {other[0]}"
        # Each side may be off by the tolerance.
        allowed = 2 * op.tolerance(case, "float64")
        for name, a, b in zip(outputs, one[1], other[1], strict=True):
            report.findings.append(
                compare(op.name, label, case.name, "value, side by side", name, a, b, 0.0, allowed, 1.0)
            )
        for i, a, b in zip(wrt, one[2], other[2], strict=True):
            found = compare(op.name, label, case.name, "grad, side by side", names[i], a, b, 0.0, allowed, 1.0)
            report.findings.append(found)


def _check_function(fn: Callable[..., Any], args: Sequence[Any], reference: Callable[..., Any] | None, order: int,
                    seed: int, report: Report) -> None:  # fmt: skip
    side = _side_of_arrays(args)
    with side.double():
        arrays = [side.take(a) for a in args]
        wrt = [i for i, a in enumerate(args) if str(a.dtype).endswith("float64")]
        if not wrt:
            dtypes = ", ".join(str(a.dtype) for a in args)
            raise ValueError(f"check: arguments are of {dtypes or 'no dtype at all'}, wanted at least one of float64")
        count = len(as_tuple(fn(*args)))
        names = [f"argument {i}" for i in range(len(args))]
        outputs = ["result"] if count == 1 else [f"result {k}" for k in range(count)]
        name = getattr(fn, "__name__", type(fn).__name__)
        run = _Run(name, side, "given", fn, names, wrt, outputs, seed, report)
        put = [side.put(a, "float64") for a in arrays]
        if reference is not None:
            terms = max(a.size for a in arrays)
            run.against_reference(put, reference, (8 + terms) * 2.0**-53)
        run.against_itself(put)
        if order == 2:
            run.second(put)


def _side_of_arrays(args: Iterable[Any]) -> Side:
    found = {type(a).__module__.split(".")[0].replace("jaxlib", "jax") for a in args}
    if len(found) != 1 or not found <= set(SIDES):
        raise TypeError(
            f"check: arguments are of {', '.join(sorted(found)) or 'nothing'}, wanted torch tensors or jax arrays"
        )
    return side_of(found.pop())


class _Run:
    """One function on one side at one point; appends what it finds to the report."""

    def __init__(self, op: str, side: Side, case: str, fn: Callable[..., Any], names: list[str], wrt: list[int],
                 outputs: list[str], seed: int, report: Report) -> None:  # fmt: skip
        self.op, self.side, self.case, self.names, self.wrt, self.outputs = op, side, case, names, wrt, outputs
        self.report = report
        self.rng = np.random.default_rng([seed, len(names), len(case)])
        self.pulled = side.pullback(fn, wrt)
        self.fn = side.quick(lambda *a: as_tuple(fn(*a)))
        self.vjp = side.quick(lambda a, c: self.pulled(a, c))
        self._cotangents: list[np.ndarray] | None = None

    def values(self, put: Sequence[Any]) -> list[np.ndarray]:
        return [self.side.take(y) for y in self.fn(*put)]

    def cotangents(self, put: Sequence[Any]) -> list[np.ndarray]:
        """The random cotangent of each result, the same for every comparison of this run."""
        if self._cotangents is None:
            self._cotangents = [self.rng.standard_normal(y.shape) for y in self.values(put)]
        return self._cotangents

    def gradients(self, put: Sequence[Any]) -> list[np.ndarray]:
        return [self.side.take(g) for g in self.vjp(tuple(put), self._put(self.cotangents(put)))]

    def against_reference(self, put: Sequence[Any], reference: Callable[..., Any], tolerance: float) -> None:
        arrays = [self.side.take(a) for a in put]
        wanted = [np.asarray(y, np.float64) for y in as_tuple(reference(*arrays))]
        for name, got, want in zip(self.outputs, self.values(put), wanted, strict=True):
            self._judge("value ~ NumPy", name, got, want, 0.0, tolerance)
        cotangents = self.cotangents(put)
        for i, got in zip(self.wrt, self.gradients(put), strict=True):

            def paired(moved: np.ndarray, i: int = i) -> float:
                results = as_tuple(reference(*arrays[:i], moved, *arrays[i + 1 :]))
                return sum(float(np.sum(c * y)) for c, y in zip(cotangents, results, strict=True))

            want, error = differences.gradient(paired, arrays[i])
            self._judge("grad ~ FD of NumPy", self.names[i], got, want, error, SENSITIVITY)

    def against_itself(self, put: Sequence[Any]) -> None:
        cotangents = self.cotangents(put)
        for i, gradient in zip(self.wrt, self.gradients(put), strict=True):

            def paired(moved: Sequence[Any]) -> np.ndarray:
                results = (self.side.take(y) for y in self.fn(*moved))
                return np.asarray(sum(np.sum(c * y) for c, y in zip(cotangents, results, strict=True)))

            self._along("grad ~ FD of itself", self.names[i], put, i, gradient, paired)

    def second(self, put: Sequence[Any]) -> None:
        """Pull random cotangents back through the pullback, with the first cotangents constant and then moving too."""
        cotangents = self._put(self.cotangents(put))
        weights = [self.rng.standard_normal(g.shape) for g in self.gradients(put)]
        count = len(put)

        def pulled_back(*flat: Any) -> tuple[Any, ...]:
            return self.pulled(flat[:count], flat[count:])

        whole = (*put, *cotangents)
        moving = [*self.wrt, *range(count, len(whole))]
        names = [*self.names, *(f"d{name}" for name in self.outputs)]
        first = self.side.quick(pulled_back)
        for wrt in (self.wrt, moving):
            check = "2nd ~ FD of grad" + (", dy too" if wrt is moving else "")
            vjp = self.side.quick(lambda a, c, wrt=wrt: self.side.pullback(pulled_back, wrt)(a, c))
            for i, got in zip(wrt, vjp(whole, self._put(weights)), strict=True):

                def paired(moved: Sequence[Any]) -> np.ndarray:
                    gradients = (self.side.take(g) for g in first(*moved))
                    return np.asarray(sum(np.sum(w * g) for w, g in zip(weights, gradients, strict=True)))

                self._along(check, names[i], whole, i, self.side.take(got), paired, DIRECTIONS_SECOND)

    def _along(self, check: str, name: str, put: Sequence[Any], i: int, gradient: np.ndarray,
               paired: Callable[[Sequence[Any]], np.ndarray], directions: int = DIRECTIONS) -> None:  # fmt: skip
        """Compare <gradient, d> with differences along random directions d of +-1 in argument i."""
        at = self.side.take(put[i])
        got, want, error = [], [], []
        for _ in range(directions):
            d = self.rng.choice([-1.0, 1.0], at.shape)

            def line(t: float, d: np.ndarray = d) -> np.ndarray:
                return paired([*put[:i], self.side.put(at + t * d, "float64"), *put[i + 1 :]])

            value, estimate = differences.along(line)
            got.append(np.sum(gradient * d))
            want.append(value)
            error.append(estimate)
        self._judge(check, name, np.array(got), np.array(want), np.array(error), SENSITIVITY)

    def _judge(self, check: str, name: str, got: np.ndarray, wanted: np.ndarray, slack: Any, relative: float) -> None:
        found = compare(self.op, self.side.name, self.case, check, name, got, wanted, slack, relative, 1.0)
        self.report.findings.append(found)

    def _put(self, arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
        return tuple(self.side.put(a, "float64") for a in arrays)
