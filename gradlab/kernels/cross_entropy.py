r"""cross_entropy: the negative log-likelihood of a target under the softmax of a row of logits.

Shapes: x[M V], t[M]: int or q[M V], w[V] -> y[M], or a scalar y when reduced; V classes, M rows. Classes t are one-hot
shares q.

Forward (4 M V FLOPs; 8 M V where smoothing gives every class a share), smoothing s, softcap C, z-loss a
    h[m v] = C tanh(x[m v] / C), or x[m v] itself without a cap
    r[m v] = w[v] ((1 - s) q[m v] + s / V),    R[m] = sum_v r[m v]
    l[m]   = log sum_v exp(h[m v])             in one pass over the row, with a running maximum from -inf
    y[m]   = sum_v r[m v] (l[m] - h[m v]),  z[m] = l[m]^2;  both 0 where t[m] = ignore_index
    reduction: y + a z; sum_m of it; or sum_m y[m] / sum_m w[t[m]] + a sum_m z[m] / (number of rows), over the rows not
    ignored, NaN when all are ignored; over all M rows where targets are soft
Pullback of c[M] for y and e[M] for z (4 M V FLOPs; 8 M V), with p = exp(h - l), h' = 1 / cosh(x / C)^2, and no gradient
in ignored rows:
    dx[m v] = h'[m v] (c[m] (R[m] p[m v] - r[m v]) + 2 e[m] l[m] p[m v])
    dq[m v] = c[m] w[v] (1 - s) (l[m] - h[m v])
Second derivative: the cotangent u[M V] of dx goes back, with U = u h', to (8 M V FLOPs)
    dc[m] = R[m] P[m] - sum_v U[m v] r[m v],  de[m] = 2 l[m] P[m],  where P[m] = sum_v U[m v] p[m v]
    dx[m v] = h' ((c R + 2 e l) p (U - P) + 2 e P p) - 2 u (h / C^2) dx of the first pullback
    dq[m v] = c[m] w[v] (1 - s) (P[m] - U[m v])
The cotangent of dq goes back to the first pullback with its own shares: y is linear in r.

Derivation: d l = sum_v p dh, hence R p - r. Then d p[v] = p[v] (dh[v] - sum_j p[j] dh[j]); the matrix diag(p) - p p^T
is symmetric, so it is its own transpose in the pullback. h'' = -2 (h / C^2) h'. The sum over rows is linear and its
pullback a broadcast.

One pass: with m' = max(m, h), s' = s exp(m - m') + exp(h - m'): the running sum is rescaled whenever the maximum moves
(Milakov and Gimelshein); sum_v r (max - h) is carried beside it and moves by R (m' - m). h - max <= 0 always, so no
logit overflows. The cap stands before the mask of what is not there: a lane past V would enter as -C else.

Traffic: forward reads M V logits, backward reads them again and writes M V numbers. One kernel can write the gradient
of a sum or a mean while forward reads the logits, their divisor being known beforehand. That saves the second read, but
holds two arrays of M V elements until backward: a second derivative needs the logits too. So it is done only where the
gradient takes the memory of the logits: `inplace=True` of torch.

Precision: float32 or better inside and in y[m]; the result is rounded once to the logits' dtype. l is never formed for
y: the row's maximum is subtracted first and the log of its sum second, so logits far from zero lose no digits.
Saved for backward: x, t or q, w and, for each row, its maximum, the log of its sum of exponentials, and R; p is
computed again, which costs one exp. That is one array of M V elements, as in frameworks that save log p. With `inplace`
of torch a sum or a mean saves its gradient, in the memory of x, and nothing else. What is saved goes through the
framework's own saving: checkpoints, offload and hooks see all of it.
Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867; smoothing: Szegedy et al.,
Rethinking the Inception Architecture, arXiv:1512.00567; z-loss: Chowdhery et al., PaLM, arXiv:2204.02311, section 5;
softcap: Gemma Team, Gemma 2, arXiv:2408.00118, section 2.
"""

from dataclasses import replace

import numpy as np

from gradlab.kernels.bounds import ALWAYS, NO_SPILLS, Bound, in_vectors
from gradlab.kernels.spec import Arrays, Case, Spec

IGNORE = -100


def reference(
    x, target, w=None, *, ignore_index=IGNORE, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None
):
    """y in the logits' dtype, two-pass and plain; soft targets are floating."""
    M, V = x.shape
    w = np.ones(V) if w is None else w
    h = x if softcap is None else softcap * np.tanh(x / softcap)
    top = h.max(axis=1, keepdims=True, initial=-np.inf)
    lse = top + np.log(np.exp(h - top).sum(axis=1, keepdims=True))
    valid, q, weights = np.ones(M, bool), target, np.ones(M)
    if np.issubdtype(target.dtype, np.integer):
        valid = target != ignore_index
        known = np.where(valid, target, 0)
        q, weights = np.eye(V)[known], w[known] * valid
    y = np.where(valid, (w * ((1 - label_smoothing) * q + label_smoothing / V) * (lse - h)).sum(axis=1), 0.0)
    z = np.where(valid, z_loss * lse[:, 0] ** 2, 0.0)
    if reduction == "none":
        return y + z
    with np.errstate(invalid="ignore"):
        return y.sum() + z.sum() if reduction == "sum" else y.sum() / weights.sum() + z.sum() / valid.sum()


def flops(sizes, *, label_smoothing=0.0, **static):
    """Subtract, exp, add and rescale for each logit, and as many where every class has a share; back likewise."""
    each = 8 if label_smoothing else 4
    return {"forward": each * sizes["M"] * sizes["V"], "backward": each * sizes["M"] * sizes["V"]}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 3 and every class possible; with `ignore_index`, about a third of the rows ignored."""
    M, V = case.sizes["M"], case.sizes["V"]
    t = rng.integers(0, V, M)
    if "ignore_index" in case.static:
        t[rng.permutation(M)[: (M + 2) // 3]] = case.static["ignore_index"]
    arrays = {"x": 3 * rng.standard_normal((M, V)), "t": t}
    # Shares that need not sum to 1, and weights: drawn where they are there, so that other cases stay as they are.
    arrays |= {"q": rng.dirichlet(np.ones(V), M) * rng.uniform(0.5, 1.5, (M, 1))} if case.static.get("has_q") else {}
    arrays |= {"w": rng.uniform(0.5, 2.0, V)} if case.static.get("has_w") else {}
    return {a.name: arrays[a.name] for a in spec.at(case).inputs}


def derive(sizes, *, reduction="mean", **static):
    """R, the rows of the result: M, or no axis at all when reduced."""
    return {"R": sizes["M"] if reduction == "none" else None}


_CLASSES = {"has_q": False, "has_w": False}
_SOFT = {"has_t": False, "has_q": True, "has_w": False}

SPEC = Spec(
    name="cross_entropy",
    formula="y = sum_v r_v (log sum exp h - h_v), r the target's shares, h the capped logits",
    signature="x[M V], t[M]: int, q[M V], w[V] -> y[R]",
    wrt=("x", "q"),
    reference=reference,
    flops=flops,
    cases=(
        Case("mean", {"M": 4, "V": 7}, _CLASSES),
        Case("sum", {"M": 3, "V": 5}, {**_CLASSES, "reduction": "sum"}),
        Case("none", {"M": 5, "V": 3}, {**_CLASSES, "reduction": "none"}),
        Case("one class", {"M": 2, "V": 1}, _CLASSES),
        Case("ignored rows", {"M": 6, "V": 4}, {**_CLASSES, "ignore_index": -1}),
        Case("ignored class, weights", {"M": 6, "V": 4}, {"has_q": False, "has_w": True, "ignore_index": 2}),
        Case("one past a tile", {"M": 2, "V": 17}, {**_CLASSES, "reduction": "sum"}),
        Case(
            "everything",
            {"M": 4, "V": 5},
            {
                "has_q": False,
                "has_w": True,
                "ignore_index": -100,
                "label_smoothing": 0.2,
                "z_loss": 0.1,
                "softcap": 2.5,
            },
        ),
        Case("soft targets", {"M": 3, "V": 4}, {**_SOFT, "reduction": "none"}),
        Case(
            "soft, everything",
            {"M": 3, "V": 5},
            {"has_t": False, "has_q": True, "has_w": True, "label_smoothing": 0.1, "z_loss": 0.05, "softcap": 3.0},
        ),
        Case("digits", {"M": 128, "V": 10}, _CLASSES, use="bench"),
        Case("vocabulary", {"M": 256, "V": 4096}, _CLASSES, use="bench"),
        Case("distillation", {"M": 128, "V": 1000}, _SOFT, use="bench"),
        Case("capped logits", {"M": 4096, "V": 32768}, {**_CLASSES, "z_loss": 1e-4, "softcap": 30.0}, use="bench gpu"),
        Case("language model", {"M": 8192, "V": 50257}, _CLASSES, use="bench gpu"),
    ),
    draw=draw,
    grows=("M", "V"),
    length=lambda sizes: max(sizes["V"], sizes["M"]),
    derive=derive,
    saved="x, t or q, w, three numbers a row",
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        *(replace(NO_SPILLS, case=case) for case in ("distillation", "capped logits")),
        # Rows of an odd number of logits are not aligned, so these speak of 4096 classes; jax pads either way.
        *(
            Bound(kind, least=least, kernels=(*more, "pullback", "second"), case="vocabulary")
            for kind, least, more in (("wide_loads", 4, ("loss",)), ("wide_stores", 2, ()))
        ),
        # Each row's label stands beside the classes.
        *in_vectors("loss", "pullback", "second", "total", "count", but=("pullback", "second")),
    ),
    source="Milakov and Gimelshein, arXiv:1805.02867",
)
