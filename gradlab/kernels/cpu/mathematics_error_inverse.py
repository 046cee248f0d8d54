"""The inverses of erf and erfc, and those of the normal distribution: a first guess and two of Halley's steps."""

import math

from gradlab.kernels.cpu.mathematics_error_function import erf, erfc
from gradlab.kernels.cpu.mathematics_exponential import exp
from gradlab.kernels.cpu.mathematics_logarithm import log
from gradlab.kernels.cpu.mathematics_numbers import Number

# Winitzki's constant: his formula is off by two parts in a thousand at most.
_A = 0.147


def erfinv(x: Number) -> Number:
    """y with erf(y) = x; infinite at 1 and -1, NaN beyond."""
    if x.element == "f32":
        return erfinv(x.to("fpext", "f64")).to("fptrunc", "f32")
    a = x.abs()
    return (a < 0.5).choose(_near_zero(a), _of_rest(1.0 - a)).signed(x)


def erfcinv(x: Number) -> Number:
    """y with erfc(y) = x, for x from 0 to 2."""
    if x.element == "f32":
        return erfcinv(x.to("fpext", "f64")).to("fptrunc", "f32")
    rest = (x > 1.0).choose(2.0 - x, x)
    middle = (1.0 - x).abs()
    y = (middle < 0.5).choose(_near_zero(middle), _of_rest(rest))
    return (x > 1.0).choose(-y, y)


def normcdf(x: Number) -> Number:
    """The normal distribution's integral up to x."""
    if x.element == "f32":
        return normcdf(x.to("fpext", "f64")).to("fptrunc", "f32")
    return erfc(x * -math.sqrt(0.5)) * 0.5


def normcdfinv(x: Number) -> Number:
    """Up to where the normal distribution's integral is x."""
    if x.element == "f32":
        return normcdfinv(x.to("fpext", "f64")).to("fptrunc", "f32")
    return erfcinv(x + x) * -math.sqrt(2)


def _near_zero(a: Number) -> Number:
    """y with erf(y) = a, for a from 0 to 1/2."""
    y = _guess(1.0 - a)
    for _ in range(2):
        y = _halley(y, erf(y) - a)
    return a.equals(0.0).choose(a, y)


def _of_rest(rest: Number) -> Number:
    """y >= 0 with erfc(y) = rest, for a rest from 0 to 1/2."""
    y = _guess(rest)
    for _ in range(3):
        y = _halley(y, rest - erfc(y))
    return rest.equals(0.0).choose(math.inf, y)


def _guess(rest: Number) -> Number:
    level = log(rest * (2.0 - rest))
    t = level.fma(0.5, level.constant(2 / (math.pi * _A)))
    return ((t * t - level * (1 / _A)).sqrt() - t).sqrt()


def _halley(y: Number, off: Number) -> Number:
    """The next y, where erf(y) is `off` too large; the derivative is 2 / sqrt(pi) exp(-y^2)."""
    step = off * (exp(y * y) * (math.sqrt(math.pi) / 2))
    return y - step / step.fma(y, 1.0)
