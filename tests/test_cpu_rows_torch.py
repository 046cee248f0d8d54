"""Short rows on a CPU: masks that end within a vector, elements put in turn, products that lie column by column."""

import ctypes
import mmap

import pytest
import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu import lower, machine
from gradlab.kernels.runtime import compiled_triton
from gradlab.profiling.machine_code.compile_cpu_triton import front

DTYPES = [torch.int8, torch.bfloat16, torch.float32, torch.float64]


@JITFunction
def _copy_kernel(x_ptr, x_m, y_ptr, y_m, first, N, M: tl.constexpr, B: tl.constexpr):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, B)[None, :]
    inside = (n >= first) & (n < N)
    tl.store(y_ptr + m * y_m + n, tl.load(x_ptr + m * x_m + n, mask=inside, other=7), mask=inside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_length(dtype):
    """Every first and last lane of a vector; what lies outside of the rows is left as it is."""
    x = torch.randint(-100, 100, (4, 40)).to(dtype)
    for first, N in [(0, n) for n in range(33)] + [(n, 30) for n in range(9)] + [(5, 7), (3, 3)]:
        y = torch.full((4, 40), 99, dtype=dtype)
        compiled_triton.run(_copy_kernel, (1,), (x, 40, y, 40, first, N), {"M": 4, "B": 32})
        wanted = torch.full_like(y, 99)
        wanted[:, first:N] = x[:, first:N]
        assert torch.equal(y, wanted), (first, N)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_past_a_page_that_ends(dtype):
    """Rows end where readable memory ends: a vector that would reach over is not read as a whole."""
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    assert protect(address + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    memory = torch.frombuffer(page, dtype=dtype, count=mmap.PAGESIZE // dtype.itemsize)
    for N in range(1, 32):
        x = memory[-N:]
        x.copy_(torch.randint(-100, 100, (N,)).to(dtype))
        y = torch.empty(1, 32, dtype=dtype)
        compiled_triton.run(_copy_kernel, (1,), (x, 0, y, 32, 0, N), {"M": 1, "B": 32})
        assert torch.equal(y[0, :N], x), N
        y = torch.empty(2, 32, dtype=dtype)
        compiled_triton.run(_copy_kernel, (1,), (x, 0, y, 32, 0, N), {"M": 2, "B": 32})
        assert torch.equal(y[:, :N], x.expand(2, N)), N


@JITFunction
def _turns_kernel(a_ptr, b_ptr, y_ptr, n_a, n_y, M: tl.constexpr, N: tl.constexpr, ALONG: tl.constexpr):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    a = tl.load(a_ptr + m * N + n, mask=n < n_a, other=0.0)
    b = tl.load(b_ptr + m * N + n, mask=n < n_a, other=0.0)
    y = tl.interleave(a, b + 1.0).to(y_ptr.dtype.element_ty)
    j = tl.arange(0, 2 * N)[None, :]
    tl.store(y_ptr + (m * (2 * N) + j if ALONG else j * M + m), y, mask=j < n_y)


@pytest.mark.parametrize("along", [True, False])
@pytest.mark.parametrize("size", [(8, 16), (4, 2), (1, 32), (16, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_elements_of_two_tensors_in_turn(size, along, dtype):
    (M, N), n_a = size, max(1, size[1] - 3)
    a, b = torch.randn(M, N).to(dtype), torch.randn(M, N).to(dtype)
    for n_y in (2 * N, 2 * N - 1, N + 1):
        y = torch.full((M, 2 * N), 99.0, dtype=dtype)
        given = y if along else y.t().contiguous()
        compiled_triton.run(_turns_kernel, (1,), (a, b, given, n_a, n_y), {"M": M, "N": N, "ALONG": along})
        wanted = torch.stack([a, b], dim=2)
        wanted[:, n_a:] = 0
        wanted = torch.stack([wanted[..., 0].double(), wanted[..., 1].double() + 1], dim=2).flatten(1).to(dtype)
        got = given if along else given.t()
        assert torch.equal(got[:, :n_y], wanted[:, :n_y])
        assert (got[:, n_y:] == 99).all()


@JITFunction
def _columns_kernel(a_ptr, a_k, b_ptr, y_ptr, y_n, K, Q, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)[None, :]
    # As pixels of an image: that they are neighbours is seen at run time alone.
    at = (m // Q * Q + m % Q)[:, None]
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(a_ptr + at + k[None, :] * a_k, mask=(k < K)[None, :] & (at < M - 1), other=0.0)
        b = tl.load(b_ptr + k[:, None] * N + n, mask=(k < K)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(y_ptr + at + n * y_n, total * 2.0, mask=at < M - 1)


@pytest.mark.parametrize("size", [(64, 32, 16), (128, 4, 32), (16, 64, 16), (32, 8, 16)])
def test_a_product_that_is_stored_along_its_rows_is_the_transposes(size):
    """The same sums, and no lane of a result or an operand gathered alone."""
    (M, N, BK), K = size, 40
    a, b, y = torch.randn(K, M), torch.randn(K, N), torch.full((N, M), 99.0)
    args, constants = (a, M, b, y, M, K, 28), {"M": M, "N": N, "BK": BK}
    compiled_triton.run(_columns_kernel, (1,), args, constants)
    wanted = 2 * a.double().t() @ b.double()
    close = (y.t().double() - wanted).abs() <= (K + 2) * 2**-23 * 2 * (a.double().abs().t() @ b.double().abs())
    assert close[:-1].all()
    assert (y[:, -1] == 99).all()


def test_an_accumulator_lies_as_it_is_stored():
    """Columns contiguous, a line longer than their elements; where rows are stored, rows."""
    a, b, y = torch.randn(40, 64), torch.randn(40, 32), torch.empty(32, 64)
    found = []
    for stride in (64, 1):
        made = compiled_triton.source(_columns_kernel, (a, 64, b, y, stride, 40, 28), {"M": 64, "N": 32, "BK": 16})
        found.append(lower.lower(front(made), machine.named("x86_64-linux-gnu", "x86-64-v3", vector_bits=256)).ir)
    columns, rows = ({line for line in ir.splitlines() if "internal void @micro" in line} for ir in found)
    assert columns
    assert all("_80_0(" in line for line in columns), columns
    assert all("_32_0(" in line for line in rows), rows


@JITFunction
def _shifted_kernel(x_ptr, i_ptr, y_ptr, by, N: tl.constexpr, M: tl.constexpr):
    i = tl.load(i_ptr + tl.arange(0, N))[None, :]
    m = tl.arange(0, M)[:, None]
    at = ((i + by) * 3 - 3 * by + m * 2 + by) - by
    tl.store(y_ptr + m * N + tl.arange(0, N)[None, :], tl.load(x_ptr + at) + (i + by + m > 20).to(tl.float32))


def test_lanes_that_are_moved_by_scalars():
    """Sums, differences and products of lanes and a scalar, in addresses and in comparisons."""
    x, i = torch.randn(200), torch.randint(0, 40, (16,), dtype=torch.int32)
    for by in (0, 5, -3):
        y = torch.empty(4, 16)
        compiled_triton.run(_shifted_kernel, (1,), (x, i, y, by), {"N": 16, "M": 4})
        m = torch.arange(4)[:, None]
        assert torch.equal(y, x[i.long() * 3 + 2 * m] + (i + by + m > 20).float()), by


@JITFunction
def _doubled_kernel(x_ptr, y_ptr, B: tl.constexpr):
    m, n = tl.arange(0, 2)[:, None], tl.arange(0, B)[None, :]
    x = tl.load(x_ptr + m * B + n)
    for _ in tl.static_range(60):
        x = x * 0.5 + x * 0.5
    tl.store(y_ptr + m * B + n, x)


def test_a_chain_that_uses_each_value_twice_is_followed_once():
    """There are 2^60 ways from its end to its start: who walks all of them does not come back."""
    x, y = torch.randn(2, 32), torch.empty(2, 32)
    compiled_triton.run(_doubled_kernel, (1,), (x, y), {"B": 32})
    assert torch.equal(x, y)
