r"""mse_loss: the squared difference of two arrays, its mean or its sum.

Shapes: x[E], t[E] -> y[E], or a scalar y when reduced; E is every axis together.

Forward (3 E FLOPs)
    y[e] = (x[e] - t[e])^2;    reduced: sum_e y[e], or that over E (NaN when E = 0)
Pullback of the cotangent dy, with n = E for the mean and 1 elsewhere (3 E FLOPs each)
    dx[e] = 2/n dy (x[e] - t[e]),    dt[e] = -dx[e]
Higher orders
    D(a, b, x, t) = s (a - b) (x - t) has the pullbacks s u (x - t) for a and s (a - b) u for x, and their negatives
    for b and t: D again, with a zero in place of one operand

Derivation: a product of two differences is bilinear. The loss is D(x, t, x, t) and its gradient D(dy, 0, x, t) with
2 s, so {D, sum} is closed and derivatives of every order are exact.

Precision: float32 or better in every sum; the result is rounded once. Saved for backward: x and t.
Source: Gauss, Theoria motus corporum coelestium, 1809; the bilinear rule is elementary.
"""

from gradlab.kernels.bounds import ALWAYS, Bound, in_vectors, spills, streams, unspilled
from gradlab.kernels.spec import Case, Spec


def reference(x, t, *, reduction="mean"):
    """y in the inputs' dtype."""
    y = (x - t) ** 2
    if reduction == "none":
        return y
    return y.sum() if reduction == "sum" else y.sum() / y.size


def flops(sizes, **static):
    """Subtract, square, add; back subtract, scale, multiply, for each of two gradients."""
    return {"forward": 3 * sizes["E"], "backward": 6 * sizes["E"]}


def derive(sizes, *, reduction="mean", **static):
    """L, the axis of the result: E, or absent when reduced."""
    return {"L": sizes["E"] if reduction == "none" else None}


SPEC = Spec(
    name="mse_loss",
    formula="y = (x - t)^2",
    signature="x[E], t[E] -> y[L]",
    wrt=("x", "t"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}),
        Case("mean", {"E": 37}),
        Case("sum", {"E": 13}, {"reduction": "sum"}),
        Case("none", {"E": 9}, {"reduction": "none"}),
        Case("regression", {"E": 128 * 128}, use="bench"),
        Case("large", {"E": 2**20}, use="bench"),
        Case("images", {"E": 256 * 3 * 224 * 224}, use="bench gpu"),
    ),
    length=lambda sizes: sizes["E"],
    derive=derive,
    order=3,
    saved="x, t",
    bounds=(
        *ALWAYS,
        *spills(float64=32),
        streams("squares", share=0.8),
        streams("differences", sides=("jax",)),
        # A mean's cotangent comes expanded on torch: its one element is loaded repeatedly.
        Bound("wide_loads", least=1, kernels=("differences",)),
        Bound("wide_stores", least=1, kernels=("differences",)),
        *in_vectors("squares", "differences"),
        unspilled("squares", "differences"),
    ),
    source="Gauss, Theoria motus, 1809",
)
