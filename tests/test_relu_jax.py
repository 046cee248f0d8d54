"""relu in jax against jax.nn.relu: the same bits, forward and backward, of any order."""

import math

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

from gradlab.jax import relu
from gradlab.kernels import relu_pallas
from gradlab.kernels.common import elementwise_pallas
from tests.fast_jit_jax import jit


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def draw(shape, dtype="float64"):
    """x away from the kink at 0, and a cotangent that is not ones."""
    x, dy = np.random.default_rng([0, *shape]).standard_normal((2, *shape))
    return jnp.asarray(x + 0.1 * np.sign(x), dtype), jnp.asarray(dy, dtype)


def forward_and_backward(fn):
    """(x, dy) -> y and dx, in one program."""

    def both(x, dy):
        y, pullback = jax.vjp(fn, x)
        return y, *pullback(dy)

    return jax.jit(both)


def assert_same(got, want):
    """The same bits and dtypes: relu rounds nothing."""
    assert jax.tree.map(lambda t: t.dtype, got) == jax.tree.map(lambda t: t.dtype, want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("shape", [(), (1,), (37,), (0,), (3, 0, 2), (2, 3, 5), (17, 129)])
def test_value_and_gradient(shape):
    assert_same(forward_and_backward(relu)(*draw(shape)), forward_and_backward(jax.nn.relu)(*draw(shape)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_value_and_gradient_in(dtype):
    assert_same(
        forward_and_backward(relu)(*draw((5, 7), dtype)), forward_and_backward(jax.nn.relu)(*draw((5, 7), dtype))
    )


def test_kink_infinities_and_nan():
    tiny = jnp.finfo("float64").tiny
    x = jnp.asarray([-jnp.inf, -0.0, 0.0, tiny, jnp.inf, jnp.nan])
    y, dx = forward_and_backward(relu)(x, jnp.full(6, 3.0))
    np.testing.assert_array_equal(y, [0, 0, 0, tiny, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(dx[:5], [0, 0, 0, 3, 3])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_blocks_of(platform, blocks_of):
    grids = blocks_of(platform, elementwise_pallas)
    x, g = draw((3, 70, 300))
    got = jax.jit(lambda x, g: relu_pallas.relu_mask(x, g))(x, g)
    assert math.prod(grids[0]) > 1
    assert_same(got, jnp.where(g > 0, x, 0))


def test_pullback_again_and_inputs_unchanged():
    x, dy = draw((9, 4))
    before = np.array(x), np.array(dy)
    _, pullback = jax.vjp(relu, x)
    first, again, twice = pullback(dy), pullback(dy), pullback(2 * dy)
    assert_same(again, first)
    assert_same(twice, (2 * first[0],))
    assert_same(pullback(jnp.broadcast_to(jnp.float64(1.5), x.shape)), (jnp.where(x > 0, 1.5, 0),))
    assert_same((x, dy), (jnp.asarray(before[0]), jnp.asarray(before[1])))


def test_second_order():
    x, _ = draw((3, 4))
    check_grads(lambda x: relu(x) ** 3, (x,), order=2, modes=["rev"])


def test_third_order():
    x, _ = draw((4,))

    def third(fn):
        return jit(jax.jacrev(jax.jacrev(jax.grad(lambda x: (fn(x) ** 4).sum()))))(x)

    # x^4 by powers: three products, so a few roundings.
    np.testing.assert_allclose(third(relu), third(jax.nn.relu), rtol=8 * jnp.finfo("float64").eps)


def test_transformations():
    x, dy = draw((5, 6))
    want = forward_and_backward(jax.nn.relu)(x, dy)
    assert_same(jax.vmap(forward_and_backward(relu))(x, dy), want)
    assert_same(forward_and_backward(jax.checkpoint(relu))(x, dy), want)
    assert_same(forward_and_backward(lambda x: relu(x.T).T)(x, dy), want)
    assert_same(forward_and_backward(lambda x: jax.lax.scan(lambda c, r: (c, relu(r)), 0, x)[1])(x, dy), want)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(3, "int32"), "dtype of x is int32, wanted one of float64, float32, float16, bfloat16"),
        (np.ones(3, "complex64"), "dtype of x is complex64, wanted one of float64, float32, float16, bfloat16"),
        ([1.0], "x is a list, wanted a jax.Array"),
        (None, "x is a NoneType, wanted a jax.Array"),
    ],
)
def test_refusals(x, message):
    with pytest.raises(TypeError) as caught:
        relu(x)
    assert str(caught.value) == f"relu: {message}"
