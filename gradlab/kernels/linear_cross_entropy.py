r"""linear_cross_entropy: cross_entropy of linear, whose logits never lie in memory.

Shapes: h[M K], w[K V], t[M]: int, b[V], c[V] -> y[M], or a scalar y when reduced; V classes, M rows, c their weights.

Forward (2 M K V FLOPs, and about 8 M V for the rows' sums)
    x[m v] = sum_k h[m k] w[k v] + b[v],   z = softcap tanh(x / softcap) or x
    l[m]   = log sum_v exp z[m v]
    r[m v] = c[v] ((1 - eps) [v = t[m]] + eps / V)
    y[m]   = sum_v r[m v] (l[m] - z[m v]) + z_loss l[m]^2, or 0 where t[m] = ignore_index
    reduction: y; sum_m y[m]; or the sum of its first part over the sum of c[t[m]], and that of its second part over the
    number of rows, both of the rows not ignored: NaN when all are
Pullback of dy[M] for the first part and dl[M] = 2 z_loss l (cotangent) for the second (6 M K V FLOPs, 10 M V), with
p = exp(z - l), R[m] = sum_v r[m v], z' = 1 - tanh^2(x / softcap), and no gradient in ignored rows:
    g[m v] = (dy[m] R[m] + dl[m]) p[m v] - dy[m] r[m v],   dx = g z'      x recomputed: 2 M K V
    dh = dx w^T    (2 M K V)      dw = h^T dx    (2 M K V)      db[v] = sum_m dx[m v]
Second derivative: the cotangents a, d, f of dh, dw, db meet dx in <dx, u> (20 M K V FLOPs), with
    u = a w + h d + f
    d(dy)[m] = sum_v u z' (R p - r),   d(dl)[m] = sum_v u z' p
    X[m v]   = z' (dy R + dl) p (u z' - d(dl)) + g u z'',   z'' = -2 z z' / softcap^2
    dh = X w^T + dx d^T,   dw = h^T X + a^T dx,   db[v] = sum_m X[m v]

Derivation: d l = sum_v p dz and sum_v r = R, hence g; the rest is linear's and cross_entropy's. <dx, u> is what the
three gradients, each linear in dx, make of their cotangents; its derivative by x is the Hessian-vector product along u.

Memory. Forward: a program owns a block of rows and a split of the classes. It keeps a tile of x in registers, and of
each row the running maximum, the sum of exponentials rescaled whenever that moves (Milakov and Gimelshein), the
target's z and sum_v c (max - z), rescaled alike; a second kernel merges S splits in their order, 5 S M numbers.
Back: the classes in chunks of Vc = max(1024, K, 2^21 / M), rounded down to a power of two, one dx[M Vc] at a time in
the inputs' dtype of e bytes; dw and db of a chunk are complete and written once, dh grows in float32:
    peak = M Vc e + 4 M K bytes (dh before it is rounded; nothing where it is float32 and asked for)
           + what is asked for: e (M K + K V + V)
On jax 2 K Vc e more: a chunk of w and one of dw are copies there. linear and cross_entropy keep the logits and their
gradient, 2 M V e; what that costs here is x once more, 8 M K V FLOPs in all for 6. dx is no larger than h, or
2^21 elements where h is small: with fewer a launch leaves most of a GPU without work. The second derivative keeps to
chunks too: 8 M Vc bytes for x and u, and 2 M Vc e for X and dx. `python benchmarks/logits_memory.py` measures the peak.

Precision: x and all of a row's sums are float32 or better: the logits are not rounded to the inputs' dtype, dx is. Its
cotangent is the true one, so a loss scaled against underflow stays scaled. (max - z) first: far logits cancel.
Saved for backward: h, w, b, t, c and, for each row, its maximum, the log of its sum of exponentials and R.
Source: Milakov and Gimelshein, arXiv:1805.02867; Wijmans et al., Cut your losses, arXiv:2411.09009; z-loss: Chowdhery
et al., PaLM, arXiv:2204.02311; label smoothing: Szegedy et al., arXiv:1512.00567.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, fused, spills, tensor_cores
from gradlab.kernels.spec import Arrays, Case, Spec, normal

IGNORE = -100


def reference(
    h, w, t, b=None, c=None, *, ignore_index=IGNORE, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None
):
    """y in the inputs' dtype, with the logits written out."""
    x = h @ w if b is None else h @ w + b
    z = x if softcap is None else softcap * np.tanh(x / softcap)
    top = z.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
    valid = t != ignore_index
    classes = np.where(valid, t, 0)
    weight = np.ones(w.shape[1]) if c is None else c
    spread = label_smoothing / w.shape[1]
    hard = (1 - label_smoothing) * (np.arange(w.shape[1]) == classes[:, None])
    first = np.where(valid, (weight * (hard + spread) * (lse[:, None] - z)).sum(axis=1), 0.0)
    second = np.where(valid, z_loss * lse**2, 0.0)
    if reduction == "none":
        return first + second
    with np.errstate(invalid="ignore"):
        dens = (1, 1) if reduction == "sum" else (weight[classes][valid].sum(), valid.sum())
        return first.sum() / dens[0] + second.sum() / dens[1]


def flops(sizes, **static):
    """A product and a few operations for each logit; the pullback takes the same product again and two more."""
    M, K, V = sizes["M"], sizes["K"], sizes["V"]
    return {"forward": (2 * K + 8) * M * V, "backward": (6 * K + 10) * M * V}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 2, weights above 0, every class possible; with `ignore_index`, about a third of rows ignored."""
    arrays = normal(rng, case, spec)
    M, V = case.sizes["M"], case.sizes["V"]
    arrays["t"] = rng.integers(0, V, M)
    if "ignore_index" in case.static:
        arrays["t"][rng.permutation(M)[: (M + 2) // 3]] = case.static["ignore_index"]
    arrays["w"] = arrays["w"] * (2 / case.sizes["K"] ** 0.5)
    if "c" in arrays:
        arrays["c"] = 0.5 + np.abs(arrays["c"])
    return arrays


def derive(sizes, *, reduction="mean", **static):
    """R, the rows of the result: M, or no axis at all when reduced."""
    return {"R": sizes["M"] if reduction == "none" else None}


_PLAIN = {"has_b": False, "has_c": False}
_NO_WEIGHTS = {"has_c": False}
_EVERY = {"softcap": 3.0, "z_loss": 0.2, "label_smoothing": 0.1, "ignore_index": -100, "reduction": "none"}

SPEC = Spec(
    name="linear_cross_entropy",
    formula="y = sum_v r_v (log sum exp z - z_v), z = h w + b, r the target's shares",
    signature="h[M K], w[K V], t[M]: int, b[V], c[V] -> y[R]",
    wrt=("h", "w", "b"),
    reference=reference,
    flops=flops,
    cases=(
        Case("mean, ignored rows, no bias", {"M": 5, "K": 3, "V": 7}, {**_PLAIN, "ignore_index": 2}),
        Case("sum, smoothed and weighted", {"M": 3, "K": 2, "V": 4}, {"label_smoothing": 0.2, "reduction": "sum"}),
        Case("everything, none", {"M": 3, "K": 1, "V": 3}, _EVERY),
        Case("digits", {"M": 128, "K": 64, "V": 10}, _NO_WEIGHTS, use="bench"),
        Case("vocabulary", {"M": 512, "K": 256, "V": 32768}, _PLAIN, use="bench"),
        Case("language model", {"M": 8192, "K": 4096, "V": 128256}, _PLAIN, use="bench gpu"),
    ),
    draw=draw,
    grows=("M", "K", "V"),
    length=lambda sizes: sizes["V"] + sizes["K"] + sizes["M"],
    derive=derive,
    saved="h, w, b, t, c, three numbers a row",
    # Not kept, but rounded on its way: dx, of which dh, dw and db are sums.
    saved_slope=1.0,
    bounds=(
        *ALWAYS,
        *spills(float32=8, float64=128),
        *tensor_cores("statistics", "pullback", "matmul"),
        *fused("statistics", "pullback", "matmul"),
    ),
    source="Milakov and Gimelshein, arXiv:1805.02867; Wijmans et al., arXiv:2411.09009",
)
