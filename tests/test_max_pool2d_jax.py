"""max_pool2d on jax against a maximum over slices: options, a GPU's blocks, derivatives, transforms, bad input."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from gradlab.jax import max_pool2d
from gradlab.kernels.common import elementwise_pallas
from tests.fast_jit_jax import jit
from tests.pairwise_options import pairwise


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def drawn(*shape, dtype="float64"):
    """Values all different, so that a tap that is off by one shows."""
    size = int(np.prod(shape))
    return jnp.asarray((np.random.default_rng(size).permutation(size) - size / 2).reshape(shape) / 8, dtype)


def native(x, window, *, strides=None, padding="VALID", dilation=1):
    """The maximum over the taps, slices of the padded image: jax's reduce_window has no derivative with dilation."""
    pair = lambda v: (v, v) if isinstance(v, int) else tuple(v)
    window, strides, spread = pair(window), pair(window if strides is None else strides), pair(dilation)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(window, spread, strict=True))
    around = (
        jax.lax.padtype_to_pads(x.shape[-3:-1], reach, strides, padding)
        if isinstance(padding, str)
        else [pair(p) for p in pair(padding)]
    )
    lead = [(0, 0)] * (x.ndim - 3)
    wide = jnp.pad(x, (*lead, *around, (0, 0)), constant_values=-jnp.inf)
    P, Q = ((n - k) // s + 1 for n, k, s in zip(wide.shape[-3:-1], reach, strides, strict=True))
    return jnp.stack(
        [
            wide[..., r * spread[0] :, s * spread[1] :, :][
                ..., : (P - 1) * strides[0] + 1 : strides[0], : (Q - 1) * strides[1] + 1 : strides[1], :
            ]
            for r in range(window[0])
            for s in range(window[1])
        ]
    ).max(0)


def forward_and_backward(fn, x, window, **options):
    y, pullback = jax.vjp(lambda x: fn(x, window, **options), x)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), x.dtype)
    return y, pullback(dy)[0], pullback(jnp.broadcast_to(jnp.asarray(1.5, x.dtype), y.shape))[0]


def assert_same(x, window, **options):
    got, want = (jax.jit(lambda x, f=f: forward_and_backward(f, x, window, **options))(x) for f in (max_pool2d, native))
    np.testing.assert_array_equal(got[0], want[0])
    for one, other in zip(got[1:], want[1:], strict=True):
        assert one.dtype == other.dtype
        # A pixel's sum has at most as many terms as a window has taps; the order differs.
        limit = 32 * float(jnp.finfo(x.dtype).eps) * float(abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)


# Each compiles anew. A border as wide as the window is refused.
OPTIONS = pairwise(
    [1, 2, (3, 2)],
    [None, 1, (2, 3)],
    ["VALID", "SAME", 1, ((1, 0), (0, 1))],
    [1, 2],
    allowed=lambda window, strides, padding, dilation: window != 1 or isinstance(padding, str),
)


@pytest.mark.parametrize(("window", "strides", "padding", "dilation"), OPTIONS)
def test_every_option(window, strides, padding, dilation):
    assert_same(drawn(2, 7, 6, 3), window, strides=strides, padding=padding, dilation=dilation)


@settings(max_examples=8, phases=[Phase.generate])  # shrinking would compile each smaller shape
@given(st.data())
def test_any_shape_and_window(data):
    window = data.draw(st.tuples(*[st.integers(1, 3)] * 2))
    strides = data.draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding = tuple((data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, k - 1))) for k in window)
    image = tuple(data.draw(st.integers(k, k + 5)) for k in window)
    assert_same(drawn(2, *image, 2), window, strides=strides, padding=padding)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_blocks_of(platform, blocks_of):
    grids = blocks_of(platform, elementwise_pallas)
    assert_same(drawn(4, 30, 22, 16), (3, 2), strides=2, padding=1)
    assert max(grid[0] for grid in grids) > 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_precisions(dtype):
    assert_same(drawn(1, 6, 6, 2, dtype=dtype), 2)
    x = drawn(1, 9, 9, 1, dtype=dtype)
    (_, dx, _), (_, truth, _) = (
        forward_and_backward(f, a, 3, strides=1) for f, a in ((max_pool2d, x), (native, x.astype("float64")))
    )
    assert dx.dtype == dtype
    assert abs(dx.astype("float64") - truth).max() <= jnp.finfo(dtype).eps * abs(truth).max()


def test_shapes():
    assert_same(drawn(8, 6, 3), 2)
    assert_same(drawn(1, 5, 5, 1), 3, strides=2, padding=1)
    assert max_pool2d(drawn(0, 4, 4, 2), 2).shape == (0, 2, 2, 2)
    assert jax.grad(lambda x: max_pool2d(x, 2).sum())(drawn(0, 4, 4, 2)).shape == (0, 4, 4, 2)


def test_ties_nan_and_infinities():
    nan, inf = jnp.nan, jnp.inf
    x = jnp.asarray([[1, 1, 1, nan], [1, 1, 0, 0], [-inf, -inf, inf, 5], [-inf, -inf, 5, 5]], "float64")[..., None]
    y, _, dx2 = forward_and_backward(max_pool2d, x, 2)
    np.testing.assert_array_equal(y[..., 0], [[1, nan], [-inf, inf]])
    # The first of equal maxima takes all.
    np.testing.assert_array_equal(dx2[..., 0], [[1.5, 0, 0, 1.5], [0, 0, 0, 0], [1.5, 0, 1.5, 0], [0, 0, 0, 0]])
    # At the border the first tap inside the image does, also at -inf.
    lonely = jnp.full((2, 2, 1), -inf)
    _, pullback = jax.vjp(lambda x: max_pool2d(x, 2, strides=2, padding=1), lonely)
    np.testing.assert_array_equal(pullback(jnp.ones((2, 2, 1)))[0][..., 0], np.ones((2, 2)))


def test_derivatives_of_second_order():
    for options in ({}, {"strides": 1, "padding": 1}, {"dilation": 2, "strides": 1}):
        check_grads(
            jax.jit(lambda x, o=options: max_pool2d(x, 2, **o) ** 2), (drawn(1, 5, 4, 2),), 2, ["rev"], eps=1e-3
        )


def test_transformations():
    x = drawn(3, 2, 4, 4, 2)
    for axis in range(3):
        got, want = (
            jit(jax.vmap(lambda x, f=f: f(x, 2, strides=1), in_axes=axis, out_axes=1))(x) for f in (max_pool2d, native)
        )
        np.testing.assert_array_equal(got, want)
    losses = [lambda x, f=f: (f(x, 2, strides=1) ** 2).sum() for f in (max_pool2d, native)]
    small = drawn(3, 3, 3, 1)
    np.testing.assert_allclose(*(jit(jax.vmap(jax.grad(f)))(small) for f in losses))
    np.testing.assert_allclose(*(jit(jax.jacrev(jax.jacrev(f)))(small[0]) for f in losses))
    np.testing.assert_array_equal(*(jit(jax.jacrev(lambda x, f=f: f(x, 2)))(small[0]) for f in (max_pool2d, native)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: max_pool2d(x, 0), "window is 0, wanted at least 1"),
        (lambda x: max_pool2d(x, (2, 2, 2)), r"window is \(2, 2, 2\), wanted a whole number or a pair"),
        (lambda x: max_pool2d(x, 2, strides=0), "strides is 0, wanted at least 1"),
        (lambda x: max_pool2d(x, 2, padding="same"), "padding is 'same', wanted one of 'SAME', 'VALID'"),
        (lambda x: max_pool2d(x, 2, padding=-1), "padding is -1, wanted at least 0"),
        (lambda x: max_pool2d(x, 2, padding=2), "padding is 2, wanted less than the 2 rows of a window"),
        (lambda x: max_pool2d(x, 2, dilation=0), "dilation is 0, wanted at least 1"),
        (lambda x: max_pool2d(x, 9), "window is 9, wanted at most the 4 rows of the padded image"),
        (lambda x: max_pool2d(x[0, 0], 2), r"x of shape \[4, 1\] is 2-dimensional, wanted \[B H W C\]"),
        (lambda x: max_pool2d(x[..., :0], 2), r"x of shape \[1, 4, 4, 0\] is empty, wanted at least one"),
        (lambda x: max_pool2d(x.astype("int32"), 2), "dtype of x is int32, wanted one of"),
        (lambda x: max_pool2d([1.0], 2), "x is a list, wanted a jax.Array"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=f"^max_pool2d: {message}"):
        call(drawn(1, 4, 4, 1))
