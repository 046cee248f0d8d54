"""Values and gradients against a reference, which is right by assumption."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core import differences
from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.derivative import DEVIATIONS, SENSITIVITY, Probe, joined, signs, uneven
from gradlab.autodiff.checker.core.differences import EPS
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.frameworks.side import as_tuple

VALUE, GRADIENT = "value vs reference", "gradient vs finite differences of reference"


def agreement(p: Promises, reference: Callable[..., Any], rng: np.random.Generator) -> None:
    """The reference's values, and differences of it along random directions.

    It is called with the arguments as they came and may return arrays of any kind, one or several.
    """
    s = p.probe.subject
    try:
        wanted = _values(p.probe, reference, s.arrays, as_they_came=True)
    except Exception as raised:
        raise ValueError(f"check: reference of {s.op} raises {first_line(raised)}") from raised
    if len(wanted) != len(p.values):
        raise ValueError(f"check: reference returns {len(wanted)} results, {s.op} returns {len(p.values)}")
    low = max((float(_UNIT.get(d, EPS)) for d in s.dtypes), default=EPS)
    slack = (8 + max(a.size for a in p.probe.arrays)) * (low if low > EPS else EPS)
    p.same_values(VALUE, p.values, "as the reference gives it", wanted) if low == EPS else _close(p, wanted, slack)
    if any(y.shape != want.shape for y, want in zip(p.values, wanted, strict=True)):
        return
    middle = joined(wanted)
    for i in s.wrt:
        if not p.probe.arrays[i].size:
            continue
        for draw in (signs, uneven):
            d = draw(rng, p.probe.arrays[i].shape) * p.probe.units(i)

            def line(t: float, i: int = i, d: np.ndarray = d) -> np.ndarray:
                moved = [a + t * d if k == i else a for k, a in enumerate(p.probe.arrays)]
                return joined(_values(p.probe, reference, moved))

            slope = differences.along(line, middle, unit=p.probe.units(i))
            c = joined(p.probe.cotangents)
            want, error = float(np.dot(c, slope.value)), DEVIATIONS * float(np.linalg.norm(c * slope.error))
            got = float(np.vdot(p.probe.gradients[i], d))
            scale = max(float(np.linalg.norm(p.probe.gradients[i] * d)), abs(want)) or 1.0
            off = abs(got - want)
            if not off <= error + SENSITIVITY * scale and np.isfinite(error):
                said = f"gives {got:.10g} along a direction, the reference {want:.10g} (error {off / scale:.1e})"
                p.say(GRADIENT, WRONG, said, s.names[i], (), {"error": off / scale, "got": got, "wanted": want})
                break
        else:
            p.say(GRADIENT, OK, "as the reference's", s.names[i], (), {"error": off / scale})


_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _close(p: Promises, wanted: Sequence[np.ndarray], slack: float) -> None:
    for k, (y, want) in enumerate(zip(p.values, wanted, strict=True)):
        p.same(VALUE, p.result(k), y, want, slack, "as the reference gives it")


def _values(
    probe: Probe, reference: Callable[..., Any], arrays: Sequence[np.ndarray], as_they_came: bool = False
) -> list[np.ndarray]:
    s = probe.subject
    args = s.args if as_they_came else s.rebuilt(s.put(arrays))
    results = as_tuple(reference(*args, **s.options))
    plain = [np.asarray(_plain(y)) for y in results]
    parts = [part for y in plain for part in ((y.real, y.imag) if np.iscomplexobj(y) else (y,))]
    return [np.asarray(part, np.float64) for part in parts]


def _plain(y: Any) -> Any:
    """NumPy's array from anybody's."""
    if hasattr(y, "detach"):
        y = y.detach().cpu()
        return y.double().numpy() if y.is_floating_point() else y.resolve_conj().resolve_neg().numpy()
    return np.asarray(y)
