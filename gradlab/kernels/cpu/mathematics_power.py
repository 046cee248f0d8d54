"""pow, and roots: rsqrt, cbrt, hypot."""

import math

from gradlab.kernels.cpu.mathematics_exponential import exp2_of_sum
from gradlab.kernels.cpu.mathematics_logarithm import exponent_and_fraction, log2_in_two
from gradlab.kernels.cpu.mathematics_numbers import Number

# t^(-1/3) in t, for 3/8 <= t <= 3, to 2 %.
CUBE_ROOT = (1.7154055, -1.0988888, 0.45243087, -0.066997014)
# log2(1 + f) / f in f, and (2^r - 1) / r in r: float64 arithmetic for a float32 result.
LOG2_SHORT = (
    1.4426950408885812,
    -0.7213475205968137,
    0.48089834741235715,
    -0.36067372081149973,
    0.2885388949128667,
    -0.24045195909694733,
    0.2061095097332774,
    -0.1802635113974243,
    0.15992802269846995,
    -0.14478695205179357,
    0.13662036207711534,
    -0.1265487793347038,
    0.09003879053460251,
    -0.031960218903397696,
)
EXP2_SHORT = (
    0.6931471805408849,
    0.24022651078059618,
    0.05550410964591965,
    0.009618036551489056,
    0.0013333429456177115,
    0.00015467234965866212,
    1.5315201865694447e-05,
)


def pow(x: Number, y: Number) -> Number:
    """x to the power of y, with the special cases of C."""
    size = x.abs()
    result = _power(size, y)
    # For negative x, x^y is negative for odd y, and NaN for y that is no integer.
    half = y * 0.5
    integer = y.call("trunc").equals(y)
    odd = integer & ~half.call("trunc").equals(half)
    result = odd.choose(result.signed(x), result)
    result = ((x < 0.0) & (x > -math.inf) & ~integer).choose(math.nan, result)
    one = y.equals(0.0) | x.equals(1.0) | (size.equals(1.0) & y.abs().equals(math.inf))
    return one.choose(1.0, result)


def rsqrt(x: Number) -> Number:
    """1 / sqrt(x), without the divider."""
    f = x.format
    # A denormal is scaled by an even power of two.
    lift = f.fraction + 2 - f.fraction % 2
    denormal = x < f.tiny
    v = denormal.choose(x * 2.0**lift, x)
    # First guess by half the negated exponent and, by the same shift, a chord: y^2 v is 1 to 7 %. A step cubes the
    # error.
    y = (x.integer((3 * f.one >> 1) - round(0.0681 * 2.0**f.fraction)) - v.bits().logical_shift(1)).as_float()
    for last in (False, True) if x.element == "f32" else (False, False, True):
        product = v * y
        off = (-product).fma(y, 1.0)
        if last:
            # The product's rounding error counts now.
            off = (-y).fma(v.fma(y, -product), off)
        y = y.fma(off * off.fma(0.375, 0.5), y)
    y = y * denormal.choose(x.constant(2.0 ** (lift // 2)), 1.0)
    y = x.equals(0.0).choose(x.constant(math.inf).signed(x), y)
    y = x.equals(math.inf).choose(0.0, y)
    return (x >= 0.0).choose(y, math.nan)


def cbrt(x: Number) -> Number:
    """The cube root."""
    k, m = exponent_and_fraction(x.abs())
    third = (k * (1 / 3) + x.format.shifter) - x.format.shifter
    t = m * third.fma(-3.0, k).two_to()
    y = t.polynomial(CUBE_ROOT)
    for _ in range(1 if x.element == "f32" else 2):
        off = (-t).fma(y * y * y, 1.0)
        y = y.fma(off * off.fma(2 / 9, 1 / 3), y)
    # Newton's last step from t y^2, the product of three factors in two parts.
    square = y * y
    root = t * square
    high = root * root
    left = (-root).fma(root.fma(root, -high), (-high).fma(root, t))
    root = (left * square).fma(1 / 3, root) * third.two_to()
    usual = (x.abs() < math.inf) & (x.abs() > 0.0)
    return usual.choose(root.signed(x), x)


def hypot(x: Number, y: Number) -> Number:
    """sqrt(x^2 + y^2), without overflow between."""
    a, b = x.abs(), y.abs()
    infinite = a.equals(math.inf) | b.equals(math.inf)
    if x.element == "f32":
        wide, other = a.to("fpext", "f64"), b.to("fpext", "f64")
        result = wide.fma(wide, other * other).sqrt().to("fptrunc", "f32")
    else:
        larger, smaller = (a > b).choose(a, b), (a > b).choose(b, a)
        shift = (larger > 2.0**500).choose(
            x.constant(2.0**-600), (larger < 2.0**-400).choose(x.constant(2.0**600), 1.0)
        )
        back = (larger > 2.0**500).choose(x.constant(2.0**600), (larger < 2.0**-400).choose(x.constant(2.0**-600), 1.0))
        larger, smaller = larger * shift, smaller * shift
        result = larger.fma(larger, smaller * smaller).sqrt() * back
    return infinite.choose(math.inf, result)


def _power(x: Number, y: Number) -> Number:
    """x^y for x >= 0."""
    if x.element == "f32":
        wide = x.to("fpext", "f64")
        k, m = exponent_and_fraction(wide)
        f = m - 1.0
        log2 = f.fma(f.polynomial(LOG2_SHORT), k)
        log2 = wide.equals(0.0).choose(-math.inf, (wide < math.inf).choose(log2, wide))
        product = (log2 * y.to("fpext", "f64")).at_most(1000.0).at_least(-1000.0)
        n = (product + product.format.shifter) - product.format.shifter
        return ((product - n).polynomial((1.0, *EXP2_SHORT)) * n.two_to()).to("fptrunc", "f32")
    high, low = log2_in_two(x)
    product = y * high
    return exp2_of_sum(product, y.fma(high, -product) + y * low)
