"""atan, atan2, asin and acos."""

import math

from gradlab.kernels.cpu.mathematics_numbers import Number

# (atan(t) - t) / t^3 in t^2, for |t| <= tan(pi / 8).
ARC_TANGENT = {
    "f32": (-0.33333316, 0.19998527, -0.14244345, 0.10598728, -0.060887355),
    "f64": (
        -0.3333333333333319,
        0.1999999999995218,
        -0.14285714280052675,
        0.11111110776187981,
        -0.09090897547377365,
        0.07692056464701716,
        -0.06663061424902368,
        0.05847579645745688,
        -0.05037912914475873,
        0.038029309223144514,
        -0.017868738721707342,
    ),
}
# (asin(s) - s) / s^3 in s^2, for |s| <= 1/2.
ARC_SINE = {
    "f32": (0.1666666, 0.07500522, 0.044513386, 0.031838745, 0.014317452, 0.03769122),
    "f64": (
        0.1666666666666676,
        0.07499999999970812,
        0.04464285717458669,
        0.030381942711157305,
        0.02237221482447118,
        0.017351616018414628,
        0.013980762464011023,
        0.011399447136610742,
        0.010777030607871224,
        0.003719086770001784,
        0.021676016536913457,
        -0.02095446991062023,
        0.03260100763516548,
    ),
}
# pi / 2 minus its nearest float.
HALF_PI_REST = {"f32": -4.371139000186241e-08, "f64": 6.123233995736766e-17}


def atan(x: Number) -> Number:
    """The arc tangent."""
    return _angle(x.abs(), x.constant(1.0)).signed(x)


def atan2(y: Number, x: Number) -> Number:
    """The angle of the point (x, y)."""
    up, along = y.abs(), x.abs()
    # Sums stay finite, and two infinities or two zeros have a quotient.
    huge = (up > 2.0 ** (x.format.bias - 2)) | (along > 2.0 ** (x.format.bias - 2))
    scale = huge.choose(x.constant(0.25), 1.0)
    up, along = up * scale, along * scale
    infinite = up.equals(math.inf) & along.equals(math.inf)
    up, along = infinite.choose(1.0, up), infinite.choose(1.0, along)
    along = (up.equals(0.0) & along.equals(0.0)).choose(1.0, along)
    angle = _angle(up, along)
    rest = 2 * HALF_PI_REST[x.element]
    left = x.constant(1.0).signed(x) < 0.0
    return left.choose(math.pi - (angle - rest), angle).signed(y)


def asin(x: Number) -> Number:
    """The arc sine; beyond 1/2 by the half angle."""
    beyond, s, rest = _arc(x.abs())
    # pi / 2 - 2 s and its rounding error.
    main = s.fma(-2.0, math.pi / 2)
    lost = s.fma(-2.0, math.pi / 2 - main)
    around = main + rest.fma(-2.0, lost + HALF_PI_REST[x.element])
    return beyond.choose(around, s + rest).signed(x)


def acos(x: Number) -> Number:
    """The arc cosine."""
    beyond, s, rest = _arc(x.abs())
    half_pi_rest = HALF_PI_REST[x.element]
    middle = math.pi / 2 - (s.signed(x) + (rest.signed(x) - half_pi_rest))
    near_zero = (s + rest) * 2.0
    near_pi = s.fma(-2.0, math.pi) - rest.fma(2.0, -2 * half_pi_rest)
    return beyond.choose((x < 0.0).choose(near_pi, near_zero), middle)


def _angle(up: Number, along: Number) -> Number:
    """atan(up / along) for nonnegative numbers; rotating by pi / 4 or pi / 2 brings the quotient below tan(pi / 8)."""
    steep = up > along * (1.0 + math.sqrt(2.0))
    turned = up > along * (math.sqrt(2.0) - 1.0)
    above = steep.choose(-along, turned.choose(up - along, up))
    below = steep.choose(up, turned.choose(up + along, along))
    t = above / below
    half = up.constant(math.pi / 2)
    rest = up.constant(HALF_PI_REST[up.element])
    base = steep.choose(half, turned.choose(half * 0.5, 0.0))
    base_rest = steep.choose(rest, turned.choose(rest * 0.5, 0.0))
    z = t * t
    return base + (t + (t * z).fma(z.polynomial(ARC_TANGENT[up.element]), base_rest))


def _arc(size: Number) -> tuple[Number, Number, Number]:
    """Whether a number exceeds 1/2, and as a sum asin(size), or half of acos(size) where it does."""
    beyond = size > 0.5
    z = beyond.choose((1.0 - size) * 0.5, size * size)
    s = beyond.choose(z.sqrt(), size)
    return beyond, s, s * z * z.polynomial(ARC_SINE[size.element])
