"""cross_entropy's options on jax, each with every other: soft labels, weight, smoothing, z-loss, cap, axis, errors."""

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.experimental import checkify

import gradlab.jax as lab
from gradlab.autodiff.class_losses import class_range_jax
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.profiling.native.native_jax import NATIVE

REDUCTIONS = ("mean", "sum", "none")
LAYOUTS = {"rows": ((5, 6), -1), "pixels": ((2, 4, 3), 1), "one row": ((6,), 0)}


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def composed(x, labels, weight, axis, *, return_z_loss=False, **options):
    """The same of jax's own functions, over rows."""
    V = x.shape[axis]
    soft = jnp.issubdtype(labels.dtype, jnp.floating)
    flat = jnp.moveaxis(x, axis, -1)
    shape = flat.shape[:-1] if options["reduction"] == "none" else ()
    labels = (jnp.moveaxis(labels, axis, -1).reshape(-1, V)) if soft else labels.reshape(-1)
    if soft:
        options.pop("ignore_index")
    return NATIVE["cross_entropy"].fn(flat.reshape(-1, V), labels, weight, **options).reshape(shape)


def close(got, wanted, terms):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(
        got, wanted, rtol=0, atol=2 * (8 + terms) * 2.0**-53 * max(np.abs(wanted).max(initial=0), 1)
    )


@settings(max_examples=9, phases=[Phase.explicit, Phase.generate])  # shrinking would compile each of its tries
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    soft=st.booleans(),
    weighed=st.booleans(),
    ignore=st.sampled_from([-100, -1, 2]),
    reduction=st.sampled_from(REDUCTIONS),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 0.2]),
    returned=st.booleans(),
    softcap=st.sampled_from([None, 1.5]),
    inplace=st.booleans(),
)
@example("pixels", True, True, -100, "mean", 0.1, 0.2, False, 1.5, False)
@example("rows", False, True, 2, "mean", 0.0, 0.2, False, None, False)  # an ignored class has no weight in the mean
def test_every_option_with_every_other(
    layout, soft, weighed, ignore, reduction, smoothing, z_loss, returned, softcap, inplace
):
    rng = np.random.default_rng(len(layout) + 7 * soft)
    shape, axis = LAYOUTS[layout]
    V = shape[axis]
    x, u = jnp.asarray(3 * rng.standard_normal(shape)), jnp.asarray(rng.standard_normal(shape))
    weight = jnp.asarray(rng.uniform(0.5, 2, V)) if weighed else None
    labels = np.abs(rng.standard_normal(shape)) / V if soft else rng.integers(0, V, np.delete(shape, axis))
    if soft:
        ignore = -100
    elif labels.ndim:
        labels.ravel()[1::3] = ignore
    labels = jnp.asarray(labels)
    options = {"ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
    options["softcap"] = softcap
    c = jnp.asarray(rng.standard_normal(np.delete(shape, axis) if reduction == "none" else ()))

    def ours(x, q):
        found = lab.cross_entropy(x, q, weight=weight, axis=axis, return_z_loss=returned, inplace=inplace, **options)
        return found[0] - 0.5 * found[1] if returned else found

    def theirs(x, q):
        y = composed(x, q, weight, axis, **options)
        # The z-part is what the loss has more than the one without.
        return y - 0.5 * (y - composed(x, q, weight, axis, **(options | {"z_loss": 0.0}))) if returned else y

    def derivatives(fn):
        wrt = (0, 1) if soft else (0,)

        @jax.jit
        def run(x, q, u, c):
            def gradient(*moving):
                return jax.grad(lambda *a: (c * fn(*a)).sum(), wrt)(*moving, *(x, q)[len(moving) :])

            first, back = jax.vjp(gradient, *(x, q)[: len(wrt)])
            return fn(x, q), first, back(jax.tree.map(lambda d: u, first))

        return run(x, labels, u, c)

    jax.tree.map(lambda a, b: close(a, b, 60), derivatives(ours), derivatives(theirs))


@pytest.mark.parametrize("V", [1, 41, 32769, 262144])
def test_vocabularies_of_any_size(V):
    rng = np.random.default_rng(V)
    x, t = jnp.asarray(3 * rng.standard_normal((2, V))), jnp.asarray([0, V - 1])
    options = {"label_smoothing": 0.1, "softcap": 1.0}
    value, gradient = jax.jit(jax.value_and_grad(lambda x: lab.cross_entropy(x, t, **options)))(x)
    wanted, wanted_g = jax.jit(jax.value_and_grad(lambda x: NATIVE["cross_entropy"].fn(x, t, **options)))(x)
    close(value, wanted, V)
    close(gradient, wanted_g, V)


def test_any_cotangent_and_a_class_without_a_share():
    """A cotangent of 1 hands the gradient over, another one computes it anew; both are the gradient."""
    x = jnp.asarray([[0.5, -jnp.inf, 1.0], [1.0, 2.0, 3.0]])
    q = jnp.asarray([[0.25, 0.0, 0.75], [0.2, 0.3, 0.5]])
    y, back = jax.vjp(lambda x: lab.cross_entropy(x, q), x)
    kept = jnp.asarray([[0, 2]]), jnp.asarray([[0, 1, 2]])
    wanted = sum(
        NATIVE["cross_entropy"].fn(x[i, v], q[i, v], reduction="sum") for i, v in zip((0, 1), kept, strict=True)
    )
    close(y, wanted / 2, 3)
    (one,), (three,) = back(jnp.ones(())), back(jnp.asarray(3.0))
    assert one[0, 1] == three[0, 1] == 0
    close(three, 3 * one, 3)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "z_loss": 0.1}, {"reduction": "none"}, {"inplace": True}])
def test_one_array_of_the_logits_size_is_held_and_a_checkpoint_drops_it(options):
    """The logits; the native loss holds their softmax. Beside them no more than the labels and a few numbers a row."""
    M, V = 8, 64
    x, t = jnp.sin(jnp.arange(M * V, dtype="float32")).reshape(M, V), jnp.arange(M)

    def held(fn, *known):
        found = {id(a): a for a in jax.tree.leaves(jax.vjp(fn, x)[1]) if all(a is not k for k in known)}
        return sum(a.nbytes for a in found.values())

    loss = lambda x: lab.cross_entropy(x, t, **options)
    assert x.nbytes <= held(loss) <= x.nbytes + t.nbytes + 5 * 4 * M
    assert held(jax.checkpoint(loss), x) <= t.nbytes + 4 * M


def test_in_place_gives_the_memory_of_logits_that_nobody_needs():
    """Lowered for a GPU the gradient is declared as the logits' memory; XLA copies logits that are needed later."""
    t = jnp.zeros(64, "int32")

    def declared(inplace):
        def loss(x):
            return lab.cross_entropy(x, t, inplace=inplace, reduction="none").sum()

        x = jnp.ones((64, 512), "float32")
        return lowered(jax.jit(jax.grad(loss)), "cuda", x).as_text().count("output_operand_alias")

    assert declared(True) > declared(False)
    x = jnp.sin(jnp.arange(64 * 512.0).reshape(64, 512))
    both = jax.jit(jax.value_and_grad(lambda x: (lab.cross_entropy(x, t, inplace=True) * x.sum(), x), has_aux=True))
    (_, same), gradient = both(x)
    np.testing.assert_array_equal(same, x)
    wanted = jax.grad(lambda x: NATIVE["cross_entropy"].fn(x, t) * x.sum())(x)
    close(gradient, wanted, 512 * 64)


def test_a_class_out_of_range_inside_jit_is_checkifys_to_tell():
    x, t = jnp.zeros((3, 5)), jnp.asarray([0, 7, 1])
    checked = jax.jit(checkify.checkify(lambda x, t: jax.grad(lab.cross_entropy)(x, t), errors=checkify.user_checks))
    error, _ = checked(x, t)
    assert "cross_entropy: labels.ravel()[1] is 7, wanted a class in [0, 5)" in error.get()
    assert checked(x, t.at[1].set(-100))[0].get() is None


def test_a_class_out_of_range_is_told_under_vmap_and_in_a_loop():
    x, t = jnp.zeros((3, 5)), jnp.asarray([[0, 1, 2], [3, 4, 9]])
    words = "cross_entropy: labels.ravel()[2] is 9, wanted a class in [0, 5)"
    mapped = checkify.checkify(jax.jit(jax.vmap(lambda t: lab.cross_entropy(x, t))))
    assert words in mapped(t)[0].get()
    assert words in checkify.checkify(jax.checkpoint(jax.vmap(lambda t: lab.cross_entropy(x, t), 1)))(t.T)[0].get()
    looped = checkify.checkify(jax.jit(lambda t: jax.lax.map(lambda t: lab.cross_entropy(x, t), t)))
    assert words in looped(t)[0].get()
    assert mapped(t % 5)[0].get() is None


def test_the_check_of_classes_has_no_effect_on_a_program_that_nobody_checks():
    # An effect would keep jit from its own dispatch: 150 microseconds a call.
    x, t = jnp.zeros((3, 5)), jnp.zeros(3, "int32")
    for step in (lab.cross_entropy, jax.value_and_grad(lab.cross_entropy)):
        assert not jax.make_jaxpr(jax.jit(step))(x, t).effects
        assert jax.jit(step).lower(x, t).as_text().count("gradlab_guard") == 0


def test_a_class_out_of_range_on_an_accelerator_is_told_late_and_nothing_waits():
    class Late:
        """An array on its way."""

        def __init__(self, *found, ready=True):
            self.found, self.ready = found, ready

        copy_to_host_async = __array__ = None

        def is_ready(self):
            return self.ready

    Late.copy_to_host_async = lambda self: None
    Late.__array__ = lambda self, *_, **__: np.asarray(self.found)
    late = Late(4, 9, ready=False)
    try:
        class_range_jax.note(Late(-1, 0), "cross_entropy", 5)
        class_range_jax.note(late, "cross_entropy", 5)
        lab.raise_device_errors()
        late.ready = True
        with pytest.raises(
            IndexError, match=r"cross_entropy: labels.ravel\(\)\[4\] is 9, wanted a class in \[0, 5\); found"
        ):
            lab.raise_device_errors()
        lab.raise_device_errors()
    finally:
        class_range_jax._pending.clear()
    assert class_range_jax.out_of_range(jnp.asarray([[0, 5], [-100, 1]]), 5, -100).tolist() == [1, 5]
    assert class_range_jax.out_of_range(jnp.asarray([0, 4]), 5, -100)[0] == -1
