"""sin, cos and tan: the argument is reduced by a multiple of pi / 2, then polynomials for |r| <= pi / 4.

Near zero pi / 2 in three parts suffices (Cody and Waite). Far from it, the exponent selects the bits of 2 / pi that
count (Payne and Hanek): a branch on "any lane is far" leads to a function that handles those lanes one by one.
"""

import math
from collections.abc import Callable, Sequence

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.mathematics_numbers import Number

# pi / 2 in three parts.
HALF_PI = {
    "f32": ("0x1.921fb6p+0", "-0x1.777a5cp-25", "-0x1.ee59dap-50"),
    "f64": ("0x1.921fb54442d18p+0", "0x1.1a62633145c07p-54", "-0x1.f1976b7ed8fbcp-110"),
}
# Largest arguments for which three parts are enough.
FAR = {"f32": 1e5, "f64": 1e9}
# (sin(r) - r) / r^3 in r^2.
SINE = {
    "f32": (-0.16666654, 0.008332096, -0.00019505626),
    "f64": (
        -0.16666666666666632,
        0.008333333333322488,
        -0.0001984126982985516,
        2.7557313705721168e-06,
        -2.5050759992698338e-08,
        1.5896892437059772e-10,
    ),
}
# (cos(r) - 1 + r^2 / 2) / r^4 in r^2.
COSINE = {
    "f32": (0.041666646, -0.0013887289, 2.4428211e-05),
    "f64": (
        0.0416666666666666,
        -0.001388888888887447,
        2.4801587289667058e-05,
        -2.7557314399363793e-07,
        2.0875729015149124e-09,
        -1.135991879798105e-11,
    ),
}
# (tan(r) - r) / r^3 in r^2.
TANGENT = {
    "f32": (0.33333355, 0.13332462, 0.0540837, 0.02115565, 0.011171168, -0.00034294094, 0.0045925113),
    "f64": (
        0.33333333333332776,
        0.13333333333414704,
        0.053968253926683855,
        0.02186948960745663,
        0.00886321919915326,
        0.003592288676820042,
        0.0014547607701678746,
        0.0005950519825775329,
        0.0002224191355091903,
        0.00013644266153879718,
        -2.6268345476163255e-05,
        8.934422697277567e-05,
        -4.481870841795576e-05,
        2.084953802106665e-05,
    ),
}
# The fraction bits of 2 / pi, and the size of the constant that holds them.
TWO_OVER_PI_BITS = 1216
TABLE_BITS = 1280
TWO_OVER_PI = int(
    "A2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7246E3A424D"
    "D2E006492EEA09D1921CFE1DEB1CB129A73EE88235F52EBB4484E99C7026B45F7E413991D639"
    "835339F49C845F8BBDF9283B1FF897FFDE05980FEF2F118B5A0A6D1F6D367ECF27CB09B74F46"
    "3F669E5FEA2D7527BAC7EBE5F17B3D0739F78A5292EA6BFB5FB11F8D5D0856033046FC7B6BAB",
    16,
)

# r, its remainder, and n of the multiple n pi / 2, of which two bits count.
Reduced = tuple[Number, Number, Number]
Kernel = Callable[[Number, Number, Number], Number]


def sin(x: Number) -> Number:
    """The sine."""
    return _small_is_itself(x, _everywhere("sin", x, _sine))


def cos(x: Number) -> Number:
    """The cosine."""
    return _everywhere("cos", x, lambda r, rest, n: _sine(r, rest, n + 1))


def tan(x: Number) -> Number:
    """The tangent."""
    return _small_is_itself(x, _everywhere("tan", x, _tangent))


def _small_is_itself(x: Number, result: Number) -> Number:
    """Below the square root of the precision sin(x) and tan(x) are x itself, which preserves the sign of zero."""
    return (x.abs() < 2.0 ** -(x.format.fraction // 2 + 2)).choose(x, result)


def _sine(r: Number, rest: Number, n: Number) -> Number:
    """The sine of r + rest + n pi / 2."""
    sine, cosine = _sine_and_cosine(r, rest)
    value = _is_odd(n).choose(cosine, sine)
    return (value.bits() ^ ((n & 2) << (types.bits(n.element) - 2))).as_float()


def _tangent(r: Number, rest: Number, n: Number) -> Number:
    """The tangent of r + rest + n pi / 2."""
    z = r * r
    cubic = r * z * z.polynomial(TANGENT[r.element])
    value = r + cubic
    value = r + rest.fma(value.fma(value, 1.0), cubic)
    return _is_odd(n).choose(-1.0 / value, value)


def _is_odd(n: Number) -> Number:
    return (n << (types.bits(n.element) - 1)) < 0


def _sine_and_cosine(r: Number, rest: Number) -> tuple[Number, Number]:
    """Sine and cosine of r + rest, where r is the nearest float."""
    z = r.fma(r, (rest + rest) * r)
    cosine = z.fma(z.fma(z.polynomial(COSINE[r.element]), -0.5), 1.0)
    sine = r + rest.fma(cosine, r * z * z.polynomial(SINE[r.element]))
    return sine, cosine


def _near(x: Number) -> Reduced:
    """x - n pi / 2, for |x| up to FAR."""
    high, middle, low = (-float.fromhex(part) for part in HALF_PI[x.element])
    moved = x.fma(2 / math.pi, x.format.shifter)
    n = moved - x.format.shifter
    first = n.fma(high, x)
    r = n.fma(middle, first)
    # The first step is exact. The second step's rounding error is first - n middle - r, where first - r may round
    # again.
    difference = first - r
    lost = n.fma(middle, difference) + ((first - difference) - r)
    return r, n.fma(low, lost), moved.bits()


def _everywhere(name: str, x: Number, kernel: Kernel) -> Number:
    """A function of the reduced argument, with a branch for lanes that are far from zero."""
    b, near = x.b, kernel(*_near(x))
    far, done, before = b.label(), b.label(), b.block
    b.branch(_is_far(x).any(), far, done)
    b.start(far)
    with b.branch_scope():
        if b.width:
            corrected = x.outlined(f"math.{name}.far", lambda x, near: _lane_by_lane(name, x, near, kernel), near)
        else:
            corrected = _one(name, x, kernel)
    after = b.block
    b.jump(done)
    b.start(done)
    text = b.emit(f"phi {b.type(x.element)} [ {near.text}, %{before} ], [ {corrected.text}, %{after} ]")
    return Number(b, x.element, text)


def _is_far(x: Number) -> Number:
    return x.abs() > FAR[x.element]


def _lane_by_lane(name: str, x: Number, near: Number, kernel: Kernel) -> Number:
    """`near`, with the lanes that are far from zero replaced one by one."""
    b, kind = x.b, x.b.type(x.element)

    def one(i: str, carried: Sequence[str]) -> Sequence[str]:
        far, done, before = b.label(), b.label(), b.block
        element = Number(b, x.element, b.emit(f"extractelement {kind} {x.text}, i32 {i}"))
        with b.lanes(0):
            b.branch(_is_far(element).text, far, done)
            b.start(far)
        with b.branch_scope():
            with b.lanes(0):
                result = _one(name, element, kernel)
            placed = b.emit(f"insertelement {kind} {carried[0]}, {types.llvm(x.element)} {result.text}, i32 {i}")
        b.jump(done)
        b.start(done)
        return [b.emit(f"phi {kind} [ {carried[0]}, %{before} ], [ {placed}, %{far} ]")]

    return Number(b, x.element, b.loop(b.width, 1, [(kind, near.text)], one)[0])


def _one(name: str, x: Number, kernel: Kernel) -> Number:
    """A function of one argument far from zero, computed in float64."""
    wide = x.to("fpext", "f64").outlined(f"math.{name}.far", lambda x: kernel(*_far(x)))
    return wide.to("fptrunc", x.element)


def _far(x: Number) -> Reduced:
    """x - n pi / 2, for one float64 far from zero: the product with 2 / pi modulo 4, to 192 bits."""
    b, bits = x.b, x.bits()
    exponent = (bits.logical_shift(52) & 0x7FF) - 1075
    integer = ((bits & (1 << 52) - 1) | 1 << 52).to("zext", "i192")
    # The 192 bits of 2 / pi from the bit whose product with 2^exponent is 2; the constant is padded with zeros above.
    b.helpers["math.two_over_pi"] = f"@math.two_over_pi = internal constant i{TABLE_BITS} {TWO_OVER_PI}"
    lowest = TWO_OVER_PI_BITS - 190 - exponent
    byte = (lowest + 7).logical_shift(3)
    address = b.emit(f"getelementptr i8, ptr @math.two_over_pi, i64 {byte.text}")
    window = Number(b, "i192", b.emit(f"load i192, ptr {address}, align 1"))
    product = (window << ((byte << 3) - lowest).to("zext", "i192")) * integer
    # Two integer bits; the fraction is from -1/2 to 1/2, in units of 2^-190.
    fraction = (product << 2) >> 2
    n = (product - fraction).logical_shift(190).to("trunc", "i64")
    # Setting the last bit avoids 0, whose count of leading zeros is too large a shift.
    size = (fraction < 0).choose(0 - fraction, fraction) | 1
    zeros = Number(b, "i192", b.intrinsic("ctlz", "i192", size.text, extra="i1 false"))
    size = size << zeros
    # Its upper 106 bits as two floats.
    unit = ((1023 - 51 - zeros.to("trunc", "i64")) << 52).as_float()
    high = size.logical_shift(139).to("trunc", "i64").to("uitofp", "f64") * unit
    low = (size.logical_shift(86).to("trunc", "i64") & (1 << 53) - 1).to("uitofp", "f64") * (unit * 2.0**-53)
    first, second, _ = map(float.fromhex, HALF_PI["f64"])
    r = high * first
    rest = high.fma(second, low.fma(first, high.fma(first, -r)))
    flip = (fraction < 0) ^ (x < 0.0)
    r = x.abs().equals(math.inf).choose(math.nan, r)
    return flip.choose(-r, r), flip.choose(-rest, rest), (x < 0.0).choose(0 - n, n)
