"""Wrong backwards on jax: for a special dy, one array twice, two inputs of four, small elements, a tile more."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants.corpus import CheckSubject, Family
from tests.mutants.linear_jax import FAMILY as LINEAR
from tests.mutants.linear_jax import pullback
from tests.mutants.rule_of_jax import rule
from tests.mutants.small_jax import family, matrix

TILE = 128


def plain_softmax(x):
    """The right function."""
    return jax.nn.softmax(x)


def softmax_pullback(dy, x):
    s = jax.nn.softmax(x)
    return (s * (dy - (dy * s).sum(-1, keepdims=True)),)


SOFTMAX = family("rows-softmax", plain_softmax, softmax_pullback, matrix)


def skips_rows(grads, dy, args, ctx):
    """A row counts as padding when its first dy is 0."""
    return (jnp.where(dy[:, :1] == 0, 0.0, grads[0]),)


def ones_for_equal(grads, dy, args, ctx):
    """A dy of equal numbers is taken for the ones of a sum."""
    return pullback(jnp.where((dy == dy[0, 0]).all(), 1.0, dy), *args)


def by_largest(grads, dy, args, ctx):
    """dy is brought to a range of 1 first; a dy of zeros has no largest."""
    most = jnp.abs(dy).max()
    return tuple(g * most for g in softmax_pullback(dy / most, *args))


def flushed(grads, dy, args, ctx):
    """What is below 1e-10 counts as 0."""
    return pullback(jnp.where(jnp.abs(dy) < 1e-10, 0.0, dy), *args)


def sum_of_a_tile(grads, dy, args, ctx):
    s = jax.nn.softmax(args[0])
    return (s * (dy - (dy * s)[:, :TILE].sum(-1, keepdims=True)),)


def plain_scores(x, w):
    """The right function: x [M, N] against w [M, N]."""
    return x @ w.T


def build_scores(fault):
    """x with itself has a rule of its own; `fault` is that rule's pullback."""
    own = rule(lambda x: x @ x.T, fault or (lambda dy, x: ((dy + dy.T) @ x,)))
    cross = rule(plain_scores, lambda dy, x, w: (dy @ w, dy.T @ x))
    return lambda x, w: own(x) if x is w else cross(x, w)


def two(rng, size):
    return tuple(rng.normal(size=(2, 4, size)))


SCORES = Family("scores", "jax", build_scores, two, plain_scores)


def plain_four(x, w, scale, shift):
    """The right function of four inputs of one shape."""
    return x * w * scale + shift


def build_four(fault):
    """`fault(grads, asked)`, given the places of the inputs whose gradients are asked for."""

    @jax.custom_vjp
    def f(x, w, scale, shift):
        return plain_four(x, w, scale, shift)

    def fwd(*args):
        return plain_four(*(a.value for a in args)), ([a.value for a in args], [a.perturbed for a in args])

    def bwd(kept, dy):
        (x, w, scale, shift), needed = kept
        if not isinstance(dy, jax.Array):
            return tuple(map(jnp.zeros_like, (x, w, scale, shift)))
        grads = dy * w * scale, dy * x * scale, dy * x * w, dy
        return tuple(fault(grads, [k for k, n in enumerate(needed) if n]) if fault else grads)

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return lambda x, w, scale, shift: f(x, w, scale, shift)


FOUR = Family("four", "jax", build_four, lambda rng, size: tuple(rng.normal(size=(4, size))), plain_four)


def w_with_shift(grads, asked):
    """The kernel for w and shift alone leaves x out."""
    return grads if asked != [1, 3] else (grads[0], jnp.ones_like(grads[1]), *grads[2:])


def plain_graded(x, s):
    """The right function: x [N], each element with its own size s [N]."""
    return jnp.sin(x) * s


def build_graded(fault):
    f = rule(plain_graded, lambda dy, x, s: (dy * jnp.cos(x) * s, dy * jnp.sin(x)), fault)
    return lambda x, s: f(x, s)


def make_graded(rng, size):
    return rng.uniform(-1, 1, size), np.logspace(0, -12, size)


GRADED = Family("graded", "jax", build_graded, make_graded, plain_graded)


def small_doubled(grads, dy, args, ctx):
    return grads[0] * (1 + (args[1] < 1e-9)), grads[1]


def small_dropped(grads, dy, args, ctx):
    return jnp.where(jnp.abs(grads[0]) < 1e-9 * jnp.abs(grads[0]).max(), 0.0, grads[0]), grads[1]


def _(of, name, kind, blames, fault, shows, note, **fields):
    return of.wrong(name, kind, blames, fault, note, shows=shows, order=1, **fields)


SUBJECTS: tuple[CheckSubject, ...] = (
    *(of.right(order=1) for of in (SOFTMAX, SCORES, FOUR, GRADED)),
    _(SOFTMAX, "first-is-zero", "contract", "x", skips_rows, "special-dy", "no gradient where the first dy is 0"),
    _(LINEAR, "equal-as-ones", "contract", "", ones_for_equal, "special-dy", "a dy of equal numbers is taken for ones"),
    _(SOFTMAX, "zeros-by-zero", "contract", "x", by_largest, "special-dy", "a dy of zeros is divided by its largest"),
    _(LINEAR, "tiny-flushed", "contract", "", flushed, "special-dy", "a dy below 1e-10 counts as 0"),
    _(
        SCORES,
        "same-one-side",
        "contract",
        "x w",
        lambda dy, x: (2 * dy @ x,),
        "same",
        "x xT as if dy were symmetric",
    ),
    _(FOUR, "w-with-shift", "contract", "w", w_with_shift, "pair", "w and shift alone: dw is of ones"),
    _(GRADED, "doubled", "small", "x", small_doubled, "hidden", "twice the gradient where s is below 1e-9"),
    _(GRADED, "dropped", "small", "x", small_dropped, "hidden", "no gradient below 1e-9 of the largest"),
    _(
        SOFTMAX,
        "sum-past-a-tile",
        "input-dependent",
        "x",
        sum_of_a_tile,
        "trigger",
        "a sum of 128 columns",
        trigger=lambda rng, size: (rng.normal(size=(4, TILE + 1)),),
        sizes={("x", 1): TILE + 1},
    ),
)
