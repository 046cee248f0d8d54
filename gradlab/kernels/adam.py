r"""adam: one step of Adam, over all elements at once.

Shapes: p[E], g[E], m[E], v[E], lr[], x[X] -> p'[E], m'[E], v'[E], x'[X]; parameter, gradient, first and second moment,
learning rate, and with amsgrad (X = E) the largest second moment so far.

Forward (15 E + X FLOPs), step s counted from 1, a = lr / (1 - b1^s), c = 1 - b2^s, h = +-g + weight_decay p (minus to
maximize) and k = 0, or, decoupled (AdamW), h = +-g and k = weight_decay:
    m' = b1 m + (1 - b1) h
    v' = b2 v + (1 - b2) h^2
    x' = max(x, v')                    q = x' with amsgrad, else v'
    p' = p - lr k p - a m' / d         with d = sqrt(q / c) + eps
Pullback of the cotangents P, A, B, C of p', m', v', x' (23 E + 5 X FLOPs):
    dm' = A - a P / d
    dq  = a P m' / d^2 / (2 sqrt(q c))             0 where q = 0
    dv' = B + dq                                   with amsgrad B + (C + dq) [v' > x], and dx = (C + dq) [v' < x]
    dh  = (1 - b1) dm' + 2 (1 - b2) h dv'
    dp = P - lr k P + weight_decay dh (no weight_decay when decoupled),   dg = +-dh,   dm = b1 dm',   dv = b2 dv'
    dlr = -sum_e P (m' / d / (1 - b1^s) + k p)     in two passes

Derivation: the chain rule, from the last line to the first; d(d)/d(q) = 1 / (2 c sqrt(q / c)) = 1 / (2 sqrt(q c)). At
q = 0 the square root has no derivative; 0 is taken, so that a parameter that never had a gradient gets none. Where
x = v' the maximum has no derivative either; each side takes half, [..] = 1/2, as in torch.maximum and
jax.numpy.maximum.

Two amsgrads: torch.optim takes the maximum before the bias correction, as here. optax takes it after:
    x' = max(x, v' / c),   d = sqrt(x' + eps_root) + eps
which is what `amsgrad` and `adam_step` do in jax, unless `corrected_max=False`. The kernels divide by two corrections,
one of which is 1. eps_root, in optax only, is added to q / c under the root; where it is positive the root has its
derivative also at q = 0.

Precision: float32 or better inside, scalars in float64 on the host; lr may be an array on the device, which the kernel
reads. lr, step and the bias corrections are run-time values: no step recompiles. Saved for backward: the inputs. The
pullback is not differentiable.
Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, algorithm 1; decoupled: Loshchilov and
Hutter, Decoupled Weight Decay Regularization, ICLR 2019, algorithm 2; amsgrad: Reddi, Kale and Kumar, On the
Convergence of Adam and Beyond, ICLR 2018, algorithm 2.
"""

import math

import numpy as np

from gradlab.kernels.bounds import ALWAYS, Bound, in_vectors, spills, streams, unspilled
from gradlab.kernels.spec import Case, Spec

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


def reference(p, g, m, v, lr=LR, x=None, *, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=0.0, decoupled=False,
              maximize=False, step=1):  # fmt: skip
    """p', m', v' in the inputs' dtype, and with x also x'."""
    g = -g if maximize else g
    h = g if decoupled else g + weight_decay * p
    m = beta1 * m + (1 - beta1) * h
    v = beta2 * v + (1 - beta2) * h * h
    q = v if x is None else np.maximum(x, v)
    d = np.sqrt(q / (1 - beta2**step)) + eps
    decayed = p - lr * weight_decay * p if decoupled else p
    new = decayed - lr / (1 - beta1**step) * m / d
    return (new, m, v) if x is None else (new, m, v, q)


def flops(sizes, **static):
    """Each add, multiply, divide, square root and maximum of the formulas above counts one."""
    E, X = sizes["E"], sizes.get("X", 0)
    return {"forward": 15 * E + X, "backward": 23 * E + 5 * X}


def derive(sizes, *, has_x=True, **static):
    """X, the elements of the largest second moment: E, or 0 without one."""
    return {"X": sizes["E"] if has_x else 0}


def draw(rng, case, spec):
    """Normal p, g, m and a second moment in [0.1, 1], where finite differences of the square root are accurate.

    x is well below or above v', so that no finite difference crosses the maximum's kink.
    """
    E = case.sizes["E"]
    p, g, m = rng.standard_normal((3, E))
    drawn = {"p": p, "g": g, "m": m, "v": rng.uniform(0.1, 1.0, E), "lr": np.asarray(rng.uniform(0.05, 0.5))}
    if case.static.get("has_x", True):
        v = reference(**drawn, **spec.at(case).options)[2]
        drawn["x"] = v * rng.choice([0.4, 1.8], E) * rng.uniform(0.9, 1.1, E)
    return drawn


_PLAIN = {"has_x": False}

SPEC = Spec(
    name="adam",
    formula="p' = p - lr k p - a m' / (sqrt(v'/c) + eps)",
    signature="p[E], g[E], m[E], v[E], lr[], x[X] -> p'[E], m'[E], v'[E], x'[X]",
    wrt=("p", "g", "m", "v", "lr", "x"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}, _PLAIN),
        Case("odd", {"E": 13}, {"step": 7, **_PLAIN}),
        Case("decay", {"E": 9}, {"step": 2, "weight_decay": 0.3, "beta1": 0.5, "beta2": 0.7, **_PLAIN}),
        Case("decoupled decay", {"E": 7}, {"step": 3, "weight_decay": 0.5, "decoupled": True, **_PLAIN}),
        Case("first step", {"E": 5}, {"step": 1, "eps": 1e-3, "maximize": True, **_PLAIN}),
        Case("amsgrad", {"E": 12}, {"step": 5, "weight_decay": 0.2, "beta2": 0.8}),
        Case("amsgrad, decoupled decay", {"E": 6}, {"step": 3, "weight_decay": 0.4, "decoupled": True}),
        Case("perceptron", {"E": 64 * 128 + 128 * 10 + 138}, {"step": 10, **_PLAIN}, use="bench"),
        Case("large", {"E": 2**20}, {"step": 10, **_PLAIN}, use="bench"),
        Case("large, amsgrad", {"E": 2**20}, {"step": 10}, use="bench"),
        Case("transformer", {"E": 2**27}, {"step": 10, **_PLAIN}, use="bench gpu"),
    ),
    draw=draw,
    derive=derive,
    # dlr is a sum over all elements, whose rounding errors are independent and partly cancel.
    length=lambda sizes: math.isqrt(sizes["E"]),
    order=1,
    saved="p, g, m, v, lr, x",
    bounds=(
        *ALWAYS,
        *spills(),
        # All but the learning rate, one number on the device; on jax the last chunk is masked, and the scalars loaded.
        streams("adam", share=0.93, sides=("torch",)),
        Bound("wide_loads", least=4, kernels=("adam",), sides=("jax",)),
        Bound("wide_stores", least=3, kernels=("adam",), sides=("jax",)),
        Bound("wide_loads", least=7, kernels=("adam_pullback",)),
        Bound("wide_stores", least=4, kernels=("adam_pullback",)),
        Bound("spill_bytes", most=0, case="large, amsgrad"),
        Bound("wide_loads", least=9, kernels=("adam_pullback",), case="large, amsgrad"),
        Bound("wide_stores", least=5, kernels=("adam_pullback",), case="large, amsgrad"),
        *in_vectors("adam", "adam_pullback"),
        unspilled("adam"),
    ),
    source="Kingma and Ba, ICLR 2015",
)
