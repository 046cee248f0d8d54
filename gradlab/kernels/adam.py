r"""adam: one step of Adam, over all elements at once.

Shapes: p[E], g[E], m[E], v[E] -> p'[E], m'[E], v'[E]; parameter, gradient, first and second moment.

Forward (15 E FLOPs), step s counted from 1, a = lr / (1 - b1^s), c = 1 - b2^s, h = g + weight_decay p and k = 0, or,
decoupled (AdamW), h = g and k = lr weight_decay:
    m' = b1 m + (1 - b1) h
    v' = b2 v + (1 - b2) h^2
    p' = p - k p - a m' / d        with d = sqrt(v' / c) + eps
Pullback of the cotangents P, A, B of p', m', v' (20 E FLOPs):
    dm' = A - a P / d
    dv' = B + a P m' / d^2 / (2 sqrt(v' c))        the second term 0 where v' = 0
    dh  = (1 - b1) dm' + 2 (1 - b2) h dv'
    dp = P - k P + weight_decay dh (no weight_decay when decoupled),   dg = dh,   dm = b1 dm',   dv = b2 dv'

Derivation: the chain rule, line by line backwards; d(d)/d(v') = 1 / (2 c sqrt(v' / c)) = 1 / (2 sqrt(v' c)). At v' = 0
the square root has no derivative and m' = 0 with it; 0 is taken, so that a parameter that never had a gradient gets
none.

Precision: float32 or better inside, scalars in float64 on the host. lr, step and the bias corrections are run-time
values: no step compiles anew. Kept for the way back: p, g, m, v. The pullback has no pullback of its own.
Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, algorithm 1; decoupled: Loshchilov and
Hutter, Decoupled Weight Decay Regularization, ICLR 2019, algorithm 2.
"""

import numpy as np

from gradlab.kernels.promise import ALWAYS, Promise, spills
from gradlab.kernels.spec import Case, Spec

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


def reference(p, g, m, v, *, lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=0.0, decoupled=False,
              step=1):  # fmt: skip
    """p', m', v' in the inputs' dtype."""
    h = g if decoupled else g + weight_decay * p
    m = beta1 * m + (1 - beta1) * h
    v = beta2 * v + (1 - beta2) * h * h
    d = np.sqrt(v / (1 - beta2**step)) + eps
    kept = p - lr * weight_decay * p if decoupled else p
    return kept - lr / (1 - beta1**step) * m / d, m, v


def flops(sizes, **static):
    """Each add, multiply, divide and square root of the formulas above, one."""
    return {"forward": 15 * sizes["E"], "backward": 20 * sizes["E"]}


def draw(rng, case, spec):
    """Normal p, g, m and a second moment in [0.1, 1], so that the square root is smooth where it is differenced."""
    E = case.sizes["E"]
    p, g, m = rng.standard_normal((3, E))
    return {"p": p, "g": g, "m": m, "v": rng.uniform(0.1, 1.0, E)}


SPEC = Spec(
    name="adam",
    formula="p' = p - k p - a m' / (sqrt(v'/c) + eps)",
    signature="p[E], g[E], m[E], v[E] -> p'[E], m'[E], v'[E]",
    wrt=("p", "g", "m", "v"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}),
        Case("odd", {"E": 13}, {"step": 7, "lr": 0.1}),
        Case("decay", {"E": 9}, {"step": 2, "lr": 0.05, "weight_decay": 0.3, "beta1": 0.5, "beta2": 0.7}),
        Case("decoupled decay", {"E": 7}, {"step": 3, "lr": 0.1, "weight_decay": 0.5, "decoupled": True}),
        Case("first step", {"E": 5}, {"step": 1, "lr": 1.0, "eps": 1e-3}),
        Case("perceptron", {"E": 64 * 128 + 128 * 10 + 138}, {"step": 10}, use="bench"),
        Case("large", {"E": 2**20}, {"step": 10}, use="bench"),
        Case("transformer", {"E": 2**27}, {"step": 10}, use="bench gpu"),
    ),
    draw=draw,
    order=1,
    kept="p, g, m, v",
    promises=(
        *ALWAYS,
        *spills(float64=32),
        # The last chunk is masked and loaded one by one, and so are the scalars.
        Promise("wide_loads", least=4, kernels=("adam",)),
        Promise("wide_stores", least=3, kernels=("adam",)),
        Promise("wide_loads", least=7, kernels=("adam_pullback",)),
        Promise("wide_stores", least=4, kernels=("adam_pullback",)),
    ),
    source="Kingma and Ba, ICLR 2015",
)
