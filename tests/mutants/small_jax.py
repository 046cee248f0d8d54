"""Wrong backwards of small functions on jax: activations, softmax, norms, gathers, products, losses."""

import inspect
import math

import jax
import jax.numpy as jnp

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_jax import rounded, rule, weigh


def family(prefix, plain, pullback, make):
    """A family of one or two parameters; the second is `t`, or `index` where it is whole numbers."""

    def build(fault):
        f = rule(plain, pullback, fault)
        return {
            ("x",): lambda x: f(x),
            ("x", "t"): lambda x, t: f(x, t),
            ("x", "index"): lambda x, index: f(x, index),
        }[tuple(inspect.signature(plain).parameters)]

    return Family(prefix, "jax", build, make, plain)


def instead(pullback):
    """The fault that is another pullback, `pullback(dy, *args)`."""
    return lambda grads, dy, args, ctx: pullback(dy, *args)


def vector(rng, size):
    return (rng.uniform(-4, 4, size),)


def matrix(rng, size):
    return (rng.normal(size=(max(4, size // 4), size)),)


def pair(rng, size):
    return rng.normal(size=(4, size)), rng.normal(size=(4, size))


def one_is(value):
    def make(rng, size):
        (x,) = vector(rng, size)
        x[2] = value
        return (x,)

    return make


def first_row(value, columns=2):
    def make(rng, size):
        (x,) = matrix(rng, size)
        x[0, :columns] = value
        return (x,)

    return make


def distinct(rng, size):
    return rng.normal(size=(size, 3)), rng.permutation(size)


def repeated(rng, size):
    return rng.normal(size=(size, 3)), rng.permutation(size) // 2


def relu_pullback(dy, x):
    return (dy * (x > 0),)


def softmax_pullback(dy, x):
    y = jax.nn.softmax(x)
    return (y * (dy - (dy * y).sum(-1, keepdims=True)),)


def tanh_pullback(dy, x, squash=jnp.tanh):
    return (dy * (1 - squash(x) ** 2),)


def gelu_slope(x):
    return 0.5 * (1 + jax.lax.erf(x / 2**0.5)) + x * jnp.exp(-x * x / 2) / (2 * math.pi) ** 0.5


def sigmoid_slope(x):
    """That of x sigmoid(1.702 x)."""
    s = jax.nn.sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1 - s)


def unit_plain(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def unit_pullback(dy, x, eps=1e-12):
    r = 1 / jnp.sqrt((x * x).sum(-1, keepdims=True) + eps)
    return (r * dy - x * r**3 * (dy * x).sum(-1, keepdims=True),)


def mse_pullback(dy, x, t):
    d = 2 * dy * (x - t) / x.size
    return d, -d


def max_pullback(dy, x):
    mask = x == x.max(-1, keepdims=True)
    return (mask / mask.sum(-1, keepdims=True) * dy[..., None],)


def ties_twice(dy, x):
    return ((x == x.max(-1, keepdims=True)) * dy[..., None],)


def gather_pullback(dy, x, index):
    return jnp.zeros_like(x).at[index].add(dy), None


def gather_set(dy, x, index):
    return jnp.zeros_like(x).at[index].set(dy), None


def logsumexp_pullback(dy, x):
    return (dy[:, None] * jax.nn.softmax(x),)


def prod_pullback(dy, x):
    """The product of all others, also where one is 0."""
    others = jnp.where(jnp.eye(x.shape[1], dtype=bool), 1.0, x[:, None, :])
    return (dy[:, None] * others.prod(2),)


RELU = family("relu", lambda x: jax.nn.relu(x), relu_pullback, vector)
CLAMP = family("clamp", lambda x: jnp.clip(x, -5, 5), lambda dy, x: (dy * (abs(x) <= 5),), vector)
SOFTMAX = family("softmax", lambda x: jax.nn.softmax(x), softmax_pullback, matrix)
TANH = family("tanh", lambda x: jnp.tanh(x), tanh_pullback, vector)
GELU = family("gelu", lambda x: jax.nn.gelu(x, approximate=False), lambda dy, x: (dy * gelu_slope(x),), vector)
UNIT = family("unit", unit_plain, unit_pullback, matrix)
MSE = family("mse", lambda x, t: ((x - t) ** 2).mean(), mse_pullback, pair)
MAX = family("max", lambda x: x.max(-1), max_pullback, matrix)
GATHER = family("gather", lambda x, index: x[index], gather_pullback, distinct)
LSE = family("logsumexp", lambda x: jax.nn.logsumexp(x, -1), logsumexp_pullback, matrix)
PROD = family("prod", lambda x: x.prod(1), prod_pullback, lambda rng, n: (rng.uniform(0.8, 1.2, (4, n)),))


def at(family, name, pullback, note, trigger):
    """A mutant that only `trigger`'s inputs show."""
    return family.wrong(name, "input-dependent", "x", instead(pullback), note, trigger=trigger, shows="trigger")


def by_division(dy, x):
    return (dy[:, None] * x.prod(1, keepdims=True) / x,)


SUBJECTS: tuple[CheckSubject, ...] = (
    MSE.wrong("half", "gross", "x t", instead(lambda dy, x, t: (dy * (x - t) / x.size, dy * (t - x) / x.size)), "no 2"),
    SOFTMAX.wrong(
        "no-dot", "gross", "x", instead(lambda dy, x: (dy * jax.nn.softmax(x),)), "the row's dot is left out"
    ),
    LSE.wrong("tail-four", "local", "x", change(0, lambda g: g.at[:, -4:].set(0)), "the last 4 columns are zero"),
    GATHER.wrong(
        "first-row", "local", "x", change(0, lambda g: g * weigh(g, 0, 2.0)), "row 0 is padding, counted twice"
    ),
    TANH.wrong(
        "half-output",
        "small",
        "x",
        instead(lambda dy, x: tanh_pullback(dy, x, lambda z: rounded(jnp.tanh(z), jnp.float16))),
        "the output is kept as float16",
    ),
    TANH.wrong("constant", "small", "x", change(0, lambda g: g + 1e-6), "1e-6 is added"),
    GELU.wrong(
        "slope", "small", "x", instead(lambda dy, x: (dy * sigmoid_slope(x),)), "the slope of x sigmoid(1.702 x)"
    ),
    UNIT.wrong(
        "eps", "small", "x", instead(lambda dy, x: unit_pullback(dy, x, 1e-5)), "another eps than the forward's"
    ),
    GELU.wrong(
        "forward",
        "small",
        "",
        None,
        "the value, and its right gradient, are tanh-GELU's",
        fn=lambda x: jax.nn.gelu(x, approximate=True),
        reference=lambda x: jax.nn.gelu(x, approximate=False),
        truth=None,
        shows="forward",
    ),
    at(RELU, "leak", lambda dy, x: (dy * ((x > 0) + 0.01 * (x < -10)),), "leaks below -10", one_is(-20.0)),
    at(CLAMP, "one-side", lambda dy, x: (dy * (x >= -5),), "open above 5; |x| < 4 as given", one_is(7.0)),
    at(MAX, "ties-twice", ties_twice, "each of two equal maxima gets all; none are equal as given", first_row(9.0)),
    at(PROD, "by-division", by_division, "0/0 at x = 0; no given x is 0", first_row(0.0, 1)),
    at(UNIT, "no-eps", lambda dy, x: unit_pullback(dy, x, 0.0), "0/0 where a row is zero", first_row(0.0, None)),
    at(GATHER, "set", gather_set, "of equal indices only one counts; the given ones are distinct", repeated),
)
