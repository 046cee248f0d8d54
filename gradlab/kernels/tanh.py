r"""tanh: y = tanh x.

Shapes: x[E] -> y[E]; E is every axis of x together.

Forward (about 16 E FLOPs)
    y[e] = sign(x) (1 - z) / (1 + z),   z = exp(-2 |x|)        where |x| > 5/8        (z <= 1: nothing overflows)
    y[e] = x + x p(x^2) x^2 / q(x^2)                           elsewhere, where 1 - z would cancel
Pullback of the cotangent dy[E] (3 E FLOPs)
    dx = dy s0(y)                s0 = 1 - y^2 = (1 - y) (1 + y)
Higher orders
    the pullback of dy sk(y) for the cotangent u is u sk(y) for dy and u dy s(k+1)(y) for y
    s1 = -2 y, s2 = -2, s3 = 0

Derivation: y' = 1 - y^2 from (sinh / cosh)'; the s are its derivatives by y, a polynomial's, and end at 0. With the
product of two cotangents, whose pullbacks are products again, the family is closed: every order is exact.

Precision: float32 or better inside; the rational function p / q is Cody and Waite's for float64, so small x keep all
their digits. Saved for backward: y.
Source: Cody and Waite, Software Manual for the Elementary Functions, 1980, chapter 13.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, NO_SPILLS, Bound, in_vectors, streams, unspilled
from gradlab.kernels.spec import Case, Spec


def reference(x):
    """y[E] in the input's dtype."""
    return np.tanh(x)


def flops(sizes, **static):
    """Each operation of the formulas above, one; an exp too."""
    return {"forward": 16 * sizes["E"], "backward": 3 * sizes["E"]}


def draw(rng, case, spec):
    """Normal values of spread 2: the steep middle and both flat ends."""
    return {"x": 2 * rng.standard_normal(case.sizes["E"])}


SPEC = Spec(
    name="tanh",
    formula="y = tanh x",
    signature="x[E] -> y[E]",
    wrt=("x",),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}),
        Case("odd", {"E": 37}),
        Case("activations", {"E": 128 * 128}, use="bench"),
        Case("large", {"E": 2**20}, use="bench"),
        Case("transformer", {"E": 8192 * 4096}, use="bench gpu"),
    ),
    draw=draw,
    order=3,
    saved="y",
    saved_slope=2.0,
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("tanh", "slope", "times"),
        Bound("occupancy", least=0.75, dtypes=(*HALF, "float32")),
        *in_vectors("tanh", "slope", "times"),
        unspilled("tanh", "slope", "times"),
    ),
    source="Cody and Waite, Software Manual for the Elementary Functions, 1980, chapter 13",
)
