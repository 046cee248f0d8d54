"""Backwards on jax whose first order is right and whose own derivative is not."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.linear_jax import FAMILY
from tests.mutants.rule_of_jax import rule


def cotangent_stopped(grads, dy, args, ctx):
    return grads[0], jax.lax.stop_gradient(dy).T @ args[0], grads[2]


def input_stopped(grads, dy, args, ctx):
    return grads[0], dy.T @ jax.lax.stop_gradient(args[0]), grads[2]


def all_stopped(grads, dy, args, ctx):
    return tuple(map(jax.lax.stop_gradient, grads))


def by_callback(grads, dy, args, ctx):
    shape = jax.ShapeDtypeStruct(grads[1].shape, grads[1].dtype)
    dw = jax.pure_callback(lambda dy, x: np.asarray(dy).T @ np.asarray(x), shape, dy, args[0])
    return grads[0], dw, grads[2]


def build_cube(fault):
    """`fault` edits the derivatives of 3 x² dy with respect to dy and x."""
    slope = rule(lambda dy, x: 3 * x * x * dy, lambda ddx, dy, x: (3 * x * x * ddx, 6 * x * dy * ddx), fault)
    f = rule(lambda x: x**3, lambda dy, x: (slope(dy, x),))

    def cube(x):
        return f(x)

    return cube


CUBE = Family("cube", "jax", build_cube, lambda rng, size: (rng.normal(size=size),), lambda x: x**3)


def _(family, name, blames, fault, note, **fields):
    return family.wrong(name, "order-2", blames, fault, note, **{"shows": "second", **fields})


SUBJECTS: tuple[CheckSubject, ...] = (
    _(FAMILY, "cotangent-stopped", "w", cotangent_stopped, "dw takes dy for a constant"),
    _(FAMILY, "input-stopped", "w", input_stopped, "dw takes x for a constant"),
    _(FAMILY, "all-stopped", "x w b", all_stopped, "stop_gradient over the whole backward"),
    _(FAMILY, "by-callback", "", by_callback, "dw is computed by NumPy: a second derivative raises"),
    _(CUBE, "inner-half", "x", change(1, lambda g: 0.5 * g), "6 x is 3 x in the second derivative"),
    _(CUBE, "inner-sign", "x", change(1, jnp.negative), "the second derivative has the wrong sign"),
    _(CUBE, "inner-rolled", "x", change(1, lambda g: jnp.roll(g, 1)), "the second derivative is off by one"),
)
