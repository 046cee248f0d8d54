"""Random inputs of the benchmark that are drawn on the device: of the Spec's distribution, without NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gradlab.autodiff.frameworks.side import SIDES
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.bench import draw
from gradlab.profiling.bench.subject import BenchSubject

ON_GPU = [(op.name, case) for op in specs().values() for case in op.select("bench gpu")]


@pytest.fixture(params=SIDES)
def gpu(request, monkeypatch):
    """A side that is taken to be on CUDA, and an array of 64 elements to be large."""
    monkeypatch.setattr(draw, "_on_cuda", lambda side: True)
    monkeypatch.setattr(draw, "LARGE", 64)
    return side_of(request.param)


def shrunk(case):
    """The case with small sizes that leave something to draw."""
    return replace(case, sizes={axis: min(n, 3 if axis in "RS" else 16) for axis, n in case.sizes.items()})


@pytest.mark.parametrize(("op", "case"), ON_GPU, ids=lambda value: getattr(value, "name", value))
def test_large_inputs_never_pass_numpy(gpu, op, case):
    small = shrunk(case)
    arrays = draw.inputs(spec(op).at(small), gpu, 3)
    wanted = spec(op).at(replace(small, use="bench")).make(3)
    assert [tuple(a.shape) for a in arrays] == [w.shape for w in wanted.values()]
    for a, w in zip(arrays, wanted.values(), strict=True):
        large = w.dtype == np.float64 and w.size >= 64
        assert gpu.is_array(a) == large
        if large:
            a = gpu.take(a)
            # The same distribution: mean and spread of n numbers are known to about 1 / sqrt(n).
            near = 8 * w.std() / math.sqrt(w.size)
            assert abs(a.mean() - w.mean()) < near
            assert abs(a.std() - w.std()) < near
            assert len(np.unique(a)) > 0.9 * a.size


def test_a_subjects_arrays_are_of_its_dtype(gpu):
    case = replace(spec("linear").select("bench gpu")[0], sizes={"M": 16, "K": 8, "N": 16})
    arrays, cotangents = BenchSubject(spec("linear"), case, gpu, "bfloat16", 5).arrays
    assert [tuple(a.shape) for a in (*arrays, *cotangents)] == [(16, 8), (8, 16), (16,), (16, 16)]
    assert {gpu.dtype(a) for a in (*arrays, *cotangents)} == {"bfloat16"}
    assert not np.array_equal(gpu.take(arrays[0]).ravel(), gpu.take(arrays[1]).ravel())
