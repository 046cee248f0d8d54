"""log, log2, log10, log1p: an exponent k, and a polynomial of the fraction m from 3/4 to 3/2."""

import dataclasses
import math
from collections.abc import Sequence

from gradlab.kernels.cpu import mathematics_avx512 as avx512
from gradlab.kernels.cpu.mathematics_numbers import Number, Operand


@dataclasses.dataclass(frozen=True)
class Constants:
    """Constants that differ between float32 and float64: pairs are a number in this precision and its remainder.

    Factors of k are truncated, not rounded: both products have one sign, so their sum is not NaN for an infinite k.

    Attributes:
        ln2: log(2).
        log2_e: 1 / log(2).
        log10_2: log10(2).
        log10_e: 1 / log(10).
    """

    ln2: tuple[float, float]
    log2_e: tuple[float, float]
    log10_2: tuple[float, float]
    log10_e: tuple[float, float]


CONSTANTS = {
    "f32": Constants(
        ln2=(0.6931471228599548, 5.7699990475432854e-08),
        log2_e=(1.4426950216293335, 1.9259629911266175e-08),
        log10_2=(0.3010299801826477, 1.5481333490135613e-08),
        log10_e=(0.43429449200630188, -1.0103050118726031e-08),
    ),
    "f64": Constants(
        ln2=(0.69314718055994529, 2.3190468138462996e-17),
        log2_e=(1.4426950408889634, 2.0355273740931033e-17),
        log10_2=(0.30102999566398114, 5.270742310347266e-17),
        log10_e=(0.43429448190325182, 1.0983196502167651e-17),
    ),
}


# (log(1 + f) - f) / f^2 in f: float32, for 3/4 <= 1 + f <= 3/2; to the other bases, from sqrt(1/2) to sqrt(2).
SERIES = (
    -0.5,
    0.33333462,
    -0.25000194,
    0.19990374,
    -0.16642569,
    0.14475568,
    -0.13209532,
    0.105910756,
    -0.04603378,
)
SERIES_2 = (
    -0.72134733,
    0.48089838,
    -0.3606991,
    0.28855947,
    -0.23955086,
    0.20471385,
    -0.19171974,
    0.18574262,
    -0.10787624,
)
SERIES_10 = (
    -0.21714719,
    0.14476484,
    -0.10858102,
    0.086864635,
    -0.0721168,
    0.061636236,
    -0.057687566,
    0.05583362,
    -0.032433867,
)
# (log((1 + s) / (1 - s)) / s - 2) / s^2 in s^2 for -1/7 <= s <= 1/5: float64.
WIDE_SERIES = (
    0.666666666666666,
    0.4000000000005664,
    0.2857142855584184,
    0.22222224294441822,
    0.18181666027492616,
    0.1539110600368135,
    0.13173715018870524,
    0.13842157715566683,
)
# The remainder of 2/3 in that series, good to 2^-64 of the logarithm.
FINE_SERIES = (
    0.39999999999999725,
    0.285714285715773,
    0.22222222191254526,
    0.18181821525094433,
    0.15384406711863147,
    0.13341142350660273,
    0.11592394904802637,
    0.1257118325308286,
)
TWO_THIRDS = (2 / 3, 3.700743415417188e-17)


def log(x: Number) -> Number:
    """The natural logarithm."""
    c = CONSTANTS[x.element]
    k, m = exponent_and_fraction(x)
    f = m - 1.0
    return _edges(x, k.fma(c.ln2[0], f + k.fma(c.ln2[1], _tail(f))))


def log2(x: Number) -> Number:
    """The logarithm to the base 2, exact for powers of 2."""
    k, m = _halved(*exponent_and_fraction(x))
    return _edges(x, k + _scaled(m - 1.0, CONSTANTS[x.element].log2_e, SERIES_2))


def log10(x: Number) -> Number:
    """The logarithm to the base 10."""
    c = CONSTANTS[x.element]
    k, m = _halved(*exponent_and_fraction(x))
    return _edges(x, k.fma(c.log10_2[0], k.fma(c.log10_2[1], _scaled(m - 1.0, c.log10_e, SERIES_10))))


def log1p(x: Number) -> Number:
    """log(1 + x), accurate where x is small."""
    c = CONSTANTS[x.element]
    above = x + 1.0
    k, biased, _ = _taken_apart(above, 0)
    # f = (1 + x) / 2^k - 1, from x itself; a quarter of x, as 4 / 2^k is always a normal number.
    four = ((x.integer(2 * x.format.bias + 2) - biased) << x.format.fraction).as_float()
    f = (x * 0.25).fma(four, four.fma(0.25, -1.0))
    result = _all_edges(above, k.fma(c.ln2[0], f + k.fma(c.ln2[1], _tail(f))))
    return (x.abs() < 2.0 ** -(x.format.fraction + 2)).choose(x, result)


def log2_in_two(x: Number) -> tuple[Number, Number]:
    """The logarithm to the base 2 of a float64 as a sum, good to 2^-64; of 0 and infinity the first part is infinite.

    pow needs that many bits: its error is that of the logarithm times an exponent of up to 1024.
    """
    k, m = _halved(*exponent_and_fraction(x))
    f = m - 1.0
    divisor = f + 2.0
    inverse = 1.0 / divisor
    s = f * inverse
    s_rest = ((-s).fma(divisor, f) - s * (f - (divisor - 2.0))) * inverse
    # Each value and its rest: z = s^2, a = 2/3 + z (...), t = 2 + z a, log(m) = s t.
    z = s * s
    z_rest = s.fma(s, -z) + 2.0 * s * s_rest
    tail = z * z.polynomial(FINE_SERIES)
    a = tail + TWO_THIRDS[0]
    a_rest = (TWO_THIRDS[0] - a) + tail + TWO_THIRDS[1]
    b, b_rest = _product(z, z_rest, a, a_rest)
    t = b + 2.0
    log_m = _product(s, s_rest, t, (b - (t - 2.0)) + b_rest)
    high, low = _product(*log_m, *CONSTANTS["f64"].log2_e)
    total = k + high
    low = (high - (total - k)) + low
    return x.equals(0.0).choose(-math.inf, (x < math.inf).choose(total, x)), low


def _product(a: Number, a_rest: Number, b: Operand, b_rest: Operand) -> tuple[Number, Number]:
    """(a + a_rest) (b + b_rest) as a sum."""
    product = a * b
    return product, a.fma(b, -product) + a.fma(b_rest, a_rest * b)


def exponent_and_fraction(x: Number) -> tuple[Number, Number]:
    """k and m of x = m 2^k, with m from 3/4 to 3/2; x is positive and finite, or `_edges` follows."""
    if avx512.covers(x):
        m = avx512.fraction(x)
        return avx512.exponent(x) - avx512.exponent(m), m
    lift = x.format.fraction + 1
    denormal = x < x.format.tiny
    k, _, m = _taken_apart(denormal.choose(x * 2.0**lift, x), denormal.choose(x.constant(lift), 0.0))
    return k, m.as_float()


def _halved(k: Number, m: Number) -> tuple[Number, Number]:
    """k and m with m from sqrt(1/2) to sqrt(2): where log(m) and k differ in sign, less of their sum cancels."""
    large = m > math.sqrt(2.0)
    return large.choose(k + 1.0, k), large.choose(m * 0.5, m)


def _taken_apart(x: Number, lift: Operand) -> tuple[Number, Number, Number]:
    """k of x = m 2^(k + lift), the exponent's own bits, and m's bits."""
    f = x.format
    lowest = f.one - (1 << (f.fraction - 1))
    moved = x.bits() + (f.one - lowest)
    biased = moved.logical_shift(f.fraction)
    # An integer in the fraction of 2^fraction is added to it.
    unit = 2.0**f.fraction
    k = (biased | (f.bias + f.fraction << f.fraction)).as_float() - (lift + (unit + f.bias))
    return k, biased, (moved & ((1 << f.fraction) - 1)) + lowest


def _tail(f: Number) -> Number:
    """log(1 + f) - f."""
    if f.element == "f32":
        return f * f * f.polynomial(SERIES)
    # By s = f / (2 + f): log(1 + f) = log((1 + s) / (1 - s)), and the sum f - f^2/2 + s (f^2/2 + ...) loses nothing.
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    return s.fma(z.fma(z.polynomial(WIDE_SERIES), half), -half)


def _scaled(f: Number, factor: tuple[float, float], series: Sequence[float]) -> Number:
    """log(1 + f) times a factor, by the series of that base."""
    tail = f * f * f.polynomial(series) if f.element == "f32" else _tail(f) * factor[0]
    return f.fma(factor[0], f.fma(factor[1], tail))


def _edges(x: Number, result: Number) -> Number:
    """A logarithm with its special cases: -inf of 0, inf of inf, NaN of negative numbers and NaN."""
    if avx512.covers(x):
        return result
    return _all_edges(x, result)


def _all_edges(x: Number, result: Number) -> Number:
    result = x.equals(math.inf).choose(x, result)
    result = x.equals(0.0).choose(-math.inf, result)
    return (x >= 0.0).choose(result, math.nan)
