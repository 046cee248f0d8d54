"""The verdict on one edge input, and the summary over all of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core.comparison import first_line
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.core.probe import Probe, gradients, joined
from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.autodiff.checker.inputs.reproducer import with_reproducer
from gradlab.autodiff.checker.verdict.first_derivative import judge

CHECK = "edge inputs"
# If the gradient at the given inputs has a small inconclusive error (at most LITTLE, as of an iterative solver), then
# an error up to MORE times that is inconclusive at an edge.
MORE, LITTLE = 1e3, 1e-6
# A relative error of the reported element this small is the tolerance of a solver or series, not a wrong rule.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class EdgeVerdict:
    """The findings at one edge input; `reason` says why it proves nothing, or is empty."""

    name: str
    findings: list[Finding]
    reason: str = ""


@dataclass
class EdgeSummary:
    """The summary of all edge inputs of a function.

    Attributes:
        faults: inputs found wrong, which are not reported again.
        off: inconclusive relative error of each input's gradient at the given inputs.
        worst: the worst error of each input among ok findings.
        inconclusive: edges that prove nothing, and why.
        count: number of edges.
    """

    faults: set[str]
    off: Mapping[str, float] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    inconclusive: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, one: EdgeVerdict) -> list[Finding]:
        """Add an edge; its new wrong findings."""
        self.count += 1
        if one.reason:
            self.inconclusive.append(one.reason)
            return []
        vague = [f for f in one.findings if f.verdict == WRONG and self._vague(f)]
        new = [f for f in one.findings if f.verdict == WRONG and f not in vague and f.input not in self.faults]
        self.faults |= {f.input for f in new}
        for f in one.findings:
            if f.verdict == OK:
                self.worst[f.input] = max(self.worst.get(f.input, 0.0), f.numbers["part"])
        if vague or any(f.verdict == INCONCLUSIVE for f in one.findings):
            self.inconclusive.append(one.name)
        return new

    def _vague(self, f: Finding) -> bool:
        got, wanted = f.numbers.get("got", np.nan), f.numbers.get("wanted", np.nan)
        return abs(got - wanted) <= TOLERANCE * abs(wanted) or f.error <= MORE * self.off.get(f.input, 0.0)


def judge_edge(
    name: str,
    other: CheckSubject,
    values: list[np.ndarray],
    alike: bool,
    rng: np.random.Generator,
    known: Collection[str],
) -> EdgeVerdict:
    """Judge the gradients of a subject at an edge input; `known` inputs are already wrong."""
    found: list[Finding] = []
    cotangents = [rng.standard_normal(y.shape) for y in values]
    try:
        grads = gradients(other, other.arrays, cotangents)
        probe = Probe(other, list(other.arrays), cotangents, grads, joined(values), noise=other.noise)
        judge(probe, rng, found.append, CHECK, uniform=alike, at_once=1, known=known)
    except Exception as error:
        return EdgeVerdict(name, [], f"{name} (forward runs, the gradient raises {first_line(error)})")
    found = [with_reproducer(f, other) if f.verdict == WRONG else f for f in found]
    # At generated inputs nothing is concluded if some results do not converge.
    return EdgeVerdict(name, found, name if probe.skipped else "")
