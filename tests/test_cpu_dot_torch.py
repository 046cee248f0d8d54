"""Dots on a CPU: every shape of the micro-kernel, operands that lie either way, bfloat16 by tile registers or without,
and loops that are written with and without masks."""

import dataclasses
import re

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu import lower, machine
from gradlab.kernels.runtime import compiled_triton


@JITFunction
def _dot_kernel(
    a_ptr,
    a_m,
    a_k,
    b_ptr,
    b_k,
    b_n,
    c_ptr,
    K,
    M: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    ACC: tl.constexpr,
):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    total = tl.zeros((M, N), ACC)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(a_ptr + m * a_m + k[None, :] * a_k, mask=k[None, :] < K, other=0)
        b = tl.load(b_ptr + k[:, None] * b_k + n * b_n, mask=k[:, None] < K, other=0)
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
    tl.store(c_ptr + m * N + n, total)


def dot(a, b, deep=64, accumulator=tl.float32):
    """a[M K] b[K N] by one program in steps of `deep`; M, N and `deep` are powers of two."""
    (M, K), N = a.shape, b.shape[1]
    c = a.new_empty((M, N), dtype=getattr(torch, str(accumulator).replace("fp", "float").replace("<", "").strip()))
    constants = {"M": M, "N": N, "BK": deep, "ACC": accumulator}
    compiled_triton.run(_dot_kernel, (1,), (a, *a.stride(), b, *b.stride(), c, K), constants)
    return c


def lying(rows, columns, turned, dtype=torch.float32):
    """A matrix whose rows, or columns, are contiguous and apart in memory."""
    x = torch.randn(columns + 3, rows) if turned else torch.randn(rows, columns + 3)
    return (
        (x.t() if turned else x)[:, :columns].to(dtype) if dtype.is_floating_point else x.mul(50).to(dtype)[:, :columns]
    )


def exact(y, a, b, epsilon):
    """Within the rounding of a sum of K products."""
    a, b = a.double(), b.double()
    assert ((y.double() - a @ b).abs() <= (a.shape[1] + 2) * epsilon * (a.abs() @ b.abs())).all()


# Whole micro-kernels, rows left over, one vector, less than a vector, one element.
SHAPES = [(32, 64), (4, 32), (16, 16), (8, 4), (64, 8), (1, 128), (16, 1)]


@pytest.mark.parametrize(("M", "N"), SHAPES)
def test_micro_kernels_of_every_shape(M, N):
    a, b = torch.randn(M, 90), torch.randn(90, N)
    exact(dot(a, b), a, b, 2**-24)


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_operands_lie_either_way(a_turned, b_turned, dtype):
    a, b = lying(32, 150, a_turned, dtype), lying(150, 64, b_turned, dtype)
    accumulator = tl.float64 if dtype == torch.float64 else tl.float32
    exact(dot(a, b, 64, accumulator), a, b, 2**-53 if dtype == torch.float64 else 2**-24)


@pytest.mark.parametrize(("M", "N", "deep"), [(16, 16, 32), (64, 16, 32), (16, 32, 64), (128, 64, 256), (8, 32, 32)])
def test_bfloat16_in_tiles_of_every_shape(M, N, deep):
    for turned in (False, True):
        a, b = lying(M, 300, turned, torch.bfloat16), lying(300, N, turned, torch.bfloat16)
        exact(dot(a, b, deep), a, b, 2**-24)


def test_bfloat16_is_no_worse_than_torch():
    a, b = torch.randn(64, 512, dtype=torch.bfloat16), torch.randn(512, 64, dtype=torch.bfloat16)
    wanted = a.double() @ b.double()
    ours, native = (dot(a, b).bfloat16(), a @ b)
    assert (ours.double() - wanted).abs().max() <= (native.double() - wanted).abs().max()


def test_bfloat16_keeps_infinities_and_nan():
    a, b = torch.ones(16, 64, dtype=torch.bfloat16), torch.ones(64, 32, dtype=torch.bfloat16)
    a[1, 5], a[2, 7], b[9, 3], b[10, 3] = torch.nan, torch.inf, torch.inf, -torch.inf
    y = dot(a, b)
    assert y[1].isnan().all()
    assert y[:, 3].isnan().all()
    assert (y[2, :3] == torch.inf).all()
    assert (y[3:, 4:] == 64).all()


def _text():
    a, b, c = (torch.empty(64, 64, dtype=t) for t in (torch.bfloat16, torch.bfloat16, torch.float32))
    constants = {"M": 64, "N": 64, "BK": 64, "ACC": tl.float32}
    source = compiled_triton.source(_dot_kernel, (a, 64, 1, b, 64, 1, c, 64), constants)
    found = triton.compile(source, target=compiled_triton.TARGET, options={"enable_fp_fusion": True})
    return str(found.asm["ttir"])


def test_tile_registers_are_used_where_there_are_some():
    dot(*(torch.ones(64, 64, dtype=torch.bfloat16),) * 2)
    base = dataclasses.replace(machine.host(), vector_bits=512, features="+avx512f")
    text = _text()
    assert "tdpbf16ps" in lower.lower(text, dataclasses.replace(base, features="+avx512f,+amx-bf16")).ir
    plain = lower.lower(text, base).ir
    assert "tdpbf16ps" not in plain
    assert "@llvm.fma.v16f32" in plain


def test_tile_registers_that_linux_refuses_are_left_alone(monkeypatch):
    monkeypatch.setattr(machine, "_tiles_permitted", lambda: False)
    assert not machine.host.__wrapped__().matrices


@JITFunction
def _twice_kernel(x_ptr, y_ptr, first, N, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=first + i < N, other=-1.0))


@pytest.mark.parametrize(
    ("first", "N", "live"),
    [
        (0, 64, 64),
        (5, 64, 59),
        (2**31 - 8, 64, 56),  # Sums of 32 bits that wrap: the last is below N, the first eight are not.
        (70, 64, 0),
    ],
)
def test_whole_tiles_and_tiles_at_an_edge(first, N, live):
    x, y = torch.arange(64.0), torch.empty(64)
    compiled_triton.run(_twice_kernel, (1,), (x, y, first, N), {"B": 64})
    i = (torch.arange(64) + first + 2**31) % 2**32 - 2**31
    assert torch.equal(y, torch.where(i < N, x, -1.0))
    assert (y >= 0).sum() == live


@JITFunction
def _row_kernel(x_ptr, y_ptr, m, M, N, B: tl.constexpr):
    rows, columns = m + tl.arange(0, 1), tl.arange(0, B)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(y_ptr + columns[None, :], tl.load(x_ptr + columns[None, :], mask=inside, other=0.0), mask=inside)


def test_the_mask_of_a_tiles_only_row_is_asked_once():
    x = torch.arange(1.0, 65.0)
    for m, N, live in ((1, 64, 64), (1, 63, 63), (2, 64, 0), (2, 63, 0)):
        y = torch.full((64,), -1.0)
        compiled_triton.run(_row_kernel, (1,), (x, y, m, 2, N), {"B": 64})
        assert torch.equal(y, torch.where(torch.arange(64) < live, x, -1.0)), (m, N)
    source = compiled_triton.source(_row_kernel, (x, x, 3, 2, 64), {"B": 64})
    made = triton.compile(source, target=compiled_triton.TARGET, options={"enable_fp_fusion": True})
    # The whole row's loop has none, the other one.
    assert len(re.findall("call .*@llvm.masked.store", made.asm["llir"])) == 1


@JITFunction
def _sums_kernel(x_ptr, rows_ptr, all_ptr, N, B: tl.constexpr):
    m, n = tl.arange(0, 4)[:, None], tl.arange(0, B)[None, :]
    x = tl.load(x_ptr + m * B + n, mask=n < N, other=1000.0)
    tl.store(rows_ptr + tl.arange(0, 4), tl.max(tl.where(n < N, x, -1.0), axis=1))
    tl.store(all_ptr, tl.sum(tl.sum(tl.where(n < N, x, 0.0), axis=0), axis=0))


@pytest.mark.parametrize("N", [64, 63, 1])
def test_reductions_of_whole_tiles_and_of_tiles_at_an_edge(N):
    x, rows, total = torch.rand(4, 64), torch.empty(4), torch.empty(1)
    compiled_triton.run(_sums_kernel, (1,), (x, rows, total, N), {"B": 64})
    assert torch.equal(rows, x[:, :N].amax(1))
    torch.testing.assert_close(total[0], x[:, :N].sum(), rtol=256 * 2**-24, atol=0)
    source = compiled_triton.source(_sums_kernel, (x, rows, total, N), {"B": 64})
    text = str(triton.compile(source, target=compiled_triton.TARGET, options={"enable_fp_fusion": True}).asm["ttir"])
    ir = lower.lower(text, dataclasses.replace(machine.host(), vector_bits=256)).ir
    # Each reduction's loop over a whole tile has no mask.
    masked, plain = (len(re.findall(pattern, ir)) for pattern in ("call .*@llvm.masked.load", "load <8 x float>"))
    assert 0 < masked <= plain
