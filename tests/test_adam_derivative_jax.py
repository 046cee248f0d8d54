"""The derivative of adam_step in jax: every argument, the learning rate, ties and zeros, training, meta-learning."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp
from jax.test_util import check_grads

from gradlab.autodiff import adam_jax
from gradlab.jax import AdamState, adam, adam_init, adam_step, adamw, cross_entropy, linear
from gradlab.kernels import adam_pallas
from tests.fast_jit_jax import jit


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


def arrays(maximum, shape=(7,)):
    """p, g, m, v, lr and with a maximum x, on both sides of the v' to come."""
    rng = np.random.default_rng(1)
    p, g, m = (jnp.asarray(rng.standard_normal(shape)) for _ in range(3))
    v, x = jnp.asarray(rng.uniform(0.1, 1, shape)), jnp.asarray(rng.choice([0.05, 40.0], shape))
    return (p, g, m, v, jnp.asarray(0.2), *((x,) if maximum else ()))


def by_hand(**options):
    """The fused step of arrays from step 3."""

    def step(p, g, m, v, lr, x=None):
        new, after = adam_step(p, g, AdamState(jnp.int32(3), m, v, x), learning_rate=lr, **options)
        return (new, after.mu, after.nu) if x is None else (new, after.mu, after.nu, after.nu_max)

    return step


def by_formula(weight_decay=0.0, decoupled=False, maximize=False, corrected_max=True, eps_root=0.0, b2=0.999):
    """The same written with jax's own operations, which differentiates it."""

    def step(p, g, m, v, lr, x=None):
        h = (-g if maximize else g) + (0 if decoupled else weight_decay * p)
        m, v, c = 0.9 * m + 0.1 * h, b2 * v + (1 - b2) * h**2, 1 - b2**4
        top = v / c
        if x is not None:
            x = jnp.maximum(x, v / c if corrected_max else v)
            top = x if corrected_max else x / c
        moved = lr / (1 - 0.9**4) * m / (jnp.sqrt(top + eps_root) + 1e-8)
        new = p - moved - (lr * weight_decay * p if decoupled else 0)
        return (new, m, v) if x is None else (new, m, v, x)

    return step


def back(step, given):
    """The results, and the pullback of cotangents that differ in every place."""
    results, pullback = jax.vjp(step, *given)
    return results, pullback(tuple(jnp.cos(1 + k + jnp.arange(y.size)).reshape(y.shape) for k, y in enumerate(results)))


def assert_close(got, want, rtol=1e-12):
    """Relative to each array's largest value."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=rtol * np.abs(w).max(initial=0) + 1e-300)


OPTIONS = [
    {},
    {"weight_decay": 0.4, "maximize": True, "eps_root": 0.1},
    {"weight_decay": 0.4, "decoupled": True, "b2": 0.8},
    {"weight_decay": 0.3, "corrected_max": False, "b2": 0.8, "eps_root": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("maximum", [False, True])
def test_derivative_with_respect_to_everything(options, maximum):
    given = arrays(maximum)
    assert_close(back(by_hand(**options), given), back(by_formula(**options), given))
    check_grads(by_hand(**options), given, 1, modes=["rev"], rtol=1e-6)


def test_derivative_of_the_transformations():
    """The update alone, whose parameter is nobody's, or the decay's alone; and its learning rate."""
    p, g, m, v, lr = arrays(False)

    def ours(make):
        return lambda p, g, m, v, lr: (make(lr).update(g, AdamState(jnp.int32(3), m, v), p)[0] + p,)

    def theirs(weight_decay):
        return lambda *a: by_formula(weight_decay=weight_decay, decoupled=True)(*a)[:1]

    assert_close(back(ours(adam), (p, g, m, v, lr)), back(theirs(0.0), (p, g, m, v, lr)))
    decayed = ours(lambda lr: adamw(lr, weight_decay=0.6))
    assert_close(back(decayed, (p, g, m, v, lr)), back(theirs(0.6), (p, g, m, v, lr)))


def test_derivative_with_respect_to_a_schedule():
    p, g, m, v, lr = arrays(False)

    def last(rate):
        return adam_step(p, g, AdamState(jnp.int32(3), m, v), learning_rate=lambda count: rate / (1 + count))[0].sum()

    want = jax.grad(lambda rate: by_formula()(p, g, m, v, rate / 4)[0].sum())(lr)
    assert_close(jax.grad(last)(lr), want)


@pytest.mark.parametrize("mistake", ["nothing", "zeros", "sign", "rate"])
def test_every_comparison_sees_a_wrong_pullback(mistake, fresh, monkeypatch):
    real = adam_pallas.adam_pullback

    def wrong(p, g, m, v, x, lr, cp, cm, cv, cx, scalars, update):
        found = real(p, g, m, v, x, lr, cp, cm, cv, cx, scalars, update)
        return {
            "nothing": [p, g, m, v, *([] if x is None else [x]), lr],
            "zeros": [jnp.zeros_like(t) for t in found],
            "sign": real(p, g, m, v, x, -lr, cp, cm, cv, cx, scalars, update),
            "rate": [*found[:-1], 0 * found[-1]],
        }[mistake]

    monkeypatch.setattr(adam_pallas, "adam_pullback", wrong)
    given = arrays(True)
    with pytest.raises(AssertionError):
        assert_close(back(by_hand(), given), back(by_formula(), given))
    with pytest.raises(AssertionError):
        check_grads(by_hand(), given, 1, modes=["rev"], rtol=1e-6)


def test_a_tie_is_shared_in_halves():
    """Where x = v' each takes half, as jax.numpy.maximum has it: between the derivatives of the two sides."""
    p, g, m, v, lr, _ = arrays(True)
    step, formula = by_hand(corrected_max=False), by_formula(corrected_max=False)
    tied, other = (one(p, g, m, v, lr)[2] for one in (step, formula))
    sides = [back(step, (p, g, m, v, lr, tied * (1 + side * 1e-12)))[1] for side in (-1, 1)]
    found = back(step, (p, g, m, v, lr, tied))[1]
    assert_close(found, jax.tree.map(lambda a, b: (a + b) / 2, *sides), 1e-10)
    assert_close(found, back(formula, (p, g, m, v, lr, other))[1])
    assert np.abs(sides[0][-1] - sides[1][-1]).max() > 0.1


@pytest.mark.parametrize("maximum", [False, True])
def test_nothing_flows_through_the_root_of_zero(maximum):
    """Before any gradient d = eps and no derivative is taken of the root; with eps_root it has one."""
    zero, p = jnp.zeros(3), jnp.ones(3)
    cotangent = jnp.asarray([1.0, -2.0, 3.0])
    given = (p, zero, zero, zero, jnp.asarray(1e-3), *((zero,) if maximum else ()))

    def first(**options):
        def step(p, g, m, v, lr, x=None):
            return adam_step(p, g, AdamState(jnp.int32(0), m, v, x), learning_rate=lr, **options)[0]

        return step

    dp, dg, dm, dv, dlr, *dx = jax.vjp(first(), *given)[1](cotangent)
    np.testing.assert_array_equal(dp, cotangent)
    # The first step with d = eps: lr / (1 - b1) / eps * (1 - b1) for g.
    assert_close((dg, dm, dv), (-1e-3 / 1e-8 * cotangent, -1e-3 / 1e-8 * 9 * cotangent, zero))
    assert not any(np.any(t) for t in (dlr, *dx))
    moving = (p, zero, p, zero, jnp.asarray(1e-3), *((zero,) if maximum else ()))
    assert all(np.isfinite(t).all() for t in jax.vjp(first(), *moving)[1](cotangent))
    dv = jax.vjp(first(eps_root=0.01, eps=0.1), *moving)[1](cotangent)[3]
    # a m' / (root + eps)^2 / (2 root) / c times b2, with m' = 0.9, a = lr / 0.1, c = 1 - b2; with a tie half of it.
    want = 1e-2 * 0.9 / 0.2**2 / 0.2 / 0.001 * 0.999 * cotangent
    assert_close(dv, want / 2 if maximum else want)


@pytest.mark.parametrize("maximum", [False, True])
def test_derivative_through_training(maximum):
    p, g, *_ = arrays(False)

    def after(step):
        def loss(p, lr):
            def body(carry, _):
                p, m, v, *x = carry
                return step(p, jnp.sin(p) * g, m, v, lr, *x), None

            start = (p, 0 * p, 0 * p + 0.1, *((0 * p + 0.2,) if maximum else ()))
            return (jax.lax.scan(body, start, length=3)[0][0] ** 2).sum()

        return jit(jax.grad(loss, (0, 1)))

    want = after(by_formula())(p, 0.1)
    assert_close(after(by_hand())(p, 0.1), want)
    if maximum:
        assert_close(after(jax.checkpoint(by_hand()))(p, 0.1), want)


def test_meta_learning():
    """Three steps on a loss of the lab's layers: what the last loss says of the rate and of where it began."""
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.standard_normal((6, 4))), jnp.asarray([0, 2, 1, 1, 0, 2])
    start = {"w": (4, 3), "b": (3,)}
    start = {name: jnp.asarray(rng.standard_normal(shape) / 2) for name, shape in start.items()}

    def loss(params):
        return cross_entropy(linear(x, params["w"], params["b"]), t)

    def after(params, rate):
        def body(carry, _):
            params, state = carry
            return adam_step(params, jax.grad(loss)(params), state, learning_rate=rate, eps=1e-3), None

        carry = params, adam_init(params, amsgrad=True)
        return loss(jax.lax.scan(body, carry, length=3)[0][0])

    both = jit(jax.value_and_grad(after, (0, 1)))
    learned = lambda params, rate: both(params, rate)[0]
    dparams, drate = both(start, 0.05)[1]
    assert learned(start, 0.05) < loss(start)

    def slope(move, step):
        """Central differences in two steps, extrapolated."""
        found = [(learned(*move(h)) - learned(*move(-h))) / (2 * h) for h in (step, step / 2)]
        return (4 * found[1] - found[0]) / 3

    assert abs(drate) > 0.1
    np.testing.assert_allclose(drate, slope(lambda h: (start, 0.05 + h), 1e-4), rtol=1e-7)
    for name in start:
        way = jnp.asarray(rng.standard_normal(start[name].shape))
        moved = slope(lambda h, name=name, way=way: (start | {name: start[name] + h * way}, 0.05), 1e-4)
        np.testing.assert_allclose((dparams[name] * way).sum(), moved, rtol=1e-6, atol=1e-8)


def test_vmap_is_a_loop():
    p, g, m, v, _, x = arrays(True, (4, 7))
    rates = jnp.asarray([0.1, 0.2, 0.3, 0.4])

    def both(p, g, m, v, lr, x):
        return back(by_hand(), (p, g, m, v, lr, x))

    given = p, g, m, v, rates, x
    rows = [both(*row) for row in zip(*given, strict=True)]
    assert_close(jax.vmap(both)(*given), jax.tree.map(lambda *r: jnp.stack(r), *rows))


@pytest.mark.parametrize("option", ["b1", "b2", "eps", "eps_root", "weight_decay"])
def test_no_derivative_for_an_option(option):
    p, g, m, v, _ = arrays(False)
    with pytest.raises(NotImplementedError) as caught:
        jax.grad(lambda value: adam_step(p, g, AdamState(jnp.int32(3), m, v), **{option: value})[0].sum())(0.5)
    assert str(caught.value) == "adam_step: no derivative for b1, b2, eps, eps_root or weight_decay"


def test_a_refused_derivative_leaves_the_others_alone():
    p, g, m, v, lr = arrays(False)

    def total(g, lr, b1):
        return adam_step(p, g, AdamState(jnp.int32(3), m, v), learning_rate=lr, b1=b1)[0].sum()

    want = jax.grad(jax.jit(total), (0, 1))(g, lr, 0.9)
    with pytest.raises(NotImplementedError):
        jax.grad(total, 2)(g, lr, 0.9)
    assert_close(jax.grad(total, (0, 1))(g, lr, 0.9), want)


def test_second_derivative_is_refused():
    p, g, m, v, _ = arrays(False)
    with pytest.raises(NotImplementedError) as caught:
        jax.jacrev(jax.grad(lambda g: adam_step(p, g, AdamState(jnp.int32(3), m, v))[0].sum()))(g)
    assert str(caught.value) == "adam_step: its second derivative is not implemented, wanted order 1"
