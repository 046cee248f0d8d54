"""adam and adam_step in jax against optax: steps, schedules, trees, the derivative of a step, refusals."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from gradlab.jax import AdamState, adam, adam_step, adamw
from gradlab.kernels import adam_pallas, step_pallas


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def fresh():
    """No compiled program from before, and none of this test's afterwards."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def draw(dtype="float64", shapes=((3, 4), (5,), (), (0, 2))):
    """Parameters and ten gradients of different size, as trees."""
    rng = np.random.default_rng(0)

    def tree(scale):
        return {f"{i}": jnp.asarray(scale * rng.standard_normal(s), dtype) for i, s in enumerate(shapes)}

    return tree(1.0), [tree(10.0**k) for k in np.linspace(-3, 1, 10)]


def array(dtype="float64", shape=(13,), seed=0):
    """p, g, m and a positive v, and their state after three steps."""
    rng = np.random.default_rng(seed)
    p, g, m = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(3))
    return p, g, AdamState(jnp.int32(3), m, jnp.asarray(rng.uniform(0.1, 1, shape), dtype))


def by_optax(p, g, state, *, weight_decay=0.0, **options):
    """One step of an array by optax from the same state."""
    transform = optax.scale_by_adam(**{k: v for k, v in options.items() if k != "learning_rate"})
    given = optax.ScaleByAdamState(*state)
    update, new = transform.update(g + weight_decay * p, given)
    return p - options.get("learning_rate", 1e-3) * update, AdamState(*new)


def assert_close(got, want, rtol=1e-12):
    """Relative to each array's largest value; dtypes equal."""

    def one(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        atol = rtol * np.abs(np.asarray(w, "float64")).max(initial=0)
        np.testing.assert_allclose(np.asarray(g, "float64"), np.asarray(w, "float64"), rtol=0, atol=atol)

    jax.tree.map(one, got, want)


def train(transform, params, grads):
    """The parameters after each step."""
    state, path = transform.init(params), []

    @jax.jit
    def step(params, state, g):
        updates, state = transform.update(g, state, params)
        return optax.apply_updates(params, updates), state

    for g in grads:
        params, state = step(params, state, g)
        path.append(params)
    return path


def train_fused(params, grads, **options):
    """The parameters after each fused step."""
    state, path = adam().init(params), []
    step = jax.jit(lambda p, g, state: adam_step(p, g, state, **options))
    for g in grads:
        params, state = step(params, g, state)
        path.append(params)
    return path


SCHEDULE = optax.exponential_decay(0.1, 3, 0.5)


@pytest.mark.parametrize("lr", [0.05, SCHEDULE], ids=["number", "schedule"])
def test_ten_steps_are_those_of_optax(lr):
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}
    want = train(optax.adam(lr, **options), *draw())
    assert_close(train(adam(lr, **options), *draw()), want)
    assert_close(train_fused(*draw(), learning_rate=lr, **options), want)


def test_in_a_chain_and_with_weight_decay():
    want = train(optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.05)), *draw())
    assert_close(train(optax.chain(optax.add_decayed_weights(0.3), adam(0.05)), *draw()), want)
    assert_close(train_fused(*draw(), learning_rate=0.05, weight_decay=0.3), want)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.4, "b1": 0.8}])
def test_adamw_is_that_of_optax(options):
    want = train(optax.adamw(0.05, **options), *draw())
    assert_close(train(adamw(0.05, **options), *draw()), want)
    options = {"weight_decay": 1e-4} | options
    assert_close(train_fused(*draw(), learning_rate=0.05, decoupled=True, **options), want)


def test_derivative_with_decoupled_decay():
    p, g, state = array()

    def new(p, g, m, v):
        new, moments = adam_step(
            p, g, AdamState(jnp.int32(3), m, v), learning_rate=0.2, weight_decay=0.6, decoupled=True
        )
        return new, moments.mu, moments.nu

    def updated(p, g, m, v):
        update, moments = adamw(0.2, weight_decay=0.6).update(g, AdamState(jnp.int32(3), m, v), p)
        return p + update, moments.mu, moments.nu

    arrays = p, g, state.mu, state.nu
    check_grads(new, arrays, 1, modes=["rev"])
    results, pullback = jax.vjp(new, *arrays)
    others, other_pullback = jax.vjp(updated, *arrays)
    assert_close(others, results)
    cotangents = tuple(jnp.cos(k * p) for k in range(3))
    assert_close(other_pullback(cotangents), pullback(cotangents))


def test_adamw_without_parameters_is_refused():
    _, g, state = array()
    with pytest.raises(
        ValueError, match=r"adamw: params is None, wanted the parameters: update\(grads, state, params\)"
    ):
        adamw().update(g, state)


def test_defaults_in_float32():
    # Ten steps of a dozen roundings each.
    tolerance = 120 * jnp.finfo("float32").eps
    want = train(optax.adam(1e-3), *draw("float32"))
    assert_close(train(adam(), *draw("float32")), want, tolerance)
    assert_close(train_fused(*draw("float32")), want, tolerance)


@pytest.mark.parametrize("mistake", ["nothing", "sign"])
def test_the_comparison_sees_a_wrong_kernel(mistake, fresh, monkeypatch):
    real = adam_pallas.adam

    def wrong(p, g, m, v, scalars, update):
        if mistake == "nothing":
            return [p, m, v]
        return real(p, g, m, v, scalars.at[0, 6].multiply(-1), update)

    monkeypatch.setattr(adam_pallas, "adam", wrong)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_close(train_fused(*draw()), train(optax.adam(1e-3), *draw()))


def test_trees_of_mixed_dtypes_and_half_precision():
    dtypes = {"a": "float64", "b": "float32", "c": "bfloat16", "d": "float16"}
    p, g, state = array(shape=(40,))

    def mixed(t):
        return {name: t.astype(dtype) for name, dtype in dtypes.items()}

    given = mixed(p), mixed(g), AdamState(state.count, mixed(state.mu), mixed(state.nu))
    exact = jax.tree.map(lambda t: t.astype("float64"), given)
    new, after = adam_step(*given, learning_rate=0.1)
    for name, dtype in dtypes.items():

        def leaf(trees, name=name):
            p, g, state = trees
            return p[name], g[name], AdamState(jnp.int32(3), state.mu[name], state.nu[name])

        ours = new[name], after.mu[name], after.nu[name]
        theirs, truth = (jax.tree.leaves(by_optax(*leaf(t), learning_rate=0.1)) for t in (given, exact))
        for our, their, true in zip(ours, (theirs[0], *theirs[2:]), (truth[0], *truth[2:]), strict=True):
            assert our.dtype == dtype
            error, allowed = (np.abs(np.float64(t) - true).max() for t in (our, their))
            # In full precision both err by a few roundings; here what counts is half.
            assert error <= 2 * allowed or error <= 8 * jnp.finfo("float32").eps * np.abs(true).max()


def test_same_bits_again_and_inputs_unchanged():
    given = array("float32")
    before = jax.tree.map(np.array, given)
    first, again, jitted = adam_step(*given), adam_step(*given), jax.jit(adam_step)(*given)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    jax.tree.map(np.testing.assert_array_equal, jitted, first)
    jax.tree.map(np.testing.assert_array_equal, given, before)
    donated = jax.jit(adam_step, donate_argnums=(0, 2))(*jax.tree.map(jnp.array, given))
    jax.tree.map(np.testing.assert_array_equal, donated, first)


def test_nothing_is_traced_anew_when_a_scalar_changes(fresh, monkeypatch):
    traces, real = [], adam_pallas.adam
    monkeypatch.setattr(adam_pallas, "adam", lambda *args: traces.append(1) or real(*args))
    p, g, state = array()
    for lr, b1, b2, eps in [(0.1, 0.9, 0.99, 1e-8), (0.2, 0.8, 0.95, 1e-3), (jnp.asarray(0.3), 0.7, 0.9, 1e-2)]:
        want = by_optax(p, g, state, learning_rate=lr, b1=b1, b2=b2, eps=eps)
        p, state = adam_step(p, g, state, learning_rate=lr, b1=b1, b2=b2, eps=eps)
        assert_close((p, state), want)
    assert len(traces) == 1
    step = jax.jit(lambda *args, lr: adam_step(*args, learning_rate=lr))
    for lr in (0.1, 0.2, 0.3):
        p, state = step(p, g, state, lr=lr)
    assert step._cache_size() == 1
    assert len(traces) == 1


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_blocks_of(platform, monkeypatch):
    grids, real = [], pl.pallas_call

    def interpreted(*args, **options):
        grids.append(options["grid"])
        return real(*args, **{**options, "interpret": True, "compiler_params": None})

    p, g, state = array(shape=(3, 1400))
    want = jax.vjp(by_optax_arrays, p, g, state.mu, state.nu)
    monkeypatch.setattr(pl, "pallas_call", interpreted)
    monkeypatch.setattr(step_pallas, "launch", lambda call, *operands: call(platform, *operands))
    scalars = adam_pallas.scalars(lr=0.1, step=4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.2, dtype=p.dtype)
    arrays = p, g, state.mu, state.nu
    assert_close(tuple(jax.jit(lambda *a: adam_pallas.adam(*a, False))(*arrays, scalars)), want[0])
    cotangents = tuple(jnp.cos(k * p) for k in range(3))
    got = jax.jit(lambda *a: adam_pallas.adam_pullback(*a))(*arrays, *cotangents, scalars)
    assert_close(tuple(got), want[1](cotangents))
    assert grids == [(3,), (3,)] if platform == "cuda" else [(2,), (2,)]


# The derivative of a step.


def by_optax_arrays(p, g, m, v):
    p, state = by_optax(p, g, AdamState(jnp.int32(3), m, v), learning_rate=0.1, weight_decay=0.2)
    return p, state.mu, state.nu


def by_hand_arrays(p, g, m, v):
    p, state = adam_step(p, g, AdamState(jnp.int32(3), m, v), learning_rate=0.1, weight_decay=0.2)
    return p, state.mu, state.nu


def test_derivative_of_a_step():
    p, g, state = array()
    arrays = p, g, state.mu, state.nu
    check_grads(by_hand_arrays, arrays, order=1, modes=["rev"])
    cotangents = jnp.cos(p), jnp.sin(p), jnp.broadcast_to(jnp.float64(2), p.shape)
    pullback = jax.vjp(by_hand_arrays, *arrays)[1]
    first, again = pullback(cotangents), pullback(cotangents)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert_close(first, jax.vjp(by_optax_arrays, *arrays)[1](cotangents))


@pytest.mark.parametrize("wrt", range(4))
def test_derivative_with_respect_to_one_of_them_under_jit(wrt):
    p, g, state = array()
    arrays = p, g, state.mu, state.nu

    def gradient(fn):
        return jax.grad(lambda *a: sum(jnp.sin(r).sum() for r in fn(*a)), wrt)

    want = gradient(by_optax_arrays)(*arrays)
    assert_close(jax.jit(gradient(by_hand_arrays))(*arrays), want)
    assert_close(gradient(jax.jit(by_hand_arrays))(*arrays), want)


def test_derivative_of_the_update_alone():
    p, g, state = array()

    def gradient(update, state):
        return jax.grad(lambda g: (update(g, state)[0] * p).sum())(g)

    native = optax.scale_by_adam().update
    assert_close(gradient(adam(0.1).update, state), -0.1 * gradient(native, optax.ScaleByAdamState(*state)))


def test_derivative_through_training():
    p, g, _ = array()

    def after(step):
        def loss(p):
            def body(carry, _):
                return step(carry[0], jnp.sin(carry[0]) * g, carry[1]), None

            (p, _), _ = jax.lax.scan(body, (p, AdamState(jnp.int32(0), 0 * p, 0 * p + 0.1)), length=3)
            return (p**2).sum()

        return loss

    want = jax.jit(jax.grad(after(by_optax)))(p)
    assert_close(jax.jit(jax.grad(after(adam_step)))(p), want)
    assert_close(jax.grad(jax.checkpoint(after(adam_step)))(p), want)


def test_no_gradient_yet_gives_finite_derivatives():
    zero = jnp.zeros(3)
    p, cotangent = jnp.ones(3), jnp.asarray([1.0, -2.0, 3.0])
    _, pullback = jax.vjp(lambda *arrays: adam_step(arrays[0], arrays[1], AdamState(jnp.int32(0), *arrays[2:]))[0],
                          p, zero, zero, zero)  # fmt: skip
    dp, dg, dm, dv = pullback(cotangent)
    np.testing.assert_array_equal(dp, cotangent)
    # The first step with d = eps: lr / (1 - b1) / eps * (1 - b1) for g.
    assert_close((dg, dm, dv), (-1e-3 / 1e-8 * cotangent, -1e-3 / 1e-8 * 9 * cotangent, zero))


def test_vmap_is_a_loop():
    p, g, state = array(shape=(4, 5))
    rates = jnp.asarray([0.1, 0.2, 0.3, 0.4])

    def both(p, g, m, v, lr):
        new, pullback = jax.vjp(lambda p, g: adam_step(p, g, AdamState(jnp.int32(3), m, v), learning_rate=lr)[0], p, g)
        return new, pullback(jnp.cos(p))

    arrays = p, g, state.mu, state.nu, rates
    rows = [jax.jit(both)(*row) for row in zip(*arrays, strict=True)]
    assert_close(jax.jit(jax.vmap(both))(*arrays), jax.tree.map(lambda *r: jnp.stack(r), *rows))


@pytest.mark.parametrize("option", ["learning_rate", "b1", "b2", "eps", "weight_decay"])
def test_no_derivative_for_an_option(option):
    p, g, state = array()
    with pytest.raises(NotImplementedError) as caught:
        jax.grad(lambda value: adam_step(p, g, state, **{option: value})[0].sum())(0.5)
    assert str(caught.value) == "adam_step: no derivative for learning_rate, b1, b2, eps or weight_decay"


def test_a_refused_derivative_leaves_the_others_alone():
    p, g, state = array(shape=(11,))

    def total(g, lr):
        return adam_step(p, g, state, learning_rate=lr)[0].sum()

    want = jax.grad(jax.jit(total))(g, 0.1)
    with pytest.raises(NotImplementedError):
        jax.grad(total, argnums=1)(g, 0.1)
    assert_close(jax.grad(total)(g, 0.1), want)


def test_second_derivative_is_refused():
    p, g, state = array()
    with pytest.raises(NotImplementedError) as caught:
        jax.jacrev(jax.grad(lambda g: adam_step(p, g, state)[0].sum()))(g)
    assert str(caught.value) == "adam_step: its second derivative is not implemented, wanted order 1"


P = jnp.ones(3, "float32")
S = AdamState(jnp.int32(0), P, P)
MISFITS = [
    ([P], P, S, ValueError, "adam_step: the tree of params is "),
    (P, P, S._replace(nu=(P, P)), ValueError, "adam_step: the tree of state.nu is "),
    ({"w": P}, {"w": P[:2]}, AdamState(0, {"w": P}, {"w": P}), ValueError,
     "adam_step: shape of params['w'] is [3], wanted [2] like grads"),
    (P, P, S._replace(mu=P[:1]), ValueError, "adam_step: shape of state.mu is [1], wanted [3] like grads"),
    (P.astype("float16"), P, S, TypeError, "adam_step: dtype of params is float16, wanted float32 like grads"),
    (P, P.astype("int32"), S, TypeError, "adam_step: dtype of grads is int32, wanted one of float64, float32, "),
    (P, P, S._replace(mu="m"), TypeError, "adam_step: state.mu is a str, wanted a jax.Array"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "grads", "state", "error", "message"), MISFITS, ids=range(len(MISFITS)))
def test_refusals(params, grads, state, error, message):
    with pytest.raises(error) as caught:
        adam_step(params, grads, state)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.ones(2, int)}, "adam: dtype of params['w'] is int64, wanted one of float64, float32, "),
        ({"w": "w"}, "adam: params['w'] is a str, wanted a jax.Array"),
    ],
)
def test_refusals_at_the_start(params, message):
    with pytest.raises(TypeError) as caught:
        adam().init(params)
    assert str(caught.value).startswith(message)
