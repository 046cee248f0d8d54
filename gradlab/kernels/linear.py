r"""linear: y = x w + b, then relu if asked.

Shapes: x[M K], w[K N], b[N] -> y[M N]; M is every leading axis of x together.

Forward (2 M K N FLOPs, M N for the bias)
    z[m n] = sum_k x[m k] w[k n] + b[n],    y = z or max(z, 0)
Pullback of the cotangent dy[M N] (4 M K N FLOPs, M N for the bias), with dz = dy, or dy where y > 0 and 0 elsewhere:
    dgrad  dx[m k] = sum_n dz[m n] w[k n]      the product dz w^T    (2 M K N)
    wgrad  dw[k n] = sum_m x[m k] dz[m n]      the product x^T dz    (2 M K N)
    bias   db[n]   = sum_m dz[m n]             the column sum        (M N)

Derivation: z = x w + b is bilinear in x and w. Its differential is z' = x' w + x w' + b', so
<dz, x' w> = <dz w^T, x'> and <dz, x w'> = <x^T dz, w'>. Both pullbacks are the op again with one operand transposed.
With relu the op is a product with one array masked by y > 0; a masked result becomes a masked operand in the pullbacks,
and the other way round:

    masked   in dgrad   in wgrad
    y        a (dy)     b (dy)
    a        y          a
    b        b          y

so {product with none, a, b or y masked} is closed under differentiation, and derivatives of any order are exact. dz is
not written to memory, dy is masked as it is loaded; but for large dy on a GPU, where a pass of its own costs less than
a mask in both products.

Where a product has so few tiles that they leave half of a GPU idle, and a long sum, parts of the sum are computed side
by side in float32, and a second kernel adds them in order, with bias, relu and mask, and rounds once.

Precision: every dot is accumulated in float32 (float64 for float64), operands in full precision, never TF32.
Saved for backward: x, w, and y when relu is fused (its sign is the mask).
Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., section 3.2; the bilinear rule is elementary.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, Bound, fused, spills, streams, tensor_cores
from gradlab.kernels.spec import Arrays, Case, Spec, normal

# Where the mask of a product goes in dgrad and in wgrad: the table above.
MOVES = {"": ("", ""), "y": ("a", "b"), "a": ("y", "a"), "b": ("b", "y")}


def reference(x, w, b=None, *, activation=None):
    """y[M N] in the inputs' dtype."""
    z = x @ w if b is None else x @ w + b
    return np.maximum(z, 0) if activation == "relu" else z


def flops(sizes, **static):
    """A multiply and an add for each of the M K N terms; the pullback is two such products and a column sum."""
    M, K, N = sizes["M"], sizes["K"], sizes["N"]
    return {"forward": 2 * M * K * N + M * N, "backward": 4 * M * K * N + M * N}


def draw(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Normal inputs; with relu, redrawn until no pre-activation is so near 0 that a finite difference crosses it."""
    while True:
        arrays = normal(rng, case, spec)
        # Large products take NumPy seconds, and only "check" cases are compared with finite differences.
        if case.use != "check" or "activation" not in case.static:
            return arrays
        if np.abs(reference(*arrays.values())).min(initial=1.0) > 0.02:
            return arrays


_RELU = {"activation": "relu"}
_NO_BIAS = {"has_b": False}

SPEC = Spec(
    name="linear",
    formula="y = x w + b, relu",
    signature="x[M K], w[K N], b[N] -> y[M N]",
    wrt=("x", "w", "b"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"M": 1, "K": 1, "N": 1}),
        Case("odd", {"M": 5, "K": 7, "N": 3}),
        Case("no bias", {"M": 4, "K": 3, "N": 6}, _NO_BIAS),
        Case("one past a tile", {"M": 17, "K": 3, "N": 2}),
        Case("relu", {"M": 4, "K": 5, "N": 3}, _RELU),
        Case("relu, no bias", {"M": 3, "K": 4, "N": 5}, {**_RELU, **_NO_BIAS}),
        Case("perceptron", {"M": 128, "K": 64, "N": 128}, _RELU, use="bench"),
        Case("square", {"M": 512, "K": 512, "N": 512}, use="bench"),
        # Strides that are multiples of 16 bytes and not of 16 elements.
        Case("eights", {"M": 200, "K": 328, "N": 136}, use="bench"),
        # On torch a product of few tiles whose sum is split.
        Case("long sum", {"M": 256, "K": 8192, "N": 256}, use="bench gpu"),
        Case("layer", {"M": 2048, "K": 4096, "N": 2048}, use="bench gpu"),
        Case("transformer", {"M": 8192, "K": 4096, "N": 4096}, use="bench gpu"),
    ),
    draw=draw,
    order=3,
    grows=("M", "K", "N"),
    tiles={"x": (64, 64), "w": (64, 64), "b": (64,)},
    length=lambda sizes: max(sizes["M"], sizes["K"], sizes["N"]),
    saved="x, w; y with relu",
    bounds=(
        *ALWAYS,
        *spills(float32=16, float64=128),
        *tensor_cores("matmul"),
        *fused("matmul"),
        streams("matmul", share=0.6, dtypes=(*HALF, "float32")),
        Bound("wide_share", least=0.6, kernels=("matmul",), dtypes=("float32",), case="eights"),
        Bound("wide_share", least=0.6, kernels=("matmul",), dtypes=HALF, archs=("sm_80",), case="eights"),
        # A step of K moves the operands through shared memory in the cycles of tensor cores; a tile's sums once more.
        Bound("tensor_share", least=0.96, kernels=("matmul",), dtypes=HALF, archs=("sm_90",), case="layer"),
        Bound("tensor_share", least=0.99, kernels=("matmul",), dtypes=HALF, archs=("sm_80",), case="layer"),
        # Split along K, where a program for each tile would leave 97 to 88 % of the multiprocessors idle.
        Bound("waves", least=0.18, kernels=("matmul",), sides=("torch",), case="long sum"),
        Bound("wide_share", least=0.9, kernels=("sum_parts",), sides=("torch",), case="long sum"),
        # An FMA each, and what loads their operands.
        Bound("instructions", most=1.25, per="M K N", kernels=("matmul",), dtypes=("float32",), case="square"),
        Bound("instructions", most=6, per="M N", kernels=("column_sum",), dtypes=HALF, case="layer"),
    ),
    source="Griewank and Walther, Evaluating Derivatives, 2nd ed., section 3.2",
)
