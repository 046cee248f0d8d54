"""Inverse hyperbolic functions, by log1p; float32 is computed in float64."""

import math

from gradlab.kernels.cpu.mathematics_logarithm import log, log1p
from gradlab.kernels.cpu.mathematics_numbers import Number

_LN2 = math.log(2)
# From here on sqrt(x^2 +- 1) rounds to |x|.
_FAR = 2.0**28


def asinh(x: Number) -> Number:
    """log(x + sqrt(x^2 + 1))."""
    if x.element == "f32":
        return asinh(x.to("fpext", "f64")).to("fptrunc", "f32")
    a = x.abs()
    square = a * a
    near = log1p(a + square / (square.fma(1.0, 1.0).sqrt() + 1.0))
    return (a > _FAR).choose(log(a) + _LN2, near).signed(x)


def acosh(x: Number) -> Number:
    """log(x + sqrt(x^2 - 1)); NaN below 1."""
    if x.element == "f32":
        return acosh(x.to("fpext", "f64")).to("fptrunc", "f32")
    t = x - 1.0
    near = log1p(t + (t * (t + 2.0)).sqrt())
    return (x < 1.0).choose(math.nan, (x > _FAR).choose(log(x) + _LN2, near))


def atanh(x: Number) -> Number:
    """log((1 + x) / (1 - x)) / 2; infinite at 1 and NaN beyond."""
    if x.element == "f32":
        return atanh(x.to("fpext", "f64")).to("fptrunc", "f32")
    a = x.abs()
    twice = a + a
    # Twice a small number keeps the digits that its quotient with 1 - a would round away.
    ratio = (a < 0.5).choose(twice + twice * a / (1.0 - a), twice / (1.0 - a))
    return (log1p(ratio) * 0.5).signed(x)
