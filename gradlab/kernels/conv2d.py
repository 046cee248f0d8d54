r"""conv2d: two-dimensional cross-correlation with stride, padding, dilation and groups, plus bias, then relu if asked.

Shapes: x[B C H W], w[F D R S], b[F] -> y[B F P Q], with C = G D input channels, F filters in G groups, an R x S window:
P = (H + top + bottom - dilation (R - 1) - 1) / stride + 1, Q alike, rounded down. jax keeps x as [B H W C], w as
[R S D F] and y as [B P Q F]: the same axes in another order.

With i(p, r) = stride p - top + dilation r, j(q, s) alike, x zero outside the image, f in group g = f / (F / G):
Forward (2 B F P Q D R S FLOPs)         a GEMM of M = B P Q, N = F / G, K = D R S for each group
    y[b f p q] = b[f] + sum_{d r s} x[b, g D + d, i(p, r), j(q, s)] w[f d r s]
Pullback of the cotangent dy[B F P Q] (twice that), dz = dy, or dy where y > 0 and 0 elsewhere:
    dgrad  dx[b c i j] = sum_{f, (p r): i(p, r) = i, (q s): j(q, s) = j} dz[b f p q] w[f, c - g D, r, s]
    wgrad  dw[f d r s] = sum_{b p q} dz[b f p q] x[b, g D + d, i(p, r), j(q, s)]
           a GEMM of M = F / G, N = D R S, K = B P Q for each group
    bias   db[f] = sum_{b p q} dz[b f p q]

dgrad by stride: i + top = stride p + dilation r means dilation r = i + top (mod stride), so the rows of one residue
class of i meet the taps r0, r0 + step, ... with step = stride / gcd(stride, dilation), and no others. Each class is a
dense GEMM of M = B H/stride W/stride, N = D, K = F/G times the taps of the class: a stride costs no multiplications by
zero.

Derivation: T(dy, x, w) = <dy, conv(x, w)> is trilinear, and the three maps are its gradients: forward by dy, dgrad by
x, wgrad by w. So the pullbacks of each are the two others: with u the cotangent of dgrad's dx, d(dy) = conv(u, w) and
dw = wgrad(dy, u); with v that of wgrad's dw, d(dy) = conv(x, v) and dx = dgrad(dy, v). With relu the form is T(k dy, x,
w) with the mask k = [y > 0] on dy in all three. Closed: derivatives of any order are exact.

On GPUs torch's half precision computes in channels last, on tensor cores, where 16 or more channels are summed over.
Images that lie otherwise are copied on their way in, each read and written once; results are written in the layout of
torch's own. In the backward dz is copied once for all gradients, and lives as long as they take; x is copied for the
forward and again for dw, and no copy is saved. With one channel a group, depthwise, a kernel of its own reads any
layout; a window of one pixel is a product of matrices that views of the images are.

Precision: float32 or better in every sum, never TF32. Saved for backward: x, w, and y when relu is fused.
Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, Bound, fused, spills, streams
from gradlab.kernels.common.window import output, pads, pair
from gradlab.kernels.spec import Arrays, Case, Spec, normal


def reference(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """y[B F P Q] in the inputs' dtype: one product for each tap and group."""
    B, _, H, W = x.shape
    F, D, R, S = w.shape
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = pads(padding, (R, S), (sh, sw), (dh, dw), (H, W))
    P, Q = output(H, R, sh, dh, (top, bottom)), output(W, S, sw, dw, (left, right))
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.zeros((B, F, P, Q), np.result_type(x, w))
    N = F // groups
    for g in range(groups):
        for r in range(R):
            for s in range(S):
                rows, columns = (
                    slice(r * dh, r * dh + sh * (P - 1) + 1, sh),
                    slice(s * dw, s * dw + sw * (Q - 1) + 1, sw),
                )
                seen = wide[:, g * D : (g + 1) * D, rows, columns]
                y[:, g * N : (g + 1) * N] += np.einsum("bdpq,fd->bfpq", seen, w[g * N : (g + 1) * N, :, r, s])
    if b is not None:
        y += b[:, None, None]
    return np.maximum(y, 0) if activation == "relu" else y


def flops(sizes, **static):
    """A multiply and an add for each tap; the pullback is two such sums and the bias."""
    full = sizes | derive(sizes, **static)
    results = full["B"] * full["F"] * full["P"] * full["Q"]
    taps = full["D"] * full["R"] * full["S"]
    return {"forward": 2 * results * taps + results, "backward": 4 * results * taps + results}


def derive(sizes, *, stride=1, padding=0, dilation=1, groups=1, **static):
    """C, P and Q."""
    window, steps, spread = (sizes["R"], sizes["S"]), pair(stride), pair(dilation)
    around = pads(padding, window, steps, spread, (sizes["H"], sizes["W"]))
    P, Q = (
        output(n, k, s, d, p)
        for n, k, s, d, p in zip((sizes["H"], sizes["W"]), window, steps, spread, around, strict=True)
    )
    return {"C": groups * sizes["D"], "P": P, "Q": Q}


def length(sizes) -> int:
    """The longest of the three sums."""
    window = sizes["R"] * sizes["S"]
    return max(sizes["D"] * window, sizes["F"] * window, sizes["B"] * sizes["P"] * sizes["Q"])


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Normal inputs; with relu, redrawn until no pre-activation is so near 0 that a finite difference crosses it."""
    options = {k: v for k, v in spec.at(case).options.items() if k != "activation"}
    while True:
        arrays = normal(rng, case, spec)
        if case.use != "check" or "activation" not in case.static:
            return arrays
        if np.abs(reference(*arrays.values(), **options)).min(initial=1.0) > 0.02:
            return arrays


def _sizes(B, D, H, W, F, R, S):
    return {"B": B, "D": D, "H": H, "W": W, "F": F, "R": R, "S": S}


_DIRECT = ("forward", "dgrad", "wgrad")
_LAST = ("windows", "window_weights")

SPEC = Spec(
    name="conv2d",
    formula="y[b f p q] = b[f] + sum x[b c i j] w[f d r s], relu",
    signature="x[B C H W], w[F D R S], b[F] -> y[B F P Q]",
    wrt=("x", "w", "b"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", _sizes(1, 1, 1, 1, 1, 1, 1)),
        Case("plain", _sizes(2, 2, 5, 4, 3, 3, 2)),
        Case("no bias, padded", _sizes(1, 2, 4, 5, 2, 3, 3), {"padding": 1, "has_b": False}),
        Case("stride 2", _sizes(1, 2, 7, 6, 2, 3, 3), {"stride": 2, "padding": (1, 0)}),
        Case("stride 3, dilation 2", _sizes(1, 1, 9, 8, 2, 3, 2), {"stride": (3, 2), "dilation": (2, 3), "padding": 2}),
        Case("groups", _sizes(1, 2, 4, 4, 4, 2, 2), {"groups": 2, "padding": 1}),
        Case("depthwise", _sizes(1, 1, 5, 5, 6, 3, 3), {"groups": 3, "padding": "same", "stride": 1, "dilation": 2}),
        Case("relu", _sizes(1, 2, 3, 4, 2, 2, 2), {"padding": 1, "activation": "relu"}),
        Case("channels", _sizes(1, 16, 4, 5, 24, 3, 2), {"padding": 1, "activation": "relu"}),
        Case("channels, groups", _sizes(1, 18, 5, 5, 32, 2, 3), {"groups": 2, "stride": (2, 1)}),
        Case("pixels", _sizes(2, 16, 4, 4, 24, 1, 1)),
        Case("digits", _sizes(64, 1, 8, 8, 16, 3, 3), {"padding": 1, "activation": "relu"}, use="bench"),
        Case("lenet", _sizes(32, 6, 14, 14, 16, 5, 5), {}, use="bench"),
        Case("bottleneck", _sizes(64, 256, 28, 28, 128, 1, 1), use="bench gpu"),
        Case("mobile", _sizes(64, 1, 56, 56, 128, 3, 3), {"groups": 128, "padding": 1}, use="bench gpu"),
        Case("resnet", _sizes(64, 128, 28, 28, 128, 3, 3), {"padding": 1}, use="bench gpu"),
    ),
    draw=draw,
    length=length,
    derive=derive,
    order=3,
    grows=("B", "D", "F"),
    saved="x, w; y with relu",
    bounds=(
        *ALWAYS,
        *spills(float64=256),
        Bound("tensor", most=0, kernels=_DIRECT, dtypes=("float32",)),
        *fused(*_DIRECT),
        Bound("tensor", least=1, kernels=_DIRECT, sides=("jax",), dtypes=HALF),
        streams(*_DIRECT, share=0.6, sides=("jax",), dtypes=(*HALF, "float32")),
        # Torch's images are copied to jax's layout first, in half precision.
        Bound("tensor", least=1, kernels=_LAST, sides=("torch",), dtypes=HALF),
        streams(*_LAST, share=0.86, sides=("torch",), dtypes=HALF),
        Bound("traffic", most=1.1, kernels=("channels_last",), sides=("torch",), dtypes=HALF),
        # What is missing is the way in and out: 18 steps of 64 at 100 %.
        Bound("tensor_share", least=0.88, kernels=_LAST, sides=("torch",), dtypes=HALF, archs=("sm_90",)),
        # The least traffic of backward is three images, of which wgrad reads two.
        Bound("traffic", most=0.85, kernels=("depthwise_weights",), case="mobile", sides=("torch",), dtypes=HALF),
        Bound("instructions", most=100, per="B F P Q", kernels=("depthwise",), case="mobile", sides=("torch",)),
    ),
    source="Dumoulin and Visin, arXiv:1603.07285",
)
