"""Right functions on jax, hand-written and native, and right ones that are hard to check by differences."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants import adam_jax, contracts_jax, conv2d_jax, cross_entropy_jax, linear_jax, order2_jax
from tests.mutants import small_jax as small
from tests.mutants.corpus import CheckSubject


def native(name, fn, make, **fields):
    return CheckSubject(name + "-jax", "right", "jax", fn, make, **fields)


def awkward(name, fn, make, note, **fields):
    return CheckSubject(name + "-jax", "awkward", "jax", fn, make, note=note, **fields)


def at_zero(rng, size):
    x = rng.normal(size=size)
    x[::2] = 0.0
    return (x,)


def near_zero(rng, size):
    return (rng.normal(size=size) * 1e-5,)


def just_above_zero(rng, size):
    return (rng.uniform(1e-6, 1e-4, size),)


def ties(rng, size):
    return (rng.integers(0, 3, (4, size)).astype(float),)


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


def only_float32(x, w):
    if x.dtype != jnp.float32 or w.dtype != jnp.float32:
        raise TypeError(f"only float32: {x.dtype}, {w.dtype}")
    return jnp.tanh(x) * w


def float32_inside(x, w):
    return (jnp.tanh(x.astype(jnp.float32)) * w.astype(jnp.float32)).astype(x.dtype)


def step_elsewhere(x):
    return x * x + jnp.where(x > 20, 1.0, 0.0)


def guarded_sqrt(x):
    """The root with a slope of 0 at 0, by a second `where`."""
    safe = jnp.where(x > 0, x, 1.0)
    return jnp.where(x > 0, jnp.sqrt(safe), 0.0)


RIGHT: tuple[CheckSubject, ...] = (
    linear_jax.FAMILY.right(),
    cross_entropy_jax.FAMILY.right(),
    cross_entropy_jax.SOFT.right(),
    conv2d_jax.FAMILY.right(),
    adam_jax.FAMILY.right(),
    contracts_jax.SHARE.right(),
    order2_jax.CUBE.right(),
    *(
        family.right()
        for family in (
            *(small.RELU, small.CLAMP, small.SOFTMAX, small.TANH, small.GELU, small.UNIT),
            *(small.MSE, small.MAX, small.GATHER, small.LSE, small.PROD),
        )
    ),
    native("linear", linear_jax.plain_linear, linear_jax.make),
    native("conv2d", conv2d_jax.plain_conv2d, conv2d_jax.make),
    native("cross-entropy", cross_entropy_jax.plain_cross_entropy, cross_entropy_jax.make),
    native("cross-entropy-soft", cross_entropy_jax.plain_soft, cross_entropy_jax.make_soft),
    native("adam", adam_jax.plain_adam, adam_jax.make),
    native("two-outputs", contracts_jax.plain_two, scaled(1, 1)),
    native("embedding", lambda x, index: jnp.tanh(x[index]), small.repeated),
)

AWKWARD: tuple[CheckSubject, ...] = (
    awkward("relu-at-0", lambda x: jax.nn.relu(x), at_zero, "half of the inputs are on the kink", order=1),
    awkward(
        "relu-by-hand-at-0", small.RELU.build(None), at_zero, "the same, hand-written", order=1, truth=small.RELU.truth
    ),
    awkward("abs-near-0", lambda x: abs(x), near_zero, "within 1e-5 of the kink"),
    awkward("sqrt-near-0", lambda x: jnp.sqrt(x), just_above_zero, "slopes up to 500 that change within a step"),
    awkward("sqrt-guarded", guarded_sqrt, lambda rng, n: (rng.uniform(0.1, 1.0, n),), "two branches, one unused"),
    awkward("max-ties", lambda x: x.max(-1), ties, "equal maxima share the gradient", order=1),
    awkward("max-by-hand-ties", small.MAX.build(None), ties, "the same, hand-written", order=1, truth=small.MAX.truth),
    awkward("solve-1e10", lambda a, b: jnp.linalg.solve(a, b), stiff(1e10), "condition number 1e10"),
    awkward("solve-1e12", lambda a, b: jnp.linalg.solve(a, b), stiff(1e12), "condition number 1e12"),
    awkward("logdet", lambda a, b: jnp.linalg.slogdet(a)[1] + b.sum(), stiff(1e10), "condition number 1e10"),
    awkward("float32-inside", float32_inside, scaled(1, 1), "float64 outside, float32 within"),
    awkward("float32-only", only_float32, scaled(1, 1), "raises on any other dtype", dtype="float32"),
    awkward("huge", lambda x: jnp.sin(x / 1e8) * x, scaled(1e8), "values of 1e8"),
    awkward("tiny", lambda x: jnp.sin(x * 1e8) * x, scaled(1e-8), "values of 1e-8"),
    awkward("unlike-scales", lambda x, w: jnp.sin(x / 1e6) * jnp.sin(w * 1e6), scaled(1e6, 1e-6), "1e6 and 1e-6"),
    awkward("flat", lambda x: jnp.clip(x, -1, 1) ** 2, flat, "nine in ten are clamped"),
    awkward("step-elsewhere", step_elsewhere, scaled(1), "a jump of 1 at 20, where no input is"),
    awkward("unused", lambda x, w: jnp.tanh(x), scaled(1, 1), "no gradient reaches w"),
    awkward("cancelling", lambda x, w: (x + w).sum() ** 2, cancelling, "terms of 1e7 leave a sum of 1"),
    awkward("steep", lambda x: jax.nn.sigmoid(1e4 * x), near_zero, "a slope of 2500 and a curvature of 1e7"),
    awkward("wiggles", lambda x: jnp.sin(1e3 * x), scaled(1), "a period of 6e-3"),
)
SUBJECTS = RIGHT + AWKWARD
