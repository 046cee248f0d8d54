"""mse_loss and binary_cross_entropy_with_logits on jax: options, blocks of a GPU, extremes, orders, bad input."""

import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")

import jax.numpy as jnp
from jax.test_util import check_grads

from gradlab import jax as lab
from gradlab.kernels.common import column_sum_pallas, elementwise_pallas, reduce_pallas
from gradlab.profiling.native.native_jax import NATIVE
from tests.fast_jit_jax import jit
from tests.pairwise_options import pairwise

REDUCTIONS = ["none", "mean", "sum"]


def native_bce(x, t, *, weight=None, pos_weight=None, reduction="mean"):
    return NATIVE["binary_cross_entropy_with_logits"].fn(x, t, weight, pos_weight, reduction=reduction)


OPS = {
    "mse_loss": (lab.mse_loss, NATIVE["mse_loss"].fn),
    "binary_cross_entropy_with_logits": (lab.binary_cross_entropy_with_logits, native_bce),
}
BCE = OPS["binary_cross_entropy_with_logits"]


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def drawn(*shape, dtype="float64"):
    rng = np.random.default_rng([0, *shape])
    return [jnp.asarray(a, dtype) for a in (3 * rng.standard_normal(shape), rng.uniform(0, 1, shape))]


def assert_same(op, args, rtol=1e-12, **options):
    found = []
    for f in op:

        def both(*args, f=f):
            y, pullback = jax.vjp(lambda *a: f(*a, **options), *args)
            return (
                y,
                *pullback(jnp.ones_like(y)),
                *pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)),
            )

        found.append(jax.jit(both)(*args))
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (37,), (4, 5, 6), (0,), (3, 0)])
def test_value_and_gradients(op, reduction, shape):
    if 0 in shape and reduction == "mean":
        assert jnp.isnan(op[0](*drawn(*shape)))
        return
    assert_same(op, drawn(*shape), reduction=reduction)


WEIGHTS = [(), (5,), (4, 1), (4, 5)]


@pytest.mark.parametrize(("weight", "pos_weight", "reduction"), pairwise([None, *WEIGHTS], [None, (5,)], REDUCTIONS))
def test_weights(weight, pos_weight, reduction):
    w, p = (None if s is None else 0.5 + drawn(*s)[1] for s in (weight, pos_weight))
    assert_same(BCE, drawn(4, 5), weight=w, pos_weight=p, reduction=reduction)


def test_extreme_logits_keep_their_digits():
    x = jnp.asarray([-1e4, -700, -100, -37, 0, 37, 100, 700, 1e4])
    for t, want in ((0.0, np.logaddexp(0, x)), (1.0, np.logaddexp(0, -x))):
        y = lab.binary_cross_entropy_with_logits(x, jnp.full_like(x, t), reduction="none")
        np.testing.assert_allclose(y, want, rtol=1e-14)
        dx = jax.grad(lambda x, t=t: lab.binary_cross_entropy_with_logits(x, jnp.full_like(x, t)))(x)
        assert jnp.isfinite(dx).all()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_blocks_of(platform, reduction, op, blocks_of):
    """More than one stretch, the last one not full: what lies past the end counts for nothing."""
    grids = blocks_of(platform, elementwise_pallas, reduce_pallas, column_sum_pallas)
    assert_same(op, drawn(3, 100, 301), rtol=1e-11, reduction=reduction)
    assert max(grid[0] for grid in grids) > 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lower_precision_errs_at_most_twice_as_much_as_jax(op, dtype, reduction):
    args = drawn(2048, dtype=dtype)
    with_grads = lambda f: jax.jit(
        lambda *a: (f(*a, reduction=reduction), *jax.grad(lambda *a: f(*a, reduction=reduction).sum(), (0, 1))(*a))
    )
    truth = with_grads(op[1])(*(a.astype("float64") for a in args))
    for got, want, true in zip(with_grads(op[0])(*args), with_grads(op[1])(*args), truth, strict=True):
        assert got.dtype == dtype
        rounding = abs(true).max() * jnp.finfo(dtype).eps / 2
        assert abs(got.astype("float64") - true).max() <= 2 * abs(want.astype("float64") - true).max() + rounding


def test_second_order(op):
    for reduction in REDUCTIONS:
        check_grads(jax.jit(lambda *a, r=reduction: op[0](*a, reduction=r)), drawn(3, 2), 2, ["rev"])
    w, p = drawn(3)
    weighed = jax.jit(lambda *a: lab.binary_cross_entropy_with_logits(*a, weight=w, pos_weight=p))
    check_grads(weighed, drawn(3), 2, ["rev"])


def test_orders_past_the_second():
    x, t = drawn(3)

    def fourth(f):
        g = lambda x: f(x**2, t).sum()
        for _ in range(4):
            g = lambda x, g=g: jax.grad(g)(x).sum()
        return jit(g)(x)

    np.testing.assert_allclose(fourth(lab.mse_loss), fourth(OPS["mse_loss"][1]), rtol=1e-12)
    third = jax.grad(
        lambda x: jax.grad(lambda x: jax.grad(lambda x: lab.binary_cross_entropy_with_logits(x, t))(x).sum())(x).sum()
    )
    with pytest.raises(NotImplementedError, match="binary_cross_entropy_with_logits: its third derivative"):
        third(x)
    # What was refused must not spoil what is allowed.
    assert jnp.isfinite(
        jax.grad(lambda x: jax.grad(lambda x: lab.binary_cross_entropy_with_logits(x, t))(x).sum())(x)
    ).all()


def test_transformations(op):
    """The reductions in turn: each meets a map and a derivative, of each op others."""
    x, t = drawn(3, 4)
    turn = itertools.cycle(REDUCTIONS[1:] + REDUCTIONS[:1] if op is BCE else REDUCTIONS)

    def close(transform, *args, bent=False):
        reduction = next(turn)
        results = lambda f: lambda *a: f(*a, reduction=reduction)
        scalar = lambda f: lambda *a: jnp.cos(f(*a, reduction=reduction)).sum()
        found = [jit(transform((scalar if bent else results)(f)))(*args) for f in op]
        np.testing.assert_allclose(*found, rtol=1e-11, atol=1e-13)

    close(lambda f: jax.vmap(f, in_axes=(1, 1)), x, t)
    close(lambda f: jax.vmap(f, in_axes=(0, None)), x, t[0])
    close(lambda f: jax.vmap(jax.vmap(f)), x[None], t[None])
    close(lambda f: jax.vmap(jax.grad(f)), x, t, bent=True)
    close(lambda f: jax.jacrev(jax.jacrev(f), argnums=1), x[0], t[0], bent=True)
    close(lambda f: jax.grad(jax.checkpoint(f)), x, t, bent=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: lab.mse_loss(x, x[0]), r"mse_loss: shape of targets is \[3\], wanted \[2, 3\] like predictions"),
        (
            lambda x: lab.mse_loss(x, x, reduction="avg"),
            "mse_loss: reduction is 'avg', wanted one of 'none', 'mean', 'sum'",
        ),
        (
            lambda x: lab.mse_loss(x, x.astype("float32")),
            "mse_loss: dtype of targets is float32, wanted float64 like predictions",
        ),
        (lambda x: lab.mse_loss(x, "1"), "mse_loss: targets is a str, wanted a jax.Array"),
        (lambda x: BCE[0](x, x[:1]), r"binary_cross_entropy_with_logits: shape of labels is \[1, 3\], wanted \[2, 3\]"),
        (
            lambda x: BCE[0](x, x, weight=x[:, :2]),
            r"binary_cross_entropy_with_logits: shape of weight is \[2, 2\], wanted one that broadcasts",
        ),
        (lambda x: BCE[0](x, x.astype("int32")), "binary_cross_entropy_with_logits: dtype of labels is int32"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        call(drawn(2, 3)[0])
