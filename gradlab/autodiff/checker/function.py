"""Runs every part of the check on one function of torch tensors or jax arrays."""

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.autodiff.checker.budget import Omitted, call_seconds, omitted
from gradlab.autodiff.checker.contract import common
from gradlab.autodiff.checker.contract.adjoint import finite, linear, replays
from gradlab.autodiff.checker.contract.side_effects import changed, state
from gradlab.autodiff.checker.core.comparison import Comparison, first_line, refuses
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, WRONG, Finding
from gradlab.autodiff.checker.core.internals import internals
from gradlab.autodiff.checker.core.options import Sizes, each_case, each_size, validate_tiles
from gradlab.autodiff.checker.core.probe import Probe, gradients, joined
from gradlab.autodiff.checker.core.subject import CheckSubject, subject
from gradlab.autodiff.checker.inputs.axis_lengths import at_sizes
from gradlab.autodiff.checker.inputs.generated import GeneratedInputs
from gradlab.autodiff.checker.inputs.reduced import reduced
from gradlab.autodiff.checker.precision.low_precision import lower, precision
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.checker.verdict.first_derivative import CHECK as DERIVATIVE
from gradlab.autodiff.checker.verdict.first_derivative import judge
from gradlab.autodiff.checker.verdict.reference import against_reference
from gradlab.autodiff.checker.verdict.second_derivative import second
from gradlab.autodiff.checker.verdict.small_elements import small_elements

PARTS = ("derivative", "facts", "contract", "second", "precision", "edges", "reference")


@dataclass
class CheckPlan:
    """The options of one check.

    Attributes:
        order: 1, or 2 for the second derivative too.
        seed: of random cotangents, directions and edge inputs.
        dtypes: low precisions to compare with float64; those of the arguments when None.
        parts: the parts that run, out of PARTS.
        tiles: by input, the tile of its gradient that one program writes.
        replays: repetitions of the same call; as many as fit into 20 ms when None.
        compiled: compare torch.compile with eager too, which takes seconds.
        budget: seconds; parts that start after it is spent do not run and are listed in a finding.
        saved_slope: what the precision part allows for results that are saved in a low dtype.
        raises: raise for bad arguments; otherwise they become a finding.
        complete: run every part even if the function is slow, until the budget is spent.
        sizes: further axis lengths at which the first derivative is checked.
        require_second: a missing second derivative is wrong, not a note.
        on_event: called with what runs next and the share of the budget that is spent.
    """

    order: int = 2
    seed: int = 0
    dtypes: Sequence[str] | None = None
    parts: Sequence[str] = PARTS
    tiles: Mapping[str, Sequence[int]] | None = None
    replays: int | None = None
    compiled: bool = False
    budget: float | None = None
    saved_slope: float = 0.0
    raises: bool = True
    complete: bool = False
    sizes: Sizes | None = None
    require_second: bool = False
    on_event: Callable[[str, float], None] = lambda what, spent: None
    start: float = field(default_factory=time.perf_counter)

    def spent(self) -> float:
        """The share of the budget spent since the plan was made; 0 without a budget."""
        return (time.perf_counter() - self.start) / self.budget if self.budget else 0.0


def check_function(
    fn: Callable[..., Any],
    args: Sequence[Any],
    reference: Callable[..., Any] | None,
    cases: Any,
    plan: CheckPlan,
    report: Report,
) -> None:
    """Check a function at its arguments, once for each case of its options."""
    for name, options in each_case(cases):
        try:
            made = subject(fn, args, options, name)
            _validate(made, plan)
            with made.side.double():
                _check(made, reference, plan, report)
        except (TypeError, ValueError) as error:
            if plan.raises or isinstance(error, Misused):
                raise
            op = getattr(fn, "__name__", type(fn).__name__)
            report.findings.append(Finding("arguments", INCONCLUSIVE, "", (), first_line(error), {}, op, "", name))


def _validate(s: CheckSubject, plan: CheckPlan) -> None:
    """Validate tiles and sizes; they are options of the check, so an error in them is raised even without `raises`."""
    try:
        validate_tiles(s, plan.tiles or {})
        each_size(s, plan.sizes or {})
    except ValueError as error:
        raise Misused(*error.args) from error


class Misused(ValueError):
    """An option of the check that does not fit the function."""


def _check(s: CheckSubject, reference: Callable[..., Any] | None, plan: CheckPlan, report: Report) -> None:
    run = FunctionCheck(s, plan, report)
    if not run.begin():
        return
    run.parts(reference)


class FunctionCheck:
    """One function in one case: the first calls, then every part of the check."""

    def __init__(self, s: CheckSubject, plan: CheckPlan, report: Report) -> None:
        self.s, self.plan, self.report = s, plan, report
        self.rng = np.random.default_rng([plan.seed, len(s.leaves)])
        self.skipped: list[str] = []
        self.omitted = Omitted()

    @contextmanager
    def part(self, name: str) -> Iterator[bool]:
        """Time a part; yields false when the part must not run."""
        if (name not in self.plan.parts and name in PARTS) or name in self.omitted.left_out:
            yield False
            return
        if self.plan.spent() >= 1:
            self.skipped.append(name)
            yield False
            return
        self.plan.on_event(f"{self.s.op} on {self.s.side.name}, {self.s.case}: {name}", self.plan.spent())
        start = time.perf_counter()
        try:
            yield True
        except Exception as error:
            # An error of the user's reference is raised; any other call was generated by the check.
            if name in ("reference", "NumPy"):
                raise
            self.cmp.record(name, INCONCLUSIVE, f"stopped: a call generated by the check raises {first_line(error)}")
        finally:
            self.report.seconds[name] = self.report.seconds.get(name, 0.0) + time.perf_counter() - start

    def begin(self) -> bool:
        """The first calls: results, side effects, determinism, time of a call; false when the check cannot go on."""
        s, plan = self.s, self.plan
        before = state(s.origin)
        start = time.perf_counter()
        values = self._first_values()
        if not values:
            raise ValueError(f"check: {s.op} returns {self._returned()}, wanted at least one float array")
        values = s.choose_program() if s.side.name == "jax" else values
        effects = changed(before, state(s.origin))
        each = time.perf_counter() - start
        if plan.budget is not None and 20 * each > plan.budget:
            raise ValueError(
                f"check: a call of {s.op} takes {each:.2g} s, budget is {plan.budget:.2g} s, "
                f"wanted at least {20 * each:.2g} s"
            )
        if effects:
            self._note(f"{s.op} has a side effect: it changes {', '.join(effects)}")
        self.probe = Probe(s, list(s.arrays), [], {}, joined(values), noise=s.noise)
        self.cmp = Comparison(self.probe, self.report.findings, self._note, self.rng, values)
        if not finite(self.cmp, s.results):
            return False
        for name, strange in zip(s.names, s.foreign, strict=True):
            if strange:
                self._note(f"{s.op}: {name} is {strange}: a constant to the check")
        if not self._recorded():
            return False
        if not s.trusted:
            s.internals = internals(s.side.name, s.flat, s.put(s.arrays))
        with self.part("facts") as runs:
            return not runs or replays(self.cmp, plan.replays)

    def _recorded(self) -> bool:
        """The first gradients, of the results and for the inputs that have one; false when there is none."""
        s, cmp = self.s, self.cmp
        try:
            self._gradients()
        except Exception as error:
            takes = [i for i in s.wrt if self._takes_gradient(i)] if len(s.wrt) > 1 else []
            if not 0 < len(takes) < len(s.wrt):
                cmp.record("gradient", *self._refusal(error))
                return False
            refused = ", ".join(s.names[i] for i in s.wrt if i not in takes)
            self._note(
                f"{s.op}: no gradient exists for {refused}, which are constants in this check ({first_line(error, 90)})"
            )
            s.restrict(takes)
            self._gradients()
        if not self.probe.cotangents:
            cmp.record("gradient", INCONCLUSIVE, "no result requires a gradient: all are detached, nothing to check")
        return bool(self.probe.cotangents)

    def _gradients(self) -> None:
        """Random cotangents for the results that require a gradient, and their pullback."""
        s = self.s
        self.forwards = False
        without = s.without_gradient()
        self.forwards = True
        if without:
            values = s.values(s.arrays) if s.differentiable else []
            self._note(
                f"{s.op}: results without a gradient, which are not checked: result {', '.join(map(str, without))}"
            )
            self.cmp.values = values
            self.probe.middle = joined(values) if values else np.zeros(0)
        self.probe.noise = s.noise
        drawn = [self.rng.standard_normal(y.shape) for y in self.cmp.values]
        self.probe.cotangents = [s.side.take(c) for c in s.put_like_results(drawn)]
        if drawn:
            start = time.perf_counter()
            self.probe.gradients = gradients(s, self.probe.arrays, self.probe.cotangents)
            if not (self.plan.complete or self.plan.budget or s.trusted):
                again = functools.partial(gradients, s, self.probe.arrays, self.probe.cotangents)
                self.omitted = omitted(call_seconds(start, again))

    def _takes_gradient(self, i: int) -> bool:
        s = self.s
        try:
            if not any(s.side.differentiable(s.flat, s.put(s.arrays), [i])):
                return True
            cotangents = s.put_like_results([np.ones(y.shape) for y in self.cmp.values])
            s.side.pullback(s.flat, [i])(s.put(s.arrays), cotangents)
        except Exception:
            return False
        return True

    def _refusal(self, error: Exception) -> tuple[str, str]:
        """Verdict and text for a gradient that raises: an error of the backward, or a function without one."""
        text = first_line(error)
        if not self.forwards:
            return INCONCLUSIVE, f"the function cannot be differentiated: {text}"
        if refuses(error):
            return INCONCLUSIVE, f"the function has no gradient: {text}"
        return WRONG, f"raises {text}"

    def parts(self, reference: Callable[..., Any] | None) -> None:
        s, plan, cmp = self.s, self.plan, self.cmp
        with self.part("derivative") as runs:
            if runs:
                # One direction for large inputs, where calls cost most: it misses an error of 1e-6 of the norm once in
                # ten.
                times = 2 if self.reduced is None else 1
                self.report.views += judge(
                    self.probe, self.rng, self.report.findings.append, tiles=plan.tiles, at_once=times
                )
        sound = all(np.isfinite(g).all() for g in self.probe.gradients.values())
        if sound:
            with self.part("facts") as runs:
                if runs:
                    linear(self.reduced or cmp)
            rules = importlib.import_module(f"gradlab.autodiff.checker.contract.contract_{s.side.name}")
            with self.part("contract") as runs:
                if runs:
                    rules.contract(cmp, at_size=self.reduced is not None)
                    if self.reduced is not None:
                        rules.contract(self.reduced)
                    common.contract(self.reduced or cmp, rules.has_rule(cmp))
                    small_elements(
                        self.reduced or cmp, {f.input for f in cmp.findings_of(DERIVATIVE) if f.verdict == WRONG}
                    )
                    if plan.compiled:
                        rules.compiled(self.reduced or cmp)
            if plan.sizes:
                with self.part("sizes") as runs:
                    if runs:
                        at_sizes(cmp, each_size(s, plan.sizes), rules.contract)
            vague = [f for f in cmp.findings_of(DERIVATIVE) if f.verdict == INCONCLUSIVE]
            if plan.order == 2 and vague:
                self._note(
                    f"{s.op}: the second derivative is not checked: finite differences of the first do not converge"
                )
            elif plan.order == 2 and any(s.arrays[i].size for i in s.wrt):
                with self.part("second") as runs:
                    if runs:
                        second(cmp, self.rng, self.reduced, plan.require_second or s.trusted)
            with self.part("precision") as runs:
                for dtype in lower(s, plan.dtypes) if runs else ():
                    precision(cmp, dtype, plan.saved_slope)
            with self.part("edges") as runs:
                if runs:
                    generated = GeneratedInputs(cmp, plan, self.omitted.edges)
                    generated.check(rules.empty, rules.has_rule(cmp))
                    self.skipped += generated.skipped
        if reference is not None:
            with self.part("reference") as runs:
                if runs:
                    against_reference(cmp, reference, self.rng)
        if self.omitted.note(tuple(plan.parts)):
            self._note(f"{s.op}: {self.omitted.note(tuple(plan.parts))}")
        if self.skipped:
            cmp.record(
                "budget",
                INCONCLUSIVE,
                f"the budget of {plan.budget:g} s is spent; not checked: {', '.join(self.skipped)}",
            )

    @functools.cached_property
    def reduced(self) -> Comparison | None:
        """The comparison at reduced inputs, where the given ones are large."""
        return reduced(self.cmp)

    def _first_values(self) -> list[np.ndarray]:
        """The values in float64; where the function takes no float64, in float32 or its arguments' dtype; without jit
        if need be."""
        s = self.s
        try:
            return s.values(s.arrays)
        except Exception as error:
            first = error
        if s.side.name == "jax":
            s.set_eager()
            try:
                values = s.values(s.arrays)
            except Exception:
                s.set_eager(False)
            else:
                self._note(f"{s.op}: does not run under jit ({first_line(first, 90)})")
                return values
        for dtype in dict.fromkeys(("float32", s.dtype)) if s.dtype != "float64" else ():
            s.working_dtype = dtype
            try:
                values = s.values(s.arrays)
            except Exception:
                continue
            self._note(f"{s.op} takes no float64: finite differences are taken in {s.working_dtype}, at its accuracy")
            return values
        raise ValueError(
            f"check: {s.op} raises {first_line(first)}, wanted a function that runs at its arguments"
        ) from first

    def _note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)

    def _returned(self) -> str:
        s = self.s
        found, _, _ = s.side.flatten(s.fn(*s.args, **s.options))
        return ", ".join(s.side.dtype(y) or type(y).__name__ for y in found) or "nothing"
