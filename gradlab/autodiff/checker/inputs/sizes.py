"""The first derivative, and what depends on the size, at axis lengths that the caller names."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.derivative import Probe, gradients, joined
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, WRONG, Finding
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.autodiff.checker.inputs import isolated
from gradlab.autodiff.checker.inputs.repeat import repeatable
from gradlab.autodiff.checker.verdict.judge import CHECK as DERIVATIVE
from gradlab.autodiff.checker.verdict.judge import judge

# By leaf and axis, the length that it gets.
Lengths = Mapping[tuple[int, int], int]


def at_sizes(p: Promises, named: Mapping[str, Lengths], contract: Callable[..., None]) -> None:
    """Judge the function at each of these sizes; on torch in a process of its own, where an op may die of them.

    Args:
        named: what each is called, and its lengths.
        contract: what the framework asks of a backward, of which the part that depends on the size is held.
    """
    s = p.probe.subject
    if s.trusted or s.side.name == "jax" or not isolated.possible():
        for name, lengths in named.items():
            findings, notes = _judged(p, name, lengths, contract)
            p.findings.extend(findings)
            for note in notes:
                p.note(note)
        return

    def work(send: Callable[[Any], None]) -> None:
        for name, lengths in named.items():
            send(name)
            send(_judged(p, name, lengths, contract))

    sent, died = isolated.apart(work)
    last = ""
    for one in sent:
        if isinstance(one, str):
            last = one
            continue
        p.findings.extend(one[0])
        for note in one[1]:
            p.note(note)
    if died:
        p.say("sizes", INCONCLUSIVE, f"with {last} the process that tried it died: {died}")


def _judged(p: Promises, name: str, lengths: Lengths, contract: Callable[..., None]) -> tuple[list[Finding], list[str]]:
    """What is found at one size, and what is to be noted."""
    s = p.probe.subject
    found: list[Finding] = []
    notes: list[str] = []
    other = s.differently(resized(s, lengths, p.rng), f"{s.case}, {name}")
    try:
        values = other.values(other.arrays)
    except Exception as error:
        return found, [f"{s.op}: does not take {name} ({first_line(error, 90)})"]
    if not all(np.isfinite(y).all() for y in values):
        return found, [f"{s.op}: is not finite with {name}"]
    cotangents = [p.rng.standard_normal(y.shape) for y in values]
    probe = Probe(other, list(other.arrays), cotangents, {}, joined(values), noise=other.noise)
    here = Promises(probe, found, notes.append, p.rng, values)
    try:
        probe.gradients = gradients(other, other.arrays, cotangents)
        judge(probe, p.rng, found.append, DERIVATIVE)
        contract(here, at_size=True)
    except Exception as error:
        here.say("gradient", WRONG, f"raises {first_line(error)}, with {name}")
    return [repeatable(f, other) if f.verdict == WRONG else f for f in found], notes


def resized(s: Subject, lengths: Lengths, rng: np.random.Generator) -> list[Any]:
    """The subject's arrays with other axis lengths, of values like its own.

    Along an axis the slabs are those that were given, each with up to a quarter of another one: values stay between
    those that were given. Whole numbers stay whole, and labels below every length that they may index.
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
