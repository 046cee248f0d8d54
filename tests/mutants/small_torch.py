"""Wrong backwards of small functions on torch: activations, softmax, pooling, norms, products, losses."""

import math

import torch

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_torch import rounded, rule, weigh


def family(prefix, plain, pullback, make):
    """A family of one or two parameters; their names are those of `plain`."""

    def build(fault):
        f = rule(plain, pullback, fault)
        if plain.__code__.co_argcount == 2:

            def two(x, t):
                return f(x, t)

            return two

        def one(x):
            return f(x)

        return one

    return Family(prefix, "torch", build, make, plain)


def instead(pullback):
    """The fault that is another pullback, `pullback(dy, *args)`."""
    return lambda grads, dy, args, ctx: pullback(dy, *args)


def vector(rng, size):
    return (rng.uniform(-4, 4, size),)


def matrix(rng, size):
    return (rng.normal(size=(max(4, size // 4), size)),)


def square(rng, size):
    return (rng.normal(size=(size, size)),)


def pair(rng, size):
    return rng.normal(size=(4, size)), rng.normal(size=(4, size))


def eights(rng, size):
    """A whole number of eights."""
    return (rng.normal(size=-(-size // 8) * 8),)


def odd(rng, size):
    return (rng.normal(size=-(-size // 8) * 8 + 3),)


def one_is(value):
    def make(rng, size):
        (x,) = vector(rng, size)
        x[2] = value
        return (x,)

    return make


def one_zero(rng, size):
    x, *_ = matrix(rng, size)
    x[0, 1] = 0.0
    return (x,)


def tied(rng, size):
    (x,) = matrix(rng, size)
    x[0, :2] = 9.0
    return (x,)


def columns(rng, size):
    return rng.normal(size=(size, 1)), rng.normal(size=(size, 1))


def one_column(dy, x, t):
    return dy, dy.sum(0, keepdim=True).expand(t.shape) if t.shape[1] == 1 else dy


def relu_pullback(dy, x):
    return (dy * (x > 0),)


def clamp_plain(x):
    return x.clamp(-5, 5)


def softmax_pullback(dy, x):
    y = x.softmax(-1)
    return (y * (dy - (dy * y).sum(-1, keepdim=True)),)


def tanh_pullback(dy, x, squash=torch.tanh):
    return (dy * (1 - squash(x) ** 2),)


def gelu_slope(x):
    return 0.5 * (1 + torch.erf(x / 2**0.5)) + x * torch.exp(-x * x / 2) / (2 * math.pi) ** 0.5


def gelu_tanh_slope(x):
    c = (2 / math.pi) ** 0.5
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def norm_plain(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-3)


def norm_pullback(dy, x, eps=1e-3, through_std=1.0, fix=lambda rstd: rstd):
    centred = x - x.mean(-1, keepdim=True)
    rstd = fix(torch.rsqrt((centred**2).mean(-1, keepdim=True) + eps))
    y = centred * rstd
    dy = dy - dy.mean(-1, keepdim=True) - through_std * y * (dy * y).mean(-1, keepdim=True)
    return (rstd * dy,)


def mse_pullback(dy, x, t):
    d = 2 * dy * (x - t) / x.numel()
    return d, -d


def pool_plain(x):
    """The maximum of each pair."""
    return x.unflatten(-1, (-1, 2)).amax(-1)


def pool_pullback(dy, x):
    pairs = x.unflatten(-1, (-1, 2))
    mask = pairs == pairs.amax(-1, keepdim=True)
    return ((mask / mask.sum(-1, keepdim=True) * dy[..., None]).flatten(-2),)


def max_pullback(dy, x):
    mask = x == x.amax(-1, keepdim=True)
    return (mask / mask.sum(-1, keepdim=True) * dy[..., None],)


def ties_twice(dy, x):
    return ((x == x.amax(-1, keepdim=True)) * dy[..., None],)


def cumsum_pullback(dy, x):
    return (dy.flip(0).cumsum(0).flip(0),)


def whole_eights(dy, x):
    """Blocks of 8 from the front; what is left over misses its own sum."""
    (dx,) = cumsum_pullback(dy, x)
    whole = len(x) // 8 * 8
    return (torch.cat([dx[:whole], dy[whole:]]),)


def prod_pullback(dy, x):
    ones = torch.ones_like(x[:, :1])
    left = torch.cat([ones, x[:, :-1].cumprod(1)], 1)
    right = torch.cat([ones, x.flip(1)[:, :-1].cumprod(1)], 1).flip(1)
    return (dy[:, None] * left * right,)


def add_pullback(dy, x, t):
    return dy, dy if t.shape == dy.shape else dy.sum(1, keepdim=True)


RELU = family("relu", lambda x: torch.relu(x), relu_pullback, vector)
CLAMP = family("clamp", clamp_plain, lambda dy, x: (dy * (x.abs() <= 5),), vector)
SOFTMAX = family("softmax", lambda x: x.softmax(-1), softmax_pullback, square)
TANH = family("tanh", lambda x: torch.tanh(x), tanh_pullback, vector)
GELU = family("gelu", lambda x: torch.nn.functional.gelu(x), lambda dy, x: (dy * gelu_slope(x),), vector)
NORM = family("norm", norm_plain, norm_pullback, matrix)
MSE = family("mse", lambda x, t: ((x - t) ** 2).mean(), mse_pullback, pair)
POOL = family("max-pool", pool_plain, pool_pullback, lambda rng, n: matrix(rng, n + n % 2))
MAX = family("max", lambda x: x.amax(-1), max_pullback, matrix)
CUMSUM = family("cumsum", lambda x: x.cumsum(0), cumsum_pullback, eights)
PROD = family("prod", lambda x: x.prod(1), prod_pullback, lambda rng, n: (rng.uniform(0.8, 1.2, (4, n)),))
ABS = family("abs", lambda x: x.abs(), lambda dy, x: (dy * torch.sign(x),), vector)
ADD = family("add", lambda x, t: x + t, add_pullback, pair)


def at(family, name, blames, pullback, note, trigger, **fields):
    """A mutant that only `trigger`'s inputs show."""
    fields = {"trigger": trigger, "shows": "trigger", **fields}
    return family.wrong(name, "input-dependent", blames, instead(pullback), note, **fields)


SUBJECTS: tuple[CheckSubject, ...] = (
    MSE.wrong("no-mean", "gross", "x t", instead(lambda dy, x, t: (2 * dy * (x - t), 2 * dy * (t - x))), "no divisor"),
    MSE.wrong("dt-sign", "gross", "t", change(1, torch.neg), "both gradients have the same sign"),
    SOFTMAX.wrong("no-dot", "gross", "x", instead(lambda dy, x: (dy * x.softmax(-1),)), "the row's dot is left out"),
    SOFTMAX.wrong(
        "wrong-axis",
        "gross",
        "x",
        lambda grads, dy, args, ctx: (args[0].softmax(-1) * (dy - (dy * args[0].softmax(-1)).sum(0, keepdim=True)),),
        "the dot runs over columns",
    ),
    NORM.wrong("no-std", "gross", "x", instead(lambda dy, x: norm_pullback(dy, x, through_std=0.0)), "std is fixed"),
    POOL.wrong("last-window", "local", "x", change(0, lambda g: g * weigh(g, (..., slice(-2, None)))), "it is zero"),
    TANH.wrong("tail-four", "local", "x", change(0, lambda g: g * weigh(g, slice(-4, None))), "the last 4 are zero"),
    NORM.wrong("eps", "small", "x", instead(lambda dy, x: norm_pullback(dy, x, eps=0.0)), "eps is forgotten"),
    TANH.wrong(
        "half-output",
        "small",
        "x",
        instead(lambda dy, x: tanh_pullback(dy, x, lambda z: rounded(torch.tanh(z), torch.float16))),
        "the output is kept as float16",
    ),
    TANH.wrong(
        "constant", "small", "x", instead(lambda dy, x: (tanh_pullback(dy, x)[0] + 1e-6 * dy,)), "1e-6 is added"
    ),
    GELU.wrong("slope", "small", "x", instead(lambda dy, x: (dy * gelu_tanh_slope(x),)), "the slope is tanh-GELU's"),
    GELU.wrong(
        "forward",
        "small",
        "",
        None,
        "the value, and its right gradient, are tanh-GELU's",
        fn=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        reference=lambda x: torch.nn.functional.gelu(x),
        truth=None,
        shows="forward",
    ),
    NORM.wrong(
        "std-detached",
        "order-2",
        "x",
        instead(lambda dy, x: norm_pullback(dy, x, fix=lambda rstd: rstd.detach())),
        "1 / std is a constant to the second derivative",
        shows="second",
    ),
    at(RELU, "leak", "x", lambda dy, x: (dy * ((x > 0) + 0.01 * (x < -10)),), "leaks below -10", one_is(-20.0)),
    at(CLAMP, "one-side", "x", lambda dy, x: (dy * (x >= -5),), "open above 5; |x| < 4 as given", one_is(7.0)),
    at(MAX, "ties-twice", "x", ties_twice, "each of two equal maxima gets all; none are equal as given", tied),
    at(PROD, "by-division", "x", lambda dy, x: (dy[:, None] * x.prod(1, True) / x,), "0/0 at x = 0", one_zero),
    at(ABS, "by-division", "x", lambda dy, x: (dy * x / x.abs(),), "0/0 at x = 0; no given x is 0", one_is(0.0)),
    at(CUMSUM, "whole-eights", "x", whole_eights, "wrong past a multiple of 8; as given there is no tail", odd),
    at(ADD, "axis-of-one", "t", one_column, "takes a t of one column for one that is broadcast over rows", columns),
)
