"""Values and gradients in a low precision against float64, element by element and for bias on average."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG
from gradlab.autodiff.checker.core.internals import Internals, internals
from gradlab.autodiff.checker.core.probe import gradients
from gradlab.autodiff.checker.core.subject import UNITS, CheckSubject

# Bits of the significand and least normal exponent.
_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
_LEAST = {"float32": -126, "float16": -14, "bfloat16": -126}
# The number of dy with random signs that estimate the terms of each sum.
SIGNS = 4
# The fewest elements for a mean rounding error, and the standard deviations beyond which it is a bias.
MANY, DEVIATIONS = 64, 8.0


def precision(cmp: Comparison, dtype: str, saved_slope: float = 0.0) -> None:
    """Values and gradients in `dtype` against float64 at the same numbers.

    The tolerance of an element is half an ulp, for the rounding that stores it, plus the error of a float32 sum,
    L u32 |J|^T |dy| for L terms (its magnitude estimated by pulling back dy with random signs), plus the change caused
    by the last bit of the inputs. The mean of the signed errors is tested too: rounding to nearest errs up as often as
    down, so a factor of 1.005 or truncation shows in the mean although each element is within an ulp.

    Args:
        saved_slope: how much dx changes with a result saved in `dtype`, per unit of dy.
    """
    probe, s = cmp.probe, cmp.probe.subject
    arrays = [_rounded(a, dtype) if i in s.wrt else a for i, a in enumerate(probe.arrays)]
    cotangents = [_rounded(c, dtype) for c in probe.cotangents]
    internal = Internals() if s.trusted else internals(s.side.name, s.flat, s.put(arrays, dtype))
    if internal.unit > UNITS[dtype]:
        cmp.note(f"{s.op}: in {dtype} it computes in a lower precision internally, so {dtype} is not checked")
        return
    # Without 64-bit arguments, run without jax's x64, which changes default dtypes; but it changes random numbers too,
    # so not if the function draws any.
    as_given = internal.draws or any("64" in d for d in s.dtypes)
    try:
        with nullcontext() if as_given else s.side.single():
            values = s.values(arrays, dtype)
            found = dict(zip(s.wrt, s.gradients(arrays, cotangents, dtype), strict=True))
    except Exception as error:
        cmp.note(f"{s.op}: does not run in {dtype} ({first_line(error, 70)})")
        return
    truth = gradients(s, arrays, cotangents)
    exact = s.values(arrays)
    perturbed = [_perturb(a, dtype, cmp.rng) if i in s.wrt else a for i, a in enumerate(arrays)]
    moved = gradients(s, perturbed, cotangents)
    near = s.values(perturbed)
    terms = {i: np.abs(g) ** 2 for i, g in truth.items()}
    for _ in range(SIGNS - 1):
        flipped = [c * cmp.rng.choice([-1.0, 1.0], c.shape) for c in cotangents]
        for i, g in gradients(s, arrays, flipped).items():
            terms[i] = terms[i] + g**2
    length = max(probe.middle.size, max(arrays[i].size for i in s.wrt))
    for i in s.wrt:
        spread = np.sqrt(terms[i] / SIGNS)
        # The terms of an element are not known one by one: their typical size over the array bounds a lucky estimate.
        spread = np.maximum(spread, float(np.sqrt(np.mean(spread**2))) if spread.size else 0.0)
        constants = 2.0**-24 * 4 * np.sqrt(8 + length) * spread
        from_saved = saved_slope * 2.0 ** -_BITS[dtype] * max(float(np.max(np.abs(c), initial=0.0)) for c in cotangents)
        slack = constants + 8 * np.abs(moved[i] - truth[i]) + from_saved
        _judge(cmp, f"{dtype} gradient", s.names[i], found[i], truth[i], slack, dtype)
    for k, (y, want, beside) in enumerate(zip(values, exact, near, strict=True)):
        typical = float(np.sqrt(np.mean(want**2))) if want.size else 0.0
        constants = 2.0**-24 * 4 * np.sqrt(8 + length) * np.maximum(np.abs(want), typical)
        _judge(cmp, f"{dtype} value", cmp.result(k), y, want, constants + 8 * np.abs(beside - want), dtype)


def _judge(
    cmp: Comparison, check: str, name: str, got: np.ndarray, want: np.ndarray, slack: np.ndarray, dtype: str
) -> None:
    if got.shape != want.shape:
        cmp.record(check, WRONG, f"has the shape {list(got.shape)}, wanted {list(want.shape)}", name)
        return
    if not got.size:
        return
    largest = float({"float16": 65504.0}.get(dtype, 3.4e38))
    finite = np.isfinite(want) & (np.abs(want) < largest) & np.isfinite(slack)
    half = 0.5 * _ulp(np.where(finite, want, 0.0), dtype)
    with np.errstate(invalid="ignore"):
        off = np.where(finite, got - want, 0.0)
    allowed = half * (1 + 1e-9) + slack
    off = np.where(np.isnan(off), np.inf, off)
    over = np.where(finite, np.abs(off) / allowed, 0.0)
    at = tuple(int(k) for k in np.unravel_index(int(np.argmax(over)), over.shape))
    numbers = {"got": float(got[at]), "wanted": float(want[at])}
    size = float(np.max(np.abs(want[finite]), initial=0.0)) or 1.0
    error = float(np.max(np.abs(off))) / size
    if over[at] > 1:
        # Within a few roundings of the largest element it may be a composition that rounds intermediate results.
        between = dtype != "float32" and np.abs(off[at]) <= 8 * _ulp(np.array(size), dtype)
        biased, detail = _bias(off, want, slack, dtype, finite)
        count = int((over > 1).sum())
        if not biased:
            detail = "more than rounding the result and summing in float32 explain"
        verdict = INCONCLUSIVE if between and not biased else WRONG
        text = (
            f"is {got[at]:.6g}, in float64 {want[at]:.6g}: {np.abs(off[at]) / (2 * half[at]):.3g} ulp off, "
            f"{count} of {got.size} elements are, {detail}"
        )
        cmp.record(check, verdict, text, name, at, {"error": error, "count": float(count), **numbers})
        return
    biased, detail = _bias(off, want, slack, dtype, finite)
    if biased:
        cmp.record(check, WRONG, detail, name, (), {"error": error, **numbers})
    else:
        cmp.record(check, OK, "within half an ulp plus the error of a float32 sum", name, (), {"error": error})


def _bias(off: np.ndarray, want: np.ndarray, slack: np.ndarray, dtype: str, finite: np.ndarray) -> tuple[bool, str]:
    """Whether the errors are biased away from 0 or towards it by more than chance and `slack` explain."""
    ulp = _ulp(np.where(finite, want, 0.0), dtype)
    counted = finite & (np.abs(want) > 0) & (slack < 0.05 * ulp) & np.isfinite(off)
    n = int(counted.sum())
    if n < MANY or dtype == "float32":
        return False, ""
    signed_ulps = off[counted] * np.sign(want[counted]) / ulp[counted]
    mean, deviation = float(np.mean(signed_ulps)), float(np.std(signed_ulps)) / np.sqrt(n)
    if abs(mean) <= max(DEVIATIONS * deviation, 0.1):
        return False, ""
    relative = float(np.mean(off[counted] / want[counted]))
    what = "as truncation does" if -0.6 < mean < -0.4 and float(np.max(signed_ulps)) < 0.1 else "as a wrong factor does"
    return True, (
        f"the rounding errors of {n} elements average {mean:+.2f} ulp ({relative:+.2%}), {what}; "
        "rounding to nearest averages 0"
    )


def _ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    exponent = np.frexp(np.abs(x))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, _LEAST[dtype]) - _BITS[dtype] + 1)


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of `dtype`, as float64."""
    ulp = _ulp(x, dtype)
    return np.rint(x / ulp) * ulp


def _perturb(x: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Inputs perturbed by a float32 rounding: what a backward-stable forward may add."""
    return x * (1 + 2.0**-24 * rng.choice([-1.0, 1.0], x.shape))


def lower(s: CheckSubject, requested: Sequence[str] | None) -> list[str]:
    """The requested dtypes below float64, or the arguments' own.

    Arguments of several dtypes are checked by the contract part, as given.
    """
    own = {s.dtypes[i] for i in s.wrt}
    return [d for d in dict.fromkeys((own if len(own) == 1 else ()) if requested is None else requested) if d in _BITS]
