"""sigmoid and tanh on jax: digits at both ends and near 0, blocks of a GPU, every order, transformations, bad input."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

from gradlab import jax as lab
from gradlab.kernels.common import elementwise_pallas
from tests.fast_jit_jax import jit

OPS = {"sigmoid": (lab.sigmoid, jax.nn.sigmoid), "tanh": (lab.tanh, jnp.tanh)}


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def drawn(*shape, dtype="float64"):
    return jnp.asarray(2 * np.random.default_rng([0, *shape]).standard_normal(shape), dtype)


def truth(op, x):
    """The value in NumPy's float64."""
    x = np.asarray(x, np.float64)
    return np.tanh(x) if op[0] is lab.tanh else np.where(x >= 0, 1.0, np.exp(-abs(x))) / (1 + np.exp(-abs(x)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_digit_from_the_smallest_to_the_largest(op, dtype):
    size = np.logspace(-300 if dtype == "float64" else -37, 2.8, 4001)
    x = jnp.asarray(np.concatenate([-size[::-1], [0.0], size]), dtype)
    want = truth(op, x)
    normal = abs(want) >= float(jnp.finfo(dtype).tiny)
    error = abs((np.asarray(op[0](x), np.float64) - want) / np.where(want == 0, 1, want))[normal]
    # A few roundings: exp, a sum, a quotient.
    assert error.max() <= 16 * float(jnp.finfo(dtype).eps)


def test_infinities_nan_and_signed_zero(op):
    x = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 0.0, -0.0, 1e308, -1e308])
    got, want = op[0](x), op[1](x)
    np.testing.assert_array_equal(got, want)
    # A NaN's sign says nothing.
    np.testing.assert_array_equal(jnp.signbit(got)[~jnp.isnan(want)], jnp.signbit(want)[~jnp.isnan(want)])


@pytest.mark.parametrize("shape", [(), (1,), (37,), (0,), (3, 0, 2), (17, 129)])
def test_value_and_gradients(op, shape):
    x = drawn(*shape)
    dy = jnp.cos(x) + 2
    for cotangent in (dy, jnp.broadcast_to(jnp.float64(1.5), shape)):
        found = [jax.jit(lambda x, dy, f=f: (f(x), *jax.vjp(f, x)[1](dy)))(x, cotangent) for f in op]
        for got, want in zip(*found, strict=True):
            assert got.dtype == want.dtype
            # Near a flat end a slope has the digits that y leaves it.
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=2e-14)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_blocks_of(platform, op, blocks_of):
    grids = blocks_of(platform, elementwise_pallas)
    x = drawn(3, 70, 300)
    got, pullback = jax.vjp(op[0], x)
    np.testing.assert_allclose(got, truth(op, x), rtol=4e-15)
    np.testing.assert_allclose(pullback(jnp.sin(x))[0], jax.vjp(op[1], x)[1](jnp.sin(x))[0], rtol=1e-12, atol=1e-15)
    assert min(grid[0] for grid in grids) > 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_errs_at_most_twice_as_much_as_jax(op, dtype):
    x, dy = drawn(4096, dtype=dtype), jnp.cos(drawn(4096)).astype(dtype)
    exact = (truth(op, x), *jax.vjp(op[1], x.astype("float64"))[1](dy.astype("float64")))
    found = [jax.jit(lambda x, dy, f=f: (f(x), *jax.vjp(f, x)[1](dy)))(x, dy) for f in op]
    for got, want, true in zip(*found, exact, strict=True):
        assert got.dtype == dtype
        assert abs(got.astype("float64") - true).max() <= 2 * abs(want.astype("float64") - true).max()


def test_second_order(op):
    check_grads(op[0], (drawn(3, 4),), order=2, modes=["rev"])


def test_every_order(op):
    x = drawn(5)

    def fifth(f):
        g = lambda x: f(x).sum()
        for _ in range(5):
            g = lambda x, g=g: jax.grad(g)(x).sum()
        return jit(jax.vmap(g))(x[:, None])

    np.testing.assert_allclose(fifth(op[0]), fifth(op[1]), rtol=1e-10, atol=1e-11)


def test_transformations(op):
    x = drawn(3, 4, 5)
    for axis in range(3):
        np.testing.assert_allclose(*(jit(jax.vmap(f, in_axes=axis, out_axes=1))(x) for f in op), rtol=1e-14)
    scalars = [lambda x, f=f: (f(x) ** 2).sum() for f in op]
    np.testing.assert_allclose(*(jit(jax.vmap(jax.grad(f)))(x) for f in scalars), rtol=1e-12)
    np.testing.assert_allclose(*(jit(jax.jacrev(jax.jacrev(f)))(x[0, 0]) for f in scalars), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        *(jit(lambda x, f=f: jax.lax.scan(lambda c, r: (c, f(r)), 0, x)[1])(x) for f in op), rtol=1e-14
    )
    np.testing.assert_allclose(*(jit(jax.grad(jax.checkpoint(f)))(x) for f in scalars), rtol=1e-12)


def test_bad_input_is_one_line(op):
    name = op[0].__name__
    with pytest.raises(TypeError, match=f"^{name}: dtype of x is int32, wanted one of float64"):
        op[0](np.arange(3, dtype="int32"))
    with pytest.raises(TypeError, match=rf"^{name}: x is a list, wanted a jax\.Array"):
        op[0]([1.0])
