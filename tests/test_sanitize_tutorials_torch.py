"""Kernels in the style of Triton's tutorials, which are right: nothing is said of them."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

import gradlab
from tests.sanitized import cpu_driver

cpu = pytest.fixture(autouse=True)(cpu_driver)


@triton.jit
def softmax_rows(y_ptr, x_ptr, x_stride, y_stride, M, N, BLOCK: tl.constexpr):
    for row in tl.range(tl.program_id(0), M, tl.num_programs(0)):
        n = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_stride + n, mask=n < N, other=-float("inf"))
        e = tl.exp(x - tl.max(x, axis=0))
        tl.store(y_ptr + row * y_stride + n, e / tl.sum(e, axis=0), mask=n < N)


@triton.jit
def grouped_matmul(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr):
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = pid // (G * columns)
    size = min(rows - group * G, G)
    m = ((group * G + (pid % (G * columns)) % size) * BM + tl.arange(0, BM)) % M
    n = ((pid % (G * columns)) // size * BN + tl.arange(0, BN)) % N
    k = tl.arange(0, BK)
    a_ptrs, b_ptrs = a_ptr + m[:, None] * K + k[None, :], b_ptr + k[:, None] * N + n[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(tl.cdiv(K, BK)):
        a = tl.load(a_ptrs, mask=k[None, :] < K - step * BK, other=0.0)
        b = tl.load(b_ptrs, mask=k[:, None] < K - step * BK, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        a_ptrs += BK
        b_ptrs += BK * N
    m = (group * G + (pid % (G * columns)) % size) * BM + tl.arange(0, BM)
    n = (pid % (G * columns)) // size * BN + tl.arange(0, BN)
    tl.store(c_ptr + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def weight_gradient(dy_ptr, x_ptr, part_ptr, lock_ptr, N, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    mask = n < N
    lock_id = row % GROUP
    lock_ptr += lock_id
    count_ptr = lock_ptr + GROUP
    part_ptr = part_ptr + lock_id * N + n
    part = tl.load(dy_ptr + row * N + n, mask=mask, other=0.0) * tl.load(x_ptr + row * N + n, mask=mask, other=0.0)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    count = tl.load(count_ptr)
    if count == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        part += tl.load(part_ptr, mask=mask)
    tl.store(part_ptr, part, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def dropout(x_ptr, y_ptr, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    keep = tl.rand(seed, i) > p
    tl.store(y_ptr + i, tl.where(keep, x / (1 - p), 0.0), mask=i < n)


@triton.jit
def split_sum(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr, tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0)), sem="relaxed")


@triton.jit
def compacted(x_ptr, y_ptr, count_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=-1.0)
    keep = x > 0
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    first = tl.atomic_add(count_ptr, tl.sum(keep.to(tl.int32)))
    tl.store(y_ptr + first + place, x, mask=keep)


def test_softmax():
    with gradlab.sanitize(floats=True):
        x = torch.randn(37, 100)
        y = torch.empty(37, 100)
        softmax_rows[(5,)](y, x, 100, 100, 37, 100, BLOCK=128)
        torch.testing.assert_close(y, x.softmax(1))


def test_matmul():
    with gradlab.sanitize():
        a, b, c = torch.randn(70, 50), torch.randn(50, 90), torch.empty(70, 90)
        grouped_matmul[(5 * 6,)](a, b, c, 70, 90, 50, BM=16, BN=16, BK=32, G=2)
        torch.testing.assert_close(c, a @ b)


def test_layer_norms_sums_behind_locks():
    with gradlab.sanitize():
        x, dy = torch.randn(20, 50), torch.randn(20, 50)
        locks = torch.zeros(8, dtype=torch.int32)
        parts = torch.empty(4, 50)
        weight_gradient[(20,)](dy, x, parts, locks, 50, GROUP=4, BLOCK=64)
        torch.testing.assert_close(parts.sum(0), (x * dy).sum(0))


def test_dropout():
    with gradlab.sanitize():
        y = torch.empty(1000)
        dropout[(4,)](torch.ones(1000), y, 1000, 0.3, 2**31 - 7, BLOCK=256)
        assert 600 < (y > 0).sum() < 800


def test_atomic_sums_and_places():
    with gradlab.sanitize():
        x, total = torch.arange(-50.0, 950.0), torch.zeros(1)
        split_sum[(4,)](x, total, 1000, BLOCK=256)
        assert total.item() == x.sum().item()
        y, count = torch.empty(1000), torch.zeros(1, dtype=torch.int32)
        compacted[(4,)](x, y, count, 1000, BLOCK=256)
        assert torch.equal(y[: count.item()].sort().values, x[x > 0])
