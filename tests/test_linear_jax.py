"""linear in jax against jnp.dot: values, gradients of every order, blocks, transformations, precision, refusals."""

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from gradlab.jax import linear
from gradlab.kernels import linear_pallas
from gradlab.kernels.common import column_sum_pallas, elementwise_pallas, matmul_pallas
from tests.fast_jit_jax import jit


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def native(x, w, b=None, *, activation=None):
    y = jnp.dot(x, w, precision=jax.lax.Precision.HIGHEST)
    y = y if b is None else y + b
    return jax.nn.relu(y) if activation == "relu" else y


def draw(lead, K, N, bias=True, dtype="float64", seed=0):
    """x, w (and b), and a cotangent that is not ones; no pre-activation so near 0 that a sum's order flips its sign."""
    while True:
        rng = np.random.default_rng([seed, *lead, K, N])
        shapes = [(*lead, K), (K, N), (N,), (*lead, N)]
        x, w, b, dy = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
        z = np.float64(x) @ np.float64(w) + (np.float64(b) if bias else 0)
        if K == 0 or np.abs(z).min(initial=1.0) > 1e-4:
            return ((x, w, b) if bias else (x, w)), dy
        seed += 1


def assert_close(got, want, length):
    """Within (8 + length) eps of the dtype that sums are carried in, and one of the result's, of the largest value."""

    def one(g, w):
        assert g.shape == w.shape
        acc = jnp.promote_types(g.dtype, "float32")
        bound = (8 + length) * jnp.finfo(acc).eps + jnp.finfo(g.dtype).eps
        scale = np.abs(np.asarray(w, "float64")).max(initial=0)
        np.testing.assert_allclose(np.asarray(g, "float64"), np.asarray(w, "float64"), rtol=0, atol=bound * scale)

    jax.tree.map(one, got, want)


def forward_and_backward(fn, **options):
    """(arguments, cotangent) -> the value and every gradient, in one program."""

    def both(args, dy):
        y, pullback = jax.vjp(lambda *args: fn(*args, **options), *args)
        return y, pullback(dy)

    return jax.jit(both)


def compare(args, dy, **options):
    got = forward_and_backward(linear, **options)(args, dy)
    assert {t.dtype for t in jax.tree.leaves(got)} == {args[0].dtype}
    assert_close(got, forward_and_backward(native, **options)(args, dy), max(dy.size, *(a.size for a in args), 1))


@pytest.mark.parametrize(
    ("lead", "K", "N", "bias", "activation", "dtype"),
    [
        ((5,), 7, 3, True, None, "float64"),
        ((5,), 7, 3, True, "relu", "float32"),
        ((2, 3), 4, 5, False, "relu", "float64"),
        ((17,), 33, 65, True, None, "float32"),
        ((), 6, 2, True, "relu", "float64"),
        ((1,), 1, 1, False, None, "float32"),
        ((0,), 3, 2, True, "relu", "float32"),
        ((2, 0), 3, 2, False, None, "float64"),
        ((3,), 0, 2, True, "relu", "float64"),
        ((3,), 0, 2, False, None, "float32"),
        ((3,), 4, 0, True, None, "float64"),
    ],
)
def test_value_and_gradients(lead, K, N, bias, activation, dtype):
    compare(*draw(lead, K, N, bias, dtype), activation=activation)


@settings(max_examples=8, phases=[Phase.generate])  # shrinking would compile each smaller shape
@given(M=st.integers(0, 40), K=st.integers(0, 40), N=st.integers(0, 40), bias=st.booleans(), relu=st.booleans())
def test_any_shape(M, K, N, bias, relu):
    compare(*draw((M,), K, N, bias), activation="relu" if relu else None)


def test_transposed_inputs():
    (x, w), dy = draw((3,), 4, 5, bias=False)
    got = forward_and_backward(lambda x, w: linear(x.T, w.T))((x.T, w.T), dy)
    assert_close(got, forward_and_backward(lambda x, w: native(x.T, w.T))((x.T, w.T), dy), 20)


def test_pullback_is_linear_and_can_be_called_again():
    (x, w, b), dy = draw((5,), 7, 3)
    _, pullback = jax.vjp(lambda *args: linear(*args, activation="relu"), x, w, b)
    first, again, twice = pullback(dy), pullback(dy), pullback(2 * dy)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    jax.tree.map(lambda t, f: np.testing.assert_array_equal(t, 2 * f), twice, first)
    spread = pullback(jnp.broadcast_to(jnp.float64(1.5), dy.shape))
    want = jax.vjp(lambda *args: native(*args, activation="relu"), x, w, b)[1](jnp.full(dy.shape, 1.5))
    assert_close(spread, want, 35)


def test_same_bits_again_and_inputs_unchanged():
    args, dy = draw((33,), 40, 17, dtype="float32")
    before = tuple(np.array(a) for a in args)
    first, again = (forward_and_backward(linear, activation="relu")(args, dy) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, again, first)
    jax.tree.map(np.testing.assert_array_equal, args, before)


# In the blocks of a GPU or a TPU, interpreted.


def in_blocks_of(platform, monkeypatch):
    """Kernels cut as `platform` cuts them, and the list of grids that they run in."""
    grids, real = [], pl.pallas_call

    def interpreted(*args, **options):
        grids.append(options["grid"])
        return real(*args, **{**options, "interpret": True, "compiler_params": None})

    monkeypatch.setattr(pl, "pallas_call", interpreted)
    for module in (matmul_pallas, column_sum_pallas, elementwise_pallas):
        monkeypatch.setattr(module, "launch", lambda call, *operands: call(platform, *operands))
    return grids


@pytest.fixture
def fresh():
    """No compiled program from before, and none of this test's afterwards."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float32"), ("cuda", "bfloat16"), ("tpu", "float32")])
def test_blocks(platform, dtype, fresh, monkeypatch):
    grids = in_blocks_of(platform, monkeypatch)
    args, dy = draw((130,), 70, 131, dtype=dtype)
    got = forward_and_backward(linear, activation="relu")(args, dy)
    assert len(grids) >= 4  # forward, dgrad, wgrad, column sum
    assert min(map(math.prod, grids)) > 1
    truth = forward_and_backward(native, activation="relu")([a.astype("float64") for a in args], dy.astype("float64"))
    assert_close(got, truth, 131)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_products_are_summed_in_float32(dtype, monkeypatch):
    in_blocks_of("cuda", monkeypatch)
    (x, w), _ = draw((4,), 128, 5, bias=False, dtype=dtype)
    # The second half of the sum takes the first half back, in blocks of 64 that hold other terms.
    order = np.random.default_rng(0).permutation(128)
    x, w = jnp.concatenate([x, -x[:, order]], 1), jnp.concatenate([w, w[order]])
    y = jax.jit(lambda x, w: linear_pallas.matmul(x, w, None, None, False, False, "", False))(x, w)
    magnitude = np.abs(np.float64(x)) @ np.abs(np.float64(w))
    assert (np.abs(np.float64(y)) <= (8 + 256) * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize(("masked", "dtype"), [(False, "float64"), (True, "float16")])
def test_tall_column_sum_in_two_passes(masked, dtype, monkeypatch):
    grids = in_blocks_of("cuda", monkeypatch)
    rng = np.random.default_rng(0)
    a, mask = (jnp.asarray(rng.standard_normal((1601, 130)), dtype) for _ in range(2))
    got = jax.jit(lambda a, g: column_sum_pallas.column_sum(a, g))(a, mask if masked else None)
    assert grids == [(3, 2), (1, 2)]
    a = np.asarray(a, "float64")
    want = np.where(np.asarray(mask) > 0, a, 0).sum(0) if masked else a.sum(0)
    assert got.dtype == dtype
    assert_close(got, want, 1601)


@pytest.mark.parametrize("transposed_a", [False, True])
@pytest.mark.parametrize("transposed_b", [False, True])
def test_every_product_in_small_blocks(transposed_a, transposed_b, monkeypatch):
    monkeypatch.setattr(matmul_pallas, "_tile", lambda *_: (16, 8, 16, 4, 1))
    (a, b, c), g = draw((17,), 21, 35)
    masks = {"": None, "a": jnp.cos(9 * a), "b": jnp.cos(9 * b), "y": g}

    def transposed(t, masked):
        return t.T if t is not None and {"a": transposed_a, "b": transposed_b}.get(masked) else t

    @jax.jit
    def every():
        a_, b_ = transposed(a, "a"), transposed(b, "b")
        return {
            (masked, relu): linear_pallas.matmul(
                a_, b_, c, transposed(mask, masked), transposed_a, transposed_b, masked, relu
            )
            for masked, mask in masks.items()
            for relu in (False, True)
        }

    def expected(masked, relu):
        passed = {p: 1 if p != masked or mask is None else np.where(mask > 0, 1, 0) for p, mask in masks.items()}
        z = (a * passed["a"]) @ (b * passed["b"]) + c
        return (np.maximum(z, 0) if relu else z) * passed["y"]

    got = every()
    assert_close(got, {key: expected(*key) for key in got}, 21)


# Derivatives of higher order.


@pytest.mark.parametrize("activation", [None, "relu"])
def test_second_order(activation):
    args, _ = draw((3,), 4, 2)
    check_grads(jax.jit(lambda *a: linear(*a, activation=activation)), args, order=2, modes=["rev"])


def scalar(fn, **options):
    return lambda *args: jnp.sin(fn(*args, **options)).sum()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_full_hessian(activation):
    args, _ = draw((3,), 2, 4)

    def hessian(fn):
        every = (0, 1, 2)
        return jit(jax.jacrev(jax.grad(scalar(fn, activation=activation), every), every))(*args)

    assert_close(hessian(linear), hessian(native), 24)


def test_third_order():
    (x, w, b), _ = draw((3,), 2, 2)

    def third(fn):
        d = jax.grad(scalar(fn, activation="relu"), argnums=1)
        return jit(jax.jacrev(jax.jacrev(jax.jacrev(d, 1), 0), 2))(x, w, b)

    assert_close(third(linear), third(native), 24)


# Transformations.


@pytest.mark.parametrize(("in_x", "in_w"), [(0, None), (None, 0), (0, 0)])
def test_vmap_is_a_loop(in_x, in_w):
    (x, _, b), dy = draw((4, 3), 5, 2)
    (_, w), _ = draw((4,), 5, 8, bias=False)
    w = w.reshape(4, 5, 2)
    x, w = (x if in_x == 0 else x[0]), (w if in_w == 0 else w[0])

    def both(x, w, dy):
        y, pullback = jax.vjp(lambda x, w: linear(x, w, b, activation="relu"), x, w)
        return y, pullback(dy)

    got = jax.jit(jax.vmap(both, (in_x, in_w, 0)))(x, w, dy)
    rows = [jax.jit(both)(x[i] if in_x == 0 else x, w[i] if in_w == 0 else w, dy[i]) for i in range(4)]
    assert_close(got, jax.tree.map(lambda *r: jnp.stack(r), *rows), 5)


def test_gradient_of_each_sample():
    (x, w, b), _ = draw((4,), 5, 3)

    def each(fn):
        return jit(jax.vmap(jax.grad(scalar(fn, activation="relu"), (1, 2)), (0, None, None)))(x, w, b)

    assert_close(each(linear), each(native), 5)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
def test_gradient_through(wrap):
    args, _ = draw((5,), 7, 3)

    def gradients(fn):
        return jax.grad(lambda *a: wrap(scalar(fn, activation="relu"))(*a), (0, 1, 2))(*args)

    assert_close(gradients(linear), gradients(native), 35)


def test_gradient_through_scan():
    (x, w, b), _ = draw((3,), 4, 4)

    def gradients(fn):
        def loss(w, b):
            return jax.lax.scan(lambda h, _: (jnp.tanh(fn(h, w, b)), None), x, length=5)[0].sum()

        return jit(jax.grad(loss, (0, 1)))(w, b)

    assert_close(gradients(linear), gradients(native), 5 * 16)


# Precision and refusals.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_errs_at_most_twice_as_native(dtype):
    args, dy = draw((24,), 200, 24, dtype=dtype)
    exact_args = [a.astype("float64") for a in args], dy.astype("float64")
    truth = forward_and_backward(native, activation="relu")(*exact_args)
    hand, plain = (forward_and_backward(fn, activation="relu")(args, dy) for fn in (linear, native))
    for ours, theirs, exact in zip(*map(jax.tree.leaves, (hand, plain, truth)), strict=True):
        assert ours.dtype == dtype
        error, allowed = (np.abs(np.float64(t) - exact).max() for t in (ours, theirs))
        assert error <= (2 * allowed or jnp.finfo(dtype).eps * np.abs(exact).max())


X, W, B = np.ones((5, 7)), np.ones((7, 3)), np.ones(3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X, W.T), {}, ValueError, "kernel of shape [3, 7] is K = 3, wanted K = 7 like x's last axis"),
        ((X, W, B[:2]), {}, ValueError, "bias of shape [2] is N = 2, wanted N = 3 like kernel's last axis"),
        ((X, W, W), {}, ValueError, "bias of shape [7, 3] is 2-dimensional, wanted [N]"),
        ((X, B), {}, ValueError, "kernel of shape [3] is 1-dimensional, wanted [K N]"),
        ((1.0, W), {}, ValueError, "x of shape [] is 0-dimensional, wanted [... K]"),
        ((X, W.astype("float32")), {}, TypeError, "dtype of kernel is float32, wanted float64 like x"),
        ((X, W, B.astype("float16")), {}, TypeError, "dtype of bias is float16, wanted float64 like x"),
        ((X.astype("int32"), W), {}, TypeError, "dtype of x is int32, wanted one of float64, float32, "),
        ((X, W.astype(bool)), {}, TypeError, "dtype of kernel is bool, wanted one of float64, float32, "),
        ((X, "w"), {}, TypeError, "kernel is a str, wanted a jax.Array"),
        (([[1.0]], W), {}, TypeError, "x is a list, wanted a jax.Array"),
        ((X, W), {"activation": "gelu"}, ValueError, "activation is 'gelu', wanted one of None, 'relu'"),
    ],
)
def test_refusals(args, options, error, message):
    with pytest.raises(error) as caught:
        linear(*args, **options)
    assert str(caught.value).startswith(f"linear: {message}")
    assert "\n" not in str(caught.value)
