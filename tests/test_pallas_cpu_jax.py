"""The jax side's programs for CUDA, run on a CPU with a GPU's blocks: right, and within their arrays."""

import dataclasses

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("torch")
pytest.importorskip("llvmlite")

import jax.numpy as jnp
from jax.experimental import pallas as pl

import gradlab.jax as lab
from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.kernels.runtime import launch_pallas, taken
from gradlab.profiling.pallas_cpu.run import cuda_on_cpu
from tests import fast_jit_jax
from tests.several_programs import KINKED, OPS, RICHEST, large
from tests.sweeps import pallas_cuda_jax
from tests.sweeps.pallas_cuda_jax import drawn


def results(op, case, given):
    """(pass, results) for forward, backward and second backward, in float64; each pass is one program."""
    return pallas_cuda_jax.results(op, case, given, fast_jit_jax.jit)


def assert_close(got, want, tolerance):
    for (name, ours), (_, theirs) in zip(got, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape, name
            scale = max(1.0, np.abs(b).max(initial=0.0, where=np.isfinite(b)))
            np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", OPS)
def test_every_op_at_sizes_of_several_programs(name):
    """Against the interpreter and NumPy; every access is within its array, and every element is written."""
    op, case = dataclasses.replace(OPS[name], **({"draw": None} if name in KINKED else {})), large(name)
    given = drawn(op, case, "float32")
    want = results(op, case, given)
    with cuda_on_cpu(sanitized=True) as seen:
        got = results(op, case, given)
    assert not seen.faults
    assert seen.kernels
    # Each of the two may be off by the tolerance, and the second derivative works on what the first has rounded.
    tolerance = op.at(case).tolerance("float32")
    assert_close(got, want, 4 * tolerance)
    arrays = [np.asarray(a) for a in given[0]]
    reference = op.at(case).bind(op.reference)
    numpy_ = [np.asarray(y, np.float64) for y in as_tuple(reference(*(wide(a) for a in arrays)))]
    assert_close([("NumPy", got[0][1])], [("NumPy", numpy_)], 2 * tolerance)


def wide(a):
    return a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("linear", "bfloat16"),
        ("cross_entropy", "bfloat16"),
        ("conv2d", "float16"),
        ("adam", "float16"),
        ("tanh", "float64"),
    ],
)
def test_other_dtypes(name, dtype):
    op, case = OPS[name], RICHEST[name]
    # float64 is there within x64 alone.
    with jax.enable_x64(dtype == "float64"):
        given = drawn(op, case, dtype)
        want = results(op, case, given)
        with cuda_on_cpu(sanitized=True) as seen:
            got = results(op, case, given)
    assert not seen.faults
    assert seen.kernels
    assert_close(got, want, 4 * op.at(case).tolerance(dtype))


def test_what_is_run_is_what_a_gpu_runs():
    """Blocks of a GPU and split reductions, not the one block of the interpreter."""
    x = jnp.ones((3000, 40))
    with cuda_on_cpu() as seen:
        np.testing.assert_allclose(jax.grad(lambda b: lab.linear(x, jnp.zeros((40, 8)), b).sum())(jnp.zeros(8)), 3000.0)
    # A bias' gradient is a column sum, which a GPU takes in two passes.
    assert seen.kernels["gradlab_column_sum_kernel"] == 2
    assert taken.of_a_cpu == "cpu"
    with cuda_on_cpu() as seen:
        pass
    lab.relu(x)
    assert not seen.kernels


@pytest.mark.parametrize("name", ["linear", "cross_entropy"])
def test_mapped_as_a_gpu_maps(name):
    """`jax.vmap` gives a kernel's grid one more axis: one launch, whose programs write every element once."""
    op, case, given = OPS[name], RICHEST[name], drawn(OPS[name], RICHEST[name], "float32")
    (_, forward), (_, backward), *_ = pallas_cuda_jax.passes(op.at(case), pallas_cuda_jax.SIDE)
    many = [[np.stack([x, x[::-1]]) if x.ndim else np.stack([x, x]) for x in map(np.asarray, g)] for g in given]
    for run in (forward, backward):
        one, mapped = fast_jit_jax.jit(run), fast_jit_jax.jit(jax.vmap(run))
        want = mapped(*many)
        with cuda_on_cpu(sanitized=True) as seen:
            one(*given)
            once = dict(seen.kernels)
            got = mapped(*many)
        assert not seen.faults
        assert seen.kernels == {kernel: 2 * count for kernel, count in once.items()}
        assert_close([(name, got)], [(name, want)], 4 * op.at(case).tolerance("float32"))


def launched(kernel, n):
    """`kernel` on one block of 128 of an array of n."""
    block = pl.BlockSpec((128,), lambda i: (0,))
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    return launch_pallas.pallas(kernel, "cuda", (1,), [block], block, shape)(jnp.ones(n))


def test_an_element_that_is_not_written_is_not_a_number():
    def half(x_ref, y_ref):
        y_ref[:64] = x_ref[:64]

    with cuda_on_cpu() as seen:
        y = np.asarray(launched(half, 128))
    assert seen.kernels == {"gradlab_half": 1}
    np.testing.assert_array_equal(y[:64], 1.0)
    assert np.isnan(y[64:]).all()


def test_an_error_within_leaves_nothing_behind():
    real = pl.pallas_call
    with pytest.raises(ZeroDivisionError), cuda_on_cpu():
        1 / 0  # noqa: B018
    assert pl.pallas_call is real
    assert taken.of_a_cpu == "cpu"
