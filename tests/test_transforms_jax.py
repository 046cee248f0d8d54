"""jax's transforms of every op of the lab: vmap, jacrev, Hessians and loops, as of the native functions.

The ops come from their Specs: one with a new name is transformed here too.
"""

import dataclasses
import functools
import gc
import importlib

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")

import jax.numpy as jnp
from jax import export

from gradlab.jax import conv2d, cross_entropy, linear, relu
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.kernels.spec import specs
from gradlab.profiling.native.native import native
from tests.fast_jit_jax import jit

# A mapped kernel is more steps of the interpreter, so the cases are few and small.
PICKED = {
    "adam": ("decay", "amsgrad"),
    "conv2d": ("relu", "stride 2"),
    "cross_entropy": ("mean", "soft, everything"),
    "linear": ("relu", "no bias"),
    "linear_cross_entropy": ("mean, ignored rows, no bias",),
    "sgd": ("dampening", "decay alone"),
}
CASES = [
    pytest.param(spec, case, id=f"{spec.name}, {case.name}")
    for spec in specs().values()
    for case in spec.select("check")
    if case.name in PICKED.get(spec.name, [c.name for c in spec.select("check")][:2])
]
# One case of each op, and another where there is one: a transform of a transform takes one or the other.
FIRST = list({p.values[0].name: p for p in reversed(CASES)}.values())[::-1]
LAST = list({p.values[0].name: p for p in CASES}.values())
TWICE, LAST_TWICE = ([p for p in cases if p.values[0].order >= 2] for cases in (FIRST, LAST))
TARGETS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def functions(spec, case):
    """The hand-written op and the native one, with the case's options: arrays -> a tuple of arrays."""
    by_hand = importlib.import_module(f"gradlab.autodiff.{spec.name}_jax").by_spec
    for fn in (by_hand, native("jax", spec.name).fn):
        yield functools.partial(lambda fn, *args: as_tuple(fn(*args, **spec.at(case).options)), fn)


def as_tuple(results):
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def arrays(spec, case, count=None):
    """The case's inputs, or `count` of them stacked in front, each drawn anew; and which are differentiated."""
    drawn = [spec.at(case).make(seed) for seed in range(count or 1)]
    columns = [np.stack([d[name] for d in drawn]) if count else drawn[0][name] for name in drawn[0]]
    wrt = tuple(i for i, name in enumerate(drawn[0]) if name in spec.wrt)
    return [jnp.asarray(c, None if c.dtype.kind == "f" else "int32") for c in columns], wrt


def total(fn):
    """One number with a cotangent of its own, never of one value, for every element of the results."""
    return lambda *args: sum((jnp.sin(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() for y in fn(*args))


def forward_and_backward(fn, wrt):
    """Results and gradients."""
    return lambda *args: (fn(*args), jax.grad(total(fn), wrt)(*args))


def assert_close(got, want):
    """Within rounding, relative to each array's largest value; something is not zero."""

    def one(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        scale = np.abs(w).max(initial=0)
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-12 * scale + 1e-15)
        return scale

    assert any(jax.tree.leaves(jax.tree.map(one, got, want)))


def patterns(count):
    """in_axes: all arguments mapped, each one alone, the last one alone not; at changing places."""
    places = [0, -1, 1, 0]
    yield tuple(places[i % 4] for i in range(count))
    if count > 1:
        for i in range(count):
            yield tuple(places[(i + k) % 4] if k == i else None for k in range(count))
        yield (*(places[i % 4] for i in range(1, count)), None)


@pytest.mark.parametrize(("spec", "case"), CASES)
def test_vmap(spec, case):
    mapped, wrt = arrays(spec, case, 3)
    hand, theirs = (forward_and_backward(fn, wrt) for fn in functions(spec, case))
    # Row by row, a native program serves all patterns.
    theirs = jit(theirs)
    chosen = list(dict.fromkeys(patterns(len(mapped))))
    first = any(p.values == (spec, case) for p in FIRST)
    for axes in chosen if first else chosen[-1:]:
        # An axis that a scalar of a row does not have is its first.
        axes = tuple(a if a is None or t.ndim > 1 else 0 for a, t in zip(axes, mapped, strict=True))
        args = [t[0] if a is None else jnp.moveaxis(t, 0, a) for a, t in zip(axes, mapped, strict=True)]
        rows = [theirs(*(t[0 if a is None else k] for a, t in zip(axes, mapped, strict=True))) for k in range(3)]
        assert_close(jit(jax.vmap(hand, axes))(*args), jax.tree.map(lambda *r: np.stack(r), *rows))


@pytest.mark.parametrize(("spec", "case"), FIRST)
def test_vmap_of_vmap(spec, case):
    """Every other argument mapped by the outer one alone, the first by both."""
    mapped, wrt = arrays(spec, case, 2)
    args = [jnp.stack([t, t[::-1]]) if i == 0 else t for i, t in enumerate(mapped)]
    inner = tuple(0 if i == 0 else None for i in range(len(args)))
    results = [jit(jax.vmap(jax.vmap(forward_and_backward(fn, wrt), inner)))(*args) for fn in functions(spec, case)]
    assert_close(*results)


@pytest.mark.parametrize(("spec", "case"), LAST)
def test_jacrev(spec, case):
    args, wrt = arrays(spec, case)
    assert_close(*(jit(jax.jacrev(fn, wrt))(*args) for fn in functions(spec, case)))


@pytest.mark.parametrize(("spec", "case"), TWICE)
def test_hessian(spec, case):
    args, wrt = arrays(spec, case)
    assert_close(*(jit(jax.jacrev(jax.grad(total(fn), wrt), wrt))(*args) for fn in functions(spec, case)))


@pytest.mark.parametrize(("spec", "case"), LAST_TWICE)
def test_jacrev_of_jacrev_of_each_of_a_batch(spec, case):
    """The results are bent, because an op that is linear has nothing but zeros for a second derivative."""
    mapped, _ = arrays(spec, case, 2)

    def bent(fn):
        return lambda *args: tuple(jnp.sin(y).ravel()[:2] for y in fn(*args))

    found = [jit(jax.vmap(jax.jacrev(jax.jacrev(bent(fn)))))(*mapped) for fn in functions(spec, case)]
    assert_close(*found)


def after_a_loop(fn, args, wrt, checkpointed):
    """A number that three steps lead to, each of which bends the differentiated arguments by the results of `fn`."""

    def loss(*moving):
        def body(carry, _):
            full = dict(enumerate(args)) | dict(zip(wrt, carry, strict=True))
            pull = sum(jnp.sin(y).mean() for y in fn(*(full[i] for i in range(len(args)))))
            return tuple(t * (1 + 0.1 * jnp.sin(pull)) for t in carry), None

        body = jax.checkpoint(body) if checkpointed else body
        return sum((t**3).sum() for t in jax.lax.scan(body, moving, length=3)[0])

    return loss


@pytest.mark.parametrize("way", ["checkpointed", "mapped"])
@pytest.mark.parametrize(("spec", "case"), FIRST)
def test_derivative_through_a_loop(spec, case, way):
    """What jax keeps of a loop's steps, and keeps again when it is differentiated again, where it can be."""
    args, wrt = arrays(spec, case, 2 if way == "mapped" else None)
    moving, every = [args[i] for i in wrt], tuple(range(len(wrt)))
    results = []
    for fn in functions(spec, case):
        fn = jax.vmap(fn) if way == "mapped" else fn
        once = jax.grad(after_a_loop(fn, args, wrt, way == "checkpointed"), every)

        def along(*moving, once=once):
            """The Hessian's pullback of one vector: a whole Hessian would map the loop over every element."""
            return sum((g * jnp.cos(g.size + t)).sum() for g, t in zip(once(*moving), moving, strict=True))

        results.append(jit(jax.grad(along, every) if spec.order >= 2 else once)(*moving))
    assert_close(*results)


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize(("spec", "case"), CASES)
def test_mapped_and_lowered_for(platform, spec, case):
    """A batch and, once an op, a batch of batches with one argument shared, for machines that are not there."""
    mapped, wrt = arrays(spec, case, 2)
    hand = forward_and_backward(next(functions(spec, case)), wrt)
    shared = (*[0] * (len(mapped) - 1), None) if len(mapped) > 1 else (0,)
    nested = jax.vmap(jax.vmap(hand, shared), shared)
    # One more axis on what both map; what is shared by both loses the one it had.
    twice = [jnp.stack([t, t]) if a == 0 else t[0] for a, t in zip(shared, mapped, strict=True)]
    first = any(p.values == (spec, case) for p in FIRST)
    for fn, args in ((jax.vmap(hand), mapped), (nested, twice))[: 2 if first else 1]:
        floats = [t.astype("float32") if t.dtype == "float64" else t for t in args]
        text = lowered(jax.jit(fn), platform, *floats).as_text()
        assert text.count(f"@{TARGETS[platform]}") >= 1


# Small networks.


def perceptron(layers, params, x, t):
    linear, _, relu, loss = layers
    return loss(linear(relu(linear(x, params["w"], params["b"])), params["v"], params["c"]), t)


def convolutional(layers, params, x, t):
    linear, conv, relu, loss = layers
    y = relu(conv(x.reshape(-1, 3, 4, 1), params["k"], params["a"]))
    return loss(linear(y.reshape(y.shape[0], -1), params["u"], params["c"]), t)


def native_loss(z, t):
    return -jnp.take_along_axis(jax.nn.log_softmax(z), t[:, None], 1).mean()


def native_conv(x, k, a):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=dims) + a


LAYERS = (
    (linear, conv2d, relu, cross_entropy),
    (lambda x, w, b: x @ w + b, native_conv, jax.nn.relu, native_loss),
)


def network(kind):
    rng = np.random.default_rng(0)
    shapes = {
        perceptron: {"w": (12, 4), "b": (4,), "v": (4, 3), "c": (3,)},
        convolutional: {"k": (2, 2, 1, 2), "a": (2,), "u": (24, 3), "c": (3,)},
    }[kind]
    params = {name: jnp.asarray(rng.standard_normal(shape) / 2) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.standard_normal((4, 12))), jnp.asarray([0, 2, 1, 1])


NETWORKS = pytest.mark.parametrize("kind", [perceptron, convolutional])


@NETWORKS
def test_gradient_of_each_sample(kind):
    params, x, t = network(kind)

    def each(layers):
        one = lambda params, x, t: kind(layers, params, x[None], t[None])
        return jit(jax.vmap(jax.grad(one), (None, 0, 0)))(params, x, t)

    samples = [each(layers) for layers in LAYERS]
    assert_close(*samples)
    whole = jax.grad(functools.partial(kind, LAYERS[1]))(params, x, t)
    assert_close(jax.tree.map(lambda g: g.mean(0), samples[0]), whole)


@NETWORKS
def test_hessian_of_a_network(kind):
    params, x, t = network(kind)
    hessians = [jit(jax.jacrev(jax.grad(functools.partial(kind, layers))))(params, x, t) for layers in LAYERS]
    assert_close(*hessians)
    if kind is perceptron:
        again = jit(jax.jacrev(jax.jacrev(functools.partial(kind, LAYERS[0]))))(params, x, t)
        assert_close(again, hessians[1])


@NETWORKS
def test_ensemble_of_networks(kind):
    """Parameters mapped, data not."""
    params, x, t = network(kind)
    many = jax.tree.map(lambda p: jnp.stack([p, -p, 2 * p]), params)
    found = [
        jit(jax.vmap(jax.value_and_grad(functools.partial(kind, layers)), (0, None, None)))(many, x, t)
        for layers in LAYERS
    ]
    assert_close(*found)


@pytest.mark.parametrize(("spec", "case"), FIRST)
def test_no_tracer_outlives_its_trace(spec, case):
    """Forward and derivatives, traced alone and mapped: each program has those before it in it."""
    args, wrt = arrays(spec, case)
    fn = forward_and_backward(next(functions(spec, case)), wrt)
    gc.freeze()  # What is looked through for leaks, after every trace, is what this test makes.
    with jax.checking_leaks():
        jax.jit(jax.vmap(fn)).trace(*(t[None] for t in args))
        if spec.order >= 2:
            jax.jit(jax.grad(lambda *args: sum(g.sum() for g in fn(*args)[1]), wrt)).trace(*args)


def of_any_size(spec, case):
    """Shapes of the case's inputs whose rows, elements or images are as many as one likes, and that axis."""
    axis = next(letter for letter in "BME" if letter in case.sizes)
    (size,) = export.symbolic_shape("size")
    given, wrt = arrays(spec, case)
    letters = [a.axes for a in spec.at(case).inputs]
    shapes = [
        [size if a == axis else n for a, n in zip(axes, t.shape, strict=True)]
        for axes, t in zip(letters, given, strict=True)
    ]
    return [jax.ShapeDtypeStruct(shape, t.dtype) for shape, t in zip(shapes, given, strict=True)], axis, wrt


@pytest.mark.parametrize(("spec", "case"), FIRST)
def test_export_of_any_batch(spec, case):
    shapes, axis, wrt = of_any_size(spec, case)
    hand, theirs = (jax.jit(forward_and_backward(fn, wrt)) for fn in functions(spec, case))
    program = export.export(hand)(*shapes)
    given, _ = arrays(spec, dataclasses.replace(case, sizes={**case.sizes, axis: 6}))
    assert_close(program.call(*given), theirs(*given))


@pytest.mark.parametrize(("spec", "case"), FIRST)
def test_export_of_any_batch_for_a_gpu_is_refused_in_a_line(spec, case):
    shapes, _, _ = of_any_size(spec, case)
    with pytest.raises(ValueError, match=r"^\w+: operands are .*wanted known sizes.*") as caught:
        export.export(jax.jit(next(functions(spec, case))), platforms=("cuda",))(*shapes)
    assert "\n" not in str(caught.value)
