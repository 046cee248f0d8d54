"""Checks the first derivative, and all that depends on the size, at other axis lengths."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, WRONG, Finding
from gradlab.autodiff.checker.core.probe import Probe, gradients, joined
from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.autodiff.checker.inputs import isolated
from gradlab.autodiff.checker.inputs.reproducer import with_reproducer
from gradlab.autodiff.checker.verdict.first_derivative import CHECK as DERIVATIVE
from gradlab.autodiff.checker.verdict.first_derivative import judge

# (leaf, axis) -> its new length.
Lengths = Mapping[tuple[int, int], int]


def at_sizes(cmp: Comparison, named: Mapping[str, Lengths], contract: Callable[..., None]) -> None:
    """Judge the function at each of these sizes; on torch in a forked process, as an op may crash.

    Args:
        named: the sizes by name.
        contract: checks the framework's requirements, here only those that depend on the size.
    """
    s = cmp.probe.subject
    if s.trusted or s.side.name == "jax" or not isolated.possible():
        for name, lengths in named.items():
            findings, notes = _judged(cmp, name, lengths, contract)
            cmp.findings.extend(findings)
            for note in notes:
                cmp.note(note)
        return

    def work(send: Callable[[Any], None]) -> None:
        for name, lengths in named.items():
            send(name)
            send(_judged(cmp, name, lengths, contract))

    sent, died = isolated.run_isolated(work)
    last = ""
    for one in sent:
        if isinstance(one, str):
            last = one
            continue
        cmp.findings.extend(one[0])
        for note in one[1]:
            cmp.note(note)
    if died:
        cmp.record("sizes", INCONCLUSIVE, f"the process that tried {last} died: {died}")


def _judged(
    cmp: Comparison, name: str, lengths: Lengths, contract: Callable[..., None]
) -> tuple[list[Finding], list[str]]:
    """The findings and notes at one size."""
    s = cmp.probe.subject
    found: list[Finding] = []
    notes: list[str] = []
    other = s.with_arrays(resized(s, lengths, cmp.rng), f"{s.case}, {name}")
    try:
        values = other.values(other.arrays)
    except Exception as error:
        return found, [f"{s.op}: does not take {name} ({first_line(error, 90)})"]
    if not all(np.isfinite(y).all() for y in values):
        return found, [f"{s.op}: is not finite with {name}"]
    cotangents = [cmp.rng.standard_normal(y.shape) for y in values]
    probe = Probe(other, list(other.arrays), cotangents, {}, joined(values), noise=other.noise)
    at_size_cmp = Comparison(probe, found, notes.append, cmp.rng, values)
    try:
        probe.gradients = gradients(other, other.arrays, cotangents)
        judge(probe, cmp.rng, found.append, DERIVATIVE)
        contract(at_size_cmp, at_size=True)
    except Exception as error:
        at_size_cmp.record("gradient", WRONG, f"raises {first_line(error)}, with {name}")
    return [with_reproducer(f, other) if f.verdict == WRONG else f for f in found], notes


def resized(s: CheckSubject, lengths: Lengths, rng: np.random.Generator) -> list[Any]:
    """The subject's arrays at other axis lengths, with similar values.

    Along an axis each slab is a given one mixed with up to a quarter of another, so that values stay in the given
    range. Integers stay integers, and labels stay below every length that they may index.
    """
    arrays = list(s.arrays)
    picks: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for (i, axis), m in lengths.items():
        n = arrays[i].shape[axis]
        if (n, m) not in picks:
            first = np.concatenate([np.arange(min(n, m)), rng.integers(n, size=max(m - n, 0))])
            picks[n, m] = first, rng.integers(n, size=m), rng.random(m) / 4
        first, second, share = picks[n, m]
        a = arrays[i]
        taken = np.take(a, first, axis)
        if a.dtype.kind == "f" and not (a == np.rint(a)).all():
            share = share.reshape([m if k == axis else 1 for k in range(a.ndim)])
            taken = (1 - share) * taken + share * np.take(a, second, axis)
            if n == 1:
                taken = taken * rng.uniform(0.75, 1, taken.shape)
        arrays[i] = taken
    shorter = [m for (i, axis), m in lengths.items() if m < s.arrays[i].shape[axis]]
    for i, a in enumerate(arrays):
        if shorter and isinstance(a, np.ndarray) and a.dtype.kind in "iu":
            arrays[i] = np.where(a >= min(shorter), a % min(shorter), a)
    return arrays
