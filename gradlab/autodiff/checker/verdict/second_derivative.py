"""The second derivative against finite differences of the first, with a constant dy and with a moving dy."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.probe import Probe, joined, split, uneven
from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.autodiff.checker.verdict.first_derivative import judge

CHECK = "second derivative vs finite differences"


class PullbackSubject(CheckSubject):
    """The pullback of a subject as a function under test: leaves and cotangents in, gradients out."""

    def __init__(self, first: Probe, moving: bool) -> None:
        s = first.subject
        self.first, self.count = s, len(s.leaves)
        leaves = [*s.put(first.arrays), *s.put_like_results(first.cotangents)]

        def gradients(*flat: Any) -> tuple[Any, ...]:
            return s.pullback(flat[: self.count], flat[self.count :])

        results = s.results or [f" {k}" * (len(first.cotangents) > 1) for k in range(len(first.cotangents))]
        names = [*s.names, *(f"d{name}" if name.strip() else f"dy{name}" for name in results)]
        super().__init__(s.side, gradients, leaves, {}, s.op, s.case, names, [f"d{s.names[i]}" for i in s.wrt])
        self.names, self.working_dtype = names, s.working_dtype
        # dy is differentiated only if `moving`: a loss passes a dy that requires no gradient.
        self.without_jit = s.without_jit
        self.differentiate([*s.wrt, *range(self.count, len(leaves))] if moving else s.wrt, joined=False)

    def values(self, arrays: Sequence[np.ndarray], dtype: str = "") -> list[np.ndarray]:
        """The gradients, by the compiled program of the first derivative: compiling another takes longer."""
        return self.first.gradients(arrays[: self.count], arrays[self.count :], dtype or self.working_dtype)


def second(cmp: Comparison, rng: np.random.Generator, reduced: Comparison | None = None, required: bool = True) -> None:
    """Differentiate the pullback by random cotangents; one finding for each input and kind of dy.

    The pullback is linear in dy, so its derivative along a direction of dy is its value at that direction: only inputs
        are
    moved by steps. With a constant dy the derivatives for the inputs must be the same.

    Args:
        required: a missing second derivative is wrong; otherwise a note.
        reduced: the same function at reduced inputs, where a constant dy is checked.
    """
    rules = importlib.import_module(f"gradlab.autodiff.checker.contract.contract_{cmp.probe.subject.side.name}")
    try:
        q = cmp if reduced is None else reduced
        kinds = PullbackSubject(q.probe, True), PullbackSubject(q.probe, False)
        weights = [rng.standard_normal(q.probe.gradients[i].shape) for i in q.probe.subject.wrt]
        arrays = [*q.probe.arrays, *q.probe.cotangents]
        found = rules.differentiated_again(q, kinds, arrays, weights)
        moving, constant = (_probe(q, *each, weights) for each in zip(kinds, found, strict=True))
        whole = moving
        if reduced is not None:
            weights = [rng.standard_normal(cmp.probe.gradients[i].shape) for i in cmp.probe.subject.wrt]
            kind = PullbackSubject(cmp.probe, True)
            whole = _probe(cmp, kind, kind.gradients([*cmp.probe.arrays, *cmp.probe.cotangents], weights), weights)
        if not _all_right(cmp, whole, rng):
            _judge(cmp, whole, rng, CHECK + ", dy too")
        same = all(
            np.allclose(g, moving.gradients[i], rtol=0, atol=q.slack(i) * float(np.max(np.abs(g), initial=0.0)))
            for i, g in constant.gradients.items()
        )
        right = [f for f in cmp.findings_of(CHECK + ", dy too") if f.input in cmp.probe.subject.names]
        if same and all(f.verdict == OK for f in right):
            for f in right:
                cmp.record(CHECK, OK, f.detail, f.input, (), {"error": f.error})
        else:
            _judge(q, constant, rng, CHECK)
        if cmp.probe.subject.side.name == "jax":
            values = split(constant.middle, [q.probe.gradients[i] for i in q.probe.subject.wrt])
            over = importlib.import_module("gradlab.autodiff.checker.contract.transforms_jax").forward_over_reverse
            over(Comparison(constant, cmp.findings, cmp.note, rng, values))
    except Exception as error:
        why = f"has no second derivative: {first_line(error)}"
        if required:
            cmp.record(CHECK, WRONG, f"{why}; order=1 checks the first derivative only")
        else:
            cmp.note(f"{cmp.probe.subject.op}: {why}")


def _probe(cmp: Comparison, subject: PullbackSubject, found: Sequence[np.ndarray], weights: list[np.ndarray]) -> Probe:
    """The pullback at the probe's point as a probe of its own, with these cotangents."""
    first = cmp.probe
    middle = joined([first.gradients[i] for i in first.subject.wrt])
    gradients = dict(zip(subject.wrt, found, strict=True))
    return Probe(subject, [*first.arrays, *first.cotangents], weights, gradients, middle, noise=first.noise)


def _all_right(cmp: Comparison, probe: Probe, rng: np.random.Generator) -> bool:
    """One uneven direction of everything: if it agrees, every input is reported ok."""
    inputs = [i for i in probe.subject.wrt if probe.arrays[i].size]
    if not all(np.isfinite(probe.gradients[i]).all() for i in inputs):
        return False
    count = len(cmp.probe.subject.leaves)
    whole = {i: uneven(rng, probe.arrays[i].shape) * probe.units(i) for i in inputs}
    slope = probe.slope({i: d for i, d in whole.items() if i < count}, narrow=False)
    along_dy = [whole[i] if i in whole else probe.arrays[i] for i in range(count, len(probe.arrays))]
    slope.value = slope.value + joined(probe.subject.values([*probe.arrays[:count], *along_dy]))
    pair = probe.pair(whole, slope)
    if pair.verdict != OK:
        return False
    error = pair.off / pair.scale if pair.scale else pair.off
    for i in inputs:
        cmp.record(CHECK + ", dy too", OK, "", probe.subject.names[i], (), {"error": error})
    return True


def _judge(cmp: Comparison, probe: Probe, rng: np.random.Generator, check: str) -> None:
    judged: list[Finding] = []
    judge(probe, rng, judged.append, check)
    for finding in judged:
        cmp.add(_explained(finding))


def _explained(finding: Finding) -> Finding:
    """Explain a second derivative of zero, which is usually a lost graph."""
    lost = finding.numbers.get("got") == 0.0 and finding.verdict == "wrong"
    if not lost:
        return finding
    why = "; the framework sees no dependence of the gradient on it: second-order terms are lost silently"
    return Finding(**{**finding.__dict__, "detail": finding.detail + why})
