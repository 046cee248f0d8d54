"""adam_step in jax where it is fast: in place, float32 master weights, moments in bfloat16, a scaled gradient."""

import re

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from gradlab.jax import adam_init, adam_step
from gradlab.kernels import adam_pallas
from gradlab.kernels.common import rounding_pallas
from gradlab.kernels.optimizers import step_pallas
from gradlab.kernels.runtime.lower_pallas import lowered

BF16 = jnp.bfloat16


def normal(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def equal(got, want):
    """The same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(np.asarray(g, "float64"), np.asarray(w, "float64"))


@jax.jit
def stepped(params, grads, state, scale=None, found=None):
    return adam_step(params, grads, state, learning_rate=0.01, grad_scale=scale, found_inf=found)


@jax.jit
def rounded(params, grads, state, key):
    return adam_step(params, grads, state, learning_rate=0.01, state_dtype=BF16, seed=key)


# In place.


def test_donated_arrays_are_stepped_where_they_lie():
    p = {"w": normal(300, 70), "b": normal(7)}
    state = adam_init(p, amsgrad=True)
    want = stepped(p, p, state)
    places = [t.unsafe_buffer_pointer() for t in jax.tree.leaves((p, state))]
    step = jax.jit(adam_step.__wrapped__, static_argnames=("learning_rate",), donate_argnums=(0, 2))
    compiled = step.lower(p, p, state, learning_rate=0.01).compile()
    held = sum(t.nbytes for t in jax.tree.leaves((p, state)))
    memory = compiled.memory_analysis()
    # All that is donated is given back, and what else is made is small: no copy of a parameter.
    assert memory.alias_size_in_bytes == held
    grads = jax.tree.map(jnp.array, p)
    got = step(p, grads, state, learning_rate=0.01)
    assert sorted(t.unsafe_buffer_pointer() for t in jax.tree.leaves(got)) == sorted(places)
    equal(got, want)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_a_gpu_copies_nothing_whatever_the_size(name):
    """No padding or cutting around the kernel, all donated arrays its own, and those the program's results."""
    p = normal(33, 129, dtype="float32" if name == "plain" else BF16)
    made, words = {}, {}
    if name == "all":
        words = {"master_weights": True, "state_dtype": BF16}
        made = {"amsgrad": True, **words}
    state, one = adam_init(p, **made), jnp.float32(1)

    def step(p, g, state, one):
        return adam_step(p, g, state, **words, **({"grad_scale": one, "found_inf": one} if made else {}))

    donating = jax.jit(step, donate_argnums=(0, 2))
    text = lowered(donating, "cuda", p, p, state, one).as_text()
    touched = {
        found.group(1)
        for line in text.splitlines()
        if re.search(r"tensor<(33x129|4257)x", line)
        for found in re.finditer(r"= stablehlo\.(\w+)", line)
    }
    assert touched == {"reshape", "custom_call"}
    count = 5 if made else 3
    assert text.count("output_operand_alias<") == count
    # And the number of steps.
    assert len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text)) == count + 1
    control = lowered(donating, "tpu", p, p, state, one).as_text()
    assert "stablehlo.pad" in control


# Master weights.


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_master_weights_walk_as_float32(half):
    """Twenty steps each too small for the half parameter, whose moments are float32; a float32 one has no master."""
    p = {"half": normal(40, dtype=half), "full": normal(5)}
    state = adam_init(p, master_weights=True)
    assert state.master["full"] is None
    equal(state.master["half"], p["half"].astype("float32"))
    full = {"w": p["half"].astype("float32")}
    after = adam_init(full)
    step = jax.jit(lambda p, g, s: adam_step(p, g, s, learning_rate=1e-5, weight_decay=0.1, master_weights=True))
    other = jax.jit(lambda p, g, s: adam_step(p, g, s, learning_rate=1e-5, weight_decay=0.1))
    start = p
    assert state.mu["half"].dtype == state.nu["half"].dtype == "float32"
    for k in range(20):
        g = {"half": normal(40, dtype=half, seed=k), "full": normal(5, seed=k)}
        p, state = step(p, g, state)
        full, after = other(full, {"w": g["half"].astype("float32")}, after)
    moved = np.abs(np.asarray(full["w"]) - np.asarray(start["half"], "float32")).max()
    equal(state.master["half"], full["w"])
    equal(p["half"], state.master["half"].astype(half))
    assert moved > 5e-5


def test_a_parameter_that_somebody_changed_is_followed():
    p = normal(6, dtype=BF16)
    state = adam_init(p, master_weights=True)._replace(master=p.astype("float32") * (1 + 2.0**-10))
    step = jax.jit(lambda p, state: adam_step(p, 0 * p, state, master_weights=True))
    new, after = step(p, state)
    # No gradient: nothing moves, and the master is the one that rounds to p.
    equal((new, after.master), (p, state.master))
    new, after = step(p + 1, state)
    equal((new, after.master), (p + 1, (p + 1).astype("float32")))


# Moments in bfloat16.


def test_the_mean_over_seeds_is_the_float32_value():
    """Each moment is one of its two neighbours, and over seeds right to five deviations of its mean."""
    N, E = 600, 48
    p, g = normal(E), normal(E, seed=1)
    start = adam_init(p, amsgrad=True, state_dtype=BF16)
    start = start._replace(mu=normal(E, dtype=BF16, seed=2), nu=normal(E, dtype=BF16, seed=3) ** 2)
    start = start._replace(nu_max=(start.nu * 2).astype(BF16))
    keys = jax.random.split(jax.random.key(0), N)
    found = jax.jit(jax.vmap(lambda key: rounded(p, g, start, key)))(keys)[1]
    exact = stepped(p, g, jax.tree.map(lambda t: t.astype("float32") if t.ndim else t, start))[1]
    for name in ("mu", "nu", "nu_max"):
        drawn, want = np.asarray(getattr(found, name), "float64"), np.asarray(getattr(exact, name), "float64")
        ulp = 2.0 ** (np.floor(np.log2(np.abs(want))) - 7)
        low = np.floor(want / ulp) * ulp
        assert set(np.unique((drawn - low) / ulp)) <= {0.0, 1.0}
        up = (want - low) / ulp
        deviation = np.sqrt(up * (1 - up) / N) * ulp
        assert (np.abs(drawn.mean(0) - want) <= 5 * deviation + 2.0**-14 * ulp).all(), name
        # To nearest it would not be right: this comparison sees that.
        nearest = np.asarray(jnp.asarray(want, "float32").astype(BF16), "float64")
        assert (np.abs(nearest - want) > 5 * deviation + 2.0**-14 * ulp).mean() > 0.5
    # One number's rounding says nothing of another's.
    ups = np.stack([np.asarray(getattr(found, n), "float64").T for n in ("mu", "nu")]).reshape(2 * E, N)
    spread = ups.std(1) > 0
    worst = np.abs(np.corrcoef(ups[spread]) - np.eye(spread.sum())).max()
    assert worst < 6 / np.sqrt(N)


def test_the_seed_the_step_and_the_place_decide():
    p = {"a": normal(50), "b": normal(50)}
    g = jax.tree.map(lambda t: 0.3 * t, p)
    state = adam_init(p, state_dtype=BF16)
    step = jax.jit(
        lambda p, g, state, seed: adam_step(p, g, state, state_dtype=BF16, seed=seed), static_argnames=("seed",)
    )
    first = step(p, g, state, 7)[1]
    equal(step(p, g, state, 7)[1], first)
    differs = lambda a, b: np.mean(np.asarray(a, "float32") != np.asarray(b, "float32")) > 0.1
    assert differs(step(p, g, state, 8)[1].mu["a"], first.mu["a"])
    assert differs(step(p, g, state._replace(count=jnp.int32(5)), 7)[1].mu["a"], first.mu["a"])
    same = {"a": p["a"], "b": p["a"]}
    twins = step(same, jax.tree.map(lambda t: 0.3 * t, same), state, 7)[1]
    equal(twins.mu["a"], first.mu["a"])
    assert differs(twins.mu["a"], twins.mu["b"])
    # An old key of jax's is the new one.
    old, new = jax.random.PRNGKey(3), jax.random.key(3)
    equal(rounded(p, g, state, old), rounded(p, g, state, new))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_cut_changes_a_bit(platform, blocks_of):
    """Random bits hang on the element's place alone: blocks of a GPU and a TPU round as one block does."""
    p, g = normal(3, 1400), normal(3, 1400, seed=1)
    state = adam_init(p, amsgrad=True, state_dtype=BF16)
    want = adam_step(p, g, state, state_dtype=BF16, seed=5)
    grids = blocks_of(platform, step_pallas)
    equal(jax.jit(lambda *a: adam_step(*a, state_dtype=BF16, seed=5))(p, g, state)[1], want[1])
    assert grids == [(3,)] if platform == "cuda" else [(2,)]


def test_rounding_leaves_what_is_not_finite_and_what_fits():
    x = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 0.0, 1.5, -2.0], "float32")
    got = rounding_pallas.stochastic(x, jnp.uint32(0xFFFF))
    np.testing.assert_array_equal(got, x)
    # A subnormal is between its neighbours too.
    tiny = rounding_pallas.stochastic(jnp.asarray([3e-40], "float32"), jnp.uint32(0))
    assert tiny[0] <= 3e-40


def test_words_are_those_of_splitmix64():
    """Its published first word of seed 1234567, and no two arrays alike."""
    assert rounding_pallas.words(5, 0).tolist() == rounding_pallas.words(5, 0).tolist()
    many = {tuple(rounding_pallas.words(seed, number).tolist()) for seed in range(8) for number in range(8)}
    assert len(many) == 64


# A scaled gradient.


def test_a_scaled_gradient_is_divided_by_its_scale():
    p, g = normal(9), normal(9, seed=1)
    state = adam_init(p, amsgrad=True)
    want = stepped(p, g, state)
    equal(stepped(p, g * 1024, state, jnp.float32(1024)), want)
    equal(stepped(p, g * 1024, state, jnp.float32(1024), jnp.zeros(())), want)


def test_nothing_changes_where_infinity_was_found():
    p = {"a": normal(9, dtype=BF16), "b": normal(3)}
    g = {"a": p["a"].at[0].set(jnp.inf), "b": p["b"].at[1].set(jnp.nan)}
    words = {"master_weights": True, "state_dtype": BF16}
    state = adam_init(p, amsgrad=True, **words)._replace(count=jnp.int32(4))
    step = jax.jit(lambda p, g, state, found: adam_step(p, g, state, **words, found_inf=found))
    for found in (jnp.float32(1), jnp.asarray([2.0]), jnp.asarray(True)):
        equal(step(p, g, state, found), (p, state))
    moved, after = step(p, p, state, jnp.float32(0))
    assert after.count == 5
    assert not np.array_equal(moved["b"], p["b"])


@pytest.mark.parametrize(("max_norm", "scale"), [(0.5, None), (0.5, 1024.0), (100.0, 8.0)])
def test_gradients_are_clipped_by_their_common_norm(max_norm, scale):
    """As optax's two transformations, one after the other; the norm is that of the gradients without their scale."""
    optax = pytest.importorskip("optax")
    with jax.enable_x64(True):
        params = {"a": normal(9, dtype="float64"), "b": normal(2, 3, dtype="float64", seed=1)}
        grads = jax.tree.map(lambda p: jnp.cos(3 * p), params)
        transform = optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(0.01))
        want, theirs, ours, state = params, transform.init(params), params, adam_init(params)
        for _ in range(3):
            updates, theirs = transform.update(grads, theirs, want)
            want = optax.apply_updates(want, updates)
            given = grads if scale is None else jax.tree.map(lambda g: g * scale, grads)
            scaled = None if scale is None else jnp.asarray(scale)
            words = {"learning_rate": 0.01, "max_norm": max_norm, "grad_scale": scaled}
            ours, state = jax.jit(lambda p, g, s, words=words: adam_step(p, g, s, **words))(ours, given, state)
            grads = jax.tree.map(lambda p: jnp.cos(3 * p), want)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (ours, state.mu), (want, theirs[1][0].mu)
        )


@pytest.mark.parametrize("mistake", ["nothing", "zeros", "sign"])
def test_every_comparison_sees_a_wrong_kernel(mistake, monkeypatch):
    """What the tests above compare with, by a kernel that is broken: none of them passes."""
    real = adam_pallas.adam
    p, g = normal(9, dtype=BF16), normal(9, dtype=BF16, seed=1)
    words = {"master_weights": True, "state_dtype": BF16}
    state = adam_init(p, **words)
    want = [adam_step(p, g, state, **words, learning_rate=0.1), adam_step(p, g, adam_init(p), grad_scale=jnp.ones(()))]

    def wrong(p, g, m, v, x, w, lr, *more):
        held = [p, m, v] + ([] if w is None else [w])
        found = real(p, g, m, v, x, w, -lr if mistake == "sign" else lr, *more)
        return {"nothing": held, "zeros": [jnp.zeros_like(t) for t in held], "sign": found}[mistake]

    from gradlab.autodiff import adam_jax

    adam_jax.plain_step.clear_cache()
    monkeypatch.setattr(adam_pallas, "adam", wrong)
    try:
        got = [
            adam_step(p, g, state, **words, learning_rate=0.1),
            adam_step(p, g, adam_init(p), grad_scale=jnp.ones(())),
        ]
    finally:
        adam_jax.plain_step.clear_cache()
    for one, other in zip(got, want, strict=True):
        with pytest.raises(AssertionError):
            equal(one, other)


P = normal(3, dtype=BF16)
PLAIN, MASTER = adam_init(P), adam_init(P, master_weights=True)
MISFITS = [
    (lambda: adam_step(P, P, PLAIN, master_weights=True), ValueError,
     "adam_step: state.master is None with master_weights, wanted the state of adam_init(params, master_weights=...)"),
    (lambda: adam_step(P, P, MASTER), ValueError, "adam_step: state.master is given without master_weights, wanted "),
    (lambda: adam_step(P, P, PLAIN, state_dtype="float16"), ValueError,
     "adam_step: state_dtype is float16, wanted float32, bfloat16 or None"),
    (lambda: adam_init(P, state_dtype="int8"), ValueError, "adam_init: state_dtype is int8, wanted float32, bfloat16 or None"),
    (lambda: adam_init(P, mu_dtype="int8"), TypeError, "adam_init: mu_dtype is int8, wanted None or one of "),
    (lambda: adam_init(P, state_dtype=BF16, mu_dtype="float32"), ValueError, "adam_init: mu_dtype is float32, wanted "),
    (lambda: adam_step(normal(3), normal(3), adam_init(normal(3)), state_dtype=BF16), TypeError,
     "adam_step: dtype of state.mu is float32, wanted bfloat16 for its master_weights and state_dtype: adam_init"),
    (lambda: adam_step(normal(3), normal(3), adam_init(normal(3), state_dtype=BF16)), TypeError,
     "adam_step: dtype of state.nu is bfloat16, wanted float32 like grads"),
    (lambda: adam_step(P, P, PLAIN, max_norm=-1.0), ValueError, "adam_step: max_norm is -1.0, wanted a number from 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), MISFITS, ids=range(len(MISFITS)))
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_no_derivative_of_what_is_rounded_or_guarded():
    p = normal(3)
    with pytest.raises(NotImplementedError) as caught:
        jax.grad(lambda g: adam_step(p, g, adam_init(p), found_inf=jnp.zeros(()))[0].sum())(p)
    wanted = "adam_step: no derivative with master_weights, state_dtype, grad_scale, found_inf or max_norm"
    assert str(caught.value) == wanted
