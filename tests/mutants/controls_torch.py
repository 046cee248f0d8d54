"""Right functions on torch, hand-written and native, and right ones that are hard to check by differences."""

import numpy as np
import torch

from tests.mutants import adam_torch, contracts_torch, conv2d_torch, cross_entropy_torch, linear_torch, order2_torch
from tests.mutants import small_torch as small
from tests.mutants.corpus import CheckSubject

F = torch.nn.functional


def native(name, fn, make, **fields):
    return CheckSubject(name, "right", "torch", fn, make, **fields)


def awkward(name, fn, make, note, **fields):
    return CheckSubject(name, "awkward", "torch", fn, make, note=note, **fields)


def at_zero(rng, size):
    x = rng.normal(size=size)
    x[::2] = 0.0
    return (x,)


def near_zero(rng, size):
    return (rng.normal(size=size) * 1e-5,)


def just_above_zero(rng, size):
    return (rng.uniform(1e-6, 1e-4, size),)


def ties(rng, size):
    return (rng.integers(0, 3, (4, size + size % 2)).astype(float),)


def stiff(condition):
    """A symmetric matrix with this condition number, and a right side."""

    def make(rng, size):
        n = min(size, 12)
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return (q * np.geomspace(1, 1 / condition, n)) @ q.T, rng.normal(size=n)

    return make


def scaled(*scales):
    return lambda rng, size: tuple(s * rng.normal(size=size) for s in scales)


def flat(rng, size):
    return (rng.normal(size=size) * 10,)


def cancelling(rng, size):
    x = 1e7 + rng.normal(size=size)
    return x, -x + rng.normal(size=size)


def indexed(rng, size):
    return rng.normal(size=(size, 3)), rng.integers(0, size, size)


def only_float32(x, w):
    if x.dtype != torch.float32 or w.dtype != torch.float32:
        raise TypeError(f"only float32: {x.dtype}, {w.dtype}")
    return torch.tanh(x) * w


def float32_inside(x, w):
    return (torch.tanh(x.float()) * w.float()).to(x.dtype)


def step_elsewhere(x):
    return x * x + torch.where(x > 20, 1.0, 0.0)


RIGHT: tuple[CheckSubject, ...] = (
    linear_torch.FAMILY.right(),
    cross_entropy_torch.FAMILY.right(),
    cross_entropy_torch.SOFT.right(),
    conv2d_torch.FAMILY.right(),
    conv2d_torch.STRIDED.right(),
    adam_torch.FAMILY.right(),
    contracts_torch.TWO.right(),
    order2_torch.CUBE.right(),
    *(
        family.right()
        for family in (
            *(small.RELU, small.CLAMP, small.SOFTMAX, small.TANH, small.GELU, small.NORM, small.MSE),
            *(small.POOL, small.MAX, small.CUMSUM, small.PROD, small.ABS, small.ADD),
        )
    ),
    native("linear", linear_torch.plain_linear, linear_torch.make),
    native("conv2d", conv2d_torch.plain_conv2d, conv2d_torch.make),
    native("cross-entropy", lambda logits, labels: F.cross_entropy(logits, labels), cross_entropy_torch.make),
    native("cross-entropy-soft", cross_entropy_torch.plain_soft, cross_entropy_torch.make_soft),
    native("adam", adam_torch.plain_adam, adam_torch.make),
    native("two-outputs", contracts_torch.plain_two, scaled(1, 1)),
    native("embedding", lambda x, index: torch.tanh(x[index]), indexed),
)

AWKWARD: tuple[CheckSubject, ...] = (
    awkward("relu-at-0", lambda x: torch.relu(x), at_zero, "half of the inputs are on the kink", order=1),
    awkward(
        "relu-by-hand-at-0", small.RELU.build(None), at_zero, "the same, hand-written", order=1, truth=small.RELU.truth
    ),
    awkward("abs-near-0", lambda x: x.abs(), near_zero, "within 1e-5 of the kink"),
    awkward("sqrt-near-0", lambda x: x.sqrt(), just_above_zero, "slopes up to 500 that change within a step"),
    awkward("max-ties", lambda x: x.amax(-1), ties, "equal maxima share the gradient", order=1),
    awkward("max-pool-ties", lambda x: F.max_pool1d(x, 2), ties, "the first of equal maxima gets all", order=1),
    awkward("solve-1e10", lambda a, b: torch.linalg.solve(a, b), stiff(1e10), "condition number 1e10"),
    awkward("solve-1e12", lambda a, b: torch.linalg.solve(a, b), stiff(1e12), "condition number 1e12"),
    awkward("logdet", lambda a, b: torch.linalg.slogdet(a)[1] + b.sum(), stiff(1e10), "condition number 1e10"),
    awkward("float32-inside", float32_inside, scaled(1, 1), "float64 outside, float32 within"),
    awkward("float32-only", only_float32, scaled(1, 1), "raises on any other dtype", dtype="float32"),
    awkward("huge", lambda x: torch.sin(x / 1e8) * x, scaled(1e8), "values of 1e8"),
    awkward("tiny", lambda x: torch.sin(x * 1e8) * x, scaled(1e-8), "values of 1e-8"),
    awkward("unlike-scales", lambda x, w: torch.sin(x / 1e6) * torch.sin(w * 1e6), scaled(1e6, 1e-6), "1e6 and 1e-6"),
    awkward("flat", lambda x: x.clamp(-1, 1) ** 2, flat, "nine in ten are clamped"),
    awkward("step-elsewhere", step_elsewhere, scaled(1), "a jump of 1 at 20, where no input is"),
    awkward("unused", lambda x, w: torch.tanh(x), scaled(1, 1), "no gradient reaches w"),
    awkward("constant-by-0", lambda x, w: torch.tanh(x) + 0 * w, scaled(1, 1), "w's gradient is zeros"),
    awkward("cancelling", lambda x, w: (x + w).sum() ** 2, cancelling, "terms of 1e7 leave a sum of 1"),
    awkward("steep", lambda x: torch.sigmoid(1e4 * x), near_zero, "a slope of 2500 and a curvature of 1e7"),
    awkward("wiggles", lambda x: torch.sin(1e3 * x), scaled(1), "a period of 6e-3"),
)
SUBJECTS = RIGHT + AWKWARD
