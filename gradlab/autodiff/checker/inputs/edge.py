"""One edge input judged, and what all of them say together."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core.comparison import first_line
from gradlab.autodiff.checker.core.derivative import Probe, gradients, joined
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.autodiff.checker.inputs.repeat import repeatable
from gradlab.autodiff.checker.verdict.judge import judge

CHECK = "edge inputs"
# Where the given inputs' gradient is off by a little that proves nothing, as a solver's is by its tolerance, so much
# more of it proves nothing at an edge.
MORE, LITTLE = 1e3, 1e-6
# And there, of the element that is wrong: by so little a solver's or a series' tolerance is off, and no rule.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Judged:
    """What was found at one edge; `loose` says why it is no firm ground, where it is none."""

    name: str
    findings: list[Finding]
    loose: str = ""


@dataclass
class Edges:
    """All edges of a function.

    Attributes:
        faults: inputs that are wrong somewhere, which are not named again.
        off: what is left open of an input's gradient at the given inputs, relative.
        seen: the worst error of each input where all is well.
        loose: edges that prove nothing, and why.
        count: of edges.
    """

    faults: set[str]
    off: Mapping[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    count: int = 0

    def take(self, one: Judged) -> list[Finding]:
        """Count an edge; the faults that are new."""
        self.count += 1
        if one.loose:
            self.loose.append(one.loose)
            return []
        vague = [f for f in one.findings if f.verdict == WRONG and self._vague(f)]
        new = [f for f in one.findings if f.verdict == WRONG and f not in vague and f.input not in self.faults]
        self.faults |= {f.input for f in new}
        for f in one.findings:
            if f.verdict == OK:
                self.seen[f.input] = max(self.seen.get(f.input, 0.0), f.numbers["part"])
        if vague or any(f.verdict == INCONCLUSIVE for f in one.findings):
            self.loose.append(one.name)
        return new

    def _vague(self, f: Finding) -> bool:
        got, wanted = f.numbers.get("got", np.nan), f.numbers.get("wanted", np.nan)
        return abs(got - wanted) <= TOLERANCE * abs(wanted) or f.error <= MORE * self.off.get(f.input, 0.0)


def judged(
    name: str, other: Subject, values: list[np.ndarray], alike: bool, rng: np.random.Generator, known: Collection[str]
) -> Judged:
    """Judge the gradients of a subject at an edge; `known` inputs are wrong anyway."""
    found: list[Finding] = []
    cotangents = [rng.standard_normal(y.shape) for y in values]
    try:
        grads = gradients(other, other.arrays, cotangents)
        probe = Probe(other, list(other.arrays), cotangents, grads, joined(values), noise=other.noise)
        judge(probe, rng, found.append, CHECK, uniform=alike, at_once=1, known=known)
    except Exception as error:
        return Judged(name, [], f"{name} (forward runs, the gradient raises {first_line(error)})")
    found = [repeatable(f, other) if f.verdict == WRONG else f for f in found]
    # Where some results do not settle the others are no firm ground, at inputs that nobody gave.
    return Judged(name, found, name if probe.skipped else "")
