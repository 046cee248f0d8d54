r"""cross_entropy: the negative log-likelihood of a target under the softmax of a row of logits.

Shapes: x[M V], t[M]: int or q[M V], a[V] -> y[M], or a scalar y when reduced; M rows, V classes of weights a. For
classes t, q is the one-hot of t.

Forward (4 M V FLOPs; 8 M V with label smoothing or soft targets), label smoothing eps, softcap C
    z[m v] = C tanh(x[m v] / C), or x[m v] itself without a cap
    r[m v] = a[v] ((1 - eps) q[m v] + eps / V),  R[m] = sum_v r[m v]
    l[m]   = log sum_v exp(z[m v])             in one pass over the row, with a running maximum from -inf
    y[m]   = sum_v r[m v] (l[m] - z[m v]),  n[m] = l[m]^2;  both 0 where t[m] = ignore_index
    reduction: y + z_loss n; sum_m of it; or sum_m y[m] / sum_m a[t[m]] + z_loss sum_m n[m] / (number of rows), over the
    rows not ignored, NaN when all are ignored; over all M rows where targets are soft
Backward of the cotangents dy[M] and dn[M] (4 M V FLOPs; 8 M V), with p = exp(z - l), z' = 1 / cosh(x / C)^2, and no
gradient in ignored rows:
    dx[m v] = z'[m v] (dy[m] (R[m] p[m v] - r[m v]) + 2 dn[m] l[m] p[m v])
    dq[m v] = dy[m] a[v] (1 - eps) (l[m] - z[m v])
Second backward of the cotangent u[M V] of dx, with U = u z' (8 M V FLOPs):
    d(dy)[m] = R[m] P[m] - sum_v U[m v] r[m v],  d(dn)[m] = 2 l[m] P[m],  where P[m] = sum_v U[m v] p[m v]
    dx[m v] = z' ((dy R + 2 dn l) p (U - P) + 2 dn P p) + z'' u (dy (R p - r) + 2 dn l p),  z'' = -2 z z' / C^2
    dq[m v] = dy[m] a[v] (1 - eps) (P[m] - U[m v])
The cotangent of dq goes back to the forward and backward with itself as the target: y is linear in r.

Derivation: d l = sum_v p dz, hence R p - r. Then d p[v] = p[v] (dz[v] - sum_j p[j] dz[j]); the matrix diag(p) - p p^T
is symmetric, so it is its own transpose in the backward. The sum over rows is linear and its backward a broadcast.

Online softmax: a running maximum top and a running sum S, which is rescaled whenever the maximum moves (Milakov and
Gimelshein): with new = max(top, z), S becomes S exp(top - new) + exp(z - new). sum_v r (top - z) is carried beside it
and moves by R (new - top). z - top <= 0 always, so no logit overflows. The cap comes first, then lanes past V are
masked to -inf: tanh would turn -inf into -C.

Long rows of neighbouring logits with a class each do nothing for a class because of the target, on Triton: its logit is
read by itself and its gradient put right afterwards; weights, cotangents and ignored rows are factors of a row. Lanes
keep maxima and sums of their own and put them together behind the loop. The power is of 2: with c = fl(top L) and L =
log2 e, exp(z - top) = 2^(fma(z, L, -c) - e), where e = fma(top, L, -c) is what rounding left out, a number of the row.
So a logit takes an FMA and a power, and those far from zero lose no digits. On a GPU the cap of logits of 16 bits is
1 - 2 / (1 + exp(2 x / C)), and z' is of the same two numbers.

Classes in parts, one a device: the online softmax goes on over the parts. Part i gives of its own classes of each row
the maximum top_i, S_i = sum_v exp(z - top_i), C_i = sum_v r (top_i - z) and R_i = sum_v r; a class of another part is
not out of range, and smoothing spreads eps / V of all V. With top = max_i top_i, R = sum_i R_i and
    S = sum_i S_i exp(top_i - top),  C = sum_i (C_i + R_i (top - top_i)):   l = top + log S,  y = C + R log S
which is sum_i (y_i + R_i (l - l_i)) of the parts' own y_i and l_i. So four numbers a row and part are exchanged, never
logits. Backward is the same kernel with l and R of all parts and exchanges nothing; the second backward needs P of all
parts, sum_i P_i, one number a row. Where devices gather the four numbers and merge them in one order, all get the same
bits, whatever the network would add up first; sums of them would send fewer and take two exchanges, the maxima first.

Traffic: forward reads M V logits, backward reads them again and writes M V numbers. One kernel can write the gradient
of a sum or a mean while forward reads the logits, their divisor being known beforehand. That saves the second read, but
holds two arrays of M V elements until backward: a second derivative needs the logits too. So it is done only where the
gradient takes the memory of the logits: `inplace=True` of torch. A row of at most 2^14 logits is held in registers
there; a longer one is read again, by so few programs that what they work on fits into a GPU's L2 cache: 396 rows of up
to 112 KiB or 132 longer ones, 45 MB and, of 128256 bfloat16, 34 MB of an H100's 50.

Precision: float32 or better inside and in y[m]; the result is rounded once to the logits' dtype. l is never formed for
y: the row's maximum is subtracted first and the log of its sum second, so logits far from zero lose no digits.
Saved for backward: x, t or q, a and the row statistics: the maximum, the log of the sum of exponentials, and R; p is
recomputed, which costs one exp. That is one array of M V elements, as in frameworks that save log p. With `inplace` of
torch a loss whose gradient is written in the forward saves that, in the memory of x, and nothing else. Residuals go
through the framework's own saving: checkpoints, offload and hooks see all of them.
Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867; smoothing: Szegedy et al.,
Rethinking the Inception Architecture, arXiv:1512.00567; z-loss: Chowdhery et al., PaLM, arXiv:2204.02311, section 5;
softcap: Gemma Team, Gemma 2, arXiv:2408.00118, section 2.
"""

from dataclasses import replace

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, NO_SPILLS, Bound, in_vectors
from gradlab.kernels.spec import Arrays, Case, Spec

IGNORE = -100


def reference(
    x, target, a=None, *, ignore_index=IGNORE, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None
):
    """y in the logits' dtype, two-pass and plain; soft targets are floating."""
    M, V = x.shape
    a = np.ones(V) if a is None else a
    z = x if softcap is None else softcap * np.tanh(x / softcap)
    row_max = z.max(axis=1, keepdims=True, initial=-np.inf)
    lse = row_max + np.log(np.exp(z - row_max).sum(axis=1, keepdims=True))
    valid, q, weights = np.ones(M, bool), target, np.ones(M)
    if np.issubdtype(target.dtype, np.integer):
        valid = target != ignore_index
        classes = np.where(valid, target, 0)
        q, weights = np.eye(V)[classes], a[classes] * valid
    y = np.where(valid, (a * ((1 - label_smoothing) * q + label_smoothing / V) * (lse - z)).sum(axis=1), 0.0)
    n = np.where(valid, z_loss * lse[:, 0] ** 2, 0.0)
    if reduction == "none":
        return y + n
    with np.errstate(invalid="ignore"):
        return y.sum() + n.sum() if reduction == "sum" else y.sum() / weights.sum() + n.sum() / valid.sum()


def flops(sizes, *, label_smoothing=0.0, **static):
    """Subtract, exp, add and rescale for each logit, twice as many where every class has a target; backward alike."""
    each = 8 if label_smoothing or static.get("has_q") else 4
    return {"forward": each * sizes["M"] * sizes["V"], "backward": each * sizes["M"] * sizes["V"]}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Logits of spread 3 and every class possible; with `ignore_index`, about a third of the rows ignored."""
    M, V = case.sizes["M"], case.sizes["V"]
    t = rng.integers(0, V, M)
    if "ignore_index" in case.static:
        t[rng.permutation(M)[: (M + 2) // 3]] = case.static["ignore_index"]
    arrays = {"x": 3 * rng.standard_normal((M, V)), "t": t}
    # Soft targets that need not sum to 1, and weights: drawn where present, so that other cases stay as they are.
    arrays |= {"q": rng.dirichlet(np.ones(V), M) * rng.uniform(0.5, 1.5, (M, 1))} if case.static.get("has_q") else {}
    arrays |= {"a": rng.uniform(0.5, 2.0, V)} if case.static.get("has_a") else {}
    return {a.name: arrays[a.name] for a in spec.at(case).inputs}


def derive(sizes, *, reduction="mean", **static):
    """L, the rows of the result: M, or no axis at all when reduced."""
    return {"L": sizes["M"] if reduction == "none" else None}


_CLASSES = {"has_q": False, "has_a": False}
_SOFT = {"has_t": False, "has_q": True, "has_a": False}

SPEC = Spec(
    name="cross_entropy",
    formula="y = sum_v r_v (log sum exp z - z_v), r the target probabilities, z the capped logits",
    signature="x[M V], t[M]: int, q[M V], a[V] -> y[L]",
    wrt=("x", "q"),
    reference=reference,
    flops=flops,
    cases=(
        Case("mean", {"M": 4, "V": 7}, _CLASSES),
        Case("sum", {"M": 3, "V": 5}, {**_CLASSES, "reduction": "sum"}),
        Case("none", {"M": 5, "V": 3}, {**_CLASSES, "reduction": "none"}),
        Case("one class", {"M": 2, "V": 1}, _CLASSES),
        Case("ignored rows", {"M": 6, "V": 4}, {**_CLASSES, "ignore_index": -1}),
        Case("ignored class, weights", {"M": 6, "V": 4}, {"has_q": False, "has_a": True, "ignore_index": 2}),
        Case("one past a tile", {"M": 2, "V": 17}, {**_CLASSES, "reduction": "sum"}),
        Case(
            "everything",
            {"M": 4, "V": 5},
            {
                "has_q": False,
                "has_a": True,
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
            {"has_t": False, "has_q": True, "has_a": True, "label_smoothing": 0.1, "z_loss": 0.05, "softcap": 3.0},
        ),
        Case("digits", {"M": 128, "V": 10}, _CLASSES, use="bench"),
        Case("vocabulary", {"M": 256, "V": 4096}, _CLASSES, use="bench"),
        Case("distillation", {"M": 128, "V": 1000}, _SOFT, use="bench"),
        *(
            Case(f"{name}, in place", {"M": 64, "V": V}, {**_CLASSES, "inplace": True, **options}, "inspect", order=1)
            for name, V, options in (
                ("a row in registers", 4096, {}),
                ("odd rows", 50257, {}),
                ("long rows", 128256, {}),
                ("capped", 32768, {"z_loss": 1e-4, "softcap": 30.0}),
            )
        ),
        Case("capped logits", {"M": 4096, "V": 32768}, {**_CLASSES, "z_loss": 1e-4, "softcap": 30.0}, use="bench gpu"),
        Case("language model", {"M": 8192, "V": 50257}, _CLASSES, use="bench gpu"),
    ),
    draw=draw,
    grows=("M", "V"),
    length=lambda sizes: max(sizes["V"], sizes["M"]),
    derive=derive,
    saved="x, t or q, a, three numbers a row",
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        *(replace(NO_SPILLS, case=case) for case in ("vocabulary", "distillation")),
        replace(NO_SPILLS, case="capped logits", sides=("torch",)),
        # Of the second backward of half precision on sm_80.
        replace(NO_SPILLS, most=16, case="capped logits", sides=("jax",)),
        # Rows of an odd number of logits are not aligned, so these speak of 4096 classes; jax pads either way.
        *(
            Bound(kind, least=least, kernels=(*more, "second_backward"), sides=(side,), case="vocabulary")
            for side, kind, least, more in (
                ("torch", "wide_loads", 4, ("row_loss", "row_backward")),
                ("torch", "wide_stores", 2, ("row_backward",)),
                ("jax", "wide_loads", 4, ("loss", "backward")),
                ("jax", "wide_stores", 2, ("backward",)),
            )
        ),
        # Of a logit: a shift or a mask, the maximum, an FMA, a power of 2 and a sum; then the first, an FMA, a power, a
        # product and half of a rounding. What a row takes beside them is spread over its logits.
        *(
            Bound("instructions", most=most, per="M V", kernels=(kernel,), dtypes=("bfloat16",), case=case)
            for kernel, case, most in (
                ("row_loss", "language model", 7),
                ("row_backward", "language model", 6.5),
                ("row_loss", "capped logits", 13),
                ("row_backward", "capped logits", 16),
                ("row_with_gradient", "a row in registers, in place", 13),
                ("row_with_gradient", "odd rows, in place", 13),
                ("row_with_gradient", "long rows, in place", 12.5),
                ("row_with_gradient", "capped, in place", 30),
            )
        ),
        # Few rows at a time, so that what is read twice comes out of the L2 cache the second time.
        Bound(
            "blocks",
            most=3,
            kernels=("row_with_gradient",),
            sides=("torch",),
            dtypes=("bfloat16",),
            case="odd rows, in place",
        ),
        Bound(
            "blocks",
            most=1,
            kernels=("row_with_gradient",),
            sides=("torch",),
            dtypes=("bfloat16",),
            case="long rows, in place",
        ),
        *(
            replace(NO_SPILLS, case=f"{name}, in place")
            for name in ("a row in registers", "odd rows", "long rows", "capped")
        ),
        # Nothing is carried for the target's class, so that more than half of a multiprocessor's warps are there.
        Bound("registers", most=72, kernels=("loss", "backward"), sides=("jax",), dtypes=(*HALF, "float32")),
        # The class of each row is read by itself.
        *in_vectors(
            "row_loss",
            "row_backward",
            "second_backward",
            "sum_rows",
            "mean_divisors",
            but=("row_backward", "second_backward"),
        ),
        *(replace(bound, case="distillation") for bound in in_vectors("loss", "backward", but=("backward",))),
        *(replace(bound, case="odd rows, in place") for bound in in_vectors("row_with_gradient", "scale")),
    ),
    source="Milakov and Gimelshein, arXiv:1805.02867",
)
