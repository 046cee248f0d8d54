r"""max_pool2d: the maximum of each window of an image.

Shapes: x[B C H W] -> y[B C P Q], windows of R x S.

Forward (B C P Q R S comparisons)
    y[b c p q] = max over r, s of x[b c i j],   i = p SH + r DH - top,   j = q SW + s DW - left, inside the image
    k[b c p q] = r S + s of the first tap that attains it; NaN is above every number
Pullback of the cotangent dy[B C P Q] (as many)
    scatter  dx[b c i j] = sum of dy[b c p q] over the windows whose k names (i, j)
Second derivative, the pullback of scatter for u[B C H W]
    gather   d(dy)[b c p q] = u[b c i j] at the tap that k names

Derivation: where the maximum is attained once, y is that element, so its derivative is a selection that does not move.
A selection and its transpose are each other's pullbacks: {gather, scatter} is closed, derivatives of every order in dy
are exact, and those in x zero almost everywhere. At a tie the first tap in the window's order takes all, the
subgradient that torch takes too. Scatter is computed as a sum over the windows that reach an element, so each element
of dx is written once and no two programs meet.

`ceil_mode` is a matter of borders: windows that start inside count, and what lies past the border is left out of
them, so it is the lower border grown until they fit.

Precision: y is exact; sums of overlapping windows are carried in float32 or better.
Saved for backward: k, a byte a result; four in windows of more than 128 taps.
Source: Krizhevsky, Sutskever and Hinton, ImageNet classification with deep convolutional neural networks, NIPS 2012.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, NO_SPILLS, Bound, in_vectors, streams
from gradlab.kernels.common.window import Geometry, output, pair
from gradlab.kernels.spec import Arrays, Case, Spec


def geometry(image, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Geometry:
    """Where the windows lie; P or Q below 1 when not one fits."""
    window, spread, edge = pair(kernel_size), pair(dilation), pair(padding)
    steps = window if stride is None else pair(stride)
    borders = []
    for n, k, s, d, p in zip(image, window, steps, spread, edge, strict=True):
        P = output(n, k, s, d, (p, p))
        if ceil_mode:
            P = -(-(n + 2 * p - d * (k - 1) - 1) // s) + 1
            # The last window starts inside the image or the border before it.
            P -= (P - 1) * s >= n + p
        borders.append((p, (P - 1) * s + d * (k - 1) + 1 - n - p))
    return Geometry(steps, spread, (borders[0], borders[1]), 1, (image[0], image[1]), window)


def reference(x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """y[B C P Q] in the input's dtype: the taps one after another."""
    geo = geometry(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    (SH, SW), (DH, DW), (R, S), (P, Q) = geo.stride, geo.dilation, geo.window, geo.result
    (top, bottom), (left, right) = geo.pads
    around = ((0, 0), (0, 0), (top, max(bottom, 0)), (left, max(right, 0)))
    wide = np.pad(x, around, constant_values=-np.inf)
    taps = [
        wide[:, :, r * DH : r * DH + SH * (P - 1) + 1 : SH, s * DW : s * DW + SW * (Q - 1) + 1 : SW]
        for r in range(R)
        for s in range(S)
    ]
    return np.max(taps, axis=0)


def derive(sizes, *, kernel_size, **options):
    """P, Q, R and S."""
    geo = geometry((sizes["H"], sizes["W"]), kernel_size, **options)
    return dict(zip("PQRS", geo.result + geo.window, strict=True))


def flops(sizes, **static):
    """A comparison a tap, forward and backward."""
    full = sizes | derive(sizes, **static)
    taps = full["B"] * full["C"] * full["P"] * full["Q"] * full["R"] * full["S"]
    return {"forward": taps, "backward": taps}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Values all different by at least 0.05, so that no difference moves a maximum from one tap to another."""
    shape = tuple(case.sizes[a] for a in "BCHW")
    if case.use != "check":
        return {"x": rng.standard_normal(shape)}
    size = int(np.prod(shape))
    return {"x": 0.05 * (rng.permutation(size) - size / 2).reshape(shape)}


def _sizes(B, C, H, W):
    return {"B": B, "C": C, "H": H, "W": W}


SPEC = Spec(
    name="max_pool2d",
    formula="y[b c p q] = max over the window of x[b c i j]",
    signature="x[B C H W] -> y[B C P Q]",
    wrt=("x",),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", _sizes(1, 1, 1, 1), {"kernel_size": 1}),
        Case("two by two", _sizes(2, 3, 4, 6), {"kernel_size": 2}),
        Case("odd, a rest left out", _sizes(1, 2, 5, 7), {"kernel_size": 2}),
        Case("overlapping", _sizes(2, 1, 6, 5), {"kernel_size": 3, "stride": 1}),
        Case("padded, stride 2", _sizes(1, 2, 7, 6), {"kernel_size": (3, 2), "stride": 2, "padding": 1}),
        Case("dilated", _sizes(1, 2, 8, 7), {"kernel_size": (2, 3), "stride": (3, 1), "dilation": (3, 2)}),
        Case("ceil", _sizes(1, 1, 6, 7), {"kernel_size": 3, "stride": 2, "padding": (0, 1), "ceil_mode": True}),
        Case("digits", _sizes(64, 8, 8, 8), {"kernel_size": 2}, use="bench"),
        Case("lenet", _sizes(32, 6, 28, 28), {"kernel_size": 2}, use="bench"),
        Case("resnet", _sizes(256, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}, use="bench gpu"),
    ),
    draw=draw,
    order=3,
    grows=("B", "C"),
    length=lambda sizes: sizes["R"] * sizes["S"],
    derive=derive,
    saved="the tap of each maximum",
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("max", "scatter", "gather", sides=("jax",)),
        # Neighbouring lanes have neighbouring results: windows of stride 2 read every other pixel of a row.
        Bound("wide_stores", least=1, kernels=("scatter",), sides=("torch",)),
        Bound("traffic", most=1.15, kernels=("max",), sides=("torch",)),
        Bound("traffic", most=0.85, kernels=("scatter",), sides=("torch",)),
        Bound("instructions", most=225, kernels=("max",), sides=("torch",), per="B C P Q"),
        Bound("instructions", most=125, kernels=("gather",), sides=("torch",), per="B C P Q"),
        # Windows are not contiguous: gathers and scatters are allowed, scalar arithmetic is not.
        *in_vectors("max", "square", "gather", but=("max", "square", "gather")),
    ),
    source="Krizhevsky, Sutskever and Hinton, NIPS 2012",
)
