"""Special cotangents, as losses produce them: one-hot, constant, tiny, large, and all zeros.

The pullback is linear in dy. A random dy, whose pullback is compared with finite differences, is split into special
parts, and the pullbacks of the parts must add up to its own: a backward with a wrong shortcut for one of them fails.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.differentiability import perturbed
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.probe import SENSITIVITY

CHECK = "special dy"
CONSTANT = 0.75


@dataclass
class _Part:
    """`weight` times the dy `given` is one part of a dy; `how` says what is special about it."""

    how: str
    weight: float
    given: list[np.ndarray]

    @property
    def dy(self) -> list[np.ndarray]:
        return [np.asarray(self.weight * c) for c in self.given]


def special_cotangents(cmp: Comparison) -> None:
    """Pull back special cotangents; one finding for each input, which names the dy at fault."""
    probe, s = cmp.probe, cmp.probe.subject
    zeros = [np.zeros_like(c) for c in probe.cotangents]
    parts = split_cotangent(probe.cotangents, cmp.rng, exact=not probe.coarse)
    try:
        of_zero = s.gradients(probe.arrays, zeros)
        pulled = [s.gradients(probe.arrays, part.given) for part in parts]
    except Exception as error:
        _report_raise(cmp, error, parts)
        return
    for n, i in enumerate(s.wrt):
        name, wanted = s.names[i], probe.gradients[i]
        if not cmp.same(CHECK, name, of_zero[n], np.zeros_like(wanted), 0.0, "with a dy of zeros"):
            continue
        found = [part.weight * g[n] for part, g in zip(parts, pulled, strict=True)]
        total = np.sum(found, axis=0) if found else wanted
        # The parts may be larger than their sum, and so is their rounding.
        size = max((float(np.max(np.abs(g), initial=0.0)) for g in [wanted, *found]), default=0.0)
        found_here: list[Finding] = []
        trial = Comparison(probe, found_here, cmp.note, cmp.rng, cmp.values)
        how = "as the sum over parts of dy: one element, equal numbers, a row, all but one column; tiny and large ones"
        # A wrong shortcut has a large error; small ones are checked elsewhere with a dy of ordinary size.
        slack = max(cmp.slack(i), (8 + probe.middle.size) * probe.noise, SENSITIVITY)
        if trial.same(CHECK, name, total, wanted, slack, how, size, functools.partial(_grain, cmp, parts, i)):
            cmp.record(CHECK, OK, how, name, (), {"error": found_here[-1].error})
        else:
            cmp.add(_worst_part(cmp, i, parts, found) or found_here[-1])


def split_cotangent(cotangents: Sequence[np.ndarray], rng: np.random.Generator, exact: bool) -> list[_Part]:
    """Special cotangents that add up to these, each with its weight.

    Args:
        exact: use tiny and large numbers too; else all stay near 1.
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
    """Masks of one element of the first result, the rest of that row, the rest of the first columns, all others."""
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


def _grain(cmp: Comparison, parts: Sequence[_Part], i: int) -> np.ndarray:
    """The rounding error of the sum: that of dy itself, and of random cotangents as large as the parts.

    They are random because a special dy is no longer special when its last bits change.
    """
    sizes = [sum(np.abs(c) for c in each) for each in zip(*(part.dy for part in parts), strict=True)]
    usual = [cmp.rng.standard_normal(c.shape) * size for c, size in zip(cmp.probe.cotangents, sizes, strict=True)]
    return cmp.grain(i) + 16 * perturbed(cmp.probe, usual)[i]


def _worst_part(cmp: Comparison, i: int, parts: Sequence[_Part], found: Sequence[np.ndarray]) -> Finding | None:
    """A finding for the part that is furthest from vjp(dy + part) - vjp(dy), which takes no shortcut."""
    probe, s = cmp.probe, cmp.probe.subject
    found_here: list[Finding] = []
    trial = Comparison(probe, found_here, cmp.note, cmp.rng, cmp.values)
    for part, got in zip(parts, found, strict=True):
        both = [c + w for c, w in zip(probe.cotangents, part.dy, strict=True)]
        wanted = s.gradients(probe.arrays, both)[s.wrt.index(i)] - probe.gradients[i]
        size = float(np.max(np.abs(probe.gradients[i]), initial=0.0))
        how = f"{part.how}: vjp(a + b) - vjp(a) for another a" + f", each times {part.weight:.0e}" * (part.weight > 1e3)
        grain = functools.partial(_grain, cmp, [part], i)
        trial.same(CHECK, s.names[i], got, wanted, max(cmp.slack(i), SENSITIVITY), how, size, grain)
    wrong = [f for f in found_here if f.verdict == WRONG]
    return max(wrong, key=lambda f: np.nan_to_num(f.error, nan=np.inf), default=None)


def _report_raise(cmp: Comparison, error: Exception, parts: Sequence[_Part]) -> None:
    """A backward must accept a dy of zeros and a dy of ones; for other parts a raise becomes a note."""
    probe = cmp.probe
    zeros = [np.zeros_like(c) for c in probe.cotangents]
    for how, given in (("with a dy of zeros", zeros), (parts[0].how, parts[0].given)):
        try:
            probe.subject.gradients(probe.arrays, given)
        except Exception as again:
            cmp.record(CHECK, WRONG, f"raises {first_line(again)} {how}")
            return
    cmp.note(f"{probe.subject.op}: {CHECK} is not checked ({first_line(error, 90)})")
