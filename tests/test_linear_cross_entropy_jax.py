"""linear_cross_entropy on jax: every option against the logits written out, chunks, blocks, memory, bad input."""

import functools

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp

from gradlab.jax import cross_entropy, linear, linear_cross_entropy
from gradlab.kernels import linear_cross_entropy_pallas
from gradlab.kernels.class_losses import blocks_pallas, chunks, chunks_pallas, linear_second_pallas, row_sums_pallas
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common import column_sum_pallas, matmul_pallas

MODULES = (linear_cross_entropy_pallas, blocks_pallas, matmul_pallas, column_sum_pallas, row_sums_pallas)
EVERYTHING = {"ignore_index": 1, "label_smoothing": 0.2, "z_loss": 0.3, "softcap": 2.0}


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def native(
    h,
    w,
    t,
    b=None,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    return_z_loss=False,
    logits_memory=0,
):
    """The logits written out, and optax's loss of soft labels."""
    x = h @ w if b is None else h @ w + b
    x = x if softcap is None else softcap * jnp.tanh(x / softcap)
    valid, c = t != ignore_index, jnp.ones(w.shape[1], x.dtype) if weight is None else weight.astype(x.dtype)
    labels = optax.smooth_labels(jax.nn.one_hot(t, w.shape[1], dtype=x.dtype), label_smoothing)
    y = jnp.where(valid, optax.softmax_cross_entropy(x, c * labels), 0)
    z = jnp.where(valid, z_loss * jnp.square(jax.nn.logsumexp(x, -1)), 0)
    if reduction == "mean":
        y, z = y.sum() / jnp.where(valid, c[t], 0).sum(), z.sum() / valid.sum().astype(z.dtype)
    elif reduction == "sum":
        y, z = y.sum(), z.sum()
    return (y + z, z) if return_z_loss else y + z


def drawn(M=5, K=3, V=7, dtype="float64", ignored=None):
    """h, w, b, classes, and the weights of classes."""
    rng = np.random.default_rng([M, K, V])
    r = lambda *s: jnp.asarray(rng.standard_normal(s), dtype)
    t = rng.integers(0, V, M)
    if ignored is not None:
        t[::3] = ignored
    return r(M, K), r(K, V), jnp.asarray(t, "int32"), r(V), 0.5 + jnp.abs(r(V))


def results(layer, h, w, t, b=None, *, second=False, **options):
    """Both values, the gradients for cotangents that are not ones, and what goes back through those, in one program."""
    places = tuple(range(2 if b is None else 3))

    def weighed(*moving):
        y = layer(*moving[:2], t, *moving[2:], return_z_loss=True, **options)
        return sum((jnp.sin(a) * jnp.cos(jnp.arange(a.size)).reshape(a.shape)).sum() for a in y), y

    def along(*moving):
        return sum(
            (g * jnp.cos(g.size + a)).sum()
            for g, a in zip(jax.grad(weighed, places, has_aux=True)(*moving)[0], moving, strict=True)
        )

    def program(*moving):
        grads, y = jax.grad(weighed, places, has_aux=True)(*moving)
        return y, grads, jax.grad(along, places)(*moving) if second else ()

    return jax.jit(program)(h, w, *(() if b is None else (b,)))


def close(got, wanted, terms=40):
    def one(g, w):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        scale = max(np.abs(np.nan_to_num(w)).max(initial=0.0), 0.1)
        np.testing.assert_allclose(g, w, rtol=0, atol=2 * terms * 2.0**-53 * scale)

    jax.tree.map(one, got, wanted)


def compare(h, w, t, b=None, **options):
    # A sum of h w and b is off by an ulp of what it sums, and so is what the logit is bent by.
    terms = 40 + 4 * float(jnp.abs(h @ w).max() + (0 if b is None else jnp.abs(b).max()))
    close(results(linear_cross_entropy, h, w, t, b, **options), results(native, h, w, t, b, **options), terms)


@settings(max_examples=3, phases=[Phase.generate])  # shrinking would compile each smaller shape
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9)),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    ignored=st.sampled_from([None, 0, -100]),
    smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 0.2]),
    softcap=st.sampled_from([None, 1.5]),
    bias=st.booleans(),
    weighed=st.booleans(),
)
def test_every_option_with_every_other(sizes, reduction, ignored, smoothing, z_loss, softcap, bias, weighed):
    h, w, t, b, c = drawn(*sizes, ignored=ignored)
    options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap}
    options |= {"weight": c} if weighed else {}
    options |= {} if ignored is None else {"ignore_index": ignored}
    compare(h, w, t, b if bias else None, **options)


@pytest.fixture
def chunks_of(monkeypatch):
    def use(size):
        for module in (chunks, chunks_pallas, linear_second_pallas):
            monkeypatch.setattr(module, "chunk", lambda M, K, V: min(V, size))
        # A program compiled before has other chunks, and one compiled now is nobody else's.
        jax.clear_caches()

    yield use
    jax.clear_caches()


@pytest.mark.parametrize("memory", [0, 5 * 8 * 3])
def test_both_derivatives_over_chunks_of_classes(chunks_of, memory):
    """With no logits kept, and with those of one chunk of three."""
    chunks_of(3)
    h, w, t, b, c = drawn(ignored=1)
    compare(h, w, t, b, weight=c, second=True, logits_memory=memory, **EVERYTHING)


@pytest.mark.parametrize("kept", [0, 96])
def test_both_derivatives_in_the_blocks_of_a_gpu(blocks_of, chunks_of, kept):
    """Several blocks of rows, splits of the classes that are merged, and a last tile that moves left."""
    chunks_of(96 if kept else 128)
    grids = blocks_of("cuda", *MODULES)
    h, w, t, b, c = drawn(70, 17, 200, ignored=1)
    # Far logits in one split alone: each split has a maximum of its own.
    b = b.at[130:].add(-300.0)
    options = {**EVERYTHING, "softcap": 50.0, "logits_memory": 70 * 8 * kept}
    compare(h, w, t, b, weight=c, second=not kept, reduction="none", **options)
    assert (2, 4) in grids


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kept_logits_in_blocks(blocks_of, platform):
    """All of them, with a last tile that moves left or is cut, or the first ones, whose last tile is cut."""
    blocks_of(platform, *MODULES)
    h, w, t, b, _ = drawn(70, 17, 200)
    for classes in (96, 200):
        x = linear_cross_entropy_pallas.loss(h, w, t, b, None, None, ClassLoss(-100, 0.0, 0.0), None, classes)[3]
        np.testing.assert_allclose(x, (h @ w + b)[:, :classes], rtol=0, atol=1e-13)


def test_kept_logits_are_residuals_of_their_memory():
    h, w, t, b, _ = drawn(6, 3, 7)
    plain = jax.grad(lambda h: linear_cross_entropy(h, w, t, b))
    for memory, count in ((6 * 7 * 8 - 1, 0), (6 * 7 * 8, 1)):
        kept = functools.partial(linear_cross_entropy, logits_memory=memory)
        _, pull = jax.vjp(lambda h, kept=kept: kept(h, w, t, b), h)
        assert [a.shape for a in jax.tree.leaves(pull)].count((6, 7)) == count
    hs = jnp.stack([h, h + 1])
    close(jax.vmap(jax.grad(lambda h: kept(h, w, t, b)))(hs), jnp.stack([plain(one) for one in hs]))


def test_logits_far_below_zero_in_blocks_past_the_last_class(blocks_of):
    """A lane past the classes reads a logit of 0, whose softmax would be infinite."""
    blocks_of("cuda", *MODULES)
    h, w, t, b, _ = drawn(5, 3, 70)
    compare(h, w, t, b - 1000.0, second=True, reduction="sum")


def test_several_tiles_of_classes_in_one_program(monkeypatch):
    """The maximum moves at each tile, and at none: what was summed before is moved with it."""
    monkeypatch.setattr(linear_cross_entropy_pallas, "_tile", lambda p, d, M, K, V: (M, K, min(V, 16), 4, 1))
    jax.clear_caches()
    h, w, t, b, c = drawn(5, 3, 70)
    options = {"weight": c, "label_smoothing": 0.3, "z_loss": 0.1, "reduction": "none"}
    program = jax.jit(lambda b: linear_cross_entropy(h, w, t, b, **options))
    for slope in (5.0, -5.0):
        bent = b + slope * jnp.arange(70)
        close(program(bent), native(h, w, t, bent, **options))
    jax.clear_caches()


def test_values_in_the_blocks_of_a_tpu(blocks_of):
    blocks_of("tpu", *MODULES)
    h, w, t, b, c = drawn(130, 5, 200, ignored=1)
    close(
        *(
            jax.jit(lambda h, w, b, f=f: f(h, w, t, b, weight=c, **EVERYTHING))(h, w, b)
            for f in (linear_cross_entropy, native)
        )
    )


def broken(monkeypatch, name, change):
    real = getattr(linear_cross_entropy_pallas, name)
    jax.clear_caches()
    monkeypatch.setattr(linear_cross_entropy_pallas, name, lambda *args: change(real(*args)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", lambda r: (jnp.zeros_like(r[0]), jnp.zeros_like(r[1]), *r[2:])),
        ("loss", lambda r: (-r[0], *r[1:])),
        ("backward", lambda r: tuple(map(jnp.zeros_like, r))),
        ("backward", lambda r: (r[0], r[1].at[:, 3].mul(1.001), r[2])),
    ],
    ids=["forward that does nothing", "forward's sign", "backward that does nothing", "a class of dw"],
)
def test_a_broken_kernel_is_caught(monkeypatch, name, change):
    broken(monkeypatch, name, change)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(*drawn()[:4], reduction="sum")
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize("leading", [(), (2, 2, 0)])
def test_any_leading_axes(leading):
    _, w, _, b, _ = drawn()
    rng = np.random.default_rng(0)
    h, t = jnp.asarray(rng.standard_normal((*leading, 3))), jnp.asarray(rng.integers(0, 7, leading))
    flat = h.reshape(-1, 3), t.reshape(-1)
    y, z = linear_cross_entropy(h, w, t, b, reduction="none", z_loss=0.1, return_z_loss=True)
    wanted, beside = native(flat[0], w, flat[1], b, reduction="none", z_loss=0.1, return_z_loss=True)
    close((y, z), (wanted.reshape(leading), beside.reshape(leading)))
    dh, dw = jax.grad(lambda h, w: linear_cross_entropy(h, w, t, b), (0, 1))(h, w)
    assert (dh.shape, dw.shape) == (h.shape, w.shape)
    assert bool(dw.any()) == bool(h.size)


def test_every_row_ignored_and_far_logits():
    h, w, t, b, _ = drawn()
    none = jnp.full_like(t, -100)
    assert np.isnan(linear_cross_entropy(h, w, none, b))
    grads = jax.grad(lambda h, w: linear_cross_entropy(h, w, none, b, reduction="sum", z_loss=0.1), (0, 1))(h, w)
    assert not any(g.any() for g in grads)
    for shift in (1e4, -1e4):
        close(linear_cross_entropy(h, w, t, b + shift), native(h, w, t, b + shift), 40 + 1e4)


def test_half_precision_errs_at_most_twice_as_native(chunks_of):
    chunks_of(32)
    dtype = "bfloat16"
    h, w, t, b, _ = drawn(48, 24, 80, dtype)

    def both(f, *args):
        return jax.jit(jax.value_and_grad(lambda h, w, b: f(h, w, t, b), (0, 1, 2)))(*args)

    truth = both(native, *(a.astype("float64") for a in (h, w, b)))
    ours, theirs = (both(f, h, w, b) for f in (linear_cross_entropy, native))
    for true, a, n in zip(*(jax.tree.leaves(x) for x in (truth, ours, theirs)), strict=True):
        assert a.dtype == dtype
        error, allowed, rounding = (np.sqrt(np.mean((np.float64(x) - true) ** 2)) for x in (a, n, true.astype(dtype)))
        assert error <= 2 * max(allowed, rounding)


def shapes(jaxpr):
    """Every shape in a program, and in the programs within."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars if hasattr(v.aval, "shape"))
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


def test_memory_stays_below_its_formula(chunks_of, monkeypatch):
    """And that of linear and cross_entropy does not, which keep the logits."""
    M, K, V, e = 64, 8, 4096, 4
    chunks_of(256)
    # One tile of logits is 64 by 256 here, too.
    monkeypatch.setattr(
        linear_cross_entropy_pallas, "_tile", lambda platform, dtype, M, K, V: (M, K, min(V, 256), 4, 1)
    )
    h, w, t = (jax.ShapeDtypeStruct(s, d) for s, d in (((M, K), "float32"), ((K, V), "float32"), ((M,), "int32")))
    once = jax.grad(linear_cross_entropy, (0, 1))
    twice = jax.grad(lambda h, w, t: sum(jnp.sin(g).sum() for g in once(h, w, t)), (0, 1))
    plain = jax.grad(lambda h, w, t: cross_entropy(linear(h, w), t), (0, 1))
    largest = lambda fn: max(int(np.prod(s)) for s in shapes(jax.make_jaxpr(fn)(h, w, t).jaxpr))
    beside = lambda fn: jax.jit(fn).lower(h, w, t).compile().memory_analysis().temp_size_in_bytes
    assert largest(once) == largest(twice) == K * V
    assert largest(plain) >= M * V
    # Interpreted, a kernel's operands are copied: w once more in forward, a chunk's dx and its factors in backward.
    formula = M * 256 * e + 4 * M * K + 2 * K * 256 * e
    assert beside(once) < 3 * formula + 2 * K * V * e < M * V * e
    assert beside(plain) > M * V * e


def test_a_frozen_operand_costs_no_product(chunks_of):
    chunks_of(256)
    h, w, t = (jax.ShapeDtypeStruct(s, d) for s, d in (((64, 8), "float32"), ((8, 4096), "float32"), ((64,), "int32")))
    flops = {}
    for wrt in ((0,), (1,), (0, 1)):
        program = jax.jit(jax.grad(linear_cross_entropy, wrt)).lower(h, w, t).compile()
        flops[wrt] = program.cost_analysis()["flops"]
    # The cost of a loop is counted once: a chunk's product is 2 * 64 * 8 * 256.
    for one in ((0,), (1,)):
        assert flops[0, 1] - flops[one] >= 2 * 64 * 8 * 256


def test_third_derivative_is_refused_also_the_second_time():
    h, w, t, _, _ = drawn(2, 2, 3)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="linear_cross_entropy: its third derivative is not implemented"):
            jax.jacrev(jax.jacrev(jax.grad(linear_cross_entropy)))(h, w, t)


@pytest.mark.parametrize("wrong", [5, -1])
def test_unknown_class(wrong):
    h, w, t, b, _ = drawn(4, 2, 5)
    t = t.at[2].set(wrong)
    with pytest.raises(IndexError) as caught:
        linear_cross_entropy(h, w, t, b)
    assert str(caught.value) == f"linear_cross_entropy: labels[2] is {wrong}, wanted a class in [0, 5)"
    y, dh = jax.jit(
        lambda h, t: jax.value_and_grad(lambda h: linear_cross_entropy(h, w, t, b, reduction="none").sum())(h)
    )(h, t)
    assert np.isnan(y)
    assert np.isnan(dh).all(1).tolist() == [False, False, True, False]


H, W, T = np.ones((4, 3)), np.ones((3, 5)), np.zeros(4, "int32")


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((H, W, [0]), {}, TypeError, "labels is a list, wanted a jax.Array"),
        ((H[0, 0], W, T), {}, ValueError, "hidden of shape [] is 0-dimensional, wanted [... K]"),
        ((H, W[0], T), {}, ValueError, "kernel of shape [5] is 1-dimensional, wanted [K V]"),
        ((H, W[:2], T), {}, ValueError, "kernel of shape [2, 5] is K = 2, wanted K = 3 like hidden's last axis"),
        ((H, W[:, :0], T), {}, ValueError, "kernel of shape [3, 0] is V = 0, wanted at least one class"),
        ((H, W, T[:2]), {}, ValueError, "shape of labels is [2], wanted [4] like hidden's but its last axis"),
        ((H, W, T, H[0]), {}, ValueError, "bias of shape [3] is V = 3, wanted V = 5 like kernel's last axis"),
        ((H, W, T), {"weight": W}, ValueError, "weight of shape [3, 5] is 2-dimensional, wanted [V]"),
        (
            (H, W, np.ones((4, 5))),
            {},
            TypeError,
            "dtype of labels is float64, wanted classes: probabilities are as large",
        ),
        ((H, W, T > 0), {}, TypeError, "dtype of labels is bool, wanted an integer dtype"),
        ((H, W.astype("float32"), T), {}, TypeError, "dtype of kernel is float32, wanted float64 like hidden"),
        ((H, W, T), {"reduction": "max"}, ValueError, "reduction is 'max', wanted one of 'none', 'mean', 'sum'"),
        ((H, W, T), {"softcap": -1.0}, ValueError, "softcap is -1.0, wanted a number above 0, or None"),
        ((H, W, T), {"ignore_index": 1.0}, TypeError, "ignore_index is 1.0, wanted an int"),
        ((H, W, T), {"logits_memory": -1}, ValueError, "logits_memory is -1, wanted a number of bytes from 0"),
        ((H, W, T), {"logits_memory": 1e9}, TypeError, "logits_memory is 1000000000.0, wanted an int"),
    ],
)
def test_refusals(args, options, error, message):
    with pytest.raises(error) as caught:
        linear_cross_entropy(*args, **options)
    assert str(caught.value).startswith(f"linear_cross_entropy: {message}")
    assert "\n" not in str(caught.value)
