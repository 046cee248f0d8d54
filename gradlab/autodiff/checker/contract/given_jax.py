"""The arrays as the user gave them: several dtypes, weak types, and x64 as they were made under."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.complex_arrays import PARTS, is_complex
from gradlab.autodiff.checker.core.subject import FLOATS, UNITS
from gradlab.autodiff.checker.precision.rounding import Worked, held, shaken

CHECK = "as they were given"
WIDE = ("float64", "int64", "uint64", "complex128")


def given(p: Promises) -> None:
    """Values and gradients at the arrays themselves, where they are of several dtypes or weakly typed.

    Of one dtype they are what the rest of the check runs on, and the precision part.
    """
    s = p.probe.subject
    how = _unusual(p)
    if not how:
        return
    dtypes = [s.side.dtype(a) for a in s.given]
    work = _Work(p)
    with jax.enable_x64(any(dtype in WIDE for dtype in dtypes)):
        try:
            work(0.0)
        except Exception as error:
            p.note(f"{s.op}: does not run {how} ({first_line(error, 90)})")
            return
    held(p, CHECK, how, work, max(work.unit, s.noise, p.probe.noise), work.half)


class _Work:
    """The function and its pullback at the given arrays, compiled.

    Attributes:
        unit: of the lowest precision among inputs and results; half: one of them is float16.
    """

    def __init__(self, p: Promises) -> None:
        self.p, self.unit, self.half = p, 0.0, False
        self.rng = p.own_rng()
        s = p.probe.subject
        self.dtypes = [s.side.dtype(a) for a in s.given]
        self.moving = [
            k for k, d in enumerate(self.dtypes) if d in (*FLOATS, *PARTS) and not s.side.foreign(s.given[k])
        ]
        self.program = jax.jit(self._both)

    def __call__(self, by: float) -> Worked:
        s, p = self.p.probe.subject, self.p
        with jax.enable_x64(any(dtype in WIDE for dtype in self.dtypes)):
            given = [self._moved(a, by) if k in self.moving else a for k, a in enumerate(s.given)]
            dys = shaken(p.probe.cotangents, range(len(p.probe.cotangents)), by, self.rng)
            results, taken, found = self.program(given, [np.asarray(c, np.float32) for c in dys])
            arrays = [s.side.take(part) for a in given for part in self._parts(a)]
            grads: list[np.ndarray] = []
            for k, g in zip(self.moving, found, strict=True):
                if is_complex(s.side, s.given[k]):
                    # d/dx - i d/dy, as jax has it.
                    grads += [s.side.take(jnp.real(g)), -s.side.take(jnp.imag(g))]
                else:
                    grads.append(s.side.take(g))
            kinds = {s.dtypes[i] for i in s.wrt} | {s.side.dtype(y) for y in results}
            self.unit, self.half = max(UNITS[d] for d in kinds), "float16" in kinds
            return Worked(arrays, [s.side.take(c) for c in taken], [s.side.take(y) for y in results], grads)

    def _both(self, given: list[Any], cotangents: list[Any]) -> Any:
        def of(*moving: jax.Array) -> tuple[Any, ...]:
            full = list(given)
            for k, value in zip(self.moving, moving, strict=True):
                full[k] = value
            return self.p.probe.subject.as_given(*full)

        results, pull = jax.vjp(of, *(given[k] for k in self.moving))
        taken = tuple(c.astype(y.dtype) for c, y in zip(cotangents, results, strict=True))
        return results, taken, pull(taken)

    def _moved(self, a: Any, by: float) -> Any:
        """An array moved by a part of itself; one factor for all of a weak one, whose type an array would change."""
        if not by:
            return a
        if a.weak_type:
            return a * float(1 + by * self.rng.choice([-1.0, 1.0]))
        signs = jnp.asarray(1 + by * self.rng.choice([-1.0, 1.0], a.shape), jnp.float32)
        return (a * signs).astype(a.dtype)

    def _parts(self, a: Any) -> tuple[Any, ...]:
        s = self.p.probe.subject
        return s.side.parts(a) if is_complex(s.side, a) else (a,)


def _unusual(p: Promises) -> str:
    """What is unusual of the arrays, in words; empty when nothing is, or where an argument takes no gradient."""
    s = p.probe.subject
    names: list[str] = []
    for a in s.given:
        name = s.names[sum(2 if is_complex(s.side, b) else 1 for b in s.given[: len(names)])]
        names.append(name.removesuffix(".real") if is_complex(s.side, a) else name)
    kinds = {n: s.side.dtype(a) for n, a in zip(names, s.given, strict=True)}
    floats = {n: PARTS.get(kind, kind) for n, kind in kinds.items() if kind in (*FLOATS, *PARTS)}
    if s.carried or s.untraced:
        return ""
    said = [f"{n} {kinds[n]}" for n in floats] if len(set(floats.values())) > 1 else []
    said += [f"{n} weakly typed" for n, a in zip(names, s.given, strict=True) if n in floats and a.weak_type]
    return f"with {', '.join(said)}, as given" if said else ""
