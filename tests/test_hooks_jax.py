"""dot_general and conv_general_dilated as hooks: the arguments that Flax passes, Flax itself where it is, refusals."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax import lax

import gradlab.jax as lab
from gradlab.jax import conv_general_dilated, dot_general
from gradlab.kernels import conv2d_pallas, linear_pallas


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def draw(*shapes, dtype="float64"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def assert_same(hand, native, args, tolerance=1e-13, second=True):
    """Values, gradients and, where asked, second derivatives along a vector."""

    def results(fn):
        once = jax.grad(lambda *a: jnp.sin(fn(*a)).sum(), (0, 1))
        twice = jax.grad(lambda *a: sum((g * jnp.cos(t)).sum() for g, t in zip(once(*a), a, strict=True)), (0, 1))
        return jax.jit(lambda *a: (fn(*a), once(*a), twice(*a) if second else ()))(*args)

    for got, want in zip(*(jax.tree.leaves(results(fn)) for fn in (hand, native)), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


PRODUCTS = {
    "nnx.Linear": ((5, 4), (4, 3), (((1,), (0,)), ((), ()))),
    "more axes": ((2, 1, 5, 4), (4, 3), (((3,), (0,)), ((), ()))),
    "a vector": ((4,), (4, 3), (((0,), (0,)), ((), ()))),
    "nnx.LinearGeneral, out": ((5, 4), (4, 3, 2), (((1,), (0,)), ((), ()))),
    "nnx.LinearGeneral, in": ((5, 4, 3), (4, 3, 2), (((1, 2), (0, 1)), ((), ()))),
    "lists, a dot": ((5, 4), (4,), [[[1], [0]], [[], []]]),
}


@pytest.mark.parametrize(("lhs", "rhs", "numbers"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(lhs, rhs, numbers):
    options = {"precision": None, "out_sharding": None}
    args = draw(lhs, rhs)
    assert_same(
        lambda *a: dot_general(*a, numbers, **options), lambda *a: lax.dot_general(*a, numbers, **options), args
    )


def as_flax(**options):
    """The arguments in which nnx.Conv calls."""
    numbers = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    given = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": numbers, "precision": None}
    given |= {"feature_group_count": 1, "out_sharding": None}
    return given | options


CONVOLUTIONS = {
    "SAME": ((1, 1), "SAME", as_flax()),
    "VALID": ((1, 1), "VALID", as_flax()),
    "strides": ((2, 3), "SAME", as_flax()),
    "pairs": ((1, 2), [(1, 0), (2, 1)], as_flax()),
    "dilation": ((1, 1), "SAME", as_flax(rhs_dilation=(2, 1))),
    "by name": ((1, 1), "SAME", {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "batch_group_count": 1}),
}


@pytest.mark.parametrize(("strides", "padding", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(strides, padding, options):
    args = draw((2, 5, 4, 2), (3, 2, 2, 3))
    assert_same(
        lambda *a: conv_general_dilated(*a, strides, padding, **options),
        lambda *a: lax.conv_general_dilated(*a, strides, padding, **options),
        args,
        # How arguments are handed on is seen in the first: conv2d's own tests take every option further.
        second=strides == (2, 3),
    )


@pytest.mark.parametrize("groups", [2, 4])
def test_groups(groups):
    args = draw((2, 4, 3, 4), (2, 2, 4 // groups, 4))
    options = as_flax(feature_group_count=groups)
    assert_same(
        lambda x, w: conv_general_dilated(lhs=x, rhs=w, window_strides=(1, 1), padding="SAME", **options),
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", **options),
        args,
        second=groups == 2,
    )


@pytest.mark.parametrize(
    "precision", [None, "highest", "float32", lax.Precision.HIGH, (lax.Precision.DEFAULT, "high")], ids=str
)
def test_precision_is_the_highest_always(precision):
    x, w = draw((5, 4), (4, 3), dtype="float32")
    numbers = (((1,), (0,)), ((), ()))
    got = dot_general(x, w, numbers, precision, "float32")
    np.testing.assert_array_equal(got, lab.linear(x, w))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_keeps_the_dtype(dtype):
    x, w = draw((5, 4), (4, 3), dtype=dtype)
    assert dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.dtype(dtype)).dtype == dtype
    image, window = draw((1, 4, 4, 2), (2, 2, 2, 3), dtype=dtype)
    assert conv_general_dilated(image, window, (1, 1), "SAME", **as_flax()).dtype == dtype


X, W, NUMBERS = jnp.ones((5, 4)), jnp.ones((4, 3)), (((1,), (0,)), ((), ()))
IMAGE, WINDOW = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 3))


def dot(x=X, w=W, numbers=NUMBERS, **options):
    return dot_general(x, w, numbers, **options)


def conv(x=IMAGE, w=WINDOW, strides=(1, 1), padding="SAME", **options):
    return conv_general_dilated(x, w, strides, padding, **as_flax(**options))


BAD = {
    "batch axes": (lambda: dot(X[None], W[None], (((2,), (1,)), ((0,), (0,)))), "dot_general: dimension_numbers is one with batch axes ((0,), (0,)), wanted none: ((), ())"),
    "first axis of lhs": (lambda: dot(X.T, W, (((0,), (0,)), ((), ()))), "dot_general: dimension_numbers is a sum over axes [0] of lhs and [0] of rhs, wanted one over the last"),
    "last axis of rhs": (lambda: dot(X, W.T, (((1,), (1,)), ((), ()))), "dot_general: dimension_numbers is a sum over axes [1] of lhs and [1] of rhs, wanted one over the last"),
    "crossed": (lambda: dot(jnp.ones((2, 3, 3)), jnp.ones((3, 3, 2)), (((2, 1), (0, 1)), ((), ()))), "dot_general: dimension_numbers is a sum over axes [2, 1] of lhs and [0, 1] of rhs"),
    "outer product": (lambda: dot(X, W, (((), ()), ((), ()))), "dot_general: dimension_numbers is a sum over axes [] of lhs and [] of rhs, wanted"),
    "sizes": (lambda: dot(X, W[:3]), "dot_general: rhs of shape [3, 3] is [3] where summed, wanted [4] like lhs"),
    "algorithm": (lambda: dot(precision=lax.DotAlgorithmPreset.TF32_TF32_F32), "dot_general: precision is "),
    "unknown precision": (lambda: dot(precision="best"), "dot_general: precision is 'best', wanted None or a jax.lax.Precision"),
    "another dtype": (lambda: dot(preferred_element_type="float16"), "dot_general: preferred_element_type is float16, wanted float"),
    "sharding": (lambda: dot(out_sharding="x"), "dot_general: out_sharding is x, wanted None"),
    "1-D": (lambda: conv(IMAGE[0], WINDOW[0]), "conv_general_dilated: lhs of shape [4, 4, 2] is 3-dimensional, wanted 4 axes"),
    "3-D window": (lambda: conv(IMAGE, WINDOW[None]), "conv_general_dilated: rhs of shape [1, 2, 2, 2, 3] is 5-dimensional, wanted 4 axes"),
    "channels first": (lambda: conv(dimension_numbers=("NCHW", "OIHW", "NCHW")), "conv_general_dilated: dimension_numbers is ('NCHW', 'OIHW', 'NCHW'), wanted ('NHWC',"),
    "jax's default": (lambda: conv(dimension_numbers=None), "conv_general_dilated: dimension_numbers is None, wanted ('NHWC',"),
    "transposed": (lambda: conv(lhs_dilation=(2, 1)), "conv_general_dilated: lhs_dilation is (2, 1), wanted 1"),
    "batch groups": (lambda: conv(batch_group_count=2), "conv_general_dilated: batch_group_count is 2, wanted 1"),
    "padding": (lambda: conv(padding="SAME_LOWER"), "conv2d: padding is 'SAME_LOWER', wanted one of 'SAME', 'VALID'"),
    "cropped": (lambda: conv(padding=((-1, 0), (0, 0))), "conv2d: padding is ((-1, 0), (0, 0)), wanted at least 0"),
    "precision of a convolution": (lambda: conv(precision="best"), "conv_general_dilated: precision is 'best', wanted None"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_refusals(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dot(X, W.astype("float16")), "dot_general: dtype of rhs is float16, wanted float"),
        (lambda: dot(X.astype(int), W.astype(int)), "dot_general: dtype of lhs is int"),
        (lambda: conv("image"), "conv_general_dilated: lhs is a str, wanted a jax.Array"),
    ],
)
def test_refusals_of_types(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(message)


# Flax itself.


@pytest.fixture
def watched(monkeypatch):
    """Names of the lab's kernels, as they are traced."""
    seen = []
    for module, name in ((linear_pallas, "matmul"), (conv2d_pallas, "forward")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: seen.append(name) or real(*a))
    jax.clear_caches()
    yield seen
    jax.clear_caches()


def flax_network(nnx, **hooks):
    dot = {"dot_general": hooks["dot_general"]} if hooks else {}
    conv = {"conv_general_dilated": hooks["conv_general_dilated"]} if hooks else {}
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Conv(2, 4, (3, 2), strides=2, feature_group_count=2, param_dtype="float64", rngs=rngs, **conv),
        nnx.relu,
        lambda x: x.reshape(*x.shape[:-3], -1),
        nnx.Linear(3 * 3 * 4, 6, param_dtype="float64", rngs=rngs, **dot),
        nnx.LinearGeneral(6, (2, 3), param_dtype="float64", rngs=rngs, **dot),
        nnx.LinearGeneral((2, 3), 5, axis=(-2, -1), param_dtype="float64", rngs=rngs, **dot),
    )


@pytest.mark.parametrize("batch", [(3,), (), (2, 2)])
def test_in_nnx(batch, watched):
    nnx = pytest.importorskip("flax.nnx")
    networks = [
        flax_network(nnx),
        flax_network(nnx, dot_general=dot_general, conv_general_dilated=conv_general_dilated),
    ]
    (x,) = draw((*batch, 5, 6, 2))

    def forward_and_backward(network):
        loss = lambda network: (jnp.sin(network(x)) ** 2).sum()
        return network(x), nnx.to_pure_dict(nnx.grad(loss)(network))

    want = forward_and_backward(networks[0])
    assert not watched
    got = nnx.jit(forward_and_backward)(networks[1])
    assert {"matmul", "forward"} <= set(watched)
    assert len(jax.tree.leaves(got)) == len(jax.tree.leaves(want)) == 9
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-12 * np.abs(w).max())


def test_in_linen(watched):
    nn = pytest.importorskip("flax.linen")

    def network(**hooks):
        of_conv = {"conv_general_dilated": hooks["conv"]} if hooks else {}
        of_dense = {"dot_general": hooks["dot"]} if hooks else {}
        conv = nn.Conv(4, (3, 3), padding=1, param_dtype="float64", **of_conv)
        return nn.Sequential([conv, nn.relu, nn.Dense(3, param_dtype="float64", **of_dense)])

    (x,) = draw((2, 4, 5, 2))
    params = network().init(jax.random.key(0), x)
    want = jax.value_and_grad(lambda p: jnp.sin(network().apply(p, x)).sum())(params)
    assert not watched
    by_hand = network(conv=conv_general_dilated, dot=dot_general)
    got = jax.value_and_grad(lambda p: jnp.sin(by_hand.apply(p, x)).sum())(params)
    assert {"matmul", "forward"} <= set(watched)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-12 * np.abs(w).max())


def test_what_flax_asks_beyond_is_refused():
    nnx = pytest.importorskip("flax.nnx")
    one = nnx.Conv(2, 3, (3,), conv_general_dilated=conv_general_dilated, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"conv_general_dilated: lhs of shape .* is 3-dimensional"):
        one(jnp.ones((1, 5, 2), "float32"))
