"""sgd and sgd_step in jax against optax: steps, schedules, trees, the derivatives of a step, refusals."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.test_util import check_grads

from gradlab.jax import SGDState, sgd, sgd_step
from gradlab.kernels import sgd as spec
from gradlab.kernels import sgd_pallas
from gradlab.kernels.optimizers import step_pallas
from tests.fast_jit_jax import jit


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


def array(dtype="float64", shape=(13,)):
    """p, g, and the state after three steps."""
    rng = np.random.default_rng(0)
    p, g, b = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(3))
    return p, g, SGDState(jnp.int32(3), b)


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
    state, path = sgd(0.0, options.get("momentum")).init(params), []
    step = jax.jit(lambda p, g, state: sgd_step(p, g, state, **options))
    for g in grads:
        params, state = step(params, g, state)
        path.append(params)
    return path


SCHEDULE = optax.exponential_decay(0.1, 3, 0.5)
OPTIONS = [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}, {"momentum": 0.0}]


@pytest.mark.parametrize("lr", [0.05, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("options", OPTIONS)
def test_ten_steps_are_those_of_optax(lr, options):
    want = train(optax.sgd(lr, **options), *draw())
    assert_close(train(sgd(lr, **options), *draw()), want)
    assert_close(train_fused(*draw(), learning_rate=lr, **options), want)


def test_in_float32_and_with_an_array_for_a_momentum():
    # Ten steps of a few roundings each.
    tolerance = 60 * jnp.finfo("float32").eps
    want = train(optax.sgd(0.1, 0.9), *draw("float32"))
    momentum = jnp.asarray(0.9)
    assert_close(train(sgd(0.1, momentum), *draw("float32")), want, tolerance)
    assert_close(train_fused(*draw("float32"), learning_rate=0.1, momentum=momentum), want, tolerance)


def test_in_a_chain_and_with_weight_decay():
    want = train(optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.05, 0.9)), *draw())
    assert_close(train(optax.chain(optax.add_decayed_weights(0.3), sgd(0.05, 0.9)), *draw()), want)
    assert_close(train_fused(*draw(), learning_rate=0.05, momentum=0.9, weight_decay=0.3), want)


@pytest.mark.parametrize("maximize", [False, True])
def test_dampening_spares_the_first_step(maximize):
    """As in torch, which is what the reference does; optax has no dampening."""
    options = {"momentum": 0.7, "dampening": 0.4, "weight_decay": 0.2, "maximize": maximize}
    params, grads = draw()
    got = train_fused(params, grads, learning_rate=0.1, **options)
    for name, p in params.items():
        p, b = np.asarray(p), None
        for i, g in enumerate(grads):
            p, b = spec.reference(p, np.asarray(g[name]), b, lr=0.1, first=i == 0, **options)
            np.testing.assert_allclose(got[i][name], p, rtol=1e-12, atol=1e-12)


def test_without_momentum_no_buffer_is_kept():
    params, (grads, *_) = draw()
    state = sgd(0.1).init(params)
    assert state.trace is None
    _, after = sgd(0.1).update(grads, state)
    assert after.trace is None
    assert after.count == 1
    # A buffer that is there all the same is neither read nor written.
    p, g, state = array()
    new, after = sgd_step(p, g, state._replace(trace="untouched"), learning_rate=0.1)
    assert after == SGDState(4, "untouched")
    assert_close(new, p - 0.1 * g)


@pytest.mark.parametrize("mistake", ["nothing", "sign"])
def test_the_comparison_sees_a_wrong_kernel(mistake, fresh, monkeypatch):
    real = sgd_pallas.sgd

    def wrong(p, g, b, scalars):
        return [p, b] if mistake == "nothing" else real(p, g, b, scalars.at[0, 0].multiply(-1))

    monkeypatch.setattr(sgd_pallas, "sgd", wrong)
    options = {"learning_rate": 1e-3, "momentum": 0.9}
    with pytest.raises(AssertionError, match="Not equal"):
        assert_close(train_fused(*draw(), **options), train(optax.sgd(**options), *draw()))


def test_trees_of_mixed_dtypes_and_half_precision():
    """Each stored half is the nearest of the exact value."""
    p, g, state = array(shape=(40,))

    def mixed(t):
        return {name: t.astype(name) for name in ("float64", "float32", "bfloat16", "float16")}

    given = mixed(p), mixed(g), SGDState(state.count, mixed(state.trace))
    exact = jax.tree.map(lambda t: t.astype("float64") if t.ndim else t, given)
    options = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    for got, want in zip(
        jax.tree.leaves(sgd_step(*given, **options)), jax.tree.leaves(sgd_step(*exact, **options)), strict=True
    ):
        if got.ndim:
            error = np.abs(np.float64(got) - want)
            # eps x value is at least one ulp, half of it is the rounding; what cancels in float32 adds the rest.
            assert (error <= 0.51 * jnp.finfo(got.dtype).eps * np.abs(want) + 4 * jnp.finfo("float32").eps).all()


def test_what_is_not_finite_goes_where_optax_lets_it():
    values = jnp.asarray([1.0, jnp.inf, -jnp.inf, jnp.nan])
    p, g = (t.ravel() for t in jnp.meshgrid(values, values))
    for options in OPTIONS:
        want = train(optax.sgd(0.1, **options), p, [g, 0 * values[0] + jnp.zeros_like(p)])
        for got in (
            train(sgd(0.1, **options), p, [g, jnp.zeros_like(p)]),
            train_fused(p, [g, jnp.zeros_like(p)], learning_rate=0.1, **options),
        ):
            if options.get("momentum") != 0.0:  # A factor of 0 is no factor here, and makes NaN of infinity there.
                jax.tree.map(np.testing.assert_array_equal, got, want)


def test_same_bits_again_and_inputs_unchanged():
    given, options = array("float32"), {"learning_rate": 0.1, "momentum": 0.9}
    step = lambda *a: sgd_step(*a, **options)
    before = jax.tree.map(np.array, given)
    first, again, jitted = step(*given), step(*given), jax.jit(step)(*given)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    jax.tree.map(np.testing.assert_array_equal, jitted, first)
    jax.tree.map(np.testing.assert_array_equal, given, before)
    donated = jax.jit(step, donate_argnums=(0, 2))(*jax.tree.map(jnp.array, given))
    jax.tree.map(np.testing.assert_array_equal, donated, first)


def test_nothing_is_traced_anew_when_a_scalar_changes(fresh, monkeypatch):
    traces, real = [], sgd_pallas.sgd
    monkeypatch.setattr(sgd_pallas, "sgd", lambda *args: traces.append(1) or real(*args))
    p, g, state = array()
    for count, lr, momentum, decay in [(0, 0.1, 0.9, 0.0), (1, 0.2, 0.8, 0.1), (5, jnp.asarray(0.3), 0.7, 0.2)]:
        b = np.asarray(state.trace)
        want = spec.reference(p, g, b, lr=float(lr), momentum=momentum, weight_decay=decay, first=count == 0)
        options = {"learning_rate": lr, "momentum": momentum, "weight_decay": decay}
        p, state = sgd_step(p, g, SGDState(jnp.int32(count), state.trace), **options)
        assert_close((p, state.trace), tuple(map(jnp.asarray, want)))
    assert len(traces) == 1
    step = jax.jit(lambda *args, lr: sgd_step(*args, learning_rate=lr, momentum=0.9))
    for lr in (0.1, 0.2, 0.3):
        p, state = step(p, g, state, lr=lr)
    assert step._cache_size() == 1
    assert len(traces) == 1


# The derivatives of a step.


def native(p, g, b, *, momentum=None, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False):
    h = (-g if maximize else g) + weight_decay * p
    if momentum is None:
        return (p - 0.3 * h,)
    b = momentum * b + (1 - dampening) * h
    return p - 0.3 * (h + momentum * b if nesterov else b), b


def hand(p, g, b, **options):
    trace = b if "momentum" in options else None
    p, state = sgd_step(p, g, SGDState(jnp.int32(3), trace), learning_rate=0.3, **options)
    return tuple(jax.tree.leaves((p, state.trace)))


STEPS = [
    {},
    {"weight_decay": 0.2, "maximize": True},
    {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True},
]


@pytest.mark.parametrize("options", STEPS)
def test_derivatives_of_a_step(options):
    p, g, state = array(shape=(5,))
    arrays = p, g, state.trace
    check_grads(jax.jit(lambda *a: hand(*a, **options)), arrays, order=2, modes=["rev"])
    results, pullback = jax.vjp(lambda *a: hand(*a, **options), *arrays)
    wanted, wanted_pullback = jax.vjp(lambda *a: native(*a, **options), *arrays)
    assert_close(results, wanted)
    cotangents = tuple(jnp.cos(k * p) for k in range(len(results)))
    assert_close(pullback(cotangents), wanted_pullback(cotangents))
    jax.tree.map(np.testing.assert_array_equal, pullback(cotangents), pullback(cotangents))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("options", STEPS)
def test_blocks_of(platform, options, monkeypatch):
    grids, real = [], pl.pallas_call

    def interpreted(*args, **given):
        grids.append(given["grid"])
        return real(*args, **{**given, "interpret": True, "compiler_params": None})

    p, g, state = array(shape=(3, 1400))
    b = state.trace if "momentum" in options else None
    want = jax.vjp(lambda *a: native(*a, **options), p, g, state.trace)
    monkeypatch.setattr(pl, "pallas_call", interpreted)
    monkeypatch.setattr(step_pallas, "launch", lambda call, *operands: call(platform, *operands))
    scalars = sgd_pallas.scalars(lr=0.3, dtype=p.dtype, **options)
    assert_close(tuple(jax.jit(lambda *a: sgd_pallas.sgd(*a))(p, g, b, scalars)), want[0])
    cotangents = tuple(jnp.cos(k * p) for k in range(len(want[0])))
    got = jax.jit(lambda *a: sgd_pallas.sgd_pullback(*a, True))(*(*cotangents, None)[:2], scalars)
    assert_close(tuple(got), want[1](cotangents)[: len(got)])
    assert grids == [(3,), (3,)] if platform == "cuda" else [(2,), (2,)]


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_of_the_update_alone(options):
    p, g, state = array()
    given = state if "momentum" in options else SGDState(state.count, None)

    def ours(g):
        update, after = sgd(0.1, **options).update(g, given)
        return sum((jnp.sin(t) * p).sum() for t in jax.tree.leaves((update, after.trace)))

    def theirs(g):
        first = optax.TraceState(state.trace) if "momentum" in options else optax.EmptyState()
        update, (after, _) = optax.sgd(0.1, **options).update(g, (first, optax.EmptyState()))
        return sum((jnp.sin(t) * p).sum() for t in jax.tree.leaves((update, after)))

    assert_close(*(jit(jax.grad(f))(g) for f in (ours, theirs)))
    assert_close(jit(jax.jacrev(jax.grad(ours)))(g), jit(jax.jacrev(jax.grad(theirs)))(g))


@pytest.mark.parametrize("options", STEPS)
def test_derivatives_through_training(options):
    p, g, _ = array(shape=(4,))

    def after(step):
        def loss(p):
            def body(carry, _):
                p, b = carry
                new = step(p, jnp.sin(p) * g, b, **options)
                return (new[0], new[1] if len(new) > 1 else b), None

            (p, b), _ = jax.lax.scan(body, (p, 0 * p), length=3)
            return (p**3).sum() + jnp.cos(b).sum()

        return loss

    assert_close(jit(jax.grad(after(hand)))(p), jit(jax.grad(after(native)))(p))
    assert_close(jit(jax.grad(jax.checkpoint(after(hand))))(p), jit(jax.grad(after(native)))(p))
    hessians = [jit(jax.jacrev(jax.grad(after(f))))(p) for f in (hand, native)]
    assert_close(*hessians)


def test_vmap_is_a_loop():
    p, g, state = array(shape=(4, 5))
    rates = jnp.asarray([0.1, 0.2, 0.3, 0.4])

    def both(p, g, b, lr, count):
        def new(p, g, b):
            return sgd_step(p, g, SGDState(count, b), learning_rate=lr, momentum=0.9, dampening=0.5)

        (q, state), pullback = jax.vjp(new, p, g, b)
        return q, state.trace, pullback((jnp.cos(p), SGDState(np.zeros((), jax.dtypes.float0), jnp.sin(p))))

    # The first row takes its first step.
    arrays = p, g, state.trace, rates, jnp.arange(4)
    rows = [jax.jit(both)(*row) for row in zip(*arrays, strict=True)]
    assert_close(jax.jit(jax.vmap(both))(*arrays), jax.tree.map(lambda *r: jnp.stack(r), *rows))


@pytest.mark.parametrize("option", ["learning_rate", "momentum", "dampening", "weight_decay"])
def test_no_derivative_for_an_option(option):
    p, g, state = array()
    options = {"learning_rate": 0.1, "momentum": 0.9}
    with pytest.raises(NotImplementedError) as caught:
        jax.grad(lambda value: sgd_step(p, g, state, **(options | {option: value}))[0].sum())(0.5)
    assert str(caught.value) == "sgd_step: no derivative for learning_rate, momentum, dampening or weight_decay"


def test_a_refused_derivative_leaves_the_others_alone():
    p, g, state = array(shape=(11,))

    def total(g, lr):
        return sgd_step(p, g, state, learning_rate=lr, momentum=0.9)[0].sum()

    want = jax.grad(jax.jit(total))(g, 0.1)
    with pytest.raises(NotImplementedError):
        jax.grad(total, argnums=1)(g, 0.1)
    assert_close(jax.grad(total)(g, 0.1), want)


P = jnp.ones(3, "float32")
S = SGDState(jnp.int32(0), P)
LACKS = "sgd_step: state.trace is None, wanted buffers for the momentum: sgd(learning_rate, momentum).init(params)"
MISFITS = [
    ([P], P, S, ValueError, "sgd_step: the tree of params is "),
    (P, P, S._replace(trace=(P, P)), ValueError, "sgd_step: the tree of state.trace is "),
    (P, P, S._replace(trace=None), ValueError, LACKS),
    (
        {"w": P},
        {"w": P[:2]},
        SGDState(0, {"w": P}),
        ValueError,
        "sgd_step: shape of params['w'] is [3], wanted [2] like grads",
    ),
    (P, P, S._replace(trace=P[:1]), ValueError, "sgd_step: shape of state.trace is [1], wanted [3] like grads"),
    (P.astype("float16"), P, S, TypeError, "sgd_step: dtype of params is float16, wanted float32 like grads"),
    (P, P.astype("int32"), S, TypeError, "sgd_step: dtype of grads is int32, wanted one of float64, float32, "),
    (P, P, S._replace(trace="b"), TypeError, "sgd_step: state.trace is a str, wanted a jax.Array"),
]


@pytest.mark.parametrize(("params", "grads", "state", "error", "message"), MISFITS, ids=range(len(MISFITS)))
def test_refusals(params, grads, state, error, message):
    with pytest.raises(error) as caught:
        sgd_step(params, grads, state, learning_rate=0.1, momentum=0.9)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sgd(0.1).init({"w": np.ones(2, int)}), TypeError, "sgd: dtype of params['w'] is int64, wanted one of"),
        (lambda: sgd(0.1).init({"w": "w"}), TypeError, "sgd: params['w'] is a str, wanted a jax.Array"),
        (lambda: sgd(0.1, accumulator_dtype="float32"), ValueError, "sgd: accumulator_dtype is float32, wanted None"),
        (lambda: sgd(0.1, 0.9).update(P, sgd(0.1).init(P)), ValueError, "sgd: state.trace is None, wanted buffers"),
        (
            lambda: sgd_step(P, P, S, learning_rate=0.1, nesterov=True),
            ValueError,
            "sgd_step: nesterov is True with momentum None and dampening 0.0, wanted a momentum and zero dampening with",
        ),
        (
            lambda: sgd_step(P, P, S, learning_rate=0.1, momentum=0.9, dampening=0.1, nesterov=True),
            ValueError,
            "sgd_step: nesterov is True with momentum 0.9 and dampening 0.1, wanted a momentum",
        ),
    ],
)
def test_refusals_of_options(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
