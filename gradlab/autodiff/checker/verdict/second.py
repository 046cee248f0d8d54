"""The second derivative against differences of the first, with a constant dy and with one that moves too."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.derivative import Probe, joined, split, uneven
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.autodiff.checker.verdict.judge import judge

CHECK = "second derivative vs finite differences"


class Pulled(Subject):
    """The pullback of a subject as a function of its own: leaves and cotangents in, gradients out."""

    def __init__(self, first: Probe, moving: bool) -> None:
        s = first.subject
        self.first, self.count = s, len(s.leaves)
        leaves = [*s.put(first.arrays), *s.put_like_results(first.cotangents)]

        def gradients(*flat: Any) -> tuple[Any, ...]:
            return s.pulled(flat[: self.count], flat[self.count :])

        results = s.results or [f" {k}" * (len(first.cotangents) > 1) for k in range(len(first.cotangents))]
        names = [*s.names, *(f"d{name}" if name.strip() else f"dy{name}" for name in results)]
        super().__init__(s.side, gradients, leaves, {}, s.op, s.case, names, [f"d{s.names[i]}" for i in s.wrt])
        self.names, self.working = names, s.working
        # dy is a number of its own only when it is asked to be: a loss hands over one that needs no gradient.
        self.untraced = s.untraced
        self.differentiate([*s.wrt, *range(self.count, len(leaves))] if moving else s.wrt, joined=False)

    def values(self, arrays: Sequence[np.ndarray], dtype: str = "") -> list[np.ndarray]:
        """The gradients, by the program that the first derivative has for them: compiling another takes longer."""
        return self.first.gradients(arrays[: self.count], arrays[self.count :], dtype or self.working)


def second(p: Promises, rng: np.random.Generator, light: Promises | None = None, asked: bool = True) -> None:
    """Pull random cotangents back through the pullback; one finding an input and kind of dy.

    The pullback is linear in dy, so its slope along a direction of dy is itself at that direction: only the inputs are
    moved by steps. With a constant dy the same numbers must come out for the inputs.

    Args:
        asked: where there is none that is wrong; a note otherwise.
        light: the same function at a cut of large inputs, where a constant dy is looked at.
    """
    rules = importlib.import_module(f"gradlab.autodiff.checker.contract.contract_{p.probe.subject.side.name}")
    try:
        q = p if light is None else light
        kinds = Pulled(q.probe, True), Pulled(q.probe, False)
        weights = [rng.standard_normal(q.probe.gradients[i].shape) for i in q.probe.subject.wrt]
        arrays = [*q.probe.arrays, *q.probe.cotangents]
        found = rules.recorded(q, kinds, arrays, weights)
        moving, constant = (_probe(q, *each, weights) for each in zip(kinds, found, strict=True))
        whole = moving
        if light is not None:
            weights = [rng.standard_normal(p.probe.gradients[i].shape) for i in p.probe.subject.wrt]
            kind = Pulled(p.probe, True)
            whole = _probe(p, kind, kind.gradients([*p.probe.arrays, *p.probe.cotangents], weights), weights)
        if not _all_right(p, whole, rng):
            _judge(p, whole, rng, CHECK + ", dy too")
        same = all(
            np.allclose(g, moving.gradients[i], rtol=0, atol=q.slack(i) * float(np.max(np.abs(g), initial=0.0)))
            for i, g in constant.gradients.items()
        )
        right = [f for f in p.said(CHECK + ", dy too") if f.input in p.probe.subject.names]
        if same and all(f.verdict == OK for f in right):
            for f in right:
                p.say(CHECK, OK, f.said, f.input, (), {"error": f.error})
        else:
            _judge(q, constant, rng, CHECK)
        if p.probe.subject.side.name == "jax":
            values = split(constant.middle, [q.probe.gradients[i] for i in q.probe.subject.wrt])
            over = importlib.import_module("gradlab.autodiff.checker.contract.transforms_jax").forward_over_reverse
            over(Promises(constant, p.findings, p.note, rng, values))
    except Exception as error:
        why = f"has no second derivative: {first_line(error)}"
        if asked:
            p.say(CHECK, WRONG, f"{why}; order=1 checks the first alone")
        else:
            p.note(f"{p.probe.subject.op}: {why}")


def _probe(p: Promises, subject: Pulled, found: Sequence[np.ndarray], weights: list[np.ndarray]) -> Probe:
    """The pullback at the probe's point, with these cotangents, and its own pullback."""
    first = p.probe
    middle = joined([first.gradients[i] for i in first.subject.wrt])
    gradients = dict(zip(subject.wrt, found, strict=True))
    return Probe(subject, [*first.arrays, *first.cotangents], weights, gradients, middle, noise=first.noise)


def _all_right(p: Promises, probe: Probe, rng: np.random.Generator) -> bool:
    """One uneven direction through everything: when it is right so is each input, and that is said."""
    inputs = [i for i in probe.subject.wrt if probe.arrays[i].size]
    if not all(np.isfinite(probe.gradients[i]).all() for i in inputs):
        return False
    count = len(p.probe.subject.leaves)
    whole = {i: uneven(rng, probe.arrays[i].shape) * probe.units(i) for i in inputs}
    slope = probe.slope({i: d for i, d in whole.items() if i < count}, narrow=False)
    along_dy = [whole[i] if i in whole else probe.arrays[i] for i in range(count, len(probe.arrays))]
    slope.value = slope.value + joined(probe.subject.values([*probe.arrays[:count], *along_dy]))
    pair = probe.pair(whole, slope)
    if pair.verdict != OK:
        return False
    error = pair.off / pair.scale if pair.scale else pair.off
    for i in inputs:
        p.say(CHECK + ", dy too", OK, "", probe.subject.names[i], (), {"error": error})
    return True


def _judge(p: Promises, probe: Probe, rng: np.random.Generator, check: str) -> None:
    said: list[Finding] = []
    judge(probe, rng, said.append, check)
    for finding in said:
        p.add(_explained(finding))


def _explained(finding: Finding) -> Finding:
    """Say what a zero second derivative usually is."""
    lost = finding.numbers.get("got") == 0.0 and finding.verdict == "wrong"
    if not lost:
        return finding
    why = "; the gradient does not depend on it for the framework: second-order terms are lost silently"
    return Finding(**{**finding.__dict__, "said": finding.said + why})
