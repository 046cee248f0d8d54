"""exp, exp2, expm1, tanh, sinh and cosh: 2^n for an integer n times a polynomial in the rest of the argument."""

import dataclasses
from collections.abc import Callable, Sequence

from gradlab.kernels.cpu import mathematics_avx512 as avx512
from gradlab.kernels.cpu.mathematics_numbers import Number, Operand

LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Constants:
    """Constants that differ between float32 and float64.

    Attributes:
        ln2: log(2) in two parts.
        exp: coefficients of (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2.
        expm1: the same, fitted so that the error is small against exp(r) - 1.
        exp2: coefficients of (2^r - 1) / r for |r| <= 1/2.
        exp_range: beyond these exp is 0 and infinity, and n still fits.
        exp2_range: the same of exp2.
        small: an exponent below which results may be denormal: `rescue` bits are taken off at the end, in one rounding.
        minus_one: at this argument expm1 is -1.
        one: from this argument on tanh is 1.
    """

    ln2: tuple[float, float]
    exp: Sequence[float]
    expm1: Sequence[float]
    exp2: Sequence[float]
    exp_range: tuple[float, float]
    exp2_range: tuple[float, float]
    small: float
    rescue: int
    minus_one: float
    one: float


CONSTANTS = {
    "f32": Constants(
        ln2=(float.fromhex("0x1.62e430p-1"), -1.904654299957768e-09),
        exp=(0.5, 0.16666515, 0.041666582, 0.008369313, 0.0013921863),
        expm1=(0.5, 0.16666666, 0.041666478, 0.008333602, 0.0013933938, 0.00019703837),
        exp2=(0.6931472, 0.2402265, 0.055503596, 0.009618058, 0.0013391004, 0.00015464766),
        exp_range=(-104.0, 89.0),
        exp2_range=(-151.0, 129.0),
        small=-80.0,
        rescue=64,
        minus_one=-20.0,
        one=10.0,
    ),
    "f64": Constants(
        ln2=(float.fromhex("0x1.62e42fefa39efp-1"), 2.3190468138462996e-17),
        exp=(
            0.5000000000000013, 0.16666666666666663, 0.04166666666651133, 0.008333333333329286, 0.0013888888948005833,
            0.00019841269871230378, 2.4801488952128133e-05, 2.755725643529436e-06, 2.763162776057295e-07,
            2.510546067124613e-08,
        ),
        expm1=(
            0.5, 0.16666666666666677, 0.041666666666666685, 0.00833333333332145, 0.0013888888888879704,
            0.00019841269886565103, 2.480158732592386e-05, 2.7557243760032205e-06, 2.75572786442043e-07,
            2.510920182197951e-08, 2.0911922910457442e-09,
        ),
        exp2=(
            0.6931471805599453, 0.24022650695910136, 0.055504108664823755, 0.009618129107594298, 0.0013333558145976066,
            0.00015403530455882278, 1.5252734191404381e-05, 1.3215436093748217e-06, 1.0177931358910748e-07,
            7.073632198885168e-09, 4.472468142244871e-10,
        ),
        exp_range=(-746.0, 710.0),
        exp2_range=(-1076.0, 1025.0),
        small=-600.0,
        rescue=128,
        minus_one=-40.0,
        one=20.0,
    ),
}  # fmt: skip


# (sinh(x) - x) / x^3 in x^2, for |x| <= 1.
SINH = {
    "f32": (0.16666667, 0.0083333105, 0.00019842896, 2.7822136e-06),
    "f64": (
        0.16666666666666669,
        0.008333333333332912,
        0.00019841269841593408,
        2.7557319106758163e-06,
        2.5052130998390502e-08,
        1.6056659202115785e-10,
        7.776598784116095e-13,
    ),
}
# (tanh(x) - x) / x^3 in x^2, for |x| <= 1.
TANH_F32 = (-0.33333296, 0.13332346, -0.05387986, 0.021486765, -0.007946205, 0.0023014066, -0.0003584578)


def exp(x: Number) -> Number:
    """e^x."""
    return exp_of_sum(x, None)


def exp_of_sum(x: Number, rest: Number | None) -> Number:
    """e^(x + rest), for a rest within x's last digit."""
    c = CONSTANTS[x.element]
    x = x.at_most(c.exp_range[1]).at_least(c.exp_range[0])
    n, times_power = _split(x, lambda shift: x.fma(LOG2_E, shift), c)
    r = _rest(x, n, c)
    r = r if rest is None else r + rest
    return times_power(r.polynomial((1.0, 1.0, *c.exp)))


def exp2(x: Number) -> Number:
    """2^x."""
    return exp2_of_sum(x, None)


def exp2_of_sum(x: Number, rest: Number | None) -> Number:
    """2^(x + rest), for a rest within x's last digit."""
    c = CONSTANTS[x.element]
    if rest is not None:
        rest = (x.abs() < 2 * c.exp2_range[1]).choose(rest, 0.0)
    x = x.at_most(c.exp2_range[1]).at_least(c.exp2_range[0])
    n, times_power = _split(x, lambda shift: x + shift, c)
    r = x - n
    r = r if rest is None else r + rest
    return times_power(r.polynomial((1.0, *c.exp2)))


def one_minus_exp2(a: Number, b: Number, addend: float) -> Number:
    """1 - 2^(a b + addend) for an exponent below -1, where the power may be off by a few of its own last digits."""
    base = _base(a, 0)
    n, power = _power_of_two(a.fma(b, addend) + base, base)
    # Neither the exponent nor 2^r is rounded: n goes off the addend, and 1 - 2^n is exact.
    r = a.fma(b, addend - n)
    return (-power).fma(r * r.polynomial(CONSTANTS[a.element].exp2), 1.0 - power)


def expm1(x: Number) -> Number:
    """e^x - 1, accurate where x is small."""
    c = CONSTANTS[x.element]
    half = _fraction_of_expm1(x.at_most(c.exp_range[1]).at_least(c.minus_one), c, 1)
    # Half of a denormal is not exact.
    return (x.abs() < 4 * x.format.tiny).choose(x, half + half)


def tanh(x: Number) -> Number:
    """The hyperbolic tangent: (e - 1) / (e + 1) with e = exp(2 |x|)."""
    c = CONSTANTS[x.element]
    y = x.abs().at_most(c.one)
    if x.element == "f64":
        double = _fraction_of_expm1(y + y, c, 0)
        divisor = double + 2.0
        return double.over(divisor, double - (divisor - 2.0)).signed(x)
    # Below 1 an odd polynomial, above it 1 - 2 / (e + 1): either is within an ulp, the quotient is not.
    n, power = _power_of_two(y.fma(2 * LOG2_E, _base(y, 1)), _base(y, 1))
    r = n.fma(-c.ln2[0], y + y)
    divisor = power.fma(r.fma(r * r.polynomial(c.exp), r), power + 0.5)
    large = 1.0 - 1.0 / divisor
    z = y * y
    small = y.fma(z * z.polynomial(TANH_F32), y)
    return (y < 1.0).choose(small, large).signed(x)


def sinh(x: Number) -> Number:
    """(e^x - e^-x) / 2."""
    size = x.abs()
    quarter = _quarter_of_exp(size)
    large = quarter.fma(2.0, -0.125 / quarter).signed(x)
    z = x * x
    return (size < 1.0).choose(x.fma(z * z.polynomial(SINH[x.element]), x), large)


def cosh(x: Number) -> Number:
    """(e^x + e^-x) / 2."""
    quarter = _quarter_of_exp(x.abs())
    return quarter.fma(2.0, 0.125 / quarter)


def _quarter_of_exp(x: Number) -> Number:
    """e^x / 4 for x >= 0, which overflows later than e^x."""
    c = CONSTANTS[x.element]
    x = x.at_most(c.exp_range[1] + 0.5)
    n, power = _power_of_two(x.fma(LOG2_E, _base(x, 2)), _base(x, 2))
    return _rest(x, n, c).polynomial((1.0, 1.0, *c.exp)) * power


def _base(x: Number, halvings: int) -> float:
    """The shift whose sum with x has the integer n in its low bits, biased to be the exponent of 2^(n - halvings)."""
    return x.format.shifter + x.format.bias - halvings


def _split(x: Number, shifted: Callable[[Operand], Number], c: Constants) -> tuple[Number, Callable[[Number], Number]]:
    """The integer n nearest to a value, which `shifted` adds a shift to; and a product with 2^n, rounded once."""
    shifter = x.format.shifter
    if avx512.covers(x):
        n = shifted(shifter) - shifter
        return n, lambda value: avx512.scaled(value, n)
    # n may be one more than the largest exponent, so a factor of 2 waits for the end; where the result may be denormal,
    # a small one does, so that it is rounded once.
    small = x < c.small
    shift = small.choose(x.constant(_base(x, 1) + c.rescue), _base(x, 1))
    n, power = _power_of_two(shifted(shift), shift)
    undo = small.choose(x.constant(2.0 ** (1 - c.rescue)), 2.0)
    return n, lambda value: value * power * undo


def _power_of_two(total: Number, shift: Operand) -> tuple[Number, Number]:
    """n from the sum n + shift, and the power of two whose exponent is in the sum's low bits."""
    return total - shift, (total.bits() << total.format.fraction).as_float()


def _rest(x: Number, n: Number, c: Constants) -> Number:
    """x - n log(2)."""
    return n.fma(-c.ln2[1], n.fma(-c.ln2[0], x))


def _fraction_of_expm1(x: Number, c: Constants, halvings: int) -> Number:
    """(e^x - 1) / 2^halvings."""
    n, power = _power_of_two(x.fma(LOG2_E, _base(x, halvings)), _base(x, halvings))
    r = _rest(x, n, c)
    offset = power - 2.0**-halvings
    high = power.fma(r, offset)
    low = power.fma(r * r * r.polynomial(c.expm1), power.fma(r, offset - high))
    return high + low
