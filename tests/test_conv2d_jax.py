"""conv2d in jax against lax: options, derivatives, transformations, blocks as compiled, lowering, refusals."""

import functools
import itertools
import re

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from gradlab.jax import conv2d
from gradlab.kernels import conv2d_pallas
from gradlab.kernels.common import column_sum_pallas
from gradlab.kernels.runtime.lower_pallas import lowered
from tests.fast_jit_jax import jit
from tests.pairwise_options import pairs, pairwise

EPS = 2.0**-53


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def drawn(B=2, D=2, H=7, W=6, F=4, R=3, S=2, groups=1, dtype="float64", seed=0):
    rng = np.random.default_rng([seed, B, D, H, W, F, R, S])
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in ((B, H, W, D * groups), (R, S, D, F), (F,))]


def native(x, kernel, bias, *, strides=1, padding="SAME", dilation=1, groups=1, activation=None):
    two = lambda v: (v, v) if isinstance(v, int) else tuple(v)
    around = padding if isinstance(padding, str) else [two(p) for p in two(padding)]
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        two(strides),
        around,
        rhs_dilation=two(dilation),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    y = y + bias
    return jax.nn.relu(y) if activation == "relu" else y


def close(got, want, terms, eps=EPS):
    """Within the rounding of sums of `terms`, each of the order of the largest value."""

    def one(g, w):
        g, w = np.asarray(g, "float64"), np.asarray(w, "float64")
        np.testing.assert_allclose(g, w, rtol=0, atol=2 * (8 + terms) * eps * max(1.0, np.abs(w).max(initial=0)))

    jax.tree.map(one, got, want)


def forward_and_backward(layer, **options):
    """(arrays, dy) -> the value and every gradient, in one program."""

    @jax.jit
    def run(arrays, dy):
        y, pullback = jax.vjp(lambda *a: layer(*a, **options), *arrays)
        return y, pullback(dy)

    return run


def assert_same(arrays, **options):
    shape = jax.eval_shape(lambda *a: native(*a, **options), *arrays)
    dy = jnp.cos(jnp.arange(np.prod(shape.shape), dtype=shape.dtype).reshape(shape.shape))
    got, want = (forward_and_backward(layer, **options)(arrays, dy) for layer in (conv2d, native))
    close(got, want, max(dy.size // dy.shape[-1], arrays[1].size))


# Each compiles anew.
VALUES = (1, 2, 3), (0, 1, 2, "SAME", "VALID"), (1, 2), ("one", "two", "depthwise"), ((1, 1), (3, 3), (2, 3), (5, 3))
CHOSEN = pairwise(*VALUES)


@pytest.mark.parametrize(("strides", "padding", "dilation", "kind", "window"), CHOSEN)
def test_values_and_gradients(strides, padding, dilation, kind, window):
    groups, D = {"one": (1, 3), "two": (2, 2), "depthwise": (3, 1)}[kind]
    arrays = drawn(D=D, H=11, W=8, F=2 * groups, R=window[0], S=window[1], groups=groups)
    assert_same(arrays, strides=strides, padding=padding, dilation=dilation, groups=groups)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (3, 2), "dilation": (2, 3), "padding": ((1, 2), (4, 0))},
        {"strides": (1, 4), "padding": (2, 1)},
        {"strides": 2, "activation": "relu"},
        {"strides": (8, 9), "padding": 0},
    ],
)
def test_rows_and_columns_apart(options):
    assert_same(drawn(H=9, W=10), **options)


def test_every_pair_of_options_is_chosen():
    assert pairs(CHOSEN) == pairs(list(itertools.product(*VALUES)))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2, "padding": 1},
        {"dilation": (1, 2), "padding": 1, "groups": 2},
        {"activation": "relu"},
    ],
)
def test_second_order(options):
    groups = options.get("groups", 1)
    arrays = drawn(B=1, D=1, H=3, W=4, F=2, R=2, S=2, groups=groups, seed=3)
    pre = native(*arrays, **{k: v for k, v in options.items() if k != "activation"})
    assert jnp.abs(pre).min() > 1e-3, "a difference would straddle the kink"
    check_grads(jax.jit(lambda *a: conv2d(*a, **options)), arrays, 2, modes=["rev"], eps=1e-4)


def test_hessian_and_third_order_are_those_of_lax():
    x, kernel, bias = drawn(B=1, D=1, H=4, W=4, F=2, R=2, S=2)
    options = {"strides": 2, "padding": 1, "activation": "relu"}

    def derivatives(layer, x, kernel):
        cubed = lambda x, k: (layer(x, k, bias, **options) ** 3).sum()
        hessian = jax.jacrev(jax.grad(cubed), 1)(x, kernel)
        third = jax.grad(lambda x: (jax.grad(lambda x: (jax.grad(cubed)(x, kernel) ** 2).sum())(x) ** 2).sum())(x)
        return hessian, third / jnp.abs(third).max()

    got, want = (jit(functools.partial(derivatives, layer))(x, kernel) for layer in (conv2d, native))
    assert jnp.abs(want[0]).max() > 0
    close(got, want, 100)


def test_transformations():
    x, kernel, bias = drawn()
    plain = conv2d(x, kernel, bias, padding=1)
    one = jax.jit(lambda x, k=kernel: conv2d(x, k, bias, padding=1))
    close(one(x), plain, 0)
    close(jit(jax.vmap(one))(x), plain, 12)
    close(one(x[0]), plain[0], 12)
    kernels = jnp.stack([kernel, -kernel])
    close(jit(jax.vmap(lambda k: conv2d(x, k, bias, padding=1)))(kernels)[1], one(x, -kernel), 12)
    of_kernel = jax.jit(jax.grad(lambda k, x: (conv2d(x, k, bias, padding=1) ** 2).sum()))
    samples = jit(jax.vmap(of_kernel, (None, 0)))(kernel, x)
    whole = of_kernel(kernel, x)
    close(samples.sum(0), whole, 100)
    square = drawn(D=2, F=2, R=3, S=3)

    def body(carry, _):
        return jnp.tanh(conv2d(carry, square[1])), None

    def scanned(x, step):
        return jax.lax.scan(step, x, None, length=2)[0].sum()

    want = jit(jax.grad(lambda x: jnp.tanh(conv2d(jnp.tanh(conv2d(x, square[1])), square[1])).sum()))(square[0])
    for step in (body, jax.checkpoint(body)):
        close(jit(jax.grad(lambda x, step=step: scanned(x, step)))(square[0]), want, 40)


def test_empty_batch_and_same_bits():
    x, kernel, bias = drawn(dtype="float32")
    y, pullback = jax.vjp(lambda *a: conv2d(*a), x[:0], kernel, bias)
    assert y.shape == (0, 7, 6, 4)
    dx, dw, db = pullback(y)
    assert dx.shape == (0, 7, 6, 2)
    assert not dw.any()
    assert not db.any()
    run = forward_and_backward(conv2d)
    first, again = (run((x, kernel, bias), jnp.ones((2, 7, 6, 4), "float32")) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_errs_at_most_twice_as_much(dtype):
    arrays = drawn(B=4, D=8, H=9, W=9, F=8, R=3, S=3, dtype=dtype)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal((4, 9, 9, 8)), dtype)
    wide = [a.astype("float64") for a in arrays]
    truth = jax.tree.leaves(forward_and_backward(native, activation="relu")(wide, dy.astype("float64")))
    results = [
        jax.tree.leaves(forward_and_backward(layer, activation="relu")(arrays, dy)) for layer in (conv2d, native)
    ]
    for exact, ours, theirs in zip(truth, *results, strict=True):
        assert ours.dtype == dtype
        error = [
            float(jnp.sqrt(jnp.mean((exact - v.astype("float64")) ** 2))) for v in (ours, theirs, exact.astype(dtype))
        ]
        assert error[0] <= 2 * max(error[1:])


@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_as_compiled(groups, monkeypatch):
    """The sizes, paddings and passes of a GPU, run by the interpreter."""
    real, grids = pl.pallas_call, []

    def interpreted(*args, **options):
        grids.append(options["grid"])
        return real(*args, **{**options, "interpret": True, "compiler_params": None})

    jax.clear_caches()
    monkeypatch.setattr(pl, "pallas_call", interpreted)
    for module in (conv2d_pallas, column_sum_pallas):
        monkeypatch.setattr(module, "launch", lambda call, *operands: call("cuda", *operands))
    try:
        arrays = drawn(B=2, D=5, H=13, W=9, F=70, R=3, S=3, groups=groups)
        assert_same(arrays, strides=2, padding=1, groups=groups, activation="relu")
    finally:
        jax.clear_caches()
    assert any(np.prod(grid) > groups for grid in grids), "nothing ran in several blocks"


@pytest.mark.parametrize(
    ("platform", "call"), [("cuda", r"@__gpu\$xla\.gpu\.triton|@triton"), ("tpu", "@tpu_custom_call")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers(platform, call, dtype):
    arrays = drawn(D=5, F=6, R=3, S=3, dtype=dtype)
    loss = lambda *a: (conv2d(*a, strides=2, activation="relu").astype("float32") ** 2).sum()
    program = lowered(jax.jit(jax.grad(loss, (0, 1, 2))), platform, *arrays).as_text()
    lines = [line for line in program.splitlines() if re.search(call, line)]
    names = {name for line in lines for name in re.findall(r"gradlab_(\w+?)_kernel", line)}
    assert names >= {"forward", "dgrad", "wgrad", "column_sum"}


X, K = np.zeros((1, 5, 5, 4), "float32"), np.zeros((3, 3, 4, 2), "float32")
BAD = {
    "rank": (
        lambda: conv2d(X[0, 0], K),
        ValueError,
        r"x of shape \[5, 4\] is 2-dimensional, wanted \[B H W C\] or \[H W C\]",
    ),
    "channels": (lambda: conv2d(X, K[:, :, :3]), ValueError, r"x of shape \[1, 5, 5, 4\] is C = 4, wanted C = 3"),
    "groups": (lambda: conv2d(X, K[:, :, :2, :1], groups=2), ValueError, "F = 1, wanted a multiple of groups = 2"),
    "groups 0": (lambda: conv2d(X, K, groups=0), ValueError, "groups is 0, wanted at least 1"),
    "strides": (lambda: conv2d(X, K, strides=0), ValueError, "strides is 0, wanted at least 1"),
    "dilation": (lambda: conv2d(X, K, dilation=1.5), ValueError, "dilation is 1.5, wanted a whole number or a pair"),
    "padding": (lambda: conv2d(X, K, padding=-1), ValueError, "padding is -1, wanted at least 0"),
    "padding word": (
        lambda: conv2d(X, K, padding="FULL"),
        ValueError,
        "padding is 'FULL', wanted one of 'SAME', 'VALID'",
    ),
    "too large": (
        lambda: conv2d(X, K, padding=0, dilation=3),
        ValueError,
        "is 7 rows wide with dilation 3, wanted at most the 5",
    ),
    "bias": (lambda: conv2d(X, K, np.zeros(3, "float32")), ValueError, r"bias of shape \[3\] is F = 3, wanted F = 2"),
    "mixed": (lambda: conv2d(X, K.astype("float16")), TypeError, "dtype of kernel is float16, wanted float32 like x"),
    "integers": (lambda: conv2d(X.astype("int32"), K), TypeError, "dtype of x is int32"),
    "no array": (lambda: conv2d("x", K), TypeError, "x is a str, wanted a jax.Array"),
    "activation": (lambda: conv2d(X, K, activation="gelu"), ValueError, "activation is 'gelu'"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match="conv2d: .*" + message) as caught:
        call()
    assert "\n" not in str(caught.value)
