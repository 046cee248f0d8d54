"""The Triton gate: interpreter and compiler from one source, in one process."""

import threading

import pytest

torch = pytest.importorskip("torch")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from gradlab.kernels import launch_triton as gate
from gradlab.kernels import linear_triton, relu_triton
from gradlab.profiling.machine_code.launches_torch import source


@gate.kernel
def _twice(x):
    return x + x


@gate.kernel
def _sum_of_twice(x_ptr, y_ptr, N, BN: tl.constexpr):
    n = tl.arange(0, BN)
    x = tl.load(x_ptr + n, mask=n < N, other=0.0)
    tl.store(y_ptr, tl.sum(_twice(x), axis=0))


@gate.kernel
def _wrong(x_ptr, N):
    tl.store(x_ptr + tl.no_such_function(N), 0.0)


def members():
    return [dict(vars(place)) for place in gate._switched]


def test_a_kernel_that_calls_a_kernel_and_a_reduction():
    x, y = torch.arange(5.0), torch.zeros(1)
    gate.launch(_sum_of_twice, [1], x, y, 5, BN=8, writes=[y])
    assert y.item() == 20.0


def test_language_is_put_back_after_a_launch_and_after_an_error():
    relu_triton.gate(torch.randn(3), torch.randn(3))
    before = members()
    relu_triton.gate(torch.randn(3), torch.randn(3))
    with pytest.raises(AttributeError):
        gate.launch(_wrong, [1], torch.zeros(1), 1, writes=[torch.zeros(1)])
    assert members() == before
    assert isinstance(tl.sum, JITFunction)


def test_interpreting_and_compiling_in_turns():
    x = torch.randn(40, 40)
    for _ in range(2):
        y = relu_triton.gate(x, x)
        assert torch.equal(y, x.relu())
        with gate.recording() as launches:
            relu_triton.gate(x, x)
        code = triton.compile(source(launches[0]), target=GPUTarget("cuda", 90, 32))
        assert "st.global" in code.asm["ptx"]


def test_threads_take_turns():
    x = torch.randn(8, 8, dtype=torch.float64)
    results = []

    def work():
        for _ in range(3):
            results.append(linear_triton.product(x, x, None, None, "", False, False))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(results) == 12
    assert all(torch.equal(r, results[0]) for r in results)


def test_staging_keeps_strides_and_rounds_back():
    x = torch.randn(4, 6).to(torch.bfloat16)
    for t in (x.t(), x[:, ::2], x[:1].expand(4, 6), x[1:3, 2:4]):
        with gate.staged([t], []) as stage:
            wide = stage(t)
            assert wide.dtype == torch.float32
            assert wide.stride() == t.stride()
            assert torch.equal(wide, t.float())
    with gate.staged([x], [x]) as stage:
        stage(x).fill_(1 + 3 * 2.0**-8)
    assert (x == 1 + 2.0**-6).all()


def test_an_empty_grid_launches_nothing():
    y = torch.ones(1)
    gate.launch(_sum_of_twice, [0], torch.zeros(1), y, 1, BN=1, writes=[y])
    assert y.item() == 1.0


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (1, 16), (17, 32), (128, 128), (129, 128)])
def test_block(size, expected):
    assert gate.block(size, 128) == expected
