r"""relu: y = max(x, 0).

Shapes: x[E] -> y[E]; E is every axis of x together.

Forward (E FLOPs)
    y[e] = 0 where x[e] <= 0, else x[e]            (NaN stays NaN)
Pullback of the cotangent dy[E] (E FLOPs)
    dx[e] = 0 where y[e] <= 0, else dy[e]

Derivation: y is x or 0 by parts, so its derivative is 1 or 0; at the kink 0 is taken, the subgradient that PyTorch and
JAX take. The pullback is linear in dy with a constant mask, so its own pullback is the same mask: the
derivative of any order in dy is exact, and that in x is zero almost everywhere.

Precision: exact. Saved for backward: y (its sign is the mask).
Source: Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, ICML 2010.
"""

import numpy as np

from gradlab.kernels.bounds import ALWAYS, HALF, NO_SPILLS, Bound, in_vectors, streams, unspilled
from gradlab.kernels.spec import Case, Spec


def reference(x):
    """y[E] in the input's dtype."""
    return np.maximum(x, 0)


def flops(sizes, **static):
    """One comparison an element, forward and backward."""
    return {"forward": sizes["E"], "backward": sizes["E"]}


def draw(rng, case, spec):
    """Normal inputs pushed away from the kink at 0, where a finite difference is no derivative."""
    x = rng.standard_normal(case.sizes["E"])
    return {"x": x + 0.1 * (2.0 * (x > 0) - 1)}


SPEC = Spec(
    name="relu",
    formula="y = max(x, 0)",
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
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("relu_mask"),
        Bound("occupancy", least=0.75, dtypes=(*HALF, "float32")),
        *in_vectors("relu_mask"),
        unspilled("relu_mask"),
    ),
    source="Nair and Hinton, ICML 2010",
)
