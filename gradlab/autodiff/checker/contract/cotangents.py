"""Cotangents as losses hand them over: of zeros but in one place, of equal numbers, tiny, large, and of zeros alone.

The pullback is linear in dy. So a random dy, whose pullback is held against differences, is taken apart into special
ones, and their pullbacks have to add up to its own: a backward that takes a short cut for one of them does not.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.derivative import SENSITIVITY
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.proof import shaken

CHECK = "special dy"
CONSTANT = 0.75


@dataclass
class _Part:
    """`weight` times the dy `given` is one part of the whole; `how` says what is special about it."""

    how: str
    weight: float
    given: list[np.ndarray]

    @property
    def whole(self) -> list[np.ndarray]:
        return [np.asarray(self.weight * c) for c in self.given]


def special(p: Promises) -> None:
    """Pull special cotangents back; one finding an input, which names the dy that is to blame."""
    probe, s = p.probe, p.probe.subject
    zeros = [np.zeros_like(c) for c in probe.cotangents]
    parts = taken_apart(probe.cotangents, p.rng, exact=not probe.coarse)
    try:
        of_zero = s.gradients(probe.arrays, zeros)
        pulled = [s.gradients(probe.arrays, part.given) for part in parts]
    except Exception as error:
        _raised(p, error, parts)
        return
    for n, i in enumerate(s.wrt):
        name, wanted = s.names[i], probe.gradients[i]
        if not p.same(CHECK, name, of_zero[n], np.zeros_like(wanted), 0.0, "with a dy of zeros"):
            continue
        found = [part.weight * g[n] for part, g in zip(parts, pulled, strict=True)]
        total = np.sum(found, axis=0) if found else wanted
        # The parts may be larger than what they add up to, and their rounding with them.
        size = max((float(np.max(np.abs(g), initial=0.0)) for g in [wanted, *found]), default=0.0)
        told: list[Finding] = []
        quiet = Promises(probe, told, p.note, p.rng, p.values)
        how = "as the sum over parts of dy: one element, equal numbers, a row, all but one column; tiny and large ones"
        # A short cut is off by much; to the last bits dy is held elsewhere, where its size is an ordinary one.
        slack = max(p.slack(i), (8 + probe.middle.size) * probe.noise, SENSITIVITY)
        if quiet.same(CHECK, name, total, wanted, slack, how, size, functools.partial(_grain, p, parts, i)):
            p.say(CHECK, OK, how, name, (), {"error": told[-1].error})
        else:
            p.add(_blamed(p, i, parts, found) or told[-1])


def taken_apart(cotangents: Sequence[np.ndarray], rng: np.random.Generator, exact: bool) -> list[_Part]:
    """Special cotangents that add up to these, each with its weight.

    Args:
        exact: numbers of any size are as good as any other; else all stay near 1.
    """
    equal = [_Part("with a dy of ones", 1.0, [np.ones(c.shape) for c in cotangents])]
    equal += [_Part(f"with a dy of {CONSTANT} everywhere", 1.0, [np.full(c.shape, CONSTANT) for c in cotangents])]
    rest = [np.asarray(c - 1 - CONSTANT) for c in cotangents]
    tiny, least, large = (2.0**-40, 2.0**-100, 2.0**20) if exact else (1.0, 1.0, 1.0)
    hot, row, column, others = _masks([c.shape for c in rest], rng)
    found = []
    first = next((k for k, m in enumerate(hot) if m.any()), None)
    if first is not None:
        weight = float(rest[first][hot[first]][0])
        found.append(_Part("with a dy of one 1 and zeros elsewhere", weight, [m.astype(float) for m in hot]))
    for masks, size, how in (
        (row, least, "with a dy that is 0 outside one row and in one element of it"),
        (column, tiny, "with a dy that is 0 outside its first column"),
        (others, large, "with a dy whose first column and one row are 0"),
    ):
        if any(m.any() for m in masks):
            how += f", of numbers around {size:.0e}" * (size != 1)
            found.append(_Part(how, 1 / size, [np.where(m, size * c, 0.0) for m, c in zip(masks, rest, strict=True)]))
    return [*equal, *found]


def _masks(shapes: Sequence[tuple[int, ...]], rng: np.random.Generator) -> tuple[list[np.ndarray], ...]:
    """One element of the first result, the rest of its row in each, the rest of the first columns, and all others."""
    hot, row, column = ([np.zeros(shape, bool) for shape in shapes] for _ in range(3))
    taken = False
    for one, line, first in zip(hot, row, column, strict=True):
        if not one.size:
            continue
        at = tuple(int(rng.integers(n)) for n in one.shape)
        if not taken:
            one[at] = taken = True
        if one.ndim > 1:
            line[at[0]] = True
        if one.ndim:
            first[..., 0] = True
    row = [r & ~h for r, h in zip(row, hot, strict=True)]
    column = [c & ~r & ~h for c, r, h in zip(column, row, hot, strict=True)]
    others = [~(c | r | h) for c, r, h in zip(column, row, hot, strict=True)]
    return hot, row, column, others


def _grain(p: Promises, parts: Sequence[_Part], i: int) -> np.ndarray:
    """What rounding leaves open of the sum: that of the whole, and of cotangents as large as the parts.

    These are random: moving a special dy by its last bits makes another of it.
    """
    sizes = [sum(np.abs(c) for c in each) for each in zip(*(part.whole for part in parts), strict=True)]
    usual = [p.rng.standard_normal(c.shape) * size for c, size in zip(p.probe.cotangents, sizes, strict=True)]
    return p.grain(i) + 16 * shaken(p.probe, usual)[i]


def _blamed(p: Promises, i: int, parts: Sequence[_Part], found: Sequence[np.ndarray]) -> Finding | None:
    """The part that is furthest from vjp(dy + part) - vjp(dy), which takes no short cut."""
    probe, s = p.probe, p.probe.subject
    told: list[Finding] = []
    quiet = Promises(probe, told, p.note, p.rng, p.values)
    for part, got in zip(parts, found, strict=True):
        both = [c + w for c, w in zip(probe.cotangents, part.whole, strict=True)]
        wanted = s.gradients(probe.arrays, both)[s.wrt.index(i)] - probe.gradients[i]
        size = float(np.max(np.abs(probe.gradients[i]), initial=0.0))
        how = f"{part.how}: vjp(a + b) - vjp(a) for another a" + f", each times {part.weight:.0e}" * (part.weight > 1e3)
        grain = functools.partial(_grain, p, [part], i)
        quiet.same(CHECK, s.names[i], got, wanted, max(p.slack(i), SENSITIVITY), how, size, grain)
    wrong = [f for f in told if f.verdict == WRONG]
    return max(wrong, key=lambda f: np.nan_to_num(f.error, nan=np.inf), default=None)


def _raised(p: Promises, error: Exception, parts: Sequence[_Part]) -> None:
    """A backward has to take a dy of zeros and one of ones; numbers of any size nobody promised it."""
    probe = p.probe
    zeros = [np.zeros_like(c) for c in probe.cotangents]
    for how, given in (("with a dy of zeros", zeros), (parts[0].how, parts[0].given)):
        try:
            probe.subject.gradients(probe.arrays, given)
        except Exception as again:
            p.say(CHECK, WRONG, f"raises {first_line(again)} {how}")
            return
    p.note(f"{probe.subject.op}: {CHECK} is not looked at ({first_line(error, 90)})")
