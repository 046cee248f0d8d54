r"""sgd: one step of stochastic gradient descent with momentum, over all elements at once.

Shapes: p[E], g[E], b[E] -> p'[E], b'[E]; parameter, gradient, momentum buffer.

Forward (10 E FLOPs), s = -1 to maximize, else 1; r = 0 and q = 1 at the first step, later r = momentum and
q = 1 - dampening; n = 1 and t = momentum with Nesterov's, else n = 0 and t = 1:
    h  = s g + weight_decay p
    b' = r b + q h
    p' = p - lr (n h + t b')
Pullback of the cotangents P, B of p', b' (10 E FLOPs), u = -lr P:
    db' = B + t u
    dh  = n u + q db'
    dp = P + weight_decay dh,   dg = s dh,   db = r db'
Without momentum there is no buffer: p' = p - lr h, and b' = b is neither read nor written.

Derivation: the step is a linear map A of (p, g, b), so that its pullback is A^T, whatever the values; the pullback of
A^T is A, the step itself. Derivatives of every order are exact and there are only these two kernels.

Precision: float32 or better inside, scalars in float64 on the host. lr, momentum and the first step's r and q are
run-time values: no step recompiles. A factor of 0 drops its term, also one that is not finite. Saved for
backward: nothing but the scalars.
Source: Sutskever, Martens, Dahl and Hinton, On the importance of initialization and momentum in deep learning, ICML
2013, section 2, with PyTorch's b (theirs divided by -lr).
"""

from gradlab.kernels.bounds import ALWAYS, NO_SPILLS, Bound, in_vectors, streams, unspilled
from gradlab.kernels.spec import Case, Spec

LR = 1e-3


def reference(
    p, g, b, *, lr=LR, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, first=False
):
    """p', b' in the inputs' dtype."""
    h = (-g if maximize else g) + weight_decay * p
    if not momentum:
        return p - lr * h, b
    b = h if first else momentum * b + (1 - dampening) * h
    return p - lr * (h + momentum * b if nesterov else b), b


def flops(sizes, **static):
    """Each add and multiply of the formulas above counts one."""
    return {"forward": 10 * sizes["E"], "backward": 10 * sizes["E"]}


SPEC = Spec(
    name="sgd",
    formula="b' = r b + q h, p' = p - lr (n h + t b'), h = g + k p",
    signature="p[E], g[E], b[E] -> p'[E], b'[E]",
    wrt=("p", "g", "b"),
    reference=reference,
    flops=flops,
    cases=(
        Case("one", {"E": 1}, {"lr": 0.5}),
        Case("momentum", {"E": 13}, {"lr": 0.1, "momentum": 0.9}),
        Case("first step", {"E": 5}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "first": True}),
        Case("dampening", {"E": 9}, {"lr": 0.5, "momentum": 0.7, "dampening": 0.2, "weight_decay": 0.3}),
        Case("nesterov", {"E": 7}, {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
        Case("nesterov, first step", {"E": 3}, {"lr": 0.2, "momentum": 0.8, "nesterov": True, "first": True}),
        Case("maximize", {"E": 6}, {"lr": 0.3, "momentum": 0.5, "weight_decay": 0.2, "maximize": True}),
        Case("decay alone", {"E": 4}, {"lr": 0.3, "weight_decay": 0.2, "maximize": True}),
        Case("perceptron", {"E": 64 * 128 + 128 * 10 + 138}, {"momentum": 0.9}, use="bench"),
        Case("large", {"E": 2**20}, {"momentum": 0.9}, use="bench"),
        Case("transformer", {"E": 2**27}, {"momentum": 0.9}, use="bench gpu"),
    ),
    order=3,
    saved="nothing",
    bounds=(
        *ALWAYS,
        NO_SPILLS,
        streams("sgd", sides=("torch",)),
        # On jax the last chunk is masked and has narrow loads; so do the scalars.
        Bound("wide_loads", least=3, kernels=("sgd",), sides=("jax",)),
        Bound("wide_stores", least=2, kernels=("sgd",), sides=("jax",)),
        Bound("wide_loads", least=2, kernels=("sgd_pullback",)),
        Bound("wide_stores", least=3, kernels=("sgd_pullback",)),
        *in_vectors("sgd", "sgd_pullback"),
        unspilled("sgd", "sgd_pullback"),
    ),
    source="Sutskever et al., ICML 2013",
)
