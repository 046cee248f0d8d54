"""The lab's Pallas kernels, compiled for a GPU and executed on this CPU, held against the interpreter."""

import dataclasses

import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("triton")

from gradlab.kernels.spec import specs
from gradlab.profiling.emulate import launches_jax
from gradlab.profiling.emulate.compare import How, op_case
from gradlab.profiling.machine_code.targets import TARGETS

pytestmark = pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="this jax puts no Triton IR into its program")


def executed(op, case, dtype, arch="sm_90", **options):
    at = specs()[op].at(next(c for c in specs()[op].cases if c.name == case))
    return op_case(at, "jax", dtype, How(TARGETS[arch], options={"check": True, **options}))


@pytest.mark.parametrize(
    ("op", "case", "dtype", "arch"),
    [
        ("relu", "odd", "bfloat16", "sm_80"),
        ("linear", "odd", "bfloat16", "sm_90"),
        ("cross_entropy", "ignored rows", "float32", "sm_90"),
        ("sgd", "nesterov", "float16", "sm_80"),
    ],
)
def test_an_op(op, case, dtype, arch):
    result = executed(op, case, dtype, arch)
    assert result.ok, (result.error, result.comparisons)
    assert result.launches


def test_a_spoilt_kernel_is_seen(monkeypatch):
    real = launches_jax.compiled

    def spoilt(*args):
        made = real(*args)
        return dataclasses.replace(made, assembly=made.assembly.replace("sub.f32", "add.f32"))

    monkeypatch.setattr(launches_jax, "compiled", spoilt)
    result = executed("mse_loss", "mean", "float32")
    assert not result.ok
    assert not result.error


def test_an_error_within_a_program_of_xla_is_one_line(monkeypatch):
    real = launches_jax.compiled

    def spoilt(*args):
        made = real(*args)
        return dataclasses.replace(made, assembly=made.assembly.replace("mov.u32", "frobnicate.u32"))

    monkeypatch.setattr(launches_jax, "compiled", spoilt)
    result = executed("relu", "odd", "float32")
    assert result.error.startswith("emulate: instruction is frobnicate.u32 ")
    assert "\n" not in result.error


def test_half_precision_is_held_against_float64_where_terms_cancel():
    """Of terms that cancel, what is left is how each of them was rounded."""
    at = specs()["binary_cross_entropy_with_logits"]
    at = at.at(next(c for c in at.cases if c.name == "sum, weights"))
    result = op_case(at, "jax", "float16", How(TARGETS["sm_90"]), second=True)
    assert result.ok, [c for c in result.comparisons if not c.ok]
    # One that is twice as far off is not.
    import numpy as np

    from gradlab.profiling.emulate.compare import _no_worse
    from gradlab.profiling.emulate.result import Comparison

    c = Comparison("y", 0.5, 0.0, False)
    assert _no_worse(c, np.array([1.2]), np.array([0.9]), np.array([1.0])).ok
    assert not _no_worse(c, np.array([1.21]), np.array([0.9]), np.array([1.0])).ok
