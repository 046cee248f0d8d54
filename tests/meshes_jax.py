"""What devices of a mesh send each other where gradlab's ops run on parts of arrays: the compiled program is read.

Functions for `multi_device_jax.py`, which runs them on 1, 2, 4 and 8 of its devices. Values are held against jax's own
ops, unsharded, in float64.
"""

import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradlab.jax as lab
from gradlab.kernels.runtime.lower_pallas import GPU

SENDS = re.compile(
    r"= (\([^)]*\)|\S+) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
SHAPE = re.compile(r"\b[a-z]+\d+\[([\d,]*)\]")
KINDS = (AxisType.Auto, AxisType.Explicit)


def mesh(kind, **sizes):
    """A mesh of the first devices."""
    devices = jax.devices()[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes), devices=devices)


def put(x, on, *spec):
    """The array on the devices of all processes, which each have it."""
    return jax.make_array_from_callback(x.shape, NamedSharding(on, P(*spec)), np.asarray(x).__getitem__)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(math.prod(shape)).standard_normal(shape))


def compiled(fn, *args):
    return (fn if hasattr(fn, "lower") else jax.jit(fn)).lower(*args).compile()


def sent(program):
    """What a compiled program sends: {operation: numbers of elements of its results, sorted}."""
    found = {}
    for shapes, operation in SENDS.findall(program.as_text()):
        sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in SHAPE.findall(shapes)]
        found.setdefault(operation, []).extend(sizes)
    return {operation: sorted(sizes) for operation, sizes in found.items()}


def assert_close(got, want, scale=1e-12):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        atol = scale * max(1, float(abs(w).max()))
        for part in g.addressable_shards:
            np.testing.assert_allclose(np.asarray(part.data), np.asarray(w)[part.index], rtol=0, atol=atol)


def ran(fn, args, want, scale=1e-12, **sends):
    """The results of a program, which are close to what is wanted, and for which this alone is sent."""
    program = compiled(fn, *args)
    found = sent(program)
    assert found == {name.replace("_", "-"): sorted(sizes) for name, sizes in sends.items() if sizes}, found
    got = program(*args)
    assert_close(got, want, scale)
    return got


def gradient(fn, *wrt):
    return jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), wrt)


def network(linear, loss):
    def of(params, x, t):
        for w, b in params[:-1]:
            x = jnp.tanh(linear(x, w, b)) if linear is not lab.linear else lab.tanh(linear(x, w, b))
        return loss(linear(x, *params[-1]), t)

    return of


OURS = network(lab.linear, lab.mse_loss)
THEIRS = network(lambda x, w, b: x @ w + b, lambda y, t: ((y - t) ** 2).mean())


def data_parallel(kind, n):
    """A batch over the devices, weights everywhere: the gradients are all that is sent, once."""
    on = mesh(kind, d=n)
    params = [(draw(6, 10), draw(10)), (draw(10, 3), draw(3))]
    x, t = draw(16, 6), draw(16, 3)
    given = jax.tree.map(lambda p: put(p, on), params), put(x, on, "d"), put(t, on, "d")
    step = jax.value_and_grad(OURS)
    sizes = [1, *(p.size for p in jax.tree.leaves(params))]
    got = ran(step, given, jax.value_and_grad(THEIRS)(params, x, t), all_reduce=sizes if n > 1 else [])
    for grad, p in zip(jax.tree.leaves(got[1]), jax.tree.leaves(given[0]), strict=True):
        assert grad.sharding.is_equivalent_to(p.sharding, p.ndim)


def tensor_parallel(kind, n):
    """Columns of the first weights and rows of the second ones over the devices: one sum of the results, forward."""
    on = mesh(kind, k=n)
    x, (w, b), (u, c) = draw(8, 5, 6), (draw(6, 16), draw(16)), (draw(16, 3), draw(3))
    given = put(x, on), put(w, on, None, "k"), put(b, on, "k"), put(u, on, "k"), put(c, on)

    def ours(x, w, b, u, c):
        return lab.linear(lab.linear(x, w, b, activation="relu"), u, c, activation="relu")

    def theirs(x, w, b, u, c):
        return jax.nn.relu(jax.nn.relu(x @ w + b) @ u + c)

    want = theirs(x, w, b, u, c)
    ran(ours, given, want, all_reduce=[want.size] if n > 1 else [])
    wanted = gradient(theirs, 0, 1, 2, 3, 4)(x, w, b, u, c)
    ran(gradient(ours, 0, 1, 2, 3, 4), given, wanted, all_reduce=[want.size, x.size] if n > 1 else [])


def fully_sharded(kind, n):
    """Weights over the devices of the batch: they are gathered, activations are not, gradients lie as they do."""
    on = mesh(kind, d=n)
    x, w, b = draw(16, 12), draw(12, 4), draw(4)
    given = put(x, on, "d"), put(w, on, "d"), put(b, on, "d")
    gradients = compiled(gradient(functools.partial(lab.linear, activation="relu"), 1, 2), *given)
    got = gradients(*given)
    assert_close(got, gradient(lambda x, w, b: jax.nn.relu(x @ w + b), 1, 2)(x, w, b))
    if kind == AxisType.Explicit:
        assert all(g.sharding.is_equivalent_to(p.sharding, p.ndim) for g, p in zip(got, given[1:], strict=True))
    assert set(sent(gradients)["all-gather"]) == {48, 4}


def for_gpus(kind, n):
    """Lowered for CUDA on a mesh of GPUs that are not there: kernels of parts, and one sum of each gradient."""
    on = AbstractMesh((n,), ("d",), axis_types=(kind,), abstract_device=AbstractDevice(GPU, None, "gpu"))
    at = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(on, P(*spec)))
    step = jax.jit(gradient(lab.linear, 1, 2))
    with jax.sharding.use_abstract_mesh(on):
        traced = step.trace(at((128 * n, 64), "d"), at((64, 256)), at((256,)))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kernels = [line.rpartition(" : ")[2] for line in text.splitlines() if "__gpu$xla.gpu.triton" in line]
    assert any("tensor<128x64xf32>" in types for types in kernels), kernels
    assert not any(f"tensor<{128 * n}x" in types for types in kernels), kernels
    assert text.count("stablehlo.all_reduce") == 2


def refusals(kind, n):
    """One line for arrays on different meshes."""
    x, w = put(draw(8, 6), mesh(kind, d=n), "d"), put(draw(6, 4), mesh(kind, k=n))
    wanted = rf"^launch: operands lie on the meshes {{'d': {n}}} and {{'k': {n}}}, wanted one mesh\b"
    with pytest.raises(ValueError, match=wanted):
        lab.linear(x, w)


def sequence_parallel(kind, n):
    """Positions over the devices: a linear layer sends nothing forward, and its weights' gradients backward."""
    on = mesh(kind, d=n)
    x, w, b = draw(3, 8, 6), draw(6, 4), draw(4)
    given = put(x, on, None, "d"), put(w, on), put(b, on)
    ran(lab.linear, given, x @ w + b)
    want = gradient(lambda x, w, b: x @ w + b, 0, 1, 2)(x, w, b)
    ran(gradient(lab.linear, 0, 1, 2), given, want, all_reduce=[w.size, b.size] if n > 1 else [])


def convolution(kind, n):
    """Images, filters or channels over the devices, and groups of a depthwise convolution."""
    on = mesh(kind, d=n)
    x, w, b = draw(8, 6, 5, 8), draw(3, 3, 8, 8), draw(8)

    def theirs(x, w, b, groups=1):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return jax.nn.relu(y + b)

    ours = functools.partial(lab.conv2d, activation="relu")
    pooled = lambda x: lab.max_pool2d(x, 2)
    many, want = n > 1, gradient(theirs, 0, 1, 2)(x, w, b)
    for places, forward, backward in (
        (((("d"),), (), ()), [], [w.size, b.size]),
        (((), (None, None, None, "d"), ("d",)), [], [x.size]),
        (((None, None, None, "d"), (None, None, "d"), ()), [8 * 6 * 5 * 8], [8 * 6 * 5 * 8]),
    ):
        given = [put(a, on, *place) for a, place in zip((x, w, b), places, strict=True)]
        ran(ours, given, theirs(x, w, b), all_reduce=forward if many else [])
        ran(gradient(ours, 0, 1, 2), given, want, 1e-11, all_reduce=backward if many else [])
    apart = functools.partial(ours, groups=8)
    given = put(x, on, None, None, None, "d"), put(w[:, :, :1], on, None, None, None, "d"), put(b, on, "d")
    grouped = gradient(functools.partial(theirs, groups=8), 0, 1, 2)
    ran(gradient(apart, 0, 1, 2), given, grouped(x, w[:, :, :1], b), 1e-11)
    halves = lambda x: x.reshape(8, 3, 2, 5, 8)[:, :, :, :4].reshape(8, 3, 2, 2, 2, 8).max((2, 4))
    ran(gradient(pooled, 0), given[:1], gradient(halves, 0)(x))


def optimizers(kind, n):
    """A step on sharded parameters sends nothing and stays in its memory; a global norm is one sum of a number."""
    on = mesh(kind, d=n)
    places = {(16, 6): ("d",), (8,): ("d",)}
    params = {"w": draw(16, 6), "b": draw(8), "s": draw(5)}
    one = params, jax.tree.map(jnp.cos, params), lab.adam_init(params)
    given = jax.tree.map(lambda a: put(a, on, *places.get(a.shape, ())), one)
    for max_norm in (None, 0.3):
        update = functools.partial(lab.adam_step, learning_rate=0.1, max_norm=max_norm)
        step = jax.jit(update, donate_argnums=(0, 2))
        text = step.lower(*given).compile().as_text()
        assert text.count("may-alias") + text.count("must-alias") >= 9, text[:400]
        got = ran(update, given, update(*one), all_reduce=[1] if max_norm and n > 1 else [])
        for after, before in zip(jax.tree.leaves(got), jax.tree.leaves((given[0], given[2])), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, before.ndim), (after.sharding, before.sharding)


def gradients_elsewhere(kind, n):
    """Gradients that lie otherwise are brought to parameters and states, which stay where they are, in their memory."""
    on = mesh(kind, d=n // 2, k=2)
    params = {"w": draw(16, 8), "b": draw(8)}
    lie = lambda tree, *spec: jax.tree.map(lambda a: put(a, on, *spec[2 - a.ndim :]), tree)

    def transformed(transformation):
        def update(params, grads, state):
            updates, state = transformation.update(grads, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        return update, transformation.init(params)

    adam, sgd = (functools.partial(step, learning_rate=0.1) for step in (lab.adam_step, lab.sgd_step))
    half = {"state_dtype": jnp.bfloat16, "master_weights": True}
    for update, state in (
        (functools.partial(adam, max_norm=0.3), lab.adam_init(params, amsgrad=True)),
        (functools.partial(adam, seed=3, **half), lab.adam_init(params, **half)),
        (functools.partial(sgd, momentum=0.9), lab.sgd(0.1, 0.9).init(params)),
        (sgd, lab.sgd(0.1).init(params)),
        transformed(lab.adam(0.1)),
        transformed(lab.adamw(0.1)),
        transformed(lab.sgd(0.1, 0.9)),
    ):
        one = params, jax.tree.map(jnp.cos, params), state
        given = lie(params, "d", "k"), lie(one[1], "k", "d"), lie(state, "d", "k")
        want = jax.jit(update)(*one)
        for donated in ((), (0, 2)):
            program = jax.jit(update, donate_argnums=donated).lower(*given).compile()
            sends = sent(program)
            sends.pop("all-reduce", None)
            # A quarter of w's gradient and half of b's.
            assert sends == {"collective-permute": [4, 32]}, sends
            if donated:
                arrays = sum(a.ndim > 0 for a in jax.tree.leaves((params, state)))
                aliases = program.as_text().count("may-alias") + program.as_text().count("must-alias")
                assert aliases >= arrays, (aliases, arrays)
        # The last program takes what it is given, so that eager steps come first.
        for got in (update(*given), program(*given)):
            assert_close(got, want)
            for after, before in zip(jax.tree.leaves(got), jax.tree.leaves((one[0], state)), strict=True):
                place = NamedSharding(on, P(*("d", "k")[2 - before.ndim :]))
                assert before.ndim == 0 or after.sharding.is_equivalent_to(place, before.ndim), (after.sharding, place)


def trained_elsewhere(kind, n):
    """As after a layer whose batch lies along the axis of its weights' rows: its gradients come out otherwise."""
    on = mesh(kind, d=n // 2, k=2)
    x, t, w = draw(8, 6), draw(8, 4), draw(6, 4)
    loss = lambda w, x, t: lab.mse_loss(lab.linear(x, w), t)
    step = lambda w, state, x, t: lab.adam_step(w, jax.grad(loss)(w, x, t), state)
    state = lab.adam_init(w)
    want = jax.jit(step)(w, state, x, t)
    given = jax.tree.map(lambda a: put(a, on, *("d", "k")[: a.ndim]), (w, state, x))
    got = jax.jit(step, donate_argnums=(0, 1))(*given, put(t, on, "d"))
    assert_close(got, want)
    for after in jax.tree.leaves(got):
        assert after.ndim == 0 or after.sharding.spec == P("d", "k"), after.sharding


def random_rounding(kind, n):
    """Moments that are rounded at random have the same bits on any mesh, and nothing is sent."""
    on = mesh(kind, d=n)
    params = {"w": draw(16, 6).astype("float32"), "v": draw(4, 8).astype("bfloat16")}
    grads = jax.tree.map(jnp.cos, params)
    state = lab.adam_init(params, state_dtype=jnp.bfloat16, master_weights=True)
    step = functools.partial(lab.adam_step, learning_rate=0.1, seed=3, state_dtype=jnp.bfloat16, master_weights=True)
    places = {(16, 6): ("d",), (4, 8): (None, "d")}
    spread = lambda tree: jax.tree.map(lambda a: put(a, on, *places.get(a.shape, ())), tree)
    given = spread(params), spread(grads), spread(state)
    ran(step, given, jax.jit(step)(params, grads, state), 0)


def transforms(kind, n):
    """vmap with its axis over the devices or beside them, checkpoint, scan and second derivatives."""
    on = mesh(kind, d=n)
    x, w = draw(8, 16, 6), draw(6, 6)
    spread = put(x, on, "d"), put(w, on)
    beside = put(x, on, None, "d"), put(w, on)
    layer = lambda x, w: lab.tanh(lab.linear(x, w))
    theirs = lambda x, w: jnp.tanh(x @ w)
    for given, wraps in ((spread, (lambda f: f, jax.checkpoint)), (beside, (jax.checkpoint,))):
        ran(jax.vmap(layer, (0, None)), given, theirs(x, w))
        repeated = lambda layer, wrap: lambda x, w: jax.lax.scan(wrap(lambda c, _: (layer(c, w), None)), x, None, 3)[0]
        for wrap in wraps:
            program = compiled(gradient(repeated(layer, wrap), 0, 1), *given)
            assert_close(program(*given), gradient(repeated(theirs, wrap), 0, 1)(x, w))
            assert "all-gather" not in sent(program)

    def twice(layer):
        return jax.grad(lambda x, w: sum((g**2).sum() for g in gradient(layer, 0, 1)(x, w)), (0, 1))

    program = compiled(twice(layer), *spread)
    assert_close(program(*spread), twice(theirs)(x, w), 1e-11)
    assert "all-gather" not in sent(program)


def uneven(kind, n):
    """A size that the devices do not divide is whole on each of them; sums are over no padding."""
    on = mesh(kind, d=n)
    x, w = draw(4 * n, 6), draw(6, 3 * n + 1)

    def odd(x, w):
        y = lab.linear(x, w)
        return lab.linear(y[:-1].T, y[:-1])

    given = put(x, on, "d"), put(w, on)
    theirs = lambda x, w: (x @ w)[:-1].T @ (x @ w)[:-1]
    assert_close(jax.jit(odd)(*given), theirs(x, w))


def nnx_model(kind, n):
    """A flax model with sharding metadata through the hooks, data and tensor parallel: flax's own, unsharded."""
    if importlib.util.find_spec("flax") is None:
        return
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, hooks):
            rngs, init, zeros = nnx.Rngs(0), nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
            options = {"rngs": rngs, "dtype": jnp.float64, "param_dtype": jnp.float64}
            product = {"dot_general": lab.dot_general} if hooks else {}
            conv = {"conv_general_dilated": lab.conv_general_dilated} if hooks else {}
            spread = nnx.with_partitioning
            self.conv = nnx.Conv(3, 8, (3, 3), **options, **conv)
            columns = {"kernel_init": spread(init, (None, "k")), "bias_init": spread(zeros, ("k",))}
            self.a = nnx.Linear(8 * 36, 16, **columns, **options, **product)
            self.b = nnx.Linear(16, 4, kernel_init=spread(init, ("k", None)), **options, **product)

        def __call__(self, x):
            x = jnp.tanh(self.conv(x))
            return self.b(jnp.tanh(self.a(x.reshape(x.shape[0], -1))))

    def gradients(on, hooks, x, t):
        with jax.set_mesh(on):
            graph, state = nnx.split(Model(hooks))
            loss = lambda state, x, t: ((nnx.merge(graph, state)(x) - t) ** 2).mean()
            step = jax.value_and_grad(loss)
            given = state, put(x, on, "d"), put(t, on, "d")
            program = compiled(step, *given)
            return program(*given), sent(program), state

    x, t = draw(8, 6, 6, 3), draw(8, 4)
    want, _, _ = gradients(mesh(AxisType.Auto, d=1, k=1), False, x, t)
    got, found, state = gradients(mesh(kind, d=2, k=n // 2), True, x, t)
    assert_close(got, want)
    assert set(found) == {"all-reduce"}, found
    for grad, p in zip(jax.tree.leaves(got[1]), jax.tree.leaves(state), strict=True):
        assert grad.sharding.is_equivalent_to(p.sharding, p.ndim)


def named_by_jit(kind, n):
    """Arrays on no mesh yet, which jax.jit is told to spread."""
    on = mesh(kind, d=n)
    there = [NamedSharding(on, P(*spec)) for spec in (("d",), (), ())]
    given = [np.asarray(a) for a in (draw(16, 6), draw(6, 4), draw(4))]
    spread = jax.jit(gradient(lab.linear, 0, 1, 2), in_shardings=there)
    assert "CustomSPMDPartitioning" in spread.lower(*given).as_text()
    want = gradient(lambda x, w, b: x @ w + b, 0, 1, 2)(*map(jnp.asarray, given))
    ran(spread, given, want, all_reduce=[24, 4])


# On how many devices of Auto and of Explicit axes each runs.
CHECKS = {
    data_parallel: ((1, 2, 4, 8), (4,)),
    tensor_parallel: ((1, 2, 4, 8), (4,)),
    sequence_parallel: ((8,), (4,)),
    convolution: ((4,), (2,)),
    optimizers: ((8,), (2,)),
    gradients_elsewhere: ((4,), (4,)),
    trained_elsewhere: ((4,), (4,)),
    random_rounding: ((4,), (4,)),
    transforms: ((8,), (4,)),
    uneven: ((4,), ()),
    named_by_jit: ((4,), ()),
    fully_sharded: ((4,), (2,)),
    for_gpus: ((), (8,)),
    refusals: ((), (4,)),
    nnx_model: ((8,), (4,)),
}


def checks():
    """Each check by its name."""
    for check, counts in CHECKS.items():
        for kind, numbers in zip(KINDS, counts, strict=True):
            for n in numbers:
                yield f"{check.__name__}: {kind.name}, {n}", functools.partial(check, kind, n)
