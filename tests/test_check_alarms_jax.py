"""No false alarm on jax: right functions with what jax refuses, at indices and domains that nobody gave."""

import numpy as np
import pytest

import gradlab

jax = pytest.importorskip("jax")
jnp = jax.numpy


@jax.custom_vjp
def taken(x, places):
    return x[places]


taken.defvjp(
    lambda x, places: (x[places], (places, x)),
    lambda kept, dy: (jnp.zeros_like(kept[1]).at[kept[0]].add(dy), np.zeros(kept[0].shape, jax.dtypes.float0)),
)


def root(x):
    """Newton's iteration, differentiated through its solution: at 0 the slope is infinite."""
    return jax.lax.custom_root(
        lambda y: y * y - x,
        jnp.ones_like(x),
        lambda f, y: jax.lax.fori_loop(0, 40, lambda _, y: 0.5 * (y + x / y), y),
        lambda g, b: b / g(jnp.ones_like(b)),
    )


def looped(x):
    return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]


def concrete(x):
    return x * 2 if float(jnp.sum(x)) > 0 else x * 3


def stopped(x):
    return jnp.sin(x), jax.lax.stop_gradient(x)


def no_empty_backward(x):
    """NotImplementedError for no rows, as jax.numpy.linalg.svd has it for factors that are not square."""

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def _(primals, tangents):
        if not primals[0].size:
            raise NotImplementedError("no derivative of nothing")
        return sine(primals[0]), tangents[0] * jnp.cos(primals[0])

    return sine(x)


@pytest.mark.parametrize(
    ("fn", "args", "parts", "verdict"),
    [
        (taken, (np.arange(12.0).reshape(4, 3), np.array([0, 2, 2])), ("edges",), "ok"),
        (root, (np.array([0.0, 1.25, 2.2]),), ("derivative",), "inconclusive"),
        (looped, (np.array([0.3, -1.2]),), ("derivative",), "inconclusive"),
        (concrete, (np.array([0.3, 1.2]),), ("derivative",), "inconclusive"),
        (stopped, (np.array([0.3, 1.2]),), ("derivative", "contract", "edges"), "ok"),
        (no_empty_backward, (np.array([0.3, 1.2]),), ("contract",), "ok"),
    ],
    ids=[
        "indices out of bounds",
        "an infinite slope",
        "while_loop",
        "reads its values",
        "a stopped result",
        "no empty backward",
    ],
)
def test_a_right_function_is_not_called_wrong(fn, args, parts, verdict):
    with jax.enable_x64(True):
        report = gradlab.check(fn, *map(jnp.asarray, args), order=1, raises=False, parts=parts)
    assert report.verdict == verdict, report


def test_a_custom_vjp_that_raises_under_a_transform_is_wrong():
    @jax.custom_batching.custom_vmap
    def doubled(x):
        return 2 * x

    @doubled.def_vmap
    def _(size, batched, x):
        raise ValueError("no batches here")

    @jax.custom_vjp
    def ruled(x):
        return doubled(x)

    ruled.defvjp(lambda x: (doubled(x), None), lambda _, dy: (2 * dy,))
    with jax.enable_x64(True):
        report = gradlab.check(ruled, jnp.arange(3.0), order=1, raises=False, parts=("contract",))
    assert [f.check for f in report.wrong()] == ["vmap"], report
