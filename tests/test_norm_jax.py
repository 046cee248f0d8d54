"""global_norm and clip_by_global_norm in jax against optax: trees, derivatives, maps, refusals, a broken kernel."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from jax.test_util import check_grads

from gradlab.autodiff.optimizers.norm_jax import clip_factor
from gradlab.jax import adam, clip_by_global_norm, global_norm
from gradlab.kernels.common import reduce_pallas
from gradlab.kernels.optimizers import norm_pallas, step_pallas


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def tree(*dtypes, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (), (0, 2)]
    return {d: [jnp.asarray(rng.standard_normal(s), d) for s in shapes] for d in dtypes or ("float64",)}


def assert_close(got, want, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(np.asarray(a, "f8"), np.asarray(b, "f8"), rtol=rtol, atol=0)


norm_of = jax.jit(global_norm)


def clipped_of(grads, max_norm):
    return jax.jit(clip_by_global_norm(max_norm).update)(grads, ())[0]


def compare(max_norm):
    grads = tree()
    assert_close(norm_of(grads), optax.tree.norm(grads))
    ours, theirs = clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm)
    updates, _ = jax.jit(ours.update)(grads, ours.init(grads))
    assert_close(updates, theirs.update(grads, theirs.init(grads))[0])
    return updates


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e3, np.inf])
def test_equals_optax(max_norm):
    assert (optax.tree.norm(compare(max_norm)) > 1) == (max_norm > 1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("squares", lambda dtype, *arrays: jnp.zeros((), dtype)),
        ("scale", lambda x, s: x),
        ("scale", lambda x, s: -norm_pallas.scale(x, s)),
    ],
)
def test_a_broken_kernel_fails(monkeypatch, name, wrong):
    real = getattr(norm_pallas, name)
    jax.clear_caches()
    monkeypatch.setattr(norm_pallas, name, lambda *args: _with(name, real, wrong, args))
    with pytest.raises(AssertionError):
        compare(0.3)
    jax.clear_caches()


def _with(name, real, wrong, args):
    """The wrong kernel, which may call the right one."""
    broken, norm_pallas.__dict__[name] = norm_pallas.__dict__[name], real
    try:
        return wrong(*args)
    finally:
        norm_pallas.__dict__[name] = broken


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_poisons_as_in_optax(value):
    grads = {"a": jnp.asarray([1.0, value]), "b": jnp.ones(3)}
    got = clipped_of(grads, 1.0)
    assert_close(got, optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())[0])
    assert not np.isfinite(norm_of(grads))


def test_half_precision_is_summed_in_float32():
    """2^14 times 1.01^2: a sum in bfloat16 stands still at 256, one in float16 overflows."""
    for dtype in ("bfloat16", "float16"):
        x = jnp.full(2**14, 3.01, dtype)
        norm = norm_of([x])
        assert norm.dtype == jnp.float32
        np.testing.assert_allclose(norm, np.float64(x[0]) * 128, rtol=1e-6)
        clipped = clipped_of([x], 1.0)
        assert clipped[0].dtype == dtype
        np.testing.assert_allclose(np.asarray(clipped[0], "f8"), 1 / 128, rtol=2**-8)


def test_a_tree_of_two_dtypes_has_one_norm():
    grads = {d: leaves[:1] for d, leaves in tree("float32", "float64", "bfloat16").items()}
    want = np.sqrt(sum(np.sum(np.asarray(x, "f8") ** 2) for x in jax.tree.leaves(grads)))
    norm = norm_of(grads)
    assert norm.dtype == jnp.float64
    np.testing.assert_allclose(norm, want, rtol=1e-6)
    clipped = clipped_of(grads, 0.5)
    assert_close(clipped, jax.tree.map(lambda x: (x.astype("f8") * 0.5 / want).astype(x.dtype), grads), rtol=2**-7)


def test_nothing_and_zeros():
    assert global_norm({}) == 0
    zeros = {"a": jnp.zeros(3), "b": jnp.zeros((0, 2))}
    norm, slope = jax.jit(jax.value_and_grad(global_norm))(zeros)
    assert norm == 0
    assert_close(slope, zeros)
    assert_close(clipped_of(zeros, 1.0), zeros)


@pytest.mark.parametrize("max_norm", [0.3, 1e3])
def test_derivatives(max_norm):
    """Clipping can stand inside a meta-learning loop: twice differentiated, with respect to max_norm too."""
    x, y = (jnp.asarray(np.random.default_rng(0).standard_normal(s)) for s in ((2, 3), (4,)))

    def loss(x, y, max_norm):
        clipped, _ = clip_by_global_norm(max_norm).update([x, y], ())
        return jnp.sin(clipped[0]).sum() + jnp.cos(clipped[1]).sum() + global_norm([x, jnp.sin(y)])

    def native(x, y, max_norm):
        clipped, _ = optax.clip_by_global_norm(max_norm).update([x, y], optax.EmptyState())
        return jnp.sin(clipped[0]).sum() + jnp.cos(clipped[1]).sum() + optax.tree.norm([x, jnp.sin(y)])

    args = x, y, jnp.asarray(max_norm)
    orders = [jax.grad]
    if max_norm < 1:
        check_grads(jax.jit(loss), args, 1, modes=["rev"], atol=1e-7, rtol=1e-7)
        orders = [lambda f, wrt: jax.grad(lambda *a: sum(jnp.sum(d**2) for d in jax.grad(f, wrt)(*a)), wrt)]
    for order in orders:
        for got, want in zip(*(jax.jit(order(f, (0, 1, 2)))(*args) for f in (loss, native)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_mapped():
    xs = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 5)))

    def value(x):
        return clip_by_global_norm(0.5).update({"x": x}, ())[0]["x"]

    for fn in (global_norm, jax.grad(lambda x: jnp.sin(value(x)).sum())):
        one = jax.jit(fn)
        np.testing.assert_allclose(jax.jit(jax.vmap(fn))(xs), jnp.stack([one(x) for x in xs]), rtol=1e-13)


def test_in_a_chain_and_before_adam():
    """optax.chain takes it as its own; the factor alone gives what a fused step multiplies by."""
    params, grads = tree(), tree(seed=1)
    ours = optax.chain(clip_by_global_norm(0.1), adam(0.1))
    theirs = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    got, _ = jax.jit(ours.update)(grads, ours.init(params), params)
    assert_close(got, theirs.update(grads, theirs.init(params), params)[0], rtol=1e-9)
    np.testing.assert_allclose(clip_factor(grads, 0.1), 0.1 / optax.tree.norm(grads), rtol=1e-14)
    assert clip_factor(grads, 1e3) == 1


def test_blocks_of_a_gpu(blocks_of):
    """Several programs, the last one partial; twice the same bits."""
    grids = blocks_of("cuda", reduce_pallas, step_pallas)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(70000), "float32")
    norm = global_norm([x])
    np.testing.assert_allclose(norm, np.linalg.norm(np.asarray(x, "f8")), rtol=1e-6)
    clipped, _ = clip_by_global_norm(1.0).update([x], ())
    np.testing.assert_allclose(clipped[0], np.asarray(x) / norm, rtol=1e-6)
    assert max(grid[0] for grid in grids) > 1
    assert global_norm([x]) == norm


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: clip_by_global_norm(-1.0), ValueError, "clip_by_global_norm: max_norm is -1.0, wanted a number from 0"),
        (lambda: clip_by_global_norm(np.nan), ValueError, "clip_by_global_norm: max_norm is nan, wanted a number from 0"),
        (lambda: global_norm({"a": "x"}), TypeError, r"global_norm: leaf \['a'\] is a str, wanted a jax.Array"),
        (lambda: global_norm([jnp.ones(2, int)]), TypeError, r"global_norm: dtype of leaf \[0\] is int64, wanted one of"),
        (lambda: clip_by_global_norm(1.0).update([jnp.ones(2) * 1j], ()), TypeError, r"clip_by_global_norm: dtype of leaf \[0\] is complex128"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
