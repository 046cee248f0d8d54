"""Rules on jax that are right in one plain call of float64, and wrong as a user runs them."""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call

from tests.mutants.corpus import CheckSubject, Family
from tests.mutants.rule_of_jax import rule


def plain_wave(x, w):
    """The right function of x [M, N] and w [M, N]."""
    return jnp.sin(x) * w


def wave_pullback(dy, x, w):
    return dy * w * jnp.cos(x), dy * jnp.sin(x)


def build_wave(fault):
    f = rule(plain_wave, wave_pullback, fault)

    def wave(x, w):
        return f(x, w)

    return wave


def pair(rng, n):
    return tuple(rng.normal(size=(2, 4, n)))


WAVE = Family("wave-training", "jax", build_wave, pair, plain_wave)


@jax.custom_batching.custom_vmap
def gradients(dy, x, w):
    return wave_pullback(dy, x, w)


@gradients.def_vmap
def _sum_for_shared(axis_size, batched, dy, x, w):
    """dw of a w that all samples share is their sum, as one fused product gives it."""
    axes = [0 if b else None for b in batched]
    dx, dw = jax.vmap(wave_pullback, axes, axis_size=axis_size)(dy, x, w)
    return (dx, dw if batched[2] else jnp.broadcast_to(dw.sum(0), dw.shape)), (True, True)


def summed_for_shared(grads, dy, args, ctx):
    return gradients(dy, *args)


def fourth_powers(grads, dy, args, ctx):
    """A weight of each column from whole numbers, which pass 2^31 where these have 32 bits."""
    n = args[1].shape[-1]
    places = jnp.arange(1, n + 1) * 1000
    return grads[0] * (places**4 / jnp.arange(1.0, n + 1) ** 4 * 1e-12), grads[1]


def epsilon(grads, dy, args, ctx):
    """Guards a quotient by the widest float's epsilon times a thousand, which is 1e-13, or 1e-4."""
    least = 1000 * jnp.finfo(jnp.asarray(1.0).dtype).eps
    return grads[0], grads[1] * jnp.abs(dy) / (jnp.abs(dy) + least)


def halved_where_cast(grads, dy, args, ctx):
    return grads[0], grads[1] * (1 if args[0].dtype == args[1].dtype else 0.5)


def mixed(arrays):
    """x in bfloat16, w in float32."""
    return [arrays[0].astype("bfloat16"), arrays[1].astype("float32")]


def plain_rise(x):
    """The right function of x [N]."""
    return x * x * jnp.sin(x)


def rise(t, x):
    return t * (2 * x * jnp.sin(x) + x * x * jnp.cos(x))


def build_rise(forward):
    """The function with a derivative of its own in both modes: `forward(t, x)`, and the right transpose of it."""

    @jax.custom_jvp
    def f(x):
        return plain_rise(x)

    @f.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return plain_rise(x), linear_call(lambda x, t: forward(t, x), lambda x, dy: rise(dy, x), x, t)

    def risen(x):
        return f(x)

    return risen


RISE = Family("rise", "jax", lambda fault: build_rise(fault or rise), lambda r, n: (r.normal(size=n),), plain_rise)


def pushed(name, forward, note):
    return RISE.wrong(name, "contract", "x", forward, note, shows="forward-mode", order=1)


SUBJECTS: tuple[CheckSubject, ...] = (
    WAVE.right(name="wave-training-float32-jax", dtype="float32", order=1),
    WAVE.right(name="wave-training-mixed-jax", given=mixed, order=1),
    RISE.right(order=1),
    WAVE.wrong(
        "sum-of-samples", "contract", "w", summed_for_shared, "dw of a shared w is the sum over the samples",
        shows="per-sample", order=1,
    ),
    WAVE.wrong(
        "overflow", "contract", "x", fourth_powers, "whole numbers overflow without x64", shows="x64-off",
        dtype="float32", order=1,
    ),
    WAVE.wrong(
        "epsilon", "contract", "w", epsilon, "a guard is 1e-4 without x64", shows="x64-off", dtype="float32", order=1
    ),
    WAVE.wrong(
        "mixed-half", "contract", "w", halved_where_cast, "dw is half where x and w are of two dtypes", shows="given",
        given=mixed, order=1,
    ),
    pushed("jvp-factor", lambda t, x: 1.001 * rise(t, x), "forward mode is 0.1 % too large"),
    pushed("jvp-term", lambda t, x: t * 2 * x * jnp.sin(x), "forward mode forgets a term"),
)  # fmt: skip
