"""cross_entropy on jax against optax: values, two derivatives, ignored and unknown classes, extremes, refusals."""

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from gradlab.jax import cross_entropy
from gradlab.kernels.class_losses import blocks_pallas, row_sums_pallas
from tests.fast_jit_jax import jit

REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def native(x, t, *, ignore_index=-100, reduction="mean"):
    valid = t != ignore_index
    y = jnp.where(valid, optax.softmax_cross_entropy_with_integer_labels(x, jnp.where(valid, t, 0)), 0)
    return {"none": y, "sum": y.sum(), "mean": y.sum() / valid.sum().astype(y.dtype)}[reduction]


def draw(M, V, ignored=None, dtype="float64", seed=0):
    """Logits of spread 3, classes with a third of them `ignored`, and a cotangent [M]."""
    rng = np.random.default_rng([seed, M, V])
    t = rng.integers(0, V, M)
    if ignored is not None:
        t[: M // 3] = ignored
    x, dy = 3 * rng.standard_normal((M, V)), rng.standard_normal(M)
    return jnp.asarray(x, dtype), jnp.asarray(rng.permutation(t), "int32"), jnp.asarray(dy, dtype)


def assert_close(got, want, length):
    """Within (8 + length) eps of the dtype that sums are carried in, and one of the result's, of the largest value."""

    def one(g, w):
        assert g.shape == w.shape
        acc = jnp.promote_types(g.dtype, "float32")
        bound = (8 + length) * jnp.finfo(acc).eps + jnp.finfo(g.dtype).eps
        scale = np.abs(np.asarray(w, "float64")).max(initial=0)
        np.testing.assert_allclose(np.asarray(g, "float64"), np.asarray(w, "float64"), rtol=0, atol=bound * scale)

    jax.tree.map(one, got, want)


def forward_and_backward(fn, t, **options):
    """(x, dy) -> the loss and its gradient, in one program; a reduced loss takes dy's first element."""

    def both(x, dy):
        y, pullback = jax.vjp(lambda x: fn(x, t, **options), x)
        return y, *pullback(dy if y.ndim else dy[0])

    return jax.jit(both)


def compare(x, t, dy, **options):
    got = forward_and_backward(cross_entropy, t, **options)(x, dy)
    assert {a.dtype for a in got} == {x.dtype}
    assert_close(got, forward_and_backward(native, t, **options)(x, dy), max(x.shape))


@pytest.mark.parametrize(
    ("M", "V", "ignored", "dtype", "reduction"),
    [
        (4, 7, None, "float64", "mean"),
        (6, 17, -100, "float64", "sum"),
        (7, 4, 2, "float32", "none"),
        (7, 4, 2, "float32", "mean"),
        (3, 1, None, "float32", "sum"),
    ],
)
def test_value_and_gradient(M, V, ignored, dtype, reduction):
    options = {} if ignored is None else {"ignore_index": ignored}
    compare(*draw(M, V, ignored, dtype), reduction=reduction, **options)


@settings(max_examples=3, phases=[Phase.generate])  # shrinking would compile each smaller shape
@given(
    M=st.integers(1, 40),
    V=st.integers(1, 70),
    reduction=st.sampled_from(REDUCTIONS),
    ignored=st.sampled_from([-100, 0]),
)
def test_any_shape(M, V, reduction, ignored):
    compare(*draw(M, V, ignored if M > 2 else None), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(reduction):
    x, t, dy = draw(0, 3)
    y, dx = forward_and_backward(cross_entropy, t, reduction=reduction)(x, jnp.ones(1) if reduction != "none" else dy)
    np.testing.assert_array_equal(y, {"mean": jnp.nan, "sum": 0.0, "none": np.zeros(0)}[reduction])
    assert dx.shape == (0, 3)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows_ignored(reduction):
    x, _, dy = draw(4, 3)
    y, dx = forward_and_backward(cross_entropy, jnp.full(4, -100), reduction=reduction)(x, dy)
    np.testing.assert_array_equal(y, {"mean": jnp.nan, "sum": 0.0, "none": np.zeros(4)}[reduction])
    np.testing.assert_array_equal(dx, np.zeros((4, 3)))


@pytest.mark.parametrize("shift", [1e4, -1e4])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_far_logits_give_the_same_bits(shift, dtype):
    x, t, dy = draw(5, 9, dtype=dtype)
    x = jnp.round(x * 512) / 512  # so that the shift itself rounds nothing
    both = forward_and_backward(cross_entropy, t, reduction="none")
    jax.tree.map(np.testing.assert_array_equal, both(x + shift, dy), both(x, dy))


def test_infinite_logits():
    x, t, dy = draw(3, 5)
    alone = jnp.where(jnp.arange(5) == t[:, None], x, -jnp.inf)
    y, dx = forward_and_backward(cross_entropy, t, reduction="none")(alone, dy)
    np.testing.assert_array_equal(y, np.zeros(3))
    np.testing.assert_array_equal(dx, np.zeros((3, 5)))
    masked = x.at[:, 0].set(-jnp.inf)
    compare(masked, jnp.asarray([1, 2, 4]), dy, reduction="sum")
    y, dx = forward_and_backward(cross_entropy, jnp.zeros(3, int), reduction="none")(masked, dy)
    np.testing.assert_array_equal(y, np.full(3, jnp.inf))
    assert_close(dx, dy[:, None] * (jax.nn.softmax(masked) - jnp.eye(5)[:1]), 5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_labels_in(dtype):
    x, t, _ = draw(6, 4)
    assert_close(cross_entropy(x, t.astype(dtype)), native(x, t), 6)


def test_cotangents_repeats_and_inputs():
    x, t, dy = draw(5, 7, dtype="float32")
    before = np.array(x), np.array(t)
    _, pullback = jax.vjp(lambda x: cross_entropy(x, t, reduction="none"), x)
    (first,), (again,), (twice,) = pullback(dy), pullback(dy), pullback(2 * dy)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(twice, 2 * first)
    (spread,) = pullback(jnp.broadcast_to(jnp.float32(3), dy.shape))
    assert_close(spread, 3 * jax.grad(native)(x, t, reduction="sum"), 7)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(t, before[1])


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float32"), ("cuda", "bfloat16"), ("tpu", "float32")])
def test_blocks_of(platform, dtype, monkeypatch):
    grids, real = [], pl.pallas_call

    def interpreted(*args, **options):
        grids.append(options["grid"])
        return real(*args, **{**options, "interpret": True, "compiler_params": None})

    monkeypatch.setattr(pl, "pallas_call", interpreted)
    for module in (blocks_pallas, row_sums_pallas):
        monkeypatch.setattr(module, "launch", lambda call, *operands: call(platform, *operands))
    x, t, dy = draw(19, 1030, 3, dtype)

    def derivatives(fn, x, dy):
        y, pullback = jax.vjp(lambda x: fn(x, t, reduction="none", ignore_index=3), x)
        (dx,), again = jax.vjp(pullback, dy)
        return y, dx, again((jnp.roll(x, 1),)), jax.vjp(lambda x: jax.grad(fn)(x, t), x)[1](jnp.roll(x, 1))

    jax.clear_caches()
    got = jax.jit(lambda x, dy: derivatives(cross_entropy, x, dy))(x, dy)
    jax.clear_caches()
    assert (3,) in grids  # rows of 8
    assert any(math.prod(g) >= 9 for g in grids)  # tiles of 8 rows and 512 columns
    exact = jax.jit(lambda x, dy: derivatives(native, x, dy))(x.astype("float64"), dy.astype("float64"))
    assert_close(got, exact, 1030)


# Derivatives of higher order.


@pytest.mark.parametrize(("reduction", "ignored"), [("mean", -100), ("sum", 2), ("none", 2)])
def test_second_order(reduction, ignored):
    x, t, _ = draw(4, 3, ignored)
    check_grads(lambda x: cross_entropy(x, t, ignore_index=ignored, reduction=reduction), (x,), order=2, modes=["rev"])


def test_full_hessian_and_derivative_by_cotangent():
    x, t, dy = draw(4, 5, -100)

    def second(fn):
        def pull(x, dy):
            return jax.vjp(lambda x: fn(x, t, reduction="none"), x)[1](dy)[0]

        return jit(lambda x, dy: (jax.jacrev(jax.grad(fn))(x, t), jax.jacrev(pull, (0, 1))(x, dy)))(x, dy)

    assert_close(second(cross_entropy), second(native), 5)


def test_third_derivative_is_refused():
    x, t, _ = draw(2, 3)
    with pytest.raises(NotImplementedError) as caught:
        jax.jacrev(jax.jacrev(jax.grad(cross_entropy)))(x, t)
    assert str(caught.value) == "cross_entropy: its third derivative is not implemented, wanted order 1 or 2"


# Transformations.


def test_vmap_is_a_loop():
    x, t, dy = draw(12, 5, -100)
    x, t, dy = x.reshape(3, 4, 5), t.reshape(3, 4), dy[:3]

    def both(x, t, dy):
        y, pullback = jax.vjp(lambda x: cross_entropy(x, t), x)
        return y, *pullback(dy)

    rows = [jax.jit(both)(*row) for row in zip(x, t, dy, strict=True)]
    assert_close(jax.jit(jax.vmap(both))(x, t, dy), jax.tree.map(lambda *r: jnp.stack(r), *rows), 5)


def test_gradient_of_each_sample_and_under_other_transformations():
    x, t, _ = draw(4, 5)
    want = jax.grad(native)(x, t)
    each = jit(jax.vmap(jax.grad(lambda row, c: cross_entropy(row[None], c[None]))))(x, t)
    assert_close(each / 4, want, 5)
    assert_close(jax.grad(jax.jit(cross_entropy))(x, t), want, 5)
    assert_close(jax.grad(jax.checkpoint(cross_entropy))(x, t), want, 5)

    def scanned(x):
        return jax.lax.scan(lambda s, r: (s + cross_entropy(r[0][None], r[1][None]), None), 0.0, (x, t))[0] / 4

    assert_close(jit(jax.grad(scanned))(x), want, 5)


# Precision, unknown classes and refusals.


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_errs_at_most_twice_as_native(dtype, reduction):
    x, t, dy = draw(32, 100, dtype=dtype)
    truth = forward_and_backward(native, t, reduction=reduction)(x.astype("float64"), dy.astype("float64"))
    hand, plain = (forward_and_backward(fn, t, reduction=reduction)(x, dy) for fn in (cross_entropy, native))
    for ours, theirs, exact in zip(hand, plain, truth, strict=True):
        assert ours.dtype == dtype
        error, allowed = (np.abs(np.float64(a) - exact).max() for a in (ours, theirs))
        assert error <= (2 * allowed or jnp.finfo(dtype).eps * np.abs(exact).max())


@pytest.mark.parametrize("wrong", [5, -1, 2**31 - 1])
def test_unknown_class(wrong):
    x, t, dy = draw(4, 5)
    t = t.at[2].set(wrong)
    with pytest.raises(IndexError) as caught:
        cross_entropy(x, t)
    assert str(caught.value) == f"cross_entropy: labels[2] is {wrong}, wanted a class in [0, 5)"

    @jax.jit
    def traced(x, t, dy):
        y, pullback = jax.vjp(lambda x: cross_entropy(x, t, reduction="none"), x)
        return (
            y,
            *pullback(dy),
            jax.grad(cross_entropy)(x, t),
            jax.grad(lambda x: jax.grad(cross_entropy)(x, t).sum())(x),
        )

    known = t.at[2].set(0)
    for got, want in zip(traced(x, t, dy), traced(x, known, dy), strict=True):
        assert np.isnan(got[2]).all()
        np.testing.assert_array_equal(jnp.delete(got, 2, 0), jnp.delete(want, 2, 0))


@pytest.mark.parametrize(
    ("wrong", "dtype"), [(2**32 + 1, "int64"), (-(2**32), "int64"), (2**32 - 100, "uint32"), (2**63, "uint64")]
)
def test_unknown_class_does_not_wrap_into_a_known_one(wrong, dtype):
    x, t, _ = draw(3, 5)
    wide = jnp.asarray([int(t[0]), wrong, int(t[2])], dtype)
    y = jax.jit(lambda x, t: cross_entropy(x, t, reduction="none"))(x, wide)
    assert np.isnan(y[1])
    np.testing.assert_array_equal(y[::2], cross_entropy(x, t, reduction="none")[::2])


def test_ignored_class_wider_than_int32():
    x, t, _ = draw(3, 5)
    y = cross_entropy(x, t.astype("int64").at[1].set(2**40), ignore_index=2**40, reduction="none")
    assert_close(y, native(x, t, reduction="none").at[1].set(0), 5)


X, T = np.ones((4, 3)), np.zeros(4, "int32")


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X, T[:3]), {}, ValueError, "shape of labels is [3], wanted [4] for logits of shape [4, 3]"),
        ((X[0], T), {}, ValueError, "shape of labels is [4], wanted [] for logits of shape [3]"),
        ((X[0, 0], T), {}, ValueError, "logits of shape [] is 0-dimensional, wanted [... V]"),
        ((X, X.astype(int)), {}, ValueError, "shape of labels is [4, 3], wanted [4] for logits of shape [4, 3]"),
        ((X[:, :0], T), {}, ValueError, "logits of shape [4, 0] is V = 0, wanted at least one class"),
        ((X, T.astype("float32")), {}, TypeError, "dtype of labels is float32, wanted float64 like logits"),
        ((X, X[:2]), {}, ValueError, "shape of soft labels is [2, 3], wanted [4, 3] like logits"),
        ((X, X), {"ignore_index": 0}, ValueError, "ignore_index is 0, wanted none with soft labels"),
        ((X, T.astype(bool)), {}, TypeError, "dtype of labels is bool, wanted an integer dtype, or logits' for soft"),
        ((X, T), {"axis": 2}, ValueError, "axis is 2, wanted an int from -2 to 1 for logits of shape [4, 3]"),
        ((X, T), {"weight": X}, ValueError, "weight of shape [4, 3] is 2-dimensional, wanted [V]"),
        ((X, T), {"weight": X[0, :2]}, ValueError, "weight of shape [2] is V = 2, wanted V = 3 like logits' classes"),
        ((X, T), {"label_smoothing": 1.1}, ValueError, "label_smoothing is 1.1, wanted a number from 0 to 1"),
        ((X, T), {"z_loss": -1}, ValueError, "z_loss is -1, wanted a number from 0"),
        ((X, T), {"z_loss": X[0]}, TypeError, "z_loss is a ndarray, wanted a number"),
        ((X, T), {"softcap": 0}, ValueError, "softcap is 0, wanted a number above 0, or None"),
        ((X, T), {"inplace": 1}, TypeError, "inplace is 1, wanted True or False"),
        ((X.astype(int), T), {}, TypeError, "dtype of logits is int64, wanted one of float64, float32, "),
        ((X, [0, 1]), {}, TypeError, "labels is a list, wanted a jax.Array"),
        ((None, T), {}, TypeError, "logits is a NoneType, wanted a jax.Array"),
        ((X, T), {"reduction": "max"}, ValueError, "reduction is 'max', wanted one of 'none', 'mean', 'sum'"),
        ((X, T), {"ignore_index": 1.0}, TypeError, "ignore_index is 1.0, wanted an int"),
        ((X, T), {"ignore_index": True}, TypeError, "ignore_index is True, wanted an int"),
    ],
)
def test_refusals(args, options, error, message):
    with pytest.raises(error) as caught:
        cross_entropy(*args, **options)
    assert str(caught.value).startswith(f"cross_entropy: {message}")
    assert "\n" not in str(caught.value)
