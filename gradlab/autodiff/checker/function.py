"""Any function of torch tensors or jax arrays, through every part of the check."""

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.autodiff.checker.budget import Worth, took, worth
from gradlab.autodiff.checker.contract import both
from gradlab.autodiff.checker.contract.facts import finite, linear, replays
from gradlab.autodiff.checker.contract.state import changed, state
from gradlab.autodiff.checker.core.comparison import Promises, first_line, refuses
from gradlab.autodiff.checker.core.derivative import Probe, gradients, joined
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, WRONG, Finding
from gradlab.autodiff.checker.core.inside import inside
from gradlab.autodiff.checker.core.request import Sizes, each_case, each_size, want_tiles
from gradlab.autodiff.checker.core.subject import Subject, subject
from gradlab.autodiff.checker.inputs.light import light
from gradlab.autodiff.checker.inputs.made_up import MadeUp
from gradlab.autodiff.checker.inputs.sizes import at_sizes
from gradlab.autodiff.checker.precision.precision import lower, precision
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.checker.verdict.agreement import agreement
from gradlab.autodiff.checker.verdict.hidden import hidden
from gradlab.autodiff.checker.verdict.judge import CHECK as DERIVATIVE
from gradlab.autodiff.checker.verdict.judge import judge
from gradlab.autodiff.checker.verdict.second import second

PARTS = ("derivative", "facts", "contract", "second", "precision", "edges", "reference")


@dataclass
class Plan:
    """What is asked of a check.

    Attributes:
        order: 1, or 2 for the second derivative too.
        seed: of cotangents, directions and edge inputs.
        dtypes: low precisions to judge; those of the arguments when None.
        parts: of PARTS, those that run.
        tiles: by input, the tile of its gradient that one program owns.
        replays: of the same call; as many as fit into a moment when None.
        compiled: hold torch.compile against eager too, which takes seconds.
        budget: seconds; parts that find it spent do not run, and that is said.
        saved_slope: what `precision` allows for results that are saved in a low dtype.
        raises: raise what the arguments do wrong; a finding otherwise.
        all_of_it: nothing is left out of a function whose calls are slow, unless the budget is spent.
        sizes: axis lengths that the caller names, where the first derivative is judged as well.
        asked_second: a second derivative that does not exist is wrong, not a note.
        started: called with what runs next and the part of the budget that is spent.
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
    all_of_it: bool = False
    sizes: Sizes | None = None
    asked_second: bool = False
    started: Callable[[str, float], None] = lambda what, spent: None
    begun: float = field(default_factory=time.perf_counter)

    def spent(self) -> float:
        """Seconds since the plan was made, as a part of the budget; 0 without one."""
        return (time.perf_counter() - self.begun) / self.budget if self.budget else 0.0


def check_function(
    fn: Callable[..., Any],
    args: Sequence[Any],
    reference: Callable[..., Any] | None,
    cases: Any,
    plan: Plan,
    report: Report,
) -> None:
    """Check a function at its arguments, once for each case of its options."""
    for name, options in each_case(cases):
        try:
            made = subject(fn, args, options, name)
            _want_known(made, plan)
            with made.side.double():
                _check(made, reference, plan, report)
        except (TypeError, ValueError) as error:
            if plan.raises or isinstance(error, Misused):
                raise
            op = getattr(fn, "__name__", type(fn).__name__)
            report.findings.append(Finding("arguments", INCONCLUSIVE, "", (), first_line(error), {}, op, "", name))


def _want_known(s: Subject, plan: Plan) -> None:
    """Tiles and sizes are the caller's, not the function's: what they get wrong is raised whatever is asked for."""
    try:
        want_tiles(s, plan.tiles or {})
        each_size(s, plan.sizes or {})
    except ValueError as error:
        raise Misused(*error.args) from error


class Misused(ValueError):
    """An argument of the check that does not go with the function."""


def _check(s: Subject, reference: Callable[..., Any] | None, plan: Plan, report: Report) -> None:
    run = Run(s, plan, report)
    if not run.begin():
        return
    run.parts(reference)


class Run:
    """One subject's way through the parts."""

    def __init__(self, s: Subject, plan: Plan, report: Report) -> None:
        self.s, self.plan, self.report = s, plan, report
        self.rng = np.random.default_rng([plan.seed, len(s.leaves)])
        self.skipped: list[str] = []
        self.worth = Worth()

    @contextmanager
    def part(self, name: str) -> Iterator[bool]:
        """Times a part; false when it is not to run."""
        if (name not in self.plan.parts and name in PARTS) or name in self.worth.left_out:
            yield False
            return
        if self.plan.spent() >= 1:
            self.skipped.append(name)
            yield False
            return
        self.plan.started(f"{self.s.op} on {self.s.side.name}, {self.s.case}: {name}", self.plan.spent())
        start = time.perf_counter()
        try:
            yield True
        except Exception as error:
            # The reference is the user's, who has to know; all else is a call that the check made up.
            if name in ("reference", "NumPy"):
                raise
            self.p.say(name, INCONCLUSIVE, f"stopped: a call that the check made raises {first_line(error)}")
        finally:
            self.report.seconds[name] = self.report.seconds.get(name, 0.0) + time.perf_counter() - start

    def begin(self) -> bool:
        """First calls: what comes out, whether always the same, what one costs; false when it cannot go on."""
        s, plan = self.s, self.plan
        before = state(s.origin)
        start = time.perf_counter()
        values = self._first_values()
        if not values:
            raise ValueError(f"check: {s.op} returns {self._returned()}, wanted at least one float array")
        values = s.settled() if s.side.name == "jax" else values
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
        self.p = Promises(self.probe, self.report.findings, self._note, self.rng, values)
        if not finite(self.p, s.results):
            return False
        for name, strange in zip(s.names, s.foreign, strict=True):
            if strange:
                self._note(f"{s.op}: {name} is {strange}: a constant to the check")
        if not self._recorded():
            return False
        if not s.trusted:
            s.inside = inside(s.side.name, s.flat, s.put(s.arrays))
        with self.part("facts") as runs:
            return not runs or replays(self.p, plan.replays)

    def _recorded(self) -> bool:
        """The first gradients, of those results and for those inputs that have one; false when there are none."""
        s, p = self.s, self.p
        try:
            self._gradients()
        except Exception as error:
            takes = [i for i in s.wrt if self._takes_gradient(i)] if len(s.wrt) > 1 else []
            if not 0 < len(takes) < len(s.wrt):
                p.say("gradient", *self._refusal(error))
                return False
            refused = ", ".join(s.names[i] for i in s.wrt if i not in takes)
            self._note(f"{s.op}: takes no gradient for {refused}, a constant here ({first_line(error, 90)})")
            s.only(takes)
            self._gradients()
        if not self.probe.cotangents:
            p.say("gradient", INCONCLUSIVE, "no result has a gradient: all are detached, nothing to check")
        return bool(self.probe.cotangents)

    def _gradients(self) -> None:
        """Cotangents for the results that have a gradient, and their pullback."""
        s = self.s
        self.forwards = False
        without = s.without_gradient()
        self.forwards = True
        if without:
            values = s.values(s.arrays) if s.kept else []
            self._note(f"{s.op}: without a gradient, so not judged: result {', '.join(map(str, without))}")
            self.p.values = values
            self.probe.middle = joined(values) if values else np.zeros(0)
        self.probe.noise = s.noise
        drawn = [self.rng.standard_normal(y.shape) for y in self.p.values]
        self.probe.cotangents = [s.side.take(c) for c in s.put_like_results(drawn)]
        if drawn:
            start = time.perf_counter()
            self.probe.gradients = gradients(s, self.probe.arrays, self.probe.cotangents)
            if not (self.plan.all_of_it or self.plan.budget or s.trusted):
                again = functools.partial(gradients, s, self.probe.arrays, self.probe.cotangents)
                self.worth = worth(took(start, again))

    def _takes_gradient(self, i: int) -> bool:
        s = self.s
        try:
            if not any(s.side.differentiable(s.flat, s.put(s.arrays), [i])):
                return True
            cotangents = s.put_like_results([np.ones(y.shape) for y in self.p.values])
            s.side.pullback(s.flat, [i])(s.put(s.arrays), cotangents)
        except Exception:
            return False
        return True

    def _refusal(self, error: Exception) -> tuple[str, str]:
        """What a gradient that cannot be had is: a fault of the backward, or a function that has none."""
        text = first_line(error)
        if not self.forwards:
            return INCONCLUSIVE, f"the function cannot be differentiated: {text}"
        if refuses(error):
            return INCONCLUSIVE, f"the function has no gradient: {text}"
        return WRONG, f"raises {text}"

    def parts(self, reference: Callable[..., Any] | None) -> None:
        s, plan, p = self.s, self.plan, self.p
        with self.part("derivative") as runs:
            if runs:
                # Of a large function one, where calls cost most: a fault of 1e-6 of the norm hides from it once in ten.
                times = 2 if self.light is None else 1
                self.report.views += judge(
                    self.probe, self.rng, self.report.findings.append, tiles=plan.tiles, at_once=times
                )
        sound = all(np.isfinite(g).all() for g in self.probe.gradients.values())
        if sound:
            with self.part("facts") as runs:
                if runs:
                    linear(self.light or p)
            rules = importlib.import_module(f"gradlab.autodiff.checker.contract.contract_{s.side.name}")
            with self.part("contract") as runs:
                if runs:
                    rules.contract(p, at_size=self.light is not None)
                    if self.light is not None:
                        rules.contract(self.light)
                    both.contract(self.light or p, rules.ruled(p))
                    hidden(self.light or p, {f.input for f in p.said(DERIVATIVE) if f.verdict == WRONG})
                    if plan.compiled:
                        rules.compiled(self.light or p)
            if plan.sizes:
                with self.part("sizes") as runs:
                    if runs:
                        at_sizes(p, each_size(s, plan.sizes), rules.contract)
            told = [f for f in p.said(DERIVATIVE) if f.verdict == INCONCLUSIVE]
            if plan.order == 2 and told:
                self._note(f"{s.op}: second derivative not looked at, differences do not settle for the first")
            elif plan.order == 2 and any(s.arrays[i].size for i in s.wrt):
                with self.part("second") as runs:
                    if runs:
                        second(p, self.rng, self.light, plan.asked_second or s.trusted)
            with self.part("precision") as runs:
                for dtype in lower(s, plan.dtypes) if runs else ():
                    precision(p, dtype, plan.saved_slope)
            with self.part("edges") as runs:
                if runs:
                    made_up = MadeUp(p, plan, self.worth.edges)
                    made_up.look(rules.empty, rules.ruled(p))
                    self.skipped += made_up.skipped
        if reference is not None:
            with self.part("reference") as runs:
                if runs:
                    agreement(p, reference, self.rng)
        if self.worth.said(tuple(plan.parts)):
            self._note(f"{s.op}: {self.worth.said(tuple(plan.parts))}")
        if self.skipped:
            p.say("budget", INCONCLUSIVE, f"{plan.budget:g} s are spent; not looked at: {', '.join(self.skipped)}")

    @functools.cached_property
    def light(self) -> Promises | None:
        """The promises at a cut of large inputs."""
        return light(self.p)

    def _first_values(self) -> list[np.ndarray]:
        """In float64, or where it takes none in float32, or in the arguments' lowest; without jit where it must."""
        s = self.s
        try:
            return s.values(s.arrays)
        except Exception as error:
            first = error
        if s.side.name == "jax":
            s.eagerly()
            try:
                values = s.values(s.arrays)
            except Exception:
                s.eagerly(False)
            else:
                self._note(f"{s.op}: does not run under jit ({first_line(first, 90)})")
                return values
        for dtype in dict.fromkeys(("float32", s.dtype)) if s.dtype != "float64" else ():
            s.working = dtype
            try:
                values = s.values(s.arrays)
            except Exception:
                continue
            self._note(f"{s.op} takes no float64: differences are of {s.working}, and no surer than that")
            return values
        raise ValueError(f"check: {s.op} raises {first_line(first)}") from first

    def _note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)

    def _returned(self) -> str:
        s = self.s
        found, _, _ = s.side.flatten(s.fn(*s.args, **s.options))
        return ", ".join(s.side.dtype(y) or type(y).__name__ for y in found) or "nothing"
