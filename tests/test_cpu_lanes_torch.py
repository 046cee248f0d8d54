"""Lanes of a vector on a CPU: division by one number for all of them, and elements narrower than a gather."""

import pytest
import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime import compiled_triton


@JITFunction
def _divide_kernel(x_ptr, q_ptr, r_ptr, y, B: tl.constexpr, UNSIGNED: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(x_ptr + i)
    if UNSIGNED:
        x, y = x.to(tl.uint32, bitcast=True), y.to(tl.uint32, bitcast=True)
    tl.store(q_ptr + i, (x // y).to(tl.int32, bitcast=True))
    tl.store(r_ptr + i, (x % y).to(tl.int32, bitcast=True))


def _numbers(y):
    """Every power of two and its neighbours, multiples of y and theirs, and some more."""
    near = [2**i for i in range(32)] + [abs(y) * k for k in (1, 2, 3, 1000, 2**31 // abs(y), 2**32 // abs(y))]
    near = [sign * n + more for n in near for more in (-1, 0, 1) for sign in (1, -1)]
    x = torch.cat([torch.tensor(near), torch.randint(-(2**31), 2**31, (1024 - len(near),))])
    return ((x + 2**31) % 2**32 - 2**31).to(torch.int32)


@pytest.mark.parametrize("y", [2, 3, 28, 49, 103, 641, 65537, 2**31 - 1, -1, -3, -(2**31)])
@pytest.mark.parametrize("unsigned", [False, True])
def test_division_of_lanes_by_one_number(y, unsigned):
    x = _numbers(y)
    q, r = torch.empty_like(x), torch.empty_like(x)
    compiled_triton.run(_divide_kernel, (1,), (x, q, r, y), {"B": 1024, "UNSIGNED": unsigned})
    x, y = (x.long() % 2**32, y % 2**32) if unsigned else (x.long(), y)
    # 2^31 does not fit.
    fits = torch.ones_like(x, dtype=torch.bool) if unsigned or y != -1 else x > -(2**31)
    wanted = torch.div(x, y, rounding_mode="trunc")
    for got, want in ((q, wanted), (r, x - y * wanted)):
        got = got.long() % 2**32 if unsigned else got.long()
        assert torch.equal(got[fits], want[fits])


@JITFunction
def _gather_kernel(x_ptr, i_ptr, y_ptr, N, B: tl.constexpr):
    j = tl.arange(0, B)
    i = tl.load(i_ptr + j)
    tl.store(y_ptr + j, tl.load(x_ptr + i, mask=i < N, other=1))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int16, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_gathers_of_every_width(dtype, first):
    """Elements at every place of a word, and none past the last."""
    x = torch.randint(-100, 100, (50 + first,)).to(dtype)[first:]
    i = torch.randint(0, 60, (64,), dtype=torch.int32)
    y = torch.empty(64, dtype=dtype)
    compiled_triton.run(_gather_kernel, (1,), (x, i, y, 50), {"B": 64})
    assert torch.equal(y, torch.where(i < 50, x[i.clamp(max=49)], torch.ones((), dtype=dtype)))


@JITFunction
def _stepped_kernel(x_ptr, step, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i * step))


def test_a_step_of_0_or_1_is_not_taken_for_another():
    x = torch.arange(64.0)
    for step in (0, 1, 3, 2, 1, 0):
        y = torch.empty(16)
        compiled_triton.run(_stepped_kernel, (1,), (x, step, y), {"N": 16})
        assert torch.equal(y, x[torch.arange(16) * step]), step
