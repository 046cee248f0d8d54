"""Every shape that the docstrings name, for every op: leading axes none, empty and many, forward, backward, vmap."""

import functools
import math

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gradlab.jax as lab
from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.profiling.native.native_jax import NATIVE

LEADING = [(), (2, 0), (2, 3)]
MANY = "(2, 3"


def cases():
    """(name, ours, native, the inputs' shapes)."""
    for shape in LEADING:
        for name in ("relu", "sigmoid", "tanh"):
            yield f"{name} {shape}", getattr(lab, name), getattr(jax.nn, name), (shape,)
        for name in ("mse_loss", "binary_cross_entropy_with_logits"):
            native = NATIVE[name].fn
            yield f"{name} {shape}", getattr(lab, name), native, (shape, shape)
        yield f"linear {shape}", lab.linear, jnp.dot, ((*shape, 5), (5, 4))
        yield f"linear bias {shape}", lab.linear, lambda x, w, b: x @ w + b, ((*shape, 5), (5, 4), (4,))
        t = np.arange(math.prod(shape)).reshape(shape) % 4
        mean = functools.partial(_mean, t=t)
        yield f"cross_entropy {shape}", lambda x, t=t: lab.cross_entropy(x, t), mean, ((*shape, 4),)
        soft = lambda x, q: -(q * jax.nn.log_softmax(x)).sum() / (x.size // 4) if x.size else x.sum() / 0
        yield f"cross_entropy soft {shape}", lab.cross_entropy, soft, ((*shape, 4),) * 2
        fused = lambda h, w, b, t=t: lab.linear_cross_entropy(h, w, t, b)
        whole = lambda h, w, b, mean=mean: mean(h @ w + b)
        yield f"linear_cross_entropy {shape}", fused, whole, ((*shape, 5), (5, 4), (4,))
        for name, options in (("adam", {"step": 3, "lr": 0.1}), ("sgd", {"momentum": 0.9})):
            one = lambda fn, o=options, adam=name == "adam": (
                lambda *args: fn(*args, *([jnp.ones_like(args[0])] if adam else []), **o)[0]
            )
            yield f"{name} {shape}", one(SIDE.op(name)), one(NATIVE[name].fn), (shape,) * 3
    first = lambda x: lab.cross_entropy(x, np.arange(6).reshape(2, 3) % 4, axis=1)
    moved = lambda x: _mean(jnp.moveaxis(x, 1, -1), np.arange(6).reshape(2, 3) % 4)
    yield "cross_entropy axis 1", first, moved, ((2, 4, 3),)
    for shape in ((4, 5, 2), (0, 4, 5, 2), (2, 3, 5, 2)):
        yield f"conv2d {shape}", lab.conv2d, _conv2d, (shape, (3, 2, 2, 4), (4,))
        yield f"max_pool2d {shape}", lambda x: lab.max_pool2d(x, 2), _max_pool2d, (shape,)


def _mean(x, t):
    return -jnp.take_along_axis(jax.nn.log_softmax(x), t[..., None], -1).sum() / np.float64(t.size)


def _conv2d(x, w, b):
    x_ = x.reshape(-1, *x.shape[-3:]) if x.size else x
    y = jax.lax.conv_general_dilated(x_, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
    return y.reshape(*x.shape[:-1], 4)


def _max_pool2d(x):
    *B, H, W, C = x.shape
    x = x[..., : H // 2 * 2, : W // 2 * 2, :]
    return x.reshape(*B, H // 2, 2, W // 2, 2, C).max((-4, -2))


CASES = {case[0]: case[1:] for case in cases()}


@pytest.mark.parametrize("name", CASES)
def test_documented_shape(name):
    ours, native, shapes = CASES[name]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        # tests/test_transforms_jax.py maps the others; compiling takes a second.
        mapped = MANY not in name and not name.startswith(("conv2d", "max_pool2d", "adam", "sgd", "cross_entropy"))
        rng = np.random.default_rng(0)
        stacks = [jnp.asarray(rng.standard_normal((2, *s))) for s in shapes]

        def back(fn):
            def run(*args):
                y, pullback = jax.vjp(fn, *args)
                return y, *pullback(jnp.cos(y))

            return run

        def all_of(fn):
            run = jax.vmap(back(fn)) if mapped else lambda *s: ()
            return jax.jit(lambda *s: (back(fn)(*(a[0] for a in s)), run(*s)))(*stacks)

        got = all_of(ours)
        one = jax.jit(back(native))
        want = [one(*(a[i] for a in stacks)) for i in range(2)]
        want = want[0], tuple(jnp.stack(pair) for pair in zip(*want, strict=True)) if mapped else ()
        scale = max([1.0, *(float(jnp.abs(a).max()) for a in stacks if a.size)])
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.shape == w.shape
            np.testing.assert_allclose(g, w, rtol=0, atol=128 * 2.0**-53 * scale**2)
