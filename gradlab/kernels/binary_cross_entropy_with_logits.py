r"""binary_cross_entropy_with_logits: the negative log-likelihood of yes or no under the sigmoid of a logit.

Shapes: x[E], t[E], w[E], p[E] -> y[E], or a scalar y when reduced; w are weights of elements, p weights of the positive
class; both may be absent.

Forward (12 E FLOPs), with q = 1 / (1 + exp(-x)), -log q = max(-x, 0) + log1p(exp(-|x|)), -log(1 - q) its mirror image
    y[e] = w G00,    G00 = -(1 - t) log(1 - q) - p t log q
    reduced: sum_e y[e], or that over E (NaN when E = 0)
Pullback of the cotangent dy, with n = E for the mean and 1 elsewhere (10 E FLOPs each)
    dx[e] = dy w / n G10,    G10 = (1 - t) q - p t (1 - q)
    dt[e] = dy w / n G01,    G01 = -(p - 1) log q - x
Second derivatives: the pullback of c G_jk for the cotangent u is u G_jk for c, u c G_(j+1)k for x, u c G_j(k+1) for t
    G20 = ((1 - t) + p t) q (1 - q),    G11 = -q - p (1 - q),    G21 = (p - 1) q (1 - q),    G02 = 0

Derivation: (log q)' = 1 - q, (log(1 - q))' = -q and q' = q (1 - q); log q - log(1 - q) = x.

Precision: float32 or better; no exponent is positive, so no logit overflows; q, 1 - q and both logarithms are
computed separately, and the loss is a sum of terms of one sign, so it does not cancel for confident predictions.
Saved for backward: x, t, w and p. There is no gradient for w and p.
Source: Good, Rational Decisions, Journal of the Royal Statistical Society B 14, 1952.
"""

from dataclasses import replace

import numpy as np

from gradlab.kernels.bounds import ALWAYS, NO_SPILLS, Bound, in_vectors, streams, unspilled
from gradlab.kernels.spec import Arrays, Case, Spec


def reference(x, t, w=None, p=None, *, reduction="mean"):
    """y in the inputs' dtype."""
    y = (1 - t) * np.logaddexp(0, x) + (1 if p is None else p) * t * np.logaddexp(0, -x)
    y = y if w is None else w * y
    if reduction == "none":
        return y
    return y.sum() if reduction == "sum" else y.sum() / y.size


def flops(sizes, **static):
    """Each operation of the formulas above counts one; exp and log too."""
    return {"forward": 12 * sizes["E"], "backward": 20 * sizes["E"]}


def derive(sizes, *, reduction="mean", **static):
    """L, the axis of the result: E, or absent when reduced."""
    return {"L": sizes["E"] if reduction == "none" else None}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 3, targets between no and yes, positive weights."""
    E = case.sizes["E"]
    arrays = {"x": 3 * rng.standard_normal(E), "t": rng.uniform(0, 1, E)}
    arrays |= {"w": rng.uniform(0.5, 2, E), "p": rng.uniform(0.5, 3, E)}
    return {a.name: arrays[a.name] for a in spec.at(case).inputs}


_PLAIN = {"has_w": False, "has_p": False}

SPEC = Spec(
    name="binary_cross_entropy_with_logits",
    formula="y = -w ((1 - t) log(1 - q) + p t log q), q = sigmoid(x)",
    signature="x[E], t[E], w[E], p[E] -> y[L]",
    wrt=("x", "t"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}, _PLAIN),
        Case("mean", {"E": 37}, _PLAIN),
        Case("sum, weights", {"E": 13}, {"reduction": "sum", "has_p": False}),
        Case("none, both weights", {"E": 9}, {"reduction": "none"}),
        Case("mean, both weights", {"E": 11}),
        Case("recommender", {"E": 128 * 128}, _PLAIN, use="bench"),
        Case("large", {"E": 2**20}, _PLAIN, use="bench"),
        Case("segmentation", {"E": 64 * 1024 * 1024}, _PLAIN, use="bench gpu"),
    ),
    draw=draw,
    length=lambda sizes: sizes["E"],
    derive=derive,
    saved="x, t, w, p",
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("losses", share=0.8),
        streams("derivative", "times", sides=("jax",)),
        # A mean's cotangent comes expanded on torch: its one element is loaded repeatedly.
        Bound("wide_loads", least=1, kernels=("derivative", "times")),
        Bound("wide_stores", least=1, kernels=("derivative", "times")),
        *in_vectors("losses", "derivative", "times"),
        unspilled("times"),
        # 16 registers of AVX2 do not hold a logarithm's coefficients beside halves that are widened.
        replace(unspilled("losses"), dtypes=("float32",)),
    ),
    source="Good, Rational Decisions, 1952",
)
