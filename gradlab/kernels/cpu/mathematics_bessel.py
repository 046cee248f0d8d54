"""Modified Bessel functions of the first kind, order 0 and 1; the C library has none."""

from math import factorial, pi

from gradlab.kernels.cpu.mathematics_exponential import exp
from gradlab.kernels.cpu.mathematics_numbers import Number
from gradlab.kernels.cpu.mathematics_power import rsqrt

# From here on the asymptotic series' smallest term is below float64's precision; up to here all terms of the power
# series are positive, and the truncated ones are too small to count.
BORDER = 20.0
# Past this both functions are infinite in float64, and the asymptotic series' factors are still finite.
INFINITE = 800.0
NEAR = {n: [1 / (2**n * 4**k * factorial(k) * factorial(k + n)) for k in range(48)] for n in (0, 1)}


def _asymptotic(order: int, terms: int) -> list[float]:
    found = [1.0]
    for k in range(1, terms):
        found.append(found[-1] * ((2 * k - 1) ** 2 - 4 * order**2) / (8 * k))
    return found


FAR = {n: _asymptotic(n, 32) for n in (0, 1)}


def cyl_bessel_i0(x: Number) -> Number:
    """I0(x) = sum of (x^2 / 4)^k / k!^2."""
    return _wide(x, 0)


def cyl_bessel_i1(x: Number) -> Number:
    """I1(x) = x / 2 times the sum of (x^2 / 4)^k / (k! (k + 1)!)."""
    return _wide(x, 1)


def _wide(x: Number, order: int) -> Number:
    if x.element == "f32":
        return _bessel(x.to("fpext", "f64"), order).to("fptrunc", "f32")
    return _bessel(x, order)


def _bessel(x: Number, order: int) -> Number:
    size = x.abs().at_most(INFINITE)
    near = (size * size).polynomial(NEAR[order])
    # e^x in two factors: the function is finite where e^x no longer is.
    half = exp(size * 0.5)
    far = (1.0 / size).polynomial(FAR[order]) * (rsqrt(size * (2 * pi)) * half) * half
    if order:
        near = near * size
    value = (size > BORDER).choose(far, near)
    return value.signed(x) if order else value
