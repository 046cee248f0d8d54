"""Low precision against float64, element by element, and its rounding as a whole."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.derivative import gradients
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG
from gradlab.autodiff.checker.core.inside import Inside, inside
from gradlab.autodiff.checker.core.subject import UNITS, Subject

# Bits of the significand and least normal exponent.
_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
_LEAST = {"float32": -126, "float16": -14, "bfloat16": -126}
# Random signs of dy that measure the terms of each sum.
SIGNS = 4
# Elements that the mean rounding error is a statistic of, and its deviations that are no chance.
MANY, DEVIATIONS = 64, 8.0


def precision(p: Promises, dtype: str, saved_slope: float = 0.0) -> None:
    """Values and gradients in `dtype` against float64 at the same numbers.

    Allowed is half an ulp of the element, for the rounding that stores it, and what carrying the sum in float32
    explains: L u32 |J|^T |dy| for L terms, its root found by pulling back dy with random signs; and what the inputs'
    own last bit moves. Beside single elements their mean: rounding to nearest errs up as often as down, so a scale of
    1.005 or truncation shows in the mean although each element lies within an ulp.

    Args:
        saved_slope: how much dx changes with a result saved in `dtype`, for each unit of dy.
    """
    probe, s = p.probe, p.probe.subject
    arrays = [_stored(a, dtype) if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    cotangents = [_stored(c, dtype) for c in probe.cotangents]
    within = Inside() if s.trusted else inside(s.side.name, s.flat, s.put(arrays, dtype))
    if within.unit > UNITS[dtype]:
        p.note(f"{s.op}: in {dtype} it works in a lower precision inside, so it is not held to {dtype}'s")
        return
    # Who gave no 64 bits has none: jax without x64 makes other dtypes of what is not given one. Other random numbers,
    # too, which says nothing.
    as_given = within.draws or any("64" in d for d in s.dtypes)
    try:
        with nullcontext() if as_given else s.side.single():
            values = s.values(arrays, dtype)
            found = dict(zip(s.wrt, s.gradients(arrays, cotangents, dtype), strict=True))
    except Exception as error:
        p.note(f"{s.op}: does not run in {dtype} ({first_line(error, 70)})")
        return
    truth = gradients(s, arrays, cotangents)
    exact = s.values(arrays)
    shaken = [_shake(a, dtype, p.rng) if i in s.wrt else a for i, a in enumerate(arrays)]
    moved = gradients(s, shaken, cotangents)
    near = s.values(shaken)
    terms = {i: np.abs(g) ** 2 for i, g in truth.items()}
    for _ in range(SIGNS - 1):
        flipped = [c * p.rng.choice([-1.0, 1.0], c.shape) for c in cotangents]
        for i, g in gradients(s, arrays, flipped).items():
            terms[i] = terms[i] + g**2
    length = max(probe.middle.size, max(arrays[i].size for i in s.wrt))
    for i in s.wrt:
        spread = np.sqrt(terms[i] / SIGNS)
        # The terms of one element are not seen one by one: their typical size across the array bounds a lucky one.
        spread = np.maximum(spread, float(np.sqrt(np.mean(spread**2))) if spread.size else 0.0)
        carried = 2.0**-24 * 4 * np.sqrt(8 + length) * spread
        saved = saved_slope * 2.0 ** -_BITS[dtype] * max(float(np.max(np.abs(c), initial=0.0)) for c in cotangents)
        slack = carried + 8 * np.abs(moved[i] - truth[i]) + saved
        _judge(p, f"{dtype} gradient", s.names[i], found[i], truth[i], slack, dtype)
    for k, (y, want, beside) in enumerate(zip(values, exact, near, strict=True)):
        typical = float(np.sqrt(np.mean(want**2))) if want.size else 0.0
        carried = 2.0**-24 * 4 * np.sqrt(8 + length) * np.maximum(np.abs(want), typical)
        _judge(p, f"{dtype} value", p.result(k), y, want, carried + 8 * np.abs(beside - want), dtype)


def _judge(
    p: Promises, check: str, name: str, got: np.ndarray, want: np.ndarray, slack: np.ndarray, dtype: str
) -> None:
    if got.shape != want.shape:
        p.say(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}", name)
        return
    if not got.size:
        return
    largest = float({"float16": 65504.0}.get(dtype, 3.4e38))
    judged = np.isfinite(want) & (np.abs(want) < largest) & np.isfinite(slack)
    half = 0.5 * _ulp(np.where(judged, want, 0.0), dtype)
    with np.errstate(invalid="ignore"):
        off = np.where(judged, got - want, 0.0)
    allowed = half * (1 + 1e-9) + slack
    off = np.where(np.isnan(off), np.inf, off)
    over = np.where(judged, np.abs(off) / allowed, 0.0)
    at = tuple(int(k) for k in np.unravel_index(int(np.argmax(over)), over.shape))
    numbers = {"got": float(got[at]), "wanted": float(want[at])}
    size = float(np.max(np.abs(want[judged]), initial=0.0)) or 1.0
    error = float(np.max(np.abs(off))) / size
    if over[at] > 1:
        # Within a few roundings of the intermediate results, it may be a composition that rounds on the way.
        between = dtype != "float32" and np.abs(off[at]) <= 8 * _ulp(np.array(size), dtype)
        biased, said = _bias(off, want, slack, dtype, judged)
        count = int((over > 1).sum())
        if not biased:
            said = "more than rounding the result and carrying the sums in float32 explain"
        verdict = INCONCLUSIVE if between and not biased else WRONG
        text = (
            f"is {got[at]:.6g}, in float64 {want[at]:.6g}: {np.abs(off[at]) / (2 * half[at]):.3g} ulp off, "
            f"{count} of {got.size} elements are, {said}"
        )
        p.say(check, verdict, text, name, at, {"error": error, "count": float(count), **numbers})
        return
    biased, said = _bias(off, want, slack, dtype, judged)
    if biased:
        p.say(check, WRONG, said, name, (), {"error": error, **numbers})
    else:
        p.say(check, OK, "within half an ulp and what carrying the sums explains", name, (), {"error": error})


def _bias(off: np.ndarray, want: np.ndarray, slack: np.ndarray, dtype: str, judged: np.ndarray) -> tuple[bool, str]:
    """Whether the errors lean away from 0 or towards it by more than chance and what `slack` explains."""
    ulp = _ulp(np.where(judged, want, 0.0), dtype)
    told = judged & (np.abs(want) > 0) & (slack < 0.05 * ulp) & np.isfinite(off)
    n = int(told.sum())
    if n < MANY or dtype == "float32":
        return False, ""
    leaning = off[told] * np.sign(want[told]) / ulp[told]
    mean, deviation = float(np.mean(leaning)), float(np.std(leaning)) / np.sqrt(n)
    if abs(mean) <= max(DEVIATIONS * deviation, 0.1):
        return False, ""
    relative = float(np.mean(off[told] / want[told]))
    what = "as truncation does" if -0.6 < mean < -0.4 and float(np.max(leaning)) < 0.1 else "as a wrong factor does"
    return True, (
        f"the rounding errors of {n} elements lean by {mean:+.2f} ulp on average ({relative:+.2%}), {what}; "
        "rounding to nearest leans by 0"
    )


def _ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    exponent = np.frexp(np.abs(x))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, _LEAST[dtype]) - _BITS[dtype] + 1)


def _stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of `dtype`, as float64."""
    ulp = _ulp(x, dtype)
    return np.rint(x / ulp) * ulp


def _shake(x: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Inputs moved by a float32 rounding: what a backward-stable forward may add."""
    return x * (1 + 2.0**-24 * rng.choice([-1.0, 1.0], x.shape))


def lower(s: Subject, asked: Sequence[str] | None) -> list[str]:
    """The dtypes below float64 that were asked for, or the arguments' one.

    Arguments of several dtypes are held as they are, by the contract.
    """
    own = {s.dtypes[i] for i in s.wrt}
    return [d for d in dict.fromkeys((own if len(own) == 1 else ()) if asked is None else asked) if d in _BITS]
