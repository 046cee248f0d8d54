"""The class losses on 8 devices, their classes split over some: against jax's own functions on one.

A program of its own, because devices are counted when jax starts; it prints what failed, by name, as JSON. Words after
its name choose the checks that have one of them in theirs.
"""

import functools
import importlib.util
import json
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradlab.jax as lab
from gradlab.kernels.class_losses import chunks_pallas, linear_second_pallas
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.profiling.native.native_jax import NATIVE
from gradlab.profiling.pallas_cpu.run import cuda_on_cpu
from tests import fast_jit_jax as fast
from tests.check_programs import report

jax.config.update("jax_enable_x64", True)
M, V = 6, 16
AUTO = (AxisType.Auto,)
# Of each: its axes, the one of the rows, those of the classes.
MESHES = {
    "2": (jax.make_mesh((2,), ("tp",), AUTO), None, "tp"),
    "4": (jax.make_mesh((4,), ("tp",), AUTO), None, "tp"),
    "8": (jax.make_mesh((8,), ("tp",), AUTO), None, "tp"),
    "2 x 4": (jax.make_mesh((2, 4), ("d", "tp"), AUTO * 2), "d", "tp"),
    "(2 x 2) x 2": (jax.make_mesh((2, 2, 2), ("a", "d", "b"), AUTO * 3), "d", ("a", "b")),
}
EVERY = {"weighted": True, "label_smoothing": 0.1, "z_loss": 0.2, "softcap": 2.0}
CHECKS = {}


def check(*cases):
    """Register a check once, or for each of the cases, by name."""

    def register(fn):
        for case in cases or ((),):
            words = [w if isinstance(w, str) else json.dumps(w, sort_keys=True) for w in case]
            CHECKS[": ".join([fn.__name__, *words])] = functools.partial(fn, *case)
        return fn

    return register


def close(got, want, terms=60, unit=2.0**-53):
    """Within `terms` roundings of the largest; NaN and infinities stand in the same places."""

    def one(g, w):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert g.shape == w.shape, (g.shape, w.shape)
        scale = np.abs(w[np.isfinite(w)]).max(initial=0)
        np.testing.assert_allclose(g, w, rtol=0, atol=2 * (8 + terms) * unit * max(scale, 1))

    jax.tree.map(one, got, want)


def drawn(soft, dtype="float64", classes=V):
    """Logits, labels and weights; a third of the classes is 2, which a caller may ignore."""
    rng = np.random.default_rng(7 * soft + classes)
    x = jnp.asarray(3 * rng.standard_normal((M, classes)), dtype)
    labels = rng.dirichlet(np.ones(classes), M) * 1.3 if soft else rng.integers(0, classes, M).astype("int32")
    if not soft:
        labels[1::3] = 2
    return x, jnp.asarray(labels, dtype if soft else None), jnp.asarray(rng.uniform(0.5, 2, classes), dtype)


def sharded(where, soft, weighted, typed, **options):
    """cross_entropy of whole arrays (logits, labels, weights), run with its classes split."""
    mesh, rows, names = MESHES[where]
    each = options["reduction"] == "none"
    rows = rows if each else None

    def of_part(x, labels, a):
        return lab.cross_entropy(x, labels, weight=a if weighted else None, axis_name=names, **options)

    places = P(rows, names), P(rows, names) if soft else P(rows), P(names)
    return jax.shard_map(of_part, mesh=mesh, in_specs=places, out_specs=P(rows) if each else P(), check_vma=typed)


def native(x, labels, a, weighted, **options):
    return NATIVE["cross_entropy"].fn(x, labels, a if weighted else None, **options)


def derivatives(fn, wrt=(0,)):
    """(arrays, u, c) -> the value, gradients of sum sin(c value), and the products of their Hessian with u."""

    @fast.jit
    def run(args, u, c):
        def gradient(*moving):
            there = list(args)
            for i, x in zip(wrt, moving, strict=True):
                there[i] = x
            return jax.grad(lambda *a: jnp.sin(c * fn(*a)).sum(), wrt)(*there)

        first, back = jax.vjp(gradient, *(args[i] for i in wrt))
        return fn(*args), first, back(u)

    return run


# By mesh and option; with types and without by turns, the widest both.
SETS = [
    ("2", False, {"reduction": "mean"}),
    ("8", False, {"reduction": "sum", "label_smoothing": 0.1}),
    ("4", False, {"reduction": "mean", "ignore_index": 2, **EVERY}),
    ("2 x 4", False, {"reduction": "none", "ignore_index": 2, **EVERY}),
    ("(2 x 2) x 2", True, {"reduction": "none", **EVERY}),
    ("4", True, {"reduction": "mean", "z_loss": 0.2}),
    ("8", True, {"reduction": "sum", "softcap": 2.0, "label_smoothing": 1.0}),
]


@check(*((where, soft, i % 2 == 0, options) for i, (where, soft, options) in enumerate([*SETS, *SETS[2:5]])))
def as_unsharded(where, soft, typed, options):
    """Values, gradients and second derivatives in float64."""
    args, wrt = drawn(soft), (0, 1) if soft else (0,)
    options = {"weighted": False, **options}
    rng = np.random.default_rng(1)
    c = jnp.asarray(rng.standard_normal(M if options["reduction"] == "none" else ()))
    u = tuple(jnp.asarray(rng.standard_normal((M, V))) for _ in wrt)
    got = derivatives(sharded(where, soft, typed=typed, **options), wrt)(args, u, c)
    close(got, derivatives(functools.partial(native, **options), wrt)(args, u, c))


def drawn_linear(dtype="float64", K=3, classes=V):
    rng = np.random.default_rng(classes)
    h, w = rng.standard_normal((M, K)), rng.standard_normal((K, classes)) * 2 / K**0.5
    b, a, t = rng.standard_normal(classes), rng.uniform(0.5, 2, classes), rng.integers(0, classes, M).astype("int32")
    t[1::3] = 2
    return tuple(jnp.asarray(x, x.dtype if x.dtype == "int32" else dtype) for x in (h, w, t, b, a))


def sharded_linear(where, weighted, typed, **options):
    """linear_cross_entropy of whole arrays, run with its classes split."""
    mesh, rows, names = MESHES[where]
    each = options["reduction"] == "none"
    rows = rows if each else None

    def of_part(h, w, t, b, a):
        return lab.linear_cross_entropy(h, w, t, b, weight=a if weighted else None, axis_name=names, **options)

    places = P(rows), P(None, names), P(rows), P(names), P(names)
    return jax.shard_map(of_part, mesh=mesh, in_specs=places, out_specs=P(rows) if each else P(), check_vma=typed)


def native_linear(h, w, t, b, a, weighted, **options):
    return NATIVE["linear_cross_entropy"].fn(h, w, t, b, a if weighted else None, **options)


@check(
    ("4", True, 1024, {"reduction": "mean", "ignore_index": 2, **EVERY}),
    ("4", False, 1024, {"reduction": "mean", "ignore_index": 2, "logits_memory": 10**6, **EVERY}),
    ("2 x 4", True, 3, {"reduction": "none", "ignore_index": 2, **EVERY}),
    ("(2 x 2) x 2", False, 3, {"reduction": "none", "z_loss": 0.2}),
    ("8", True, 1024, {"reduction": "sum", "logits_memory": 10**6}),
)
def linear_as_unsharded(where, typed, chunk, options):
    """linear_cross_entropy's values, gradients and second derivatives in float64, by chunks of 3 classes too."""
    args, wrt = drawn_linear(), (0, 1, 3)
    options = {"weighted": False, **options}
    rng = np.random.default_rng(1)
    c = jnp.asarray(rng.standard_normal(M if options["reduction"] == "none" else ()))
    u = tuple(jnp.asarray(rng.standard_normal(args[i].shape)) for i in wrt)
    with (
        mock.patch.object(chunks_pallas, "chunk", lambda M, K, V: min(V, chunk)),
        mock.patch.object(linear_second_pallas, "chunk", lambda M, K, V: min(V, chunk)),
    ):
        got = derivatives(sharded_linear(where, typed=typed, **options), wrt)(args, u, c)
    close(got, derivatives(functools.partial(native_linear, **options), wrt)(args, u, c), 120)


@check(("bfloat16",), ("float16",))
def linear_precision(dtype):
    """Loss and gradients against float64, at most twice as far as the native loss."""
    args = drawn_linear(dtype, 32, 512)
    options = {"weighted": True, "reduction": "mean", "label_smoothing": 0.1, "z_loss": 0.2}
    ours = sharded_linear("4", typed=True, **options)
    fns = [jax.jit(jax.value_and_grad(f, (0, 1, 3))) for f in (ours, functools.partial(native_linear, **options))]
    exact = fns[1](*(x if x.dtype == "int32" else x.astype("float64") for x in args))

    def errors(found):
        return [
            np.abs(np.asarray(f, "float64") - e).max()
            for f, e in zip(*map(jax.tree.leaves, (found, exact)), strict=True)
        ]

    for got, known, e in zip(*(errors(fn(*args)) for fn in fns), jax.tree.leaves(exact), strict=True):
        assert got <= max(2 * known, float(jnp.finfo(dtype).eps) * np.abs(e).max()), (got, known)


@check(("float32",), ("bfloat16",), ("float16",))
def precision(dtype):
    """Loss and gradient against float64: float32 to rounding, half at most twice as far as the native loss."""
    x, t, a = drawn(False, dtype, 512)
    options = {"weighted": True, "reduction": "mean", "label_smoothing": 0.1, "z_loss": 0.2}
    ours = jax.jit(jax.value_and_grad(sharded("4", False, typed=True, **options)))
    theirs = jax.jit(jax.value_and_grad(functools.partial(native, **options)))
    exact = theirs(x.astype("float64"), t, a.astype("float64"))

    def error(found):
        return [np.abs(np.asarray(f, "float64") - e).max() for f, e in zip(found, exact, strict=True)]

    for got, known, e in zip(error(ours(x, t, a)), error(theirs(x, t, a)), exact, strict=True):
        rounding = float(jnp.finfo(dtype).eps) * np.abs(e).max()
        assert got <= max(2 * known, (512 if dtype == "float32" else 1) * rounding), (got, known, rounding)


@check((True,), (False,))
def rows_apart(typed):
    """Parts without a finite logit, a class of no probability there, rows ignored, and classes out of range."""
    x, _, _ = drawn(False)
    # The first two of four parts, then all but the last class.
    x = x.at[0, : V // 2].set(-jnp.inf).at[1, :-1].set(-jnp.inf).at[2].add(1e4).at[3, 5].set(jnp.nan)
    t = jnp.asarray([V - 1, V - 1, 3, 1, V, -7])
    run = sharded("4", False, False, typed, reduction="none", z_loss=0.1)
    y, dx = fast.jit(lambda x: (run(x, t, jnp.ones(V)), jax.grad(lambda x: run(x, t, jnp.ones(V))[:3].sum())(x)))(x)
    want = functools.partial(native, weighted=False, reduction="none")
    wanted = want(x[:3], t[:3], None, z_loss=0.1)
    close(y[:3], wanted)
    assert np.isnan(y[3:]).all()
    close(dx[:3], jax.grad(lambda x: want(x, t[:3], None, z_loss=0.1).sum())(x[:3]))
    # A row that is ignored is 0 whatever its logits; so is the gradient of rows that have no cotangent, but for NaN.
    ignored = sharded("4", False, False, typed, reduction="none", ignore_index=-7)(x, jnp.full(M, -7), jnp.ones(V))
    assert (np.asarray(ignored) == 0).all()
    # Of soft labels a class of probability 0 costs nothing, also where its logit is -inf.
    q = jnp.where(jnp.isinf(x), 0.0, 0.1)
    got = fast.jit(
        jax.value_and_grad(lambda x: sharded("4", True, False, typed, reduction="none")(x, q, None)[:3].sum())
    )(x)
    kept = [x[i][jnp.isfinite(x[i])] for i in range(3)]
    close(got[0], sum(NATIVE["cross_entropy"].fn(k[None], jnp.full((1, k.size), 0.1), reduction="sum") for k in kept))
    assert (np.asarray(got[1])[:3][np.isinf(np.asarray(x)[:3])] == 0).all()


# Rows of pictures of tokens on two axes of the mesh, or one; classes on the rest.
LAYOUTS = [("d", "s", "tp"), (None, "s", ("d", "tp")), (("d", "s"), None, None)]


def placed(mesh, layout, z):
    """z on the mesh: logits [4 6 V], one number a row or class, hidden states [4 6 3] or a head [3 V]."""
    *rows, classes = layout
    if z.shape[-1] == 3:
        place = (*rows, None)
    else:
        place = {3: layout, 2: (None, classes) if z.shape == (3, V) else rows, 1: (classes,), 0: ()}[z.ndim]
    return jax.device_put(z, NamedSharding(mesh, P(*place)))


@check(("Auto",), ("Explicit",))
def on_meshes(kind):
    """Without shard_map: rows stay where they are, classes are split by themselves, and logits are not gathered."""
    mesh = jax.make_mesh((2, 2, 2), ("d", "s", "tp"), (getattr(AxisType, kind),) * 3)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    x, labels, a, u = (
        draw(4, 6, V),
        jnp.asarray(rng.integers(0, V, (4, 6)).astype("int32")),
        jnp.exp(draw(V)),
        draw(4, 6, V),
    )
    h, w, b, uh, uw, ub = draw(4, 6, 3), draw(3, V), draw(V), draw(4, 6, 3), draw(3, V), draw(V)
    q = jnp.exp(draw(4, 6, V)) / V
    options = {"ignore_index": 2, "label_smoothing": 0.1, "z_loss": 0.2}
    fns = {
        "mean": (lambda x, t, a: lab.cross_entropy(x, t, weight=a, **options), (x, labels, a), (u,), (0,)),
        "none": (lambda x, t: lab.cross_entropy(x, t, reduction="none", softcap=2.0), (x, labels), (u,), (0,)),
        "soft": (lambda x, q, a: lab.cross_entropy(x, q, weight=a), (x, q, a), (u, u), (0, 1)),
        "linear": (
            lambda h, w, t, b: lab.linear_cross_entropy(h, w, t, b, logits_memory=10**6, **options),
            (h, w, labels, b),
            (uh, uw, ub),
            (0, 1, 3),
        ),
    }
    for i, (name, (fn, args, us, wrt)) in enumerate(fns.items()):
        layout = LAYOUTS[i % 2]
        spread = functools.partial(placed, mesh, layout)
        c = draw(4, 6) if name == "none" else draw()
        want = derivatives(fn, wrt)(args, us, c)
        given, us = tuple(map(spread, args)), tuple(map(spread, us))
        run = derivatives(fn, wrt)
        got = run(given, us, spread(c) if c.ndim else c)
        close(got, want, 120)
        for g, i in zip(got[1], wrt, strict=True):
            assert g.sharding.is_equivalent_to(given[i].sharding, g.ndim), (name, g.sharding, given[i].sharding)
        # No collective has as many elements as one device's part of the logits, but for what parts exchange.
        one = jax.jit(fn).lower(*given).compile()
        parts = 4 if layout[2] == ("d", "tp") else 2
        rows = x.size // V // (2 if layout[0] is None else 4)
        assert collectives(one)[0] == ("all-gather", parts * 4 * rows), (name, collectives(one))
        assert all(kind == "all-reduce" and n <= 2 for kind, n in collectives(one)[1:]), (name, collectives(one))
    # Rows alone are split: nothing but the loss is sent.
    given = [jax.device_put(z, NamedSharding(mesh, P(*LAYOUTS[2][: z.ndim]))) for z in (x, labels)]
    alone = jax.jit(jax.value_and_grad(lab.cross_entropy)).lower(*given).compile()
    assert all(kind == "all-reduce" and n <= 2 for kind, n in collectives(alone)), collectives(alone)
    wrong = jax.device_put(np.where(np.arange(24).reshape(4, 6) == 8, V, labels), given[1].sharding)
    assert message(lambda: lab.cross_entropy(given[0], wrong), IndexError).startswith(
        f"cross_entropy: labels[1, 2] is {V}, "
    )


def message(fn, kind=ValueError):
    try:
        fn()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


def by_psum(x, t):
    """Cross-entropy of the classes of this device, with jax's collectives."""
    top = jax.lax.pmax(jax.lax.stop_gradient(x).max(-1), "tp")
    total = jax.lax.psum(jnp.exp(x - top[:, None]).sum(-1), "tp")
    here = jnp.arange(x.shape[1]) + x.shape[1] * jax.lax.axis_index("tp") == t[:, None]
    return (top + jnp.log(total) - jax.lax.psum(jnp.where(here, x, 0).sum(-1), "tp")).mean()


@check((True,), (False,))
def gradients_within(typed):
    """Gradients taken inside shard_map are those of a loss that is written with jax's own collectives."""
    x, t, _ = drawn(False)
    scale = jnp.linspace(0.5, 1.5, M)

    def gradient(loss):
        def of_part(scale, x):
            shared, own = jax.grad(lambda scale, x: jnp.sin(loss(scale[:, None] * x)), (0, 1))(scale, x)
            # Without types each device keeps what it found of the array that all have.
            return (shared if typed else shared[None]), own

        places, found = (P(), P(None, "tp")), (P() if typed else P("tp"), P(None, "tp"))
        spread = jax.shard_map(of_part, mesh=MESHES["4"][0], in_specs=places, out_specs=found, check_vma=typed)
        return fast.jit(spread)(scale, x)

    close(gradient(lambda x: lab.cross_entropy(x, t, axis_name="tp")), gradient(lambda x: by_psum(x, t)))


@check()
def in_the_blocks_of_a_gpu():
    """The kernels as they are lowered for CUDA, run on this CPU: tiles, several runs of classes, no access outside."""
    if importlib.util.find_spec("triton") is None:
        return
    rows, K, classes = 40, 17, 800
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    # Far logits in the last parts, where the rows' maxima are not; the first of these parts has both.
    x, b = (a.at[..., 500:].add(-300.0) for a in (3 * draw(rows, classes), draw(classes)))
    h, w, a, c = draw(rows, K), draw(K, classes) / 2, jnp.asarray(rng.uniform(0.5, 2, classes)), draw(rows)
    t = jnp.asarray(rng.integers(0, classes, rows).astype("int32")).at[1::3].set(2)
    options = {"reduction": "none", "ignore_index": 2, **EVERY, "softcap": 50.0}
    for ours, theirs, args, wrt in (
        (sharded("4", False, typed=True, **options), native, (x, t, a), (0,)),
        (sharded_linear("4", typed=False, **options), native_linear, (h, w, t, b, a), (0, 1, 3)),
    ):
        u = tuple(draw(*args[i].shape) for i in wrt)
        with cuda_on_cpu(sanitized=True, bounds=True) as seen:
            got = jax.block_until_ready(derivatives(ours, wrt)(args, u, c))
        assert not seen.faults, seen.faults
        assert {"gradlab_merge_kernel", "gradlab_backward_kernel", "gradlab_second_backward_kernel"} <= set(
            seen.kernels
        )
        close(got, derivatives(functools.partial(theirs, **options), wrt)(args, u, c), 400)


@check(("tpu", "float32"), ("cuda", "bfloat16"))
def lowers(platform, dtype):
    """For a machine that is not there, with every kernel compiled."""
    S = jax.ShapeDtypeStruct
    options = {"reduction": "mean", **EVERY, "weighted": False}
    found = set()
    for fn, shapes, wrt in (
        (sharded("4", False, typed=True, **options), ((256, 4096), 256, 4096), (0,)),
        (sharded_linear("4", typed=True, **options), ((256, 64), (64, 4096), 256, 4096, 4096), (0, 1, 3)),
    ):
        args = [
            S(shape if isinstance(shape, tuple) else (shape,), "int32" if shape == 256 else dtype) for shape in shapes
        ]

        def twice(args, u, fn=fn, wrt=wrt):
            def gradient(*moving):
                return jax.grad(
                    lambda *m: fn(*(m[wrt.index(i)] if i in wrt else a for i, a in enumerate(args))), range(len(wrt))
                )(*moving)

            return jax.vjp(gradient, *(args[i] for i in wrt))[1](u)

        text = lowered(jax.jit(twice), platform, args, tuple(args[i] for i in wrt)).as_text()
        found |= set(re.findall(r"gradlab_(\w+)_kernel", text))
        assert "all_gather" in text
    assert {"loss", "statistics", "merge", "second_backward", "matmul"} <= found, found


def collectives(compiled):
    """The kind and number of elements of each collective of a compiled program."""
    found = re.findall(
        r"= *\(?\w+\[([\d,]*)\][^=]* (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", compiled.as_text()
    )
    return sorted((kind, int(np.prod([int(n) for n in shape.split(",") if n]))) for shape, kind in found)


@check((True,), (False,))
def one_exchange(typed):
    """In the compiled text: four numbers a row and part, and nothing in backward; without types a scalar there."""
    x, t, a = drawn(False)
    run = sharded("4", False, False, typed, reduction="mean", z_loss=0.1)
    first = jax.jit(jax.value_and_grad(run)).lower(x, t, a).compile()
    scalar = [] if typed else [("all-reduce", 1)]
    assert collectives(first) == [("all-gather", 4 * 4 * M), *scalar], collectives(first)
    second = jax.jit(lambda x, u: jax.vjp(jax.grad(lambda x: run(x, t, a)), x)[1](u)).lower(x, x).compile()
    # The gradients of c and of the logits: P, a number a row; the term of a scalar's cotangent needs no one here.
    assert collectives(second)[0] == ("all-gather", 4 * 4 * M), collectives(second)
    assert all(kind == "all-reduce" and n <= 2 * M for kind, n in collectives(second)[1:]), collectives(second)
    weighed = jax.jit(sharded("4", False, True, typed, reduction="mean")).lower(x, t, a).compile()
    assert collectives(weighed) == [("all-gather", 4 * 4 * M), ("all-reduce", 1)], collectives(weighed)


@check((True,), (False,))
def one_exchange_linear(typed):
    """Four numbers a row and part, and the sum over the parts of the gradient of what all have."""
    args = drawn_linear()
    run = sharded_linear("4", False, typed, reduction="sum")
    own = jax.jit(jax.value_and_grad(run, (1, 3))).lower(*args).compile()
    scalar = [] if typed else [("all-reduce", 1)]
    assert collectives(own) == [("all-gather", 4 * 4 * M), *scalar], collectives(own)
    every = jax.jit(jax.value_and_grad(run, (0, 1, 3))).lower(*args).compile()
    wanted = [("all-gather", 4 * 4 * M), *scalar, ("all-reduce", args[0].size)]
    assert collectives(every) == wanted, collectives(every)


@check()
def memory():
    """Temporary bytes a device of value and gradient: a fourth of one device's, and the exchanged numbers."""
    rows, classes = 64, 8192
    x, t = jax.ShapeDtypeStruct((rows, classes), "float32"), jax.ShapeDtypeStruct((rows,), "int32")

    def bytes_of(fn):
        return jax.jit(jax.value_and_grad(fn)).lower(x, t).compile().memory_analysis()

    spread = jax.shard_map(
        lambda x, t: lab.cross_entropy(x, t, axis_name="tp"),
        mesh=MESHES["4"][0],
        in_specs=(P(None, "tp"), P()),
        out_specs=P(),
    )
    one, part = bytes_of(lab.cross_entropy), bytes_of(spread)
    small = 4 * rows * 4 * 16
    print("memory", one.temp_size_in_bytes, part.temp_size_in_bytes, file=sys.stderr)
    assert part.temp_size_in_bytes <= one.temp_size_in_bytes / 4 + small
    assert part.argument_size_in_bytes <= one.argument_size_in_bytes / 4 + small
    assert part.output_size_in_bytes <= one.output_size_in_bytes / 4 + small


@check((True,), (False,))
def transformed(typed):
    """Inside vmap, checkpoint and a loop, with the classes on another axis."""
    mesh = MESHES["4"][0]
    rng = np.random.default_rng(3)
    x, t = jnp.asarray(rng.standard_normal((3, 2, V, 5))), jnp.asarray(rng.integers(0, V, (3, 2, 5)))

    def loss(names, x, t):
        one = jax.checkpoint(lambda x, t: lab.cross_entropy(x, t, axis=0, axis_name=names, reduction="sum"))
        return jax.lax.scan(lambda total, xt: (total + jax.vmap(one)(*xt).sum(), None), jnp.zeros(()), (x, t))[0]

    places = (P(None, None, "tp"), P())
    spread = jax.shard_map(functools.partial(loss, "tp"), mesh=mesh, in_specs=places, out_specs=P(), check_vma=typed)
    close(*(fast.jit(jax.value_and_grad(f))(x, t) for f in (spread, functools.partial(loss, None))))


@check()
def refused():
    """In one line: an axis that is not there, a class out of range; by checkify inside jit."""
    x, t, a = drawn(False)

    def within(**options):
        return lambda: jax.shard_map(
            lambda x, t: lab.cross_entropy(x, t, **options),
            mesh=MESHES["4"][0],
            in_specs=(P(None, "tp"), P()),
            out_specs=P(),
        )(x, t)

    wanted = "wanted an axis of the mesh of a jax.shard_map around the call"
    for call in (lambda: lab.cross_entropy(x, t, axis_name="tp"), within(axis_name=("tp", "rows"))):
        text = message(call)
        assert re.fullmatch(rf"cross_entropy: axis_name is '\w+', {wanted}", text), text
    # jax's own all_gather fails there.
    for typed in (True, False):
        for name in ("z", ("tp", "z")):
            for op, loss in (
                ("cross_entropy", lambda x, name: lab.cross_entropy(x, t, axis_name=name)),
                ("linear_cross_entropy", lambda x, name: lab.linear_cross_entropy(x, x.T, t, axis_name=name)),
            ):
                mapped = jax.vmap(functools.partial(loss, name=name), axis_name="z")
                places = {"in_specs": P(None, None, "tp"), "out_specs": P(), "check_vma": typed}
                text = message(lambda f=mapped, places=places: jax.shard_map(f, mesh=MESHES["4"][0], **places)(x[None]))
                assert text == f"{op}: axis_name is 'z', an axis of jax.vmap, {wanted}", text
    parts = jnp.stack(jnp.split(x, 4, axis=1))
    close(jax.vmap(lambda x: lab.cross_entropy(x, t, axis_name="z"), axis_name="z")(parts)[0], lab.cross_entropy(x, t))
    assert "axis_name is ('tp', 'tp'), wanted each axis once" in message(within(axis_name=("tp", "tp")))
    assert "axis_name is 3, wanted the name of a mesh axis" in message(within(axis_name=3), TypeError)
    weighed = within(axis_name="tp", weight=a)
    assert message(weighed) == "cross_entropy: weight of shape [16] is V = 16, wanted V = 4 like logits' classes"
    run = sharded("4", False, False, True, reduction="mean")
    wrong = t.at[4].set(V)
    assert np.isnan(run(x, wrong, a))
    error, _ = checkify.checkify(jax.jit(run))(x, wrong, a)
    assert f"is {V}, wanted a class in [0, {V})" in str(error.get()), error.get()
    error, _ = checkify.checkify(jax.jit(run))(x, t, a)
    assert error.get() is None
    # Classes that are known when the program is traced.
    text = message(
        lambda: jax.shard_map(
            lambda x: lab.cross_entropy(x, np.asarray(wrong), axis_name="tp"),
            mesh=MESHES["4"][0],
            in_specs=P(None, "tp"),
            out_specs=P(),
        )(x),
        IndexError,
    )
    assert text == f"cross_entropy: labels[4] is {V}, wanted a class in [0, {V})", text


def main():
    report(CHECKS)


if __name__ == "__main__":
    main()
