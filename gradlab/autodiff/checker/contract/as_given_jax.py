"""The arrays exactly as given: of several dtypes, weakly typed, under x64 or not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.complex_arrays import PARTS, is_complex
from gradlab.autodiff.checker.core.subject import FLOATS, UNITS
from gradlab.autodiff.checker.precision.rounding import Evaluation, compare_evaluations, perturb

CHECK = "as they were given"
WIDE = ("float64", "int64", "uint64", "complex128")


def given(cmp: Comparison) -> None:
    """Compare values and gradients at the given arrays themselves, if they have several dtypes or are weakly typed.

    Arrays of one dtype are covered by the rest of the check and by the precision part.
    """
    s = cmp.probe.subject
    how = _unusual(cmp)
    if not how:
        return
    dtypes = [s.side.dtype(a) for a in s.given]
    evaluate = _Evaluate(cmp)
    with jax.enable_x64(any(dtype in WIDE for dtype in dtypes)):
        try:
            evaluate(0.0)
        except Exception as error:
            cmp.note(f"{s.op}: does not run {how} ({first_line(error, 90)})")
            return
    compare_evaluations(cmp, CHECK, how, evaluate, max(evaluate.unit, s.noise, cmp.probe.noise), evaluate.half)


class _Evaluate:
    """Evaluates the compiled function and its pullback at the given arrays.

    Attributes:
        unit: rounding unit of the lowest precision among inputs and results; half: whether one of them is float16.
    """

    def __init__(self, cmp: Comparison) -> None:
        self.cmp, self.unit, self.half = cmp, 0.0, False
        self.rng = cmp.own_rng()
        s = cmp.probe.subject
        self.dtypes = [s.side.dtype(a) for a in s.given]
        self.moving = [
            k for k, d in enumerate(self.dtypes) if d in (*FLOATS, *PARTS) and not s.side.foreign(s.given[k])
        ]
        self.program = jax.jit(self._both)

    def __call__(self, by: float) -> Evaluation:
        s, cmp = self.cmp.probe.subject, self.cmp
        with jax.enable_x64(any(dtype in WIDE for dtype in self.dtypes)):
            given = [self._moved(a, by) if k in self.moving else a for k, a in enumerate(s.given)]
            dys = perturb(cmp.probe.cotangents, range(len(cmp.probe.cotangents)), by, self.rng)
            results, taken, found = self.program(given, [np.asarray(c, np.float32) for c in dys])
            arrays = [s.side.take(part) for a in given for part in self._parts(a)]
            grads: list[np.ndarray] = []
            for k, g in zip(self.moving, found, strict=True):
                if is_complex(s.side, s.given[k]):
                    # jax's convention is d/dx - i d/dy.
                    grads += [s.side.take(jnp.real(g)), -s.side.take(jnp.imag(g))]
                else:
                    grads.append(s.side.take(g))
            kinds = {s.dtypes[i] for i in s.wrt} | {s.side.dtype(y) for y in results}
            self.unit, self.half = max(UNITS[d] for d in kinds), "float16" in kinds
            return Evaluation(arrays, [s.side.take(c) for c in taken], [s.side.take(y) for y in results], grads)

    def _both(self, given: list[Any], cotangents: list[Any]) -> Any:
        def of(*moving: jax.Array) -> tuple[Any, ...]:
            full = list(given)
            for k, value in zip(self.moving, moving, strict=True):
                full[k] = value
            return self.cmp.probe.subject.as_given(*full)

        results, pull = jax.vjp(of, *(given[k] for k in self.moving))
        taken = tuple(c.astype(y.dtype) for c, y in zip(cotangents, results, strict=True))
        return results, taken, pull(taken)

    def _moved(self, a: Any, by: float) -> Any:
        """An array perturbed by a relative amount; by one Python scalar if weakly typed, as an array would change its
        type."""
        if not by:
            return a
        if a.weak_type:
            return a * float(1 + by * self.rng.choice([-1.0, 1.0]))
        signs = jnp.asarray(1 + by * self.rng.choice([-1.0, 1.0], a.shape), jnp.float32)
        return (a * signs).astype(a.dtype)

    def _parts(self, a: Any) -> tuple[Any, ...]:
        s = self.cmp.probe.subject
        return s.side.parts(a) if is_complex(s.side, a) else (a,)


def _unusual(cmp: Comparison) -> str:
    """What is unusual about the arrays, in words; empty if nothing is, or if an argument has no gradient."""
    s = cmp.probe.subject
    names: list[str] = []
    for a in s.given:
        name = s.names[sum(2 if is_complex(s.side, b) else 1 for b in s.given[: len(names)])]
        names.append(name.removesuffix(".real") if is_complex(s.side, a) else name)
    kinds = {n: s.side.dtype(a) for n, a in zip(names, s.given, strict=True)}
    floats = {n: PARTS.get(kind, kind) for n, kind in kinds.items() if kind in (*FLOATS, *PARTS)}
    if s.constants or s.without_jit:
        return ""
    unusual = [f"{n} {kinds[n]}" for n in floats] if len(set(floats.values())) > 1 else []
    unusual += [f"{n} weakly typed" for n, a in zip(names, s.given, strict=True) if n in floats and a.weak_type]
    return f"with {', '.join(unusual)}, as given" if unusual else ""
