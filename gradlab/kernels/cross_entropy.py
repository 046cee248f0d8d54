r"""cross_entropy: the negative log-likelihood of a class under the softmax of a row of logits.

Shapes: x[M V], t[M]: int -> y[M], or a scalar y when reduced; V classes, M rows.

Forward (4 M V FLOPs)
    l[m] = log sum_v exp(x[m v])       in one pass over the row, with a running maximum from -inf
    y[m] = l[m] - x[m t[m]], or 0 where t[m] = ignore_index
    reduction: y; sum_m y[m]; or sum_m y[m] / (number of rows not ignored), NaN when all are ignored
Pullback of dy[M] (4 M V FLOPs), with p = exp(x - l), e the one-hot row of t, and no gradient in ignored rows:
    dx[m v] = dy[m] (p[m v] - e[m v])
Second derivative: the cotangent u[M V] of dx goes back to (8 M V FLOPs)
    d(dy)[m] = sum_v u[m v] (p[m v] - e[m v])
    dx[m v]  = dy[m] p[m v] (u[m v] - sum_j u[m j] p[m j])

Derivation: d l = sum_v p dx, hence p - e. Then d p[v] = p[v] (dx[v] - sum_j p[j] dx[j]); the matrix diag(p) - p p^T is
symmetric, so it is its own transpose in the pullback. The sum over rows is linear and its pullback a broadcast.

One pass: with m' = max(m, x), s' = s exp(m - m') + exp(x - m'): the running sum is rescaled whenever the maximum moves
(Milakov and Gimelshein). x - max <= 0 always, so no logit overflows.

Precision: float32 or better inside and in y[m]; the result is rounded once to the logits' dtype. l is never formed: the
row's maximum is subtracted first and the log of its sum second, so logits far from zero lose no digits.
Kept for the way back: x, t and, for each row, its maximum and the log of its sum of exponentials; p is computed again,
which costs one exp and saves M V elements.
Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867.
"""

import numpy as np

from gradlab.kernels.promise import ALWAYS, NO_SPILLS, Promise
from gradlab.kernels.spec import Arrays, Case, Spec

IGNORE = -100


def reference(x, t, *, ignore_index=IGNORE, reduction="mean"):
    """y in the logits' dtype, two-pass and plain."""
    top = x.max(axis=1, keepdims=True, initial=-np.inf)
    lse = top[:, 0] + np.log(np.exp(x - top).sum(axis=1))
    valid = t != ignore_index
    y = np.where(valid, lse - x[np.arange(len(t)), np.where(valid, t, 0)], 0.0)
    if reduction == "none":
        return y
    with np.errstate(invalid="ignore"):
        return y.sum() if reduction == "sum" else y.sum() / valid.sum()


def flops(sizes, **static):
    """Subtract, exp, add and rescale for each logit; the pullback takes subtract, exp, subtract, multiply."""
    return {"forward": 4 * sizes["M"] * sizes["V"], "backward": 4 * sizes["M"] * sizes["V"]}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 3 and every class possible; with `ignore_index`, about a third of the rows ignored."""
    M, V = case.sizes["M"], case.sizes["V"]
    t = rng.integers(0, V, M)
    if "ignore_index" in case.static:
        t[rng.permutation(M)[: (M + 2) // 3]] = case.static["ignore_index"]
    return {"x": 3 * rng.standard_normal((M, V)), "t": t}


def derive(sizes, *, reduction="mean", **static):
    """R, the rows of the result: M, or no axis at all when reduced."""
    return {"R": sizes["M"] if reduction == "none" else None}


SPEC = Spec(
    name="cross_entropy",
    formula="y = log sum exp x - x[t]",
    signature="x[M V], t[M]: int -> y[R]",
    wrt=("x",),
    reference=reference,
    flops=flops,
    cases=(
        Case("mean", {"M": 4, "V": 7}),
        Case("sum", {"M": 3, "V": 5}, {"reduction": "sum"}),
        Case("none", {"M": 5, "V": 3}, {"reduction": "none"}),
        Case("one class", {"M": 2, "V": 1}),
        Case("ignored rows", {"M": 6, "V": 4}, {"ignore_index": -1}),
        Case("ignored class", {"M": 6, "V": 4}, {"ignore_index": 2, "reduction": "none"}),
        Case("ignored, the default", {"M": 5, "V": 4}, {"ignore_index": -100}),
        Case("one past a tile", {"M": 2, "V": 17}, {"reduction": "sum"}),
        Case("digits", {"M": 128, "V": 10}, use="bench"),
        Case("vocabulary", {"M": 256, "V": 4096}, use="bench"),
        Case("language model", {"M": 8192, "V": 50257}, use="bench gpu"),
    ),
    draw=draw,
    grows=("M", "V"),
    length=lambda sizes: max(sizes["V"], sizes["M"]),
    derive=derive,
    kept="x, t, two numbers a row",
    promises=(
        *ALWAYS,
        NO_SPILLS,
        # Rows of an odd number of logits are not aligned, so these speak of 4096 classes; jax pads either way.
        Promise("wide_loads", least=4, kernels=("loss", "pullback", "second"), case="vocabulary"),
        Promise("wide_stores", least=2, kernels=("pullback", "second"), case="vocabulary"),
    ),
    source="Milakov and Gimelshein, arXiv:1805.02867",
)
