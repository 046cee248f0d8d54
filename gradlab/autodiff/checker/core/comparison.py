"""Comparisons that need no finite differences: a gradient computed in another way must be the same gradient."""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.autodiff.checker.core.differentiability import perturbed
from gradlab.autodiff.checker.core.finding import OK, WRONG, Finding
from gradlab.autodiff.checker.core.finite_differences import EPS
from gradlab.autodiff.checker.core.probe import SENSITIVITY, Probe, joined


@dataclass
class Comparison:
    """Compares results with the values and gradients of one probe, and collects the findings."""

    probe: Probe
    findings: list[Finding]
    note: Callable[[str], None]
    rng: np.random.Generator
    values: list[np.ndarray] = field(default_factory=list)
    _grain: dict[int, np.ndarray] = field(default_factory=dict)

    def own_rng(self) -> np.random.Generator:
        """A random generator for one check, which leaves the numbers that other checks draw unchanged."""
        return self.rng.spawn(1)[0]

    def add(self, finding: Finding) -> None:
        """Append a finding."""
        self.findings.append(finding)

    def record(
        self,
        check: str,
        verdict: str,
        detail: str,
        name: str = "",
        where: tuple[int, ...] = (),
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Append one finding about this subject."""
        s = self.probe.subject
        self.add(Finding(check, verdict, name, where, detail, numbers or {}, s.op, s.side.name, s.case))

    def findings_of(self, check: str) -> list[Finding]:
        """The findings of a check so far, in this case."""
        return [f for f in self.findings if f.check == check and f.case == self.probe.subject.case]

    def slack(self, i: int) -> float:
        """The difference allowed between two computations of one gradient, relative to its largest element.

        The largest of: rounding in a sum over all results, also to half precision inside the function; the noise that
        finite differences measured; and the error they measured in the gradient where it is no fault, as in a solver
        that stops at a tolerance (but not in a backward that rounds to float32).
        """
        g, half = self.probe.gradients[i], self.probe.subject.internals.slack
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
        """Whether these are the probe's gradients, or `wanted`; one finding for each of the inputs `wrt`."""
        sound = True
        for k, (i, g) in enumerate(zip(wrt, got, strict=True)):
            want = self.probe.gradients[i] if wanted is None else wanted[k]
            # Where another dy makes a gradient vanish, rounding of its terms remains.
            usual = float(np.max(np.abs(self.probe.gradients[i]), initial=0.0))
            grain = functools.partial(self.grain, i)
            sound &= self.same(check, self.probe.subject.names[i], g, want, self.slack(i), how, usual, grain)
        return sound

    def grain(self, i: int) -> np.ndarray:
        """The absolute rounding error possible in each element of a gradient: several times what moves it when the
        inputs change in their last bits, and the rounding of the results that it may be a difference of."""
        if not self._grain:
            self._grain = dict(perturbed(self.probe, self.probe.cotangents))
        natural = float(np.linalg.norm(joined(self.probe.cotangents) * self.probe.middle)) / self.probe.units(i)
        return 16 * self._grain[i] + 64 * self.probe.subject.eps * natural

    def same_values(
        self, check: str, got: Sequence[np.ndarray], how: str, wanted: Sequence[np.ndarray] | None = None
    ) -> bool:
        """Whether these are the function's values, or `wanted`; one finding for each result."""
        slack = max((self.slack(i) for i in self.probe.subject.wrt), default=1e-12)
        sound = True
        for k, (y, want) in enumerate(zip(got, self.values if wanted is None else wanted, strict=True)):
            sound &= self.same(check, self.result(k), y, want, slack, how)
        return sound

    def result(self, k: int) -> str:
        """The name of a result."""
        names, differentiable = self.probe.subject.results, self.probe.subject.differentiable
        place = k if differentiable is None else differentiable[k]
        one = len(self.values) == 1 and differentiable is None
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
        """Compare one array with another; the finding names the first element that differs.

        Args:
            slack: error allowed, relative to the largest element wanted or to `least`.
            grain: absolute error allowed in each element, computed only if the relative tolerance is exceeded.
        """
        if got is None:
            got = np.zeros_like(want)
            how += " (the gradient is None)"
        if got.shape != want.shape:
            self.record(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}, {how}", name)
            return False
        size, error = _size_and_error(got, want)
        if error <= slack * (max(size, least) or 1.0):
            self.record(check, OK, how, name, (), {"error": error / (max(size, least) or 1.0)})
            return True
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
        scale = max(float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)), least) or 1.0
        bad = ~(off <= slack * scale)
        if bad.any() and grain is not None and np.isfinite(off).all():
            bad &= ~(off <= grain())
        error = float(np.max(off, initial=0.0)) / scale
        if not bad.any():
            self.record(check, OK, how, name, (), {"error": error})
            return True
        at = tuple(int(k) for k in np.argwhere(bad)[0])
        detail = f"is {got[at]:.10g}, wanted {want[at]:.10g}, {how}; {int(bad.sum())} of {got.size} elements differ"
        numbers = {"got": float(got[at]), "wanted": float(want[at]), "count": float(bad.sum())}
        self.record(check, WRONG, detail, name, at, {"error": error, **numbers})
        return False


def _size_and_error(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest element wanted and the largest difference; NaN if either array holds one."""
    if not want.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        off = got - want
    return max(float(want.max()), -float(want.min())), max(float(off.max()), -float(off.min()))


def _rounded(gradient: np.ndarray) -> bool:
    """Whether every element of a gradient is representable in float32."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(gradient, gradient.astype(np.float32), equal_nan=True))


def first_line(error: BaseException, most: int = 200) -> str:
    """An exception's type and message in one line of at most this many characters."""
    text = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {textwrap.shorten(text, most, placeholder=' ...')}" if text else type(error).__name__
    )


def refuses(error: BaseException) -> bool:
    """Whether an exception says that no such gradient exists, rather than that computing it failed."""
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(words in text for words in _REFUSALS)


# Messages of torch for an op without a derivative, and of jax for while_loop, custom_vmap and callbacks.
_REFUSALS = (
    "not implemented",
    "not differentiable",
    "reverse-mode differentiation does not work",
    "not support jvp",
    "not support reverse-mode",
)
