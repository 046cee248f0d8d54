r"""sigmoid: y = 1 / (1 + exp(-x)).

Shapes: x[E] -> y[E]; E is every axis of x together.

Forward (4 E FLOPs)
    y[e] = 1 / (1 + z) where x >= 0, z / (1 + z) elsewhere,   z = exp(-|x|)      (z <= 1: nothing overflows)
Pullback of the cotangent dy[E] (3 E FLOPs)
    dx = dy s0(y)                s0 = y (1 - y)
Higher orders
    the pullback of dy sk(y) for the cotangent u is u sk(y) for dy and u dy s(k+1)(y) for y
    s1 = 1 - 2 y, s2 = -2, s3 = 0

Derivation: y' = exp(-x) / (1 + exp(-x))^2 = y (1 - y); the s are its derivatives by y, a polynomial's, and end at 0.
With the product of two cotangents, whose pullbacks are products again, the family is closed: every order is exact.

Precision: float32 or better inside; relative error of y a few roundings at both ends, also where y is denormal. Saved
for backward: y.
Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., table 2.3.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, NO_SPILLS, Bound, in_vectors, streams, unspilled
from gradlab.kernels.spec import Case, Spec


def reference(x):
    """y[E] in the input's dtype."""
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, z) / (1 + z)


def flops(sizes, **static):
    """Each operation of the formulas above counts one; exp too."""
    return {"forward": 4 * sizes["E"], "backward": 3 * sizes["E"]}


def draw(rng, case, spec):
    """Normal values of spread 2: the steep middle and both flat ends."""
    return {"x": 2 * rng.standard_normal(case.sizes["E"])}


SPEC = Spec(
    name="sigmoid",
    formula="y = 1 / (1 + exp(-x))",
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
    saved_slope=1.0,
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("sigmoid", "slope", "times"),
        Bound("occupancy", least=0.75, dtypes=(*HALF, "float32")),
        *in_vectors("sigmoid", "slope", "times"),
        unspilled("sigmoid", "slope", "times"),
    ),
    source="Griewank and Walther, Evaluating Derivatives, 2nd ed., table 2.3",
)
