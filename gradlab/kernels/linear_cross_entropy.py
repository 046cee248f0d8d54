r"""linear_cross_entropy: cross_entropy of linear, whose logits lie in no more memory than the caller gives.

Shapes: h[M K], w[K V], t[M]: int, b[V], a[V] -> y[M], or a scalar y when reduced; M rows of K features, V classes of
weights a.

Forward (2 M K V FLOPs, and about 8 M V for the row statistics), label smoothing eps, softcap C
    x[m v] = sum_k h[m k] w[k v] + b[v],   z = C tanh(x / C) or x
    r[m v] = a[v] ((1 - eps) [v = t[m]] + eps / V),   R[m] = sum_v r[m v]
    l[m]   = log sum_v exp z[m v]
    y[m]   = sum_v r[m v] (l[m] - z[m v]),  n[m] = l[m]^2;  both 0 where t[m] = ignore_index
    reduction: y + z_loss n; sum_m of it; or sum_m y[m] / sum_m a[t[m]] + z_loss sum_m n[m] / (number of rows), over the
    rows not ignored: NaN when all are
Backward of the cotangents dy[M] and dn[M] (4 M K V + 2 M K (V - Vk) FLOPs, 10 M V; x of Vk classes is kept), with
p = exp(z - l), z' = 1 / cosh(x / C)^2, and no gradient in ignored rows:
    g[m v] = dy[m] (R[m] p[m v] - r[m v]) + 2 dn[m] l[m] p[m v],   dx = z' g      x again: 2 M K (V - Vk)
    dh = dx w^T    (2 M K V)      dw = h^T dx    (2 M K V)      db[v] = sum_m dx[m v]
Second backward (20 M K V FLOPs): the cotangents uh, uw, ub of dh, dw, db meet dx in <dx, u>, with U = u z' and
    u = uh w + h uw + ub
    d(dy)[m] = R[m] P[m] - sum_v U[m v] r[m v],  d(dn)[m] = 2 l[m] P[m],  where P[m] = sum_v U[m v] p[m v]
    X[m v]   = z' ((dy R + 2 dn l) p (U - P) + 2 dn P p) + z'' u g,   z'' = -2 z z' / C^2
    dh = X w^T + dx uw^T,   dw = h^T X + uh^T dx,   db[v] = sum_m X[m v]

Derivation: linear's and cross_entropy's. <dx, u> is what the three gradients, each linear in dx, make of their
cotangents; its derivative by x is the Hessian-vector product X along u.

Classes in parts, one a device: each has its part of w, b and a, and all of h. The parts' sums are exchanged and merged
as cross_entropy's; dw and db are those of the part, dh = sum_i dx_i w_i^T and P are sums over the parts. On torch
dh is added up in float32 and rounded once.

Memory. Forward: a program owns a block of rows and a split of the classes. It holds a tile of x in registers, and of
each row the running maximum, the sum of exponentials rescaled whenever that moves (Milakov and Gimelshein), sum_v r
and sum_v r (max - z), rescaled alike; a second kernel merges S splits in their order, 4 S M numbers.
Backward: the classes in chunks of Vc = max(1024, K, 2^21 / M), rounded down to a power of two, one dx[M Vc] at a time
in the inputs' dtype of e bytes; dw and db of a chunk are complete and written once, dh is summed in float32:
    peak = M Vc e + 4 M K bytes (dh before it is rounded; nothing where it is float32 and asked for)
           + what is asked for: e (M K + K V + V)
On jax 2 K Vc e more: a chunk of w and one of dw are copies there. linear and cross_entropy save the logits and their
gradient, 2 M V e; what that costs here is x once more, 8 M K V FLOPs in all for 6. dx is no larger than h, or
2^21 elements where h is small: with fewer a launch leaves most of a GPU without work. The second backward takes the
same chunks: 8 M Vc bytes for x and u, 2 M Vc e for X and dx. `python benchmarks/logits_memory.py` measures the peak.
`logits_memory` bytes buy FLOPs: forward keeps x[M Vk] as it sums it, in float32 (float64: 8 bytes), and backward reads
it: 6 M K V + 2 M K (V - Vk) in all. Vk = V where 4 M V bytes fit, else the whole chunks that do. What is kept is what
backward would make again, not rounded, so dx has the same bits on torch; on jax where products of both tiles add up
alike. The second backward makes x again in any case.

`skip_below` p0 saves FLOPs on torch: dx is 0 in each tile of 128 rows by 128 classes in which every row's p is below p0
and none has its class t; ignored rows do not count. Forward writes the largest z of each row and 128 classes, M V / 128
numbers, of which a kernel makes a 0 or 1 a tile, that is kept. In backward a tile of 0 is neither made again nor read:
the products go over lists of the others. With a share s of tiles at 0 it is 6 M K V (1 - s) FLOPs: s is large where
the classes that 128 rows find likely are neighbours, as in a vocabulary in order of frequency. Of those tiles' v and m
|error of dh[m]| <= |dy R + 2 dn l|[m] sum_v p[m v] |w[v]|, |error of dw[v]| <= sum_m |dy R + 2 dn l|[m] p[m v] |h[m]|,
|error of db[v]| <= sum_m |dy R + 2 dn l|[m] p[m v], p < p0, besides what sums round in another order. The second
backward skips nothing: it is that of the loss. Not with smoothing, whose r is above 0 everywhere, nor where classes or
rows are spread over devices, whose tiles would be others. On jax there is no such option: which blocks a Pallas program
has follows here, as on a TPU, from its grid alone and not from what an array holds.

Precision: x and all of a row's sums are float32 or better: the logits are not rounded to the inputs' dtype, dx is. Its
cotangent is the true one, so a loss scaled against underflow stays scaled. (max - z) first: far logits cancel.
Saved for backward: h, w, b, t, a, x[M Vk], a number of each tile with `skip_below`, and the row statistics: the
maximum, the log of the sum of exponentials, R.
Source: Milakov and Gimelshein, arXiv:1805.02867; Wijmans et al., Cut your losses, arXiv:2411.09009; z-loss: Chowdhery
et al., PaLM, arXiv:2204.02311; label smoothing: Szegedy et al., arXiv:1512.00567.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, Bound, fused, spills, tensor_cores
from gradlab.kernels.class_losses.chunks import kept
from gradlab.kernels.spec import Arrays, Case, Spec, normal

IGNORE = -100


def reference(
    h,
    w,
    t,
    b=None,
    a=None,
    *,
    ignore_index=IGNORE,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    logits_memory=0,
):
    """y in the inputs' dtype, with the logits written out, whatever memory they have."""
    x = h @ w if b is None else h @ w + b
    z = x if softcap is None else softcap * np.tanh(x / softcap)
    row_max = z.max(axis=1, keepdims=True)
    lse = row_max[:, 0] + np.log(np.exp(z - row_max).sum(axis=1))
    valid = t != ignore_index
    classes = np.where(valid, t, 0)
    a = np.ones(w.shape[1]) if a is None else a
    one_hot = np.arange(w.shape[1]) == classes[:, None]
    r = a * ((1 - label_smoothing) * one_hot + label_smoothing / w.shape[1])
    y = np.where(valid, (r * (lse[:, None] - z)).sum(axis=1), 0.0)
    n = np.where(valid, z_loss * lse**2, 0.0)
    if reduction == "none":
        return y + n
    with np.errstate(invalid="ignore"):
        divisors = (1, 1) if reduction == "sum" else (a[classes][valid].sum(), valid.sum())
        return y.sum() / divisors[0] + n.sum() / divisors[1]


def flops(sizes, *, logits_memory=0, **static):
    """A product and a few operations for each logit; backward takes the same product again and two more.

    But for logits that are kept, of 4 bytes.
    """
    M, K, V = sizes["M"], sizes["K"], sizes["V"]
    again = V - kept(M, K, V, 4, logits_memory)
    return {"forward": (2 * K + 8) * M * V, "backward": (4 * K + 10) * M * V + 2 * K * M * again}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 2, weights above 0, every class possible; with `ignore_index`, about a third of rows ignored."""
    arrays = normal(rng, case, spec)
    M, V = case.sizes["M"], case.sizes["V"]
    arrays["t"] = rng.integers(0, V, M)
    if "ignore_index" in case.static:
        arrays["t"][rng.permutation(M)[: (M + 2) // 3]] = case.static["ignore_index"]
    arrays["w"] = arrays["w"] * (2 / case.sizes["K"] ** 0.5)
    if "a" in arrays:
        arrays["a"] = 0.5 + np.abs(arrays["a"])
    return arrays


def derive(sizes, *, reduction="mean", **static):
    """L, the rows of the result: M, or no axis at all when reduced."""
    return {"L": sizes["M"] if reduction == "none" else None}


_PLAIN = {"has_b": False, "has_a": False}
_NO_WEIGHTS = {"has_a": False}
_EVERY = {"softcap": 3.0, "z_loss": 0.2, "label_smoothing": 0.1, "ignore_index": -100, "reduction": "none"}

SPEC = Spec(
    name="linear_cross_entropy",
    formula="y = sum_v r_v (log sum exp z - z_v), r the target probabilities, z = h w + b, capped",
    signature="h[M K], w[K V], t[M]: int, b[V], a[V] -> y[L]",
    wrt=("h", "w", "b"),
    reference=reference,
    flops=flops,
    cases=(
        Case("mean, ignored rows, no bias", {"M": 5, "K": 3, "V": 7}, {**_PLAIN, "ignore_index": 2}),
        Case("sum, smoothed and weighted", {"M": 3, "K": 2, "V": 4}, {"label_smoothing": 0.2, "reduction": "sum"}),
        Case("everything, none", {"M": 3, "K": 1, "V": 3}, _EVERY),
        Case("logits kept", {"M": 3, "K": 2, "V": 5}, {"softcap": 3.0, "z_loss": 0.2, "logits_memory": 2**10}),
        Case("digits", {"M": 128, "K": 64, "V": 10}, _NO_WEIGHTS, use="bench"),
        Case("vocabulary", {"M": 512, "K": 256, "V": 32768}, _PLAIN, use="bench"),
        # All of them, 3.9 GiB.
        Case(
            "language model, logits kept",
            {"M": 8192, "K": 4096, "V": 128256},
            {**_PLAIN, "logits_memory": 2**32},
            use="bench gpu",
        ),
        Case("language model", {"M": 8192, "K": 4096, "V": 128256}, _PLAIN, use="bench gpu"),
    ),
    draw=draw,
    grows=("M", "K", "V"),
    length=lambda sizes: sizes["V"] + sizes["K"] + sizes["M"],
    derive=derive,
    saved="h, w, b, t, a, three numbers a row, kept logits",
    # Not saved, but rounded in between: dx, of which dh, dw and db are sums.
    saved_slope=1.0,
    bounds=(
        *ALWAYS,
        *spills(float32=16, float64=128),
        *tensor_cores("statistics", "backward", "matmul"),
        *fused("statistics", "backward", "matmul"),
        # A step of K reads and writes as many cycles of shared memory as its tensor cores compute.
        Bound("tensor_share", least=0.95, kernels=("backward",), sides=("torch",), dtypes=HALF, archs=("sm_90",)),
    ),
    source="Milakov and Gimelshein, arXiv:1805.02867; Wijmans et al., arXiv:2411.09009",
)
