"""Values and gradients against a reference implementation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core import finite_differences
from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.finite_differences import EPS
from gradlab.autodiff.checker.core.probe import DEVIATIONS, SENSITIVITY, Probe, joined, signs, uneven
from gradlab.autodiff.frameworks.side import as_tuple

VALUE, GRADIENT = "value vs reference", "gradient vs finite differences of reference"


def against_reference(cmp: Comparison, reference: Callable[..., Any], rng: np.random.Generator) -> None:
    """Compare with the reference's values, and with finite differences of it along random directions.

    It is called with the original arguments and may return one or several arrays of any kind.
    """
    s = cmp.probe.subject
    try:
        wanted = _values(cmp.probe, reference, s.arrays, original=True)
    except Exception as raised:
        raise ValueError(
            f"check: reference of {s.op} raises {first_line(raised)}, wanted one that runs at its arguments"
        ) from raised
    if len(wanted) != len(cmp.values):
        raise ValueError(f"check: reference returns {len(wanted)} results, wanted {len(cmp.values)} as {s.op}")
    low = max((float(_UNIT.get(d, EPS)) for d in s.dtypes), default=EPS)
    slack = (8 + max(a.size for a in cmp.probe.arrays)) * (low if low > EPS else EPS)
    cmp.same_values(VALUE, cmp.values, "equal to the reference", wanted) if low == EPS else _close(cmp, wanted, slack)
    if any(y.shape != want.shape for y, want in zip(cmp.values, wanted, strict=True)):
        return
    middle = joined(wanted)
    for i in s.wrt:
        if not cmp.probe.arrays[i].size:
            continue
        for draw in (signs, uneven):
            d = draw(rng, cmp.probe.arrays[i].shape) * cmp.probe.units(i)

            def line(t: float, i: int = i, d: np.ndarray = d) -> np.ndarray:
                moved = [a + t * d if k == i else a for k, a in enumerate(cmp.probe.arrays)]
                return joined(_values(cmp.probe, reference, moved))

            slope = finite_differences.along(line, middle, unit=cmp.probe.units(i))
            c = joined(cmp.probe.cotangents)
            want, error = float(np.dot(c, slope.value)), DEVIATIONS * float(np.linalg.norm(c * slope.error))
            got = float(np.vdot(cmp.probe.gradients[i], d))
            scale = max(float(np.linalg.norm(cmp.probe.gradients[i] * d)), abs(want)) or 1.0
            off = abs(got - want)
            if not off <= error + SENSITIVITY * scale and np.isfinite(error):
                detail = f"gives {got:.10g} along a direction, the reference {want:.10g} (error {off / scale:.1e})"
                cmp.record(GRADIENT, WRONG, detail, s.names[i], (), {"error": off / scale, "got": got, "wanted": want})
                break
        else:
            cmp.record(GRADIENT, OK, "equal to the reference", s.names[i], (), {"error": off / scale})


_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _close(cmp: Comparison, wanted: Sequence[np.ndarray], slack: float) -> None:
    for k, (y, want) in enumerate(zip(cmp.values, wanted, strict=True)):
        cmp.same(VALUE, cmp.result(k), y, want, slack, "equal to the reference")


def _values(
    probe: Probe, reference: Callable[..., Any], arrays: Sequence[np.ndarray], original: bool = False
) -> list[np.ndarray]:
    s = probe.subject
    args = s.args if original else s.rebuilt(s.put(arrays))
    results = as_tuple(reference(*args, **s.options))
    plain = [np.asarray(_plain(y)) for y in results]
    parts = [part for y in plain for part in ((y.real, y.imag) if np.iscomplexobj(y) else (y,))]
    return [np.asarray(part, np.float64) for part in parts]


def _plain(y: Any) -> Any:
    """A NumPy array from an array of any library."""
    if hasattr(y, "detach"):
        y = y.detach().cpu()
        return y.double().numpy() if y.is_floating_point() else y.resolve_conj().resolve_neg().numpy()
    return np.asarray(y)
