"""Pallas kernels written in Triton's language: right, within their arrays, and launched through jax-triton."""

import dataclasses
import importlib.util
import sys
import types

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import jax.numpy as jnp
from jax.experimental import pallas as pl

import gradlab.jax as lab
from gradlab.kernels.pallas_triton import backend_pallas, written_pallas
from gradlab.kernels.runtime import launch_pallas
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.profiling.emulate.compare import How, op_case
from gradlab.profiling.machine_code import launches_jax
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.pallas_cpu.run import cuda_on_cpu
from tests import fast_jit_jax
from tests.several_programs import OPS, RICHEST, large
from tests.sweeps import pallas_cuda_jax
from tests.sweeps.pallas_cuda_jax import drawn, error


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """This back end, and no program that was traced for the other."""
    monkeypatch.setenv("GRADLAB_PALLAS", "jax-triton")
    launch_pallas._cached.cache_clear()
    yield
    launch_pallas._cached.cache_clear()


def results(op, case, given):
    return pallas_cuda_jax.results(op, case, given, fast_jit_jax.jit)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("linear", "bfloat16"),
        ("cross_entropy", "float32"),
        ("conv2d", "float16"),
        ("adam", "float32"),
        ("max_pool2d", "float64"),
    ],
)
def test_ops_at_sizes_of_several_programs(name, dtype):
    """Forward, backward and second backward against the interpreter; every access is within its array."""
    op, case = OPS[name], large(name)
    op = dataclasses.replace(op, draw=None) if name in ("conv2d", "linear", "max_pool2d") else op
    with jax.enable_x64(dtype == "float64"):
        given = drawn(op, case, dtype)
        want = results(op, case, given)
        with cuda_on_cpu(sanitized=True) as seen:
            got = results(op, case, given)
    assert not seen.faults
    assert seen.kernels
    assert not seen.left
    assert error(got, want) <= 4 * op.at(case).tolerance(dtype)


@pytest.mark.parametrize(("name", "arch"), [("linear", "sm_90"), ("cross_entropy", "sm_80")])
def test_as_a_gpu_executes_it(name, arch):
    result = op_case(OPS[name].at(RICHEST[name]), "jax", "bfloat16", How(TARGETS[arch], options={"check": True}))
    assert result.ok, (result.error, result.comparisons)
    assert result.launches


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_written(name):
    """All kernels of an op's passes, with the line that each of their operations was made of."""
    found = launches_jax.find(OPS[name].at(RICHEST[name]), "float32")
    for kernel in found:
        assert f'loc("{kernel.file}"' in kernel.source
        assert "<gradlab" not in kernel.source


def test_mapped_a_kernel_has_one_more_axis_in_its_grid():
    x, w = np.random.default_rng(0).standard_normal((2, 3, 40, 24)).astype("float32")[:, :, :, :20], np.ones((20, 9))
    fn = jax.vmap(jax.vmap(lambda x: lab.linear(x, jnp.asarray(w, "float32"))))
    with cuda_on_cpu(sanitized=True) as seen:
        y = fast_jit_jax.jit(fn)(x)
    assert seen.kernels == {"gradlab_matmul_kernel": 1}
    assert not seen.faults
    np.testing.assert_allclose(y, x @ w.astype("float32"), rtol=1e-5, atol=1e-5)


def launched(kernel, n, shape=(128,), results=None, **options):
    """`kernel` over blocks of an array of n, the last one a part."""
    block = pl.BlockSpec(shape, lambda i: (i,))
    out = jax.ShapeDtypeStruct((n,), jnp.float32)
    return launch_pallas.pallas(kernel, "cuda", (-(-n // shape[0]),), [block], block, out, **options)


def test_what_a_block_has_past_the_end_of_its_array_is_masked():
    def twice(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    x = jnp.arange(300.0)
    with cuda_on_cpu(sanitized=True) as seen:
        y = launched(twice, 300)(x)
    assert not seen.faults
    np.testing.assert_array_equal(y, 2 * np.arange(300))


def test_the_text_of_a_kernel():
    def total(x_ref, y_ref):
        def step(i, s):
            return s + x_ref[pl.ds(i * 32, 32)]

        y_ref[...] = jax.lax.fori_loop(jnp.int32(0), jnp.int32(4), step, jnp.zeros(32))

    call = launch_pallas.pallas(
        total,
        "cuda",
        (2,),
        [pl.BlockSpec((128,), lambda i: (i,))],
        pl.BlockSpec((32,), lambda i: (i,)),
        jax.ShapeDtypeStruct((64,), jnp.float32),
    )
    (eqn,) = (e for e in jax.make_jaxpr(call)(jnp.ones(256)).eqns if e.primitive.name == "pallas_call")
    made = written_pallas.written("total", eqn.params["jaxpr"], eqn.params["grid_mapping"], {})
    assert made.parameters == (("x_ref_0", "float32"), ("y_ref_1", "float32"))
    assert made.grid == (2,)
    assert made.text.splitlines() == [
        "def total(x_ref_0, y_ref_1):",
        "    p0 = tl.program_id(0)",
        "    at0 = x_ref_0 + (p0 * 128)",
        "    at1 = y_ref_1 + (p0 * 32)",
        "    v2 = tl.full((32,), tl.full((), 0.0, tl.float32), tl.float32)",
        "    c3 = v2",
        "    for i4 in range(0, 4):",
        "        v5 = i4 + tl.full((), 1, tl.int32)",
        "        v6 = i4 * tl.full((), 32, tl.int32)",
        "        v7 = tl.load(at0 + v6 + tl.arange(0, 32))",
        "        v8 = c3 + v7",
        "        c3 = v8",
        "    tl.store(at1 + tl.arange(0, 32), c3)",
        "    return",
    ]
    assert {place[1] for place in made.places if place} >= {eqn.params["jaxpr"].debug_info.func_lineno}


def sorts(x_ref, y_ref):
    y_ref[...] = jnp.sort(x_ref[...])


def rows(x_ref, y_ref):
    y_ref[...] = x_ref.at[pl.ds(0, 128)][pl.ds(0, 128)]


def halves(x_ref, y_ref):
    y_ref[...] = jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: x / 2, x_ref[...])


@pytest.mark.parametrize(
    ("kernel", "reason"), [(sorts, "sort has"), (rows, "a view of a ref"), (halves, "no fori_loop")]
)
def test_what_has_no_counterpart_is_named(kernel, reason):
    with pytest.raises(NotImplementedError, match=reason), backend_pallas.noting():
        lowered(jax.jit(launched(kernel, 128)), "cuda", jnp.ones(128))


def test_a_launch_through_jax_triton(monkeypatch):
    """What `jax_triton.triton_call` is called with: the kernel, its results, its grid, and what it overwrites."""
    calls = []

    def triton_call(*arrays, out_type, **given):
        calls.append(([a.shape for a in arrays], out_type, given))
        return [jnp.zeros(t.shape, t.dtype) for t in out_type]

    monkeypatch.setitem(sys.modules, "jax_triton", types.SimpleNamespace(triton_call=triton_call))

    def add(x_ref, y_ref):
        y_ref[...] = x_ref[...] + 1

    call = launched(add, 300, warps=8, stages=2, input_output_aliases={0: 0})
    lowered(jax.jit(call), "cuda", jnp.ones(300))
    ((shapes, out_type, given),) = calls
    assert shapes == [(300,)]
    assert [t.shape for t in out_type] == [(300,)]
    assert given["grid"] == (3,)
    assert (given["num_warps"], given["num_stages"]) == (8, 2)
    # The result is the operand's memory, so the operand alone is a parameter.
    assert given["input_output_aliases"] == {0: 0}
    assert given["kernel"].arg_names == ["x_ref_0"]


@pytest.mark.skipif(importlib.util.find_spec("jax_triton") is None, reason="jax-triton is not installed")
def test_a_program_with_jax_tritons_launches():
    def loss(x, w, t):
        return lab.cross_entropy(lab.linear(x, w), t)

    given = jnp.ones((40, 24)), jnp.ones((24, 19)), jnp.zeros(40, jnp.int32)
    text = lowered(jax.jit(jax.value_and_grad(loss, (0, 1))), "cuda", *given).as_text()
    assert text.count("@triton_kernel_call_ffi") >= 5


def test_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^gradlab: jax-triton is not there .*, wanted version 0\.4 or later"
    ):
        lowered(jax.jit(lab.relu), "cuda", jnp.ones(7))
    monkeypatch.setenv("GRADLAB_PALLAS", "mosaic")
    with pytest.raises(ValueError, match=r"^gradlab: GRADLAB_PALLAS is 'mosaic', wanted triton or jax-triton$"):
        backend_pallas.chosen()
    # Where Pallas has no back end of Triton, this one is taken unasked.
    monkeypatch.setattr(backend_pallas, "pallas_triton", None)
    monkeypatch.delenv("GRADLAB_PALLAS")
    assert backend_pallas.chosen() == "jax-triton"
    assert backend_pallas.parameters(4, 3) == backend_pallas.CompilerParams(4, 3)


@pytest.mark.parametrize("backend", ["triton", "jax-triton"])
def test_products_of_more_rows_of_tiles_than_programs_take_together(monkeypatch, backend):
    """Every tile of y and of both gradients is one program's, the last ones parts."""
    monkeypatch.setenv("GRADLAB_PALLAS", backend)
    random = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(random.standard_normal(s), jnp.bfloat16) for s in ((2200, 40), (40, 2100), (2200, 2100)))

    def both(x, w, dy):
        y, pull = jax.vjp(lab.linear, x, w)
        return y, *pull(dy)

    with cuda_on_cpu(sanitized=True, bounds=True) as seen:
        y, dx, dw = fast_jit_jax.jit(both)(x, w, dy)
    assert not seen.faults
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    for got, want, terms in ((y, x @ w, 40), (dx, dy @ w.T, 2100), (dw, x.T @ dy, 2200)):
        # Sums of products of normal numbers in float32, then one rounding to bfloat16.
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2.0**-8, atol=terms * 2.0**-22)


@pytest.mark.parametrize(
    ("backend", "dtype", "options"),
    [
        ("triton", "bfloat16", {}),
        # Rows of bfloat16 begin at odd places, those of float32 do not; the last tile of a row is a part.
        ("jax-triton", "bfloat16", {"softcap": 5.0}),
        ("jax-triton", "float32", {"z_loss": 0.5}),
    ],
)
def test_classes_in_rows_of_many_tiles(monkeypatch, backend, dtype, options):
    """Loss and gradient where a row's target is one class, with weights, ignored rows and one out of range."""
    monkeypatch.setenv("GRADLAB_PALLAS", backend)
    random = np.random.default_rng(0)
    x, a = (jnp.asarray(random.standard_normal(s) * 8, dtype) for s in ((9, 4500), (4500,)))
    t, dy = jnp.asarray([0, 4499, -100, 4096, 7, 4500, -1, 512, 4095]), jnp.asarray(random.standard_normal(9), dtype)

    def both(x, a, t, dy):
        y, pull = jax.vjp(lambda x: lab.cross_entropy(x, t, weight=a, reduction="none", **options), x)
        return y, *pull(dy)

    want = fast_jit_jax.jit(both)(x, a, t, dy)
    with cuda_on_cpu(sanitized=True) as seen:
        got = fast_jit_jax.jit(lambda *given: both(*given))(x, a, t, dy)
    assert not seen.faults
    assert seen.kernels["gradlab_loss_kernel"]
    # One rounding to the dtype, of numbers that two orders of a sum give.
    bits = {"bfloat16": 8, "float32": 16}[dtype]
    for ours, theirs in zip(got, want, strict=True):
        ours, theirs = (np.asarray(y, np.float64) for y in (ours, theirs))
        scale = np.nanmax(np.abs(theirs))
        np.testing.assert_allclose(ours / scale, theirs / scale, rtol=2.0**-bits, atol=2.0**-20)
        assert np.isnan(ours[[5, 6]]).all()
        assert (ours[2] == 0).all()
