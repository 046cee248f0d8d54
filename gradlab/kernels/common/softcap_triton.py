"""tanh of a tile in registers, and the soft cap of logits: functions that Triton kernels call."""

import triton.language as tl

from gradlab.kernels.runtime.launch_triton import kernel


@kernel
def tanh_of(x):
    """tanh(x), accurate for small x; tanh(-0) is -0."""
    z = tl.exp(-2 * tl.abs(x))
    far = tl.where(x >= 0, 1.0, -1.0) * ((1 - z) / (1 + z))
    # Cody and Waite: minimax over |x| < ln(3) / 2, where 1 - z would cancel.
    g = tl.where(tl.abs(x) < 0.625, x * x, 0.0)
    p = (-0.96437492777225469787e0 * g - 0.99225929672236083313e2) * g - 0.16134119023996228053e4
    q = ((g + 0.11274474380534949335e3) * g + 0.22337720718962312926e4) * g + 0.48402357071988688686e4
    y = tl.where(tl.abs(x) < 0.625, x + x * (g * p / q), far)
    return tl.where(x == 0, x, y)


@kernel
def capped(x, CAP: tl.constexpr):
    """CAP tanh(x / CAP); x itself where CAP is 0."""
    if CAP > 0:
        x = CAP * tanh_of(x / CAP)
    return x


@kernel
def cap_slope(x, CAP: tl.constexpr):
    """The derivative of `capped` at x, 1 / cosh(x / CAP)^2, without cancellation near the cap; CAP > 0."""
    e = tl.exp(-2 * tl.abs(x / CAP))
    return 4 * e / ((1 + e) * (1 + e))


@kernel
def _rest(e):
    """2 / (1 + e) of e > 0, in three instructions of a GPU: a division takes care of what does not come here."""
    root = tl.rsqrt(0.5 * e + 0.5)
    return root * root


@kernel
def capped_logits(x, CAP: tl.constexpr, HALF: tl.constexpr):
    """`capped`; HALF if logits x have 16 bits in memory: then as exact as those are."""
    if CAP > 0:
        if HALF & (CAP <= 256):
            # tanh(x / CAP) = 1 - 2 / (1 + exp(2 x / CAP)) is off by float32's step at 1 where it is small:
            # no more than 16 bits are unless CAP is far above what they say exactly.
            x = CAP - CAP * _rest(tl.exp2(x * (2 * 1.4426950408889634 / CAP)))
        else:
            x = capped(x, CAP)
    return x


@kernel
def capped_logits_and_slope(x, CAP: tl.constexpr, HALF: tl.constexpr):
    """(`capped`, `cap_slope`), of `HALF` exactness alike; without a CAP the slope is not to be used."""
    slope = x
    if CAP > 0:
        if HALF & (CAP <= 256):
            # Not so far that e is infinite; NaN stays.
            e = tl.exp2(tl.minimum(x * (2 * 1.4426950408889634 / CAP), 100.0, propagate_nan=tl.PropagateNan.ALL))
            rest = _rest(e)
            x = CAP - CAP * rest
            slope = e * rest * rest
        else:
            slope = cap_slope(x, CAP)
            x = capped(x, CAP)
    return x, slope
