"""adam, adamw, amsgrad and adam_step in jax against optax: steps, options, schedules, trees, transforms, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp

from gradlab.autodiff import adam_jax
from gradlab.jax import AdamState, adam, adam_init, adam_step, adamw, amsgrad, sgd
from gradlab.kernels import adam_pallas


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def fresh():
    """No compiled step from before, and none of this test's afterwards."""
    for rule in (adam_jax.step, adam_jax.pullback):
        rule.clear_cache()
    yield
    for rule in (adam_jax.step, adam_jax.pullback):
        rule.clear_cache()


SHAPES = {"w": (3, 4), "b": (5,), "inner": {"none": (0, 2)}}


def draw(dtype="float64", steps=5):
    """Parameters and gradients of different size, as trees; gradients have one more axis in front."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.linspace(-3, 1, steps)

    def tree(scale):
        def one(shape):
            return jnp.asarray(scale.reshape(-1, *[1] * len(shape)) * rng.standard_normal((len(scale), *shape)), dtype)

        return jax.tree.map(one, SHAPES, is_leaf=lambda s: isinstance(s, tuple))

    return jax.tree.map(lambda t: t[0], tree(np.ones(1))), tree(rng.permutation(sizes))


def array(dtype="float64", shape=(13,), seed=0):
    """p, g, m and a positive v, and their state after three steps."""
    rng = np.random.default_rng(seed)
    p, g, m = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(3))
    return p, g, AdamState(jnp.int32(3), m, jnp.asarray(rng.uniform(0.1, 1, shape), dtype))


def by_optax(p, g, state, *, weight_decay=0.0, **options):
    """One step of an array by optax from the same state."""
    transform = optax.scale_by_adam(**{k: v for k, v in options.items() if k != "learning_rate"})
    update, new = transform.update(g + weight_decay * p, optax.ScaleByAdamState(*state[:3]))
    return p - options.get("learning_rate", 1e-3) * update, AdamState(*new)


def assert_close(got, want, rtol=1e-12):
    """Relative to each array's largest value; dtypes equal."""

    def one(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        atol = rtol * np.abs(np.asarray(w, "float64")).max(initial=0)
        np.testing.assert_allclose(np.asarray(g, "float64"), np.asarray(w, "float64"), rtol=0, atol=atol)

    jax.tree.map(one, got, want)


def walk(one, carry, grads, compiled=False):
    """The parameters after each step, and the moments after the last; a compiled loop, or eager steps.

    Eager ones compile nothing anew for another option.
    """
    if compiled:
        run = jax.jit(lambda carry, grads: jax.lax.scan(lambda carry, g: 2 * (one(carry, g),), carry, grads))
        (_, state), (path, _) = run(carry, grads)
    else:
        steps = [jax.tree.map(lambda t, i=i: t[i], grads) for i in range(len(grads["b"]))]
        path = []
        for g in steps:
            carry = one(carry, g)
            path.append(carry[0])
        _, state = carry
        path = jax.tree.map(lambda *t: jnp.stack(t), *path)
    while not hasattr(state, "mu"):
        state = next(part for part in state if isinstance(part, tuple) and jax.tree.leaves(part))
    return path, {k: getattr(state, k) for k in ("mu", "nu", "nu_max") if getattr(state, k, None) is not None}


def train(transform, params, grads, compiled=False):
    """The walk of a gradient transformation."""

    def one(carry, g):
        updates, state = transform.update(g, carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), state

    return walk(one, (params, transform.init(params)), grads, compiled)


def train_fused(params, grads, maximum=False, **options):
    """The walk of fused steps."""

    def one(carry, g):
        return adam_step(carry[0], g, carry[1], **options)

    return walk(one, (params, adam_init(params, amsgrad=maximum)), grads)


def schedule(count):
    return 0.1 * 0.5 ** (count / 3)


RATES = st.sampled_from([0.05, jnp.asarray(0.03), np.float64(0.02), schedule])
COMMON = {
    "learning_rate": RATES,
    "b1": st.sampled_from([0.0, 0.8, 0.9]),
    "b2": st.sampled_from([0.5, 0.95, 0.999]),
    "eps": st.sampled_from([1e-8, 1e-3, 0.1]),
    "eps_root": st.sampled_from([0.0, 1e-6, 0.3]),
    "mu_dtype": st.sampled_from([None, None, "float64", "float32"]),
}
MASKS = [
    None,
    {"w": True, "b": False, "inner": {"none": False}},
    {"w": False, "b": True, "inner": True},
    lambda tree: jax.tree.map(lambda t: t.ndim != 1, tree),
]
WEIGHTED = {"weight_decay": st.sampled_from([0.0, 1e-4, 0.4, schedule]), "mask": st.sampled_from(MASKS)}
CORRECTED = {"bias_correction_mu": st.booleans(), "bias_correction_nu": st.booleans()}
KINDS = {
    "adam": (adam, optax.adam, {}),
    "adamw": (adamw, optax.adamw, WEIGHTED),
    "amsgrad": (amsgrad, optax.amsgrad, CORRECTED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_that_of_optax(kind):
    hand, theirs, more = KINDS[kind]

    @given(st.fixed_dictionaries({}, optional=COMMON | more), st.booleans())
    def check(options, chained):
        options = {"learning_rate": 0.05} | options
        # optax multiplies a moment in its own dtype, and loses there what is allowed here.
        rtol = 2e-6 if options.get("mu_dtype") == "float32" else 1e-12

        def both(make):
            return optax.chain(optax.clip(0.5), make(**options)) if chained else make(**options)

        assert_close(*(train(both(make), *draw()) for make in (hand, theirs)), rtol)

    check()


@pytest.mark.parametrize("maximum", [False, True])
def test_the_fused_step_is_that_of_optax(maximum):
    options = {"learning_rate": schedule, "b1": 0.8, "b2": 0.7, "eps": 1e-4, "eps_root": 1e-5}
    kind = optax.amsgrad if maximum else optax.adam
    assert_close(train_fused(*draw(), maximum, **options), train(kind(**options), *draw()))
    coupled = optax.chain(optax.add_decayed_weights(0.3), kind(0.05))
    assert_close(train_fused(*draw(), maximum, learning_rate=0.05, weight_decay=0.3), train(coupled, *draw()))
    up = optax.chain(optax.scale(-1.0), kind(0.05))
    assert_close(train_fused(*draw(), maximum, learning_rate=0.05, maximize=True), train(up, *draw()))


def test_decoupled_decay_is_that_of_optax():
    want = train(optax.adamw(0.05, weight_decay=0.4), *draw())
    assert_close(train_fused(*draw(), learning_rate=0.05, decoupled=True, weight_decay=0.4), want)


def test_amsgrad_takes_its_maximum_where_it_is_told():
    """optax after the bias correction, torch before it: as a formula, and not the same."""
    p, g, state = array()
    x = 0.5 * state.nu
    for corrected in (False, True):
        new, after = adam_step(p, g, state._replace(nu_max=x), learning_rate=0.1, b2=0.9, corrected_max=corrected)
        m, v, c = 0.9 * state.mu + 0.1 * g, 0.9 * state.nu + 0.1 * g**2, 1 - 0.9**4
        top = np.maximum(x, v / c) if corrected else np.maximum(x, v)
        assert_close(after.nu_max, jnp.asarray(top))
        d = np.sqrt(top if corrected else top / c) + 1e-8
        assert_close(new, p - 0.1 / (1 - 0.9**4) * m / d)


@pytest.mark.parametrize(
    ("hand", "theirs"), [(adam, optax.adam), (sgd, lambda lr: optax.sgd(optax.constant_schedule(lr)))]
)
def test_the_largest_count_stays(hand, theirs):
    """As in optax: one more would be negative, and the step that it corrects would not be a number."""
    most = jnp.iinfo(jnp.int32).max
    p, g = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    found = []
    for optimizer in (hand(0.1), theirs(0.1)):
        state = jax.tree.map(lambda a: jnp.full_like(a, most) if a.dtype == jnp.int32 else a, optimizer.init(p))
        updates, state = optimizer.update(g, state, p)
        counts = [a for a in jax.tree.leaves(state) if a.dtype == jnp.int32]
        assert counts
        assert all(count == most for count in counts)
        found.append(updates)
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert np.isfinite(found[0]).all()
    after = adam_step(p, g, adam_init(p)._replace(count=jnp.int32(most)), found_inf=jnp.zeros(()))[1]
    assert after.count == most


def test_a_transform_of_many_and_in_a_scan():
    """Over an axis of ensembles, each with its own learning rate."""
    params, grads = draw()
    rates = jnp.asarray([0.1, 0.01])

    def run(make):
        def one(rate, scale):
            return train(make(rate), jax.tree.map(lambda t: scale * t, params), grads, compiled=True)[0]

        return jax.vmap(one)(rates, jnp.asarray([1.0, 2.0]))

    assert_close(run(amsgrad), run(optax.amsgrad))


def test_adamw_without_parameters_is_refused():
    _, g, state = array()
    with pytest.raises(
        ValueError, match=r"adamw: params is None, wanted the parameters: update\(grads, state, params\)"
    ):
        adamw().update(g, state)


def small(dtype="float64"):
    """One array of what is drawn, and two gradients of it."""
    params, grads = draw(dtype, steps=2)
    return {"b": params["b"]}, {"b": grads["b"]}


# Each comparison that the tests rest on: with a right kernel it passes, with a wrong one it does not.
COMPARISONS = {
    "adam": lambda: assert_close(train(adam(), *small()), train(optax.adam(1e-3), *small())),
    "adamw": lambda: assert_close(train(adamw(), *small()), train(optax.adamw(1e-3), *small())),
    "amsgrad": lambda: assert_close(train(amsgrad(), *small()), train(optax.amsgrad(1e-3), *small())),
    "fused": lambda: assert_close(train_fused(*small()), train(optax.adam(1e-3), *small())),
    "fused, maximum": lambda: assert_close(train_fused(*small(), True), train(optax.amsgrad(1e-3), *small())),
    "float32": lambda: assert_close(
        train_fused(*small("float32")), train(optax.adam(1e-3), *small("float32")), 80 * jnp.finfo("float32").eps
    ),
}


def test_every_comparison_passes_a_right_kernel():
    for compare in COMPARISONS.values():
        compare()


@pytest.mark.parametrize("mistake", ["nothing", "zeros", "sign"])
def test_every_comparison_sees_a_wrong_kernel(mistake, fresh, monkeypatch):
    real = adam_pallas.adam

    def wrong(p, g, m, v, x, w, lr, scalars, update, *more):
        held = [jnp.zeros_like(g) if update else p, m, v] + ([] if x is None else [x])
        return {
            "nothing": held,
            "zeros": [jnp.zeros_like(t) for t in held],
            "sign": real(p, g, m, v, x, w, -lr, scalars, update, *more),
        }[mistake]

    monkeypatch.setattr(adam_pallas, "adam", wrong)
    for compare in COMPARISONS.values():
        with pytest.raises(AssertionError, match="Not equal"):
            compare()


def test_trees_of_mixed_dtypes_and_half_precision():
    dtypes = {"b": "float32", "c": "bfloat16", "d": "float16"}
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


@pytest.mark.parametrize(("platform", "maximum"), [("cuda", True), ("tpu", False)])
def test_blocks_of(platform, maximum, blocks_of):
    """Several blocks, the last one masked or padded: the values, the derivatives, and the sum over all blocks."""
    p, g, state = array(shape=(3, 1400))
    x = (state.nu * 0.9,) if maximum else ()

    def step(p, g, m, v, lr, *x):
        new, after = adam_step(p, g, AdamState(jnp.int32(3), m, v, *x), learning_rate=lr, weight_decay=0.2, eps=0.0)
        return new, *after[1 : 4 if maximum else 3]

    given = p, g, state.mu, state.nu, jnp.asarray(0.1), *x
    cotangents = tuple(jnp.cos(k * p) for k in range(4 if maximum else 3))
    run = lambda *given: (step(*given), jax.vjp(step, *given)[1](cotangents))
    want = run(*given)
    from gradlab.kernels.optimizers import step_pallas

    grids = blocks_of(platform, step_pallas)
    assert_close(jax.jit(run)(*given), want)
    # Of 2048 elements; 1024 for the many arrays of amsgrad's pullback in float64; of 4096 on a TPU.
    # Beside them the sum over the blocks.
    assert {grid for grid in grids if len(grid) == 1} == ({(3,), (5,)} if platform == "cuda" else {(2,)})


P = jnp.ones(3, "float32")
S = AdamState(jnp.int32(0), P, P)
TREE = "wanted PyTreeDef({'w': *}) like grads, or its beginning"
MISFITS = [
    (lambda: adam_step([P], P, S), ValueError, "adam_step: the tree of params is "),
    (lambda: adam_step(P, P, S._replace(nu=(P, P))), ValueError, "adam_step: the tree of state.nu is "),
    (lambda: adam_step({"w": P}, {"w": P[:2]}, AdamState(0, {"w": P}, {"w": P})), ValueError,
     "adam_step: shape of params['w'] is [3], wanted [2] like grads"),
    (lambda: adam_step(P, P, S._replace(mu=P[:1])), ValueError,
     "adam_step: shape of state.mu is [1], wanted [3] like grads"),
    (lambda: adam_step(P, P, S._replace(nu=P.astype("bfloat16"))), TypeError,
     "adam_step: dtype of state.nu is bfloat16, wanted float32 like grads"),
    (lambda: adam_step(P.astype("float16"), P, S), TypeError,
     "adam_step: dtype of params is float16, wanted float32 like grads"),
    (lambda: adam_step(P, P.astype("int32"), S), TypeError,
     "adam_step: dtype of grads is int32, wanted one of float64, float32, "),
    (lambda: adam_step(P, P, S._replace(mu="m")), TypeError, "adam_step: state.mu is a str, wanted a jax.Array"),
    (lambda: adam_step(P, P, S._replace(mu=P > 0)), TypeError, "adam_step: dtype of state.mu is bool, wanted one of "),
    (lambda: adam_step(P, P, S, learning_rate=P), ValueError,
     "adam_step: shape of learning_rate is [3], wanted [], one number"),
    (lambda: adam(nesterov=True), ValueError, "adam: nesterov is True, wanted False"),
    (lambda: adamw(nesterov=True), ValueError, "adamw: nesterov is True, wanted False"),
    (lambda: adam(mu_dtype="int8"), TypeError, "adam: mu_dtype is int8, wanted None or one of float64, "),
    (lambda: adamw(mask={"w": True, "v": False}).update({"w": P}, S._replace(mu={"w": P}, nu={"w": P}), {"w": P}),
     ValueError, "adamw: the tree of mask is PyTreeDef({'v': *, 'w': *}), " + TREE),
    (lambda: adam().init({"w": np.ones(2, int)}), TypeError,
     "adam: dtype of params['w'] is int64, wanted one of float64, float32, "),
    (lambda: adam().init({"w": "w"}), TypeError, "adam: params['w'] is a str, wanted a jax.Array"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), MISFITS, ids=range(len(MISFITS)))
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
