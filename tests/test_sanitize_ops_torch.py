"""No false alarm: every op over its Spec, with a CPU's tiles and a GPU's; results are those of unsanitized kernels.

A product and a sum are fused where they stand in one block, which a guard may part: the last bit may differ."""

import contextlib
import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llvmlite")

import gradlab
from gradlab.kernels.runtime.launch_triton import gpu_sizes
from tests.test_cpu_ops_torch import CASES, KINKED, OPS, RICHEST, assert_close, drawn, large, run


def hold(op, case, dtype):
    given = drawn(op, case, dtype)
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes():
            want = run(op, case, given)
            with gradlab.sanitize() as report:
                got = run(op, case, given)
        assert report.launches
        assert_close(got, want, 4 * op.at(case).tolerance(dtype))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_case(name, case):
    op = OPS[name]
    hold(op, next(c for c in op.select("check") if c.name == case), "float32")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", OPS)
def test_other_precisions(name, dtype):
    hold(OPS[name], RICHEST[name], dtype)


@pytest.mark.parametrize("name", OPS)
def test_many_programs(name):
    hold(dataclasses.replace(OPS[name], **({"draw": None} if name in KINKED else {})), large(name), "float32")
