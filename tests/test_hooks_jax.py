"""The hooks for layers whose product can be swapped: called as Flax NNX calls them, and by Flax where it is installed."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from gradlab.jax import conv_general_dilated, dot_general

HWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def drawn(*shapes, dtype="float64"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def assert_same(hand, native, *args):
    """Value and both gradients, in one program."""
    found = [jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1)))(*args) for f in (hand, native)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), *found)


@pytest.mark.parametrize(("x", "w"), [((5, 7), (7, 3)), ((2, 3, 7), (7, 3)), ((7,), (7, 3)), ((5, 7), (7, 2, 3))])
def test_dot_general(x, w):
    numbers = (((len(x) - 1,), (0,)), ((), ()))
    pair = [
        lambda a, b, f=f: f(a, b, numbers, precision=jax.lax.Precision.HIGHEST)
        for f in (dot_general, jax.lax.dot_general)
    ]
    assert_same(*pair, *drawn(x, w))


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 0), (2, 1)]])
@pytest.mark.parametrize(("dilation", "groups"), [(None, 1), ((2, 1), 1), ((1, 1), 2)])
def test_conv_general_dilated(padding, dilation, groups):
    def called(f):
        return lambda a, b: f(
            a,
            b,
            (2, 1),
            padding,
            lhs_dilation=(1, 1),
            rhs_dilation=dilation,
            dimension_numbers=HWC,
            feature_group_count=groups,
            precision=None,
        )

    assert_same(
        called(conv_general_dilated), called(jax.lax.conv_general_dilated), *drawn((2, 7, 6, 4), (3, 2, 4 // groups, 6))
    )


def test_preferred_element_type():
    x, w = drawn((5, 7), (7, 3), dtype="bfloat16")
    assert dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32).dtype == jnp.float32
    x, w = drawn((1, 4, 4, 2), (2, 2, 2, 3), dtype="bfloat16")
    assert (
        conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=HWC, preferred_element_type="float32").dtype
        == jnp.float32
    )


def test_flax_nnx():
    """The same network with and without the hooks: outputs, gradients, and which kernels ran."""
    nnx = pytest.importorskip("flax.nnx")

    def network(**hooks):
        rngs = nnx.Rngs(0)
        conv = {k: v for k, v in hooks.items() if k == "conv_general_dilated"}
        dot = {k: v for k, v in hooks.items() if k == "dot_general"}

        class Net(nnx.Module):
            def __init__(self):
                self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs, param_dtype=jnp.float64, **conv)
                self.linear = nnx.Linear(64, 10, rngs=rngs, param_dtype=jnp.float64, **dot)

            def __call__(self, x):
                return self.linear(jax.nn.relu(self.conv(x)).reshape(len(x), -1))

        return Net()

    (x,) = drawn((3, 4, 4, 1))
    loss = lambda net, x: jnp.sin(net(x)).sum()
    hand, native = network(dot_general=dot_general, conv_general_dilated=conv_general_dilated), network()
    np.testing.assert_allclose(hand(x), native(x), rtol=1e-11, atol=1e-12)
    grads = [nnx.to_pure_dict(nnx.grad(loss)(net, x)) for net in (hand, native)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), *grads)
    assert "product" in str(jax.make_jaxpr(lambda x: hand(x))(x))


X, W = jnp.ones((5, 7), "float32"), jnp.ones((7, 3), "float32")
IMAGE, WINDOW = jnp.ones((1, 4, 4, 2), "float32"), jnp.ones((2, 2, 2, 3), "float32")
PLAIN = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dot_general(X, W.T, (((1,), (1,)), ((), ()))), r"dot_general: dimension_numbers is \(\(\(1,\), \(1,\)\), .*wanted \(\(\(1,\), \(0,\)\)"),
        (lambda: dot_general(X, X, (((1,), (1,)), ((0,), (0,)))), "dot_general: dimension_numbers is"),
        (lambda: dot_general(X, W, PLAIN, out_sharding="x"), "dot_general: out_sharding is 'x', wanted None"),
        (lambda: conv_general_dilated(IMAGE, WINDOW, (1, 1), "SAME"), r"conv_general_dilated: dimension_numbers is None, wanted \('NHWC'"),
        (lambda: conv_general_dilated(IMAGE, WINDOW, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")), "conv_general_dilated: dimension_numbers is"),
        (lambda: conv_general_dilated(IMAGE, WINDOW, (1, 1), "SAME", (2, 2), dimension_numbers=HWC), r"conv_general_dilated: lhs_dilation is \(2, 2\), wanted \(1, 1\)"),
        (lambda: conv_general_dilated(IMAGE, WINDOW, (1, 1), "SAME", dimension_numbers=HWC, batch_group_count=2), "conv_general_dilated: batch_group_count is 2, wanted 1"),
        (lambda: conv_general_dilated(IMAGE[0], WINDOW, (1, 1), "SAME", dimension_numbers=HWC), r"conv_general_dilated: lhs of shape \[4, 4, 2\] is 3-dimensional"),
    ],
)  # fmt: skip
def test_what_no_layer_asks_for_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
