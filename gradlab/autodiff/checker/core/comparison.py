"""Promises that need no differences: a gradient worked out another way must be the same gradient."""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core.derivative import SENSITIVITY, Probe, joined
from gradlab.autodiff.checker.core.differences import EPS
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.proof import shaken


@dataclass
class Promises:
    """What is compared with one probe's gradients and values, and the findings that come of it."""

    probe: Probe
    findings: list[Finding]
    note: Callable[[str], None]
    rng: np.random.Generator
    values: list[np.ndarray] = field(default_factory=list)
    _grain: dict[int, np.ndarray] = field(default_factory=dict)

    def own_rng(self) -> np.random.Generator:
        """Random numbers of one check's own: what it draws changes nothing of what others draw."""
        return self.rng.spawn(1)[0]

    def add(self, finding: Finding) -> None:
        """Keep a finding."""
        self.findings.append(finding)

    def say(
        self,
        check: str,
        verdict: str,
        said: str,
        name: str = "",
        where: tuple[int, ...] = (),
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """One finding."""
        s = self.probe.subject
        self.add(Finding(check, verdict, name, where, said, numbers or {}, s.op, s.side.name, s.case))

    def said(self, check: str) -> list[Finding]:
        """What was found of a check so far, on this case."""
        return [f for f in self.findings if f.check == check and f.case == self.probe.subject.case]

    def slack(self, i: int) -> float:
        """How far two ways to one gradient may be apart, relative to its largest element.

        Rounding in a sum over all results, also to half precision inside of the function; or what differences found its
        own noise to be; or what they found the gradient to be off by where that is no fault, as of a solver that stops
        at a tolerance, and not of a backward that rounds to float32.
        """
        g, half = self.probe.gradients[i], self.probe.subject.inside.slack
        pairs = [p for p in (*self.probe.pairs.get(i, []), *self.probe.joint) if p.scale]
        errors = max((p.error / p.scale for p in pairs), default=0.0)
        offs = 0.0 if _rounded(g) else max((p.off / p.scale for p in pairs), default=0.0)
        return max((8 + self.probe.middle.size) * EPS, half, min(1e-3, 10 * errors), min(10 * SENSITIVITY, 10 * offs))

    def same_gradients(
        self,
        check: str,
        got: Sequence[np.ndarray | None],
        wrt: Sequence[int],
        how: str,
        wanted: Sequence[np.ndarray] | None = None,
    ) -> bool:
        """Whether these are the probe's gradients, or `wanted`; says so for each of the inputs `wrt`."""
        sound = True
        for k, (i, g) in enumerate(zip(wrt, got, strict=True)):
            want = self.probe.gradients[i] if wanted is None else wanted[k]
            # Where another dy makes it vanish, what is left is rounding of the terms that it had before.
            usual = float(np.max(np.abs(self.probe.gradients[i]), initial=0.0))
            grain = functools.partial(self.grain, i)
            sound &= self.same(check, self.probe.subject.names[i], g, want, self.slack(i), how, usual, grain)
        return sound

    def grain(self, i: int) -> np.ndarray:
        """What rounding leaves open of each element of a gradient, absolute: several times what the inputs' last bits
        move, and the rounding of the results that it may be a difference of."""
        if not self._grain:
            self._grain = dict(shaken(self.probe, self.probe.cotangents))
        natural = float(np.linalg.norm(joined(self.probe.cotangents) * self.probe.middle)) / self.probe.units(i)
        return 16 * self._grain[i] + 64 * self.probe.subject.eps * natural

    def same_values(
        self, check: str, got: Sequence[np.ndarray], how: str, wanted: Sequence[np.ndarray] | None = None
    ) -> bool:
        """Whether these are the function's values, or `wanted`; one finding, of the first result that is not."""
        slack = max((self.slack(i) for i in self.probe.subject.wrt), default=1e-12)
        sound = True
        for k, (y, want) in enumerate(zip(got, self.values if wanted is None else wanted, strict=True)):
            sound &= self.same(check, self.result(k), y, want, slack, how)
        return sound

    def result(self, k: int) -> str:
        """What a result is called."""
        names, kept = self.probe.subject.results, self.probe.subject.kept
        place = k if kept is None else kept[k]
        one = len(self.values) == 1 and kept is None
        return names[place] if place < len(names) else "result" if one else f"result {place}"

    def same(
        self,
        check: str,
        name: str,
        got: np.ndarray | None,
        want: np.ndarray,
        slack: float,
        how: str,
        least: float = 0.0,
        grain: Callable[[], np.ndarray] | None = None,
    ) -> bool:
        """One array against another; a finding that names the first element that differs.

        Args:
            slack: error allowed, relative to the largest element wanted or to `least`.
            grain: what is allowed of each element beside it, worked out when something is off.
        """
        if got is None:
            got = np.zeros_like(want)
            how += " (no gradient came: None)"
        if got.shape != want.shape:
            self.say(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}, {how}", name)
            return False
        size, error = _apart(got, want)
        if error <= slack * (max(size, least) or 1.0):
            self.say(check, OK, how, name, (), {"error": error / (max(size, least) or 1.0)})
            return True
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
        scale = max(float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)), least) or 1.0
        bad = ~(off <= slack * scale)
        if bad.any() and grain is not None and np.isfinite(off).all():
            bad &= ~(off <= grain())
        error = float(np.max(off, initial=0.0)) / scale
        if not bad.any():
            self.say(check, OK, how, name, (), {"error": error})
            return True
        at = tuple(int(k) for k in np.argwhere(bad)[0])
        said = f"is {got[at]:.10g}, wanted {want[at]:.10g}, {how}; {int(bad.sum())} of {got.size} elements differ"
        numbers = {"got": float(got[at]), "wanted": float(want[at]), "count": float(bad.sum())}
        self.say(check, WRONG, said, name, at, {"error": error, **numbers})
        return False


def _apart(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest element wanted and the largest difference; no number where one of either is none."""
    if not want.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        off = got - want
    return max(float(want.max()), -float(want.min())), max(float(off.max()), -float(off.min()))


def _rounded(gradient: np.ndarray) -> bool:
    """Whether every number of a gradient is one of float32's."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(gradient, gradient.astype(np.float32), equal_nan=True))


def first_line(error: BaseException, most: int = 200) -> str:
    """What an exception says, in one line of at most so many letters."""
    text = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {textwrap.shorten(text, most, placeholder=' ...')}" if text else type(error).__name__
    )


def refuses(error: BaseException) -> bool:
    """Whether an exception says that there is no such gradient, and not that working it out failed."""
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(words in text for words in _REFUSALS)


# torch of an op without a derivative; jax of a while_loop, of a custom_vmap and of a callback, which have forward mode
# alone, or none.
_REFUSALS = (
    "not implemented",
    "not differentiable",
    "reverse-mode differentiation does not work",
    "not support jvp",
    "not support reverse-mode",
)
