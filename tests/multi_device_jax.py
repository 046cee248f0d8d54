"""Every op on devices of a mesh: inside jax.shard_map, which checks how arrays vary, on Auto and on Explicit axes.

A program of its own, because devices are counted when jax starts; it prints what failed, by name, as JSON. The op on
one device is not what it is held against, but jax's and optax's own functions there.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradlab.jax as lab
from gradlab.kernels.spec import specs
from gradlab.profiling.native.native import native
from tests import meshes_jax
from tests.check_programs import report

jax.config.update("jax_enable_x64", True)
AUTO = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
AUTO_2D = jax.make_mesh((2, 2), ("d", "k"), axis_types=(AxisType.Auto,) * 2)
EXPLICIT = jax.make_mesh((2, 2), ("d", "k"), axis_types=(AxisType.Explicit,) * 2)
# One case an op, of more than one element along each axis, with the rules that have the most arrays.
PICKED = {
    "adam": "amsgrad",
    "binary_cross_entropy_with_logits": "none, both weights",
    "conv2d": "relu",
    "cross_entropy": "soft, everything",
    "linear": "relu",
    "linear_cross_entropy": "mean, ignored rows, no bias",
    "mse_loss": "none",
}
CASES = [
    (s, next(c for c in s.select("check")[1:] + s.select("check")[:1] if c.name == PICKED.get(s.name, c.name)))
    for s in specs().values()
]
# Second derivatives are taken of these, one for each kind of rule.
TWICE = ("cross_entropy", "linear", "tanh")


def functions(spec, case):
    """The op and the native one, with the case's options: arrays -> a tuple of arrays."""
    for fn in (importlib.import_module(f"gradlab.autodiff.{spec.name}_jax").by_spec, native("jax", spec.name).fn):
        yield functools.partial(lambda fn, *args: as_tuple(fn(*args, **spec.at(case).options)), fn)


def as_tuple(results):
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def arrays(spec, case, seed):
    drawn = spec.at(case).make(seed)
    wrt = tuple(i for i, name in enumerate(drawn) if name in spec.wrt)
    return [jnp.asarray(a, None if a.dtype.kind == "f" else "int32") for a in drawn.values()], wrt


def total(fn):
    """One number with a cotangent of its own, never of one value, for every element of the results."""
    return lambda *args: sum((jnp.sin(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum() for y in fn(*args))


def derivatives(fn, wrt, twice):
    """Results, gradients, and one product with the Hessian if `twice`."""

    def along(*args):
        return sum((g * jnp.cos(jnp.arange(g.size)).reshape(g.shape)).sum() for g in jax.grad(total(fn), wrt)(*args))

    def every(*args):
        seconds = jax.grad(along, wrt)(*args) if twice else ()
        return fn(*args), jax.grad(total(fn), wrt)(*args), seconds

    return every


def assert_close(got, want):
    def one(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        scale = np.abs(w).max(initial=0)
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-12 * scale + 1e-14)
        return scale

    assert any(jax.tree.leaves(jax.tree.map(one, jax.device_get(got), jax.device_get(want))))


def in_shard_map(spec, case):
    """Each device has a row of some arguments, all share the others; outside, that is a vmap of the native op."""
    rows, wrt = zip(*(arrays(spec, case, seed) for seed in range(4)), strict=True)
    shared = [i % 2 == 1 for i in range(len(rows[0]))]
    args = [rows[0][i] if whole else jnp.stack([r[i] for r in rows]) for i, whole in enumerate(shared)]
    hand, theirs = functions(spec, case)

    def of_one(*args):
        return tuple(y[None] for y in hand(*(a if whole else a[0] for a, whole in zip(args, shared, strict=True))))

    places = tuple(P() if whole else P("d") for whole in shared)
    spread = jax.shard_map(of_one, mesh=AUTO, in_specs=places, out_specs=P("d"))
    mapped = jax.vmap(theirs, tuple(None if whole else 0 for whole in shared))
    assert_close(*(jax.jit(derivatives(fn, wrt[0], spec.name in TWICE))(*args) for fn in (spread, mapped)))


def parted(a, mesh):
    """An array over the first axis of the mesh along its first axis, and over the second one along its last."""
    axes = [None if n % 2 else axis for n, axis in zip(a.shape, ["d"] + [None] * (a.ndim - 2) + ["k"], strict=False)]
    return jax.device_put(a, NamedSharding(mesh, P(*axes)))


def on_auto_axes(spec, case):
    """As on Explicit axes, where the partitioner decides."""
    doubled = dataclasses.replace(case, sizes={axis: 2 * n for axis, n in case.sizes.items()})
    args, wrt = arrays(spec, doubled, 0)
    got, want = (jax.jit(derivatives(fn, wrt, spec.name in TWICE)) for fn in functions(spec, doubled))
    assert_close(got(*(parted(a, AUTO_2D) for a in args)), want(*args))


def on_explicit_axes(spec, case):
    """Every argument parted over its first axis and its last one."""
    doubled = dataclasses.replace(case, sizes={axis: 2 * n for axis, n in case.sizes.items()})
    args, wrt = arrays(spec, doubled, 0)
    hand, theirs = functions(spec, doubled)
    want = jax.jit(derivatives(theirs, wrt, spec.name in TWICE))(*args)

    with jax.set_mesh(EXPLICIT):
        given = [parted(a, EXPLICIT) for a in args]
        got = jax.jit(derivatives(hand, wrt, spec.name in TWICE))(*given)
        assert_close(got, want)
        for i, gradient in zip(wrt, got[1], strict=True):
            assert jax.typeof(gradient) == jax.typeof(given[i])
        assert_close(hand(*given), want[0])
    # Arrays say where they lie without a mesh around them too.
    assert_close(hand(*given), want[0])


def network(ours):
    linear, loss = (
        (lab.linear, lab.cross_entropy) if ours else (native("jax", "linear").fn, native("jax", "cross_entropy").fn)
    )
    return lambda params, x, t: loss(linear(x, params["w"], params["b"]), t)


def steps(mesh):
    """Two steps of each optimizer after a clipped gradient of a mean over the devices' batches, as of optax."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((6, 4))), "b": jnp.asarray(rng.standard_normal(4))}
    x, t = jnp.asarray(rng.standard_normal((8, 6))), jnp.arange(8, dtype="int32") % 4

    def train(loss, update, state, params, x, t):
        for _ in range(2):
            params, state = update(jax.grad(loss)(params, x, t), state, params)
        return params, state

    def fused_adam(grads, state, params):
        return lab.adam_step(params, grads, state, learning_rate=0.1, max_norm=0.3)

    def fused_sgd(grads, state, params):
        grads, _ = lab.clip_by_global_norm(0.3).update(grads, ())
        return lab.sgd_step(params, grads, state, learning_rate=0.1, momentum=0.9)

    def by_optax(transformation):
        def update(grads, state, params):
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return update

    clip = (optax.clip_by_global_norm(0.3), lab.clip_by_global_norm(0.3))
    adam, sgd = optax.chain(clip[0], optax.adam(0.1)), optax.chain(clip[0], optax.sgd(0.1, 0.9))
    rounded = functools.partial(lab.adam_step, learning_rate=0.1, max_norm=0.3, master_weights=True)
    pairs = [
        (fused_adam, lab.adam_init(params), adam),
        (by_optax(optax.chain(clip[1], lab.adam(0.1))), optax.chain(clip[1], lab.adam(0.1)).init(params), adam),
        (lambda g, s, p: rounded(p, g, s), lab.adam_init(params, master_weights=True), adam),
        (fused_sgd, lab.sgd(0.1, 0.9).init(params), sgd),
    ]
    for update, state, theirs in pairs:
        want, _ = jax.jit(functools.partial(train, network(False), by_optax(theirs)))(theirs.init(params), params, x, t)
        run = functools.partial(train, network(True), update)
        if mesh is AUTO:
            mean = lambda *args: jax.lax.pmean(network(True)(*args), "d")
            run = jax.shard_map(
                functools.partial(train, mean, update), mesh=AUTO, out_specs=P(), in_specs=(P(), P(), P("d"), P("d"))
            )
            got, _ = jax.jit(run)(state, params, x, t)
        else:
            put = lambda a: jax.device_put(a, P("d") if a.ndim and a.dtype != "int32" else P())
            with jax.set_mesh(mesh):
                given = jax.tree.map(put, (state, params))
                got, after = jax.jit(run)(*given, put(x), jax.device_put(t, P("d")))
                assert jax.tree.map(jax.typeof, (after, got)) == jax.tree.map(jax.typeof, given)
        assert_close(got, want)


def main():
    checks = {
        f"{f.__name__}: {s.name}": functools.partial(f, s, c)
        for f in (in_shard_map, on_auto_axes, on_explicit_axes)
        for s, c in CASES
    }
    checks |= {
        f"{f.__name__}: steps": functools.partial(steps, m)
        for f, m in ((in_shard_map, AUTO), (on_auto_axes, AUTO_2D), (on_explicit_axes, EXPLICIT))
    }
    checks |= dict(meshes_jax.checks())
    report(checks)


if __name__ == "__main__":
    main()
