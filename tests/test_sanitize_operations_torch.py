"""Failed assertions, integer division by zero, shifts past the width, offsets that wrap: found, and nothing else is."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

import gradlab
from tests.sanitized import cpu_driver, faults, line, only

cpu = pytest.fixture(autouse=True)(cpu_driver)

ASSERTION, DIVISION, SHIFT, OVERFLOW = (
    "failed assertion",
    "division by zero",
    "shift past the width",
    "integer overflow",
)


@triton.jit
def asserting(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=1.0)
    tl.device_assert(x > 0, "x is positive")  # fault
    tl.store(y_ptr + i, tl.log(x), mask=i < n)


@triton.jit
def asserting_once(n):
    tl.device_assert(n < 5, "n is small")  # fault


@triton.jit
def rows_of(x_ptr, y_ptr, n, width, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, i // width, mask=i < n)  # fault


@triton.jit
def scalar_quotient(y_ptr, n, width):
    tl.store(y_ptr, n % width)  # fault


@triton.jit
def quotients(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    y = tl.load(y_ptr + i, mask=i < n, other=0)
    tl.store(z_ptr + i, x // y + 1, mask=i < n)  # fault


@triton.jit
def chosen_quotients(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    y = tl.load(y_ptr + i, mask=i < n, other=0)
    tl.store(z_ptr + i, tl.where(y == 0, 0, x // y), mask=i < n)


@triton.jit
def shifting(x_ptr, y_ptr, n, by, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    tl.store(y_ptr + i, x << by, mask=i < n)  # fault


@triton.jit
def shifting_each(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=99)
    tl.store(y_ptr + i, 1 << x, mask=i < n)  # fault


@triton.jit
def strided(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i * stride, mask=i < n, other=0.0), mask=i < n)  # fault


@triton.jit
def far_row(x_ptr, y_ptr, row, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x_ptr += row * stride  # fault
    tl.store(y_ptr + i, tl.load(x_ptr + i))


@triton.jit
def in_all(x_ptr, y_ptr, M, N, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < M * N  # fault
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=inside, other=0.0), mask=inside)


@triton.jit
def matrix(x_ptr, y_ptr, M, N, stride, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    inside = (m < M) & (n < N)
    x = tl.load(x_ptr + (m * stride + n), mask=inside, other=0.0)  # fault
    tl.store(y_ptr + m * N + n, x, mask=inside)


@triton.jit
def mixing(x_ptr, y_ptr, seed, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    hashed = (i + seed) * 1103515245 + 12345
    x = tl.load(x_ptr + (hashed & 63), mask=i < n, other=0.0)
    tl.store(y_ptr + i, x * tl.rand(seed, i), mask=i < n)


def test_an_assertion_does_not_stop_the_kernel():
    x, y = torch.ones(100), torch.zeros(100)
    x[[3, 70]] = -1
    (fault,) = faults(asserting, (4,), x, y, 100, BLOCK=32)
    assert (fault.kind, fault.line, fault.text) == (ASSERTION, line(asserting), "x is positive")
    assert (fault.program, fault.count) == ((0, 0, 0), 2)
    assert y.isnan().sum() == 2
    assert not faults(asserting, (4,), torch.ones(100), y, 100, BLOCK=32)


def test_an_assertion_about_a_scalar():
    only(faults(asserting_once, (2,), 7), ASSERTION, asserting_once, None, text="n is small", count=2)
    assert not faults(asserting_once, (2,), 4)


def test_a_divisor_that_is_one_number():
    x, y = torch.zeros(1), torch.zeros(100, dtype=torch.int32)
    only(faults(rows_of, (2,), x, y, 100, 0, BLOCK=64), DIVISION, rows_of, None, program=(0, 0, 0))
    assert not faults(rows_of, (2,), x, y, 100, 7, BLOCK=64)
    only(faults(scalar_quotient, (1,), y, 100, 0), DIVISION, scalar_quotient, None)
    assert not faults(scalar_quotient, (1,), y, 100, 7)


def test_divisors_of_lanes_that_are_stored():
    x = torch.arange(20, dtype=torch.int32)
    y = torch.ones(20, dtype=torch.int32)
    # Beyond the 20, where nothing is stored, every divisor is 0.
    assert not faults(quotients, (1,), x, y, torch.zeros_like(x), 20, BLOCK=32)
    y[13] = 0
    only(faults(quotients, (1,), x, y, torch.zeros_like(x), 20, BLOCK=32), DIVISION, quotients, None)
    assert not faults(chosen_quotients, (1,), x, y, torch.zeros_like(x), 20, BLOCK=32)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.int32, 32), (torch.int64, 64)])
def test_a_shift(dtype, bits):
    x = torch.ones(20, dtype=dtype)
    found = faults(shifting, (1,), x, torch.zeros_like(x), 20, bits, BLOCK=32)
    only(found, SHIFT, shifting, None, text=f"{bits} bits are shifted by {bits} or more")
    assert not faults(shifting, (1,), x, torch.zeros_like(x), 20, bits - 1, BLOCK=32)


def test_a_shift_of_each():
    x = torch.arange(20, dtype=torch.int32)
    assert not faults(shifting_each, (1,), x, torch.zeros_like(x), 20, BLOCK=32)
    x[7] = 40
    only(faults(shifting_each, (1,), x, torch.zeros_like(x), 20, BLOCK=32), SHIFT, shifting_each, None)


def test_an_offset_that_wraps_is_no_mere_access_out_of_bounds():
    x, y = torch.ones(2**10), torch.zeros(64)
    only(faults(strided, (1,), x, y, 64, 2**24, BLOCK=64), "out of bounds", strided, "x_ptr", index=2**24, count=63)
    found = faults(strided, (1,), x, y, 64, 2**30, BLOCK=64)
    only(found, OVERFLOW, strided, "x_ptr", access="load")
    assert not faults(strided, (1,), x, y, 64, 16, BLOCK=64)


def test_an_offset_of_rows_that_wraps():
    x, y = torch.ones(8, 16), torch.zeros(8, 16)
    only(faults(matrix, (1,), x, y, 8, 16, 2**29, BM=8, BN=16), OVERFLOW, matrix, "x_ptr")
    assert not faults(matrix, (1,), x, y, 8, 16, 16, BM=8, BN=16)


def test_a_scalar_offset_that_wraps_to_what_is_there():
    x, y = torch.ones(64), torch.zeros(64)
    only(faults(far_row, (1,), x, y, 2**16, 2**16, BLOCK=64), OVERFLOW, far_row, None)
    assert not faults(far_row, (1,), x, y, 0, 2**16, BLOCK=64)


def test_a_product_of_sizes_that_wraps():
    x, y = torch.ones(64), torch.zeros(64)
    only(faults(in_all, (1,), x, y, 2**16, 2**15, BLOCK=64), OVERFLOW, in_all, None)
    assert not faults(in_all, (1,), x, y, 8, 8, BLOCK=64)


def test_bits_that_are_to_wrap():
    x, y = torch.ones(64), torch.zeros(64)
    assert not faults(mixing, (1,), x, y, 2**31 - 5, 64, BLOCK=64)


BORN = "birth of a NaN or infinity"


@triton.jit
def normalised(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * N + n, mask=n < N, other=0.0)
    size = tl.sqrt(tl.sum((x * x).to(tl.float32))).to(x.dtype)
    y = x / size  # fault
    tl.store(y_ptr + tl.program_id(0) * N + n, y + 1.0, mask=n < N)


@triton.jit
def logarithm(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    y = tl.log(x)  # fault
    tl.store(y_ptr + i, tl.maximum(y, -9.0) * 2.0 + y, mask=i < n)


@triton.jit
def exponentials(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * N + n, mask=n < N, other=-float("inf"))
    total = tl.sum(tl.exp(x))  # fault
    tl.store(y_ptr + tl.program_id(0), total)


def born(kernel, grid, *args, **constants):
    with gradlab.sanitize(raises=False, floats=True) as report:
        kernel[grid](*args, **constants)
    return report.faults


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_a_number_stops_being_finite(dtype):
    x = torch.ones(3, 20, dtype=dtype)
    assert not born(normalised, (3,), x, torch.zeros_like(x), 20, BLOCK=32)
    x[1] = 0.0
    only(born(normalised, (3,), x, torch.zeros_like(x), 20, BLOCK=32), BORN, normalised, None, program=(1, 0, 0))
    assert not faults(normalised, (3,), x, torch.zeros_like(x), 20, BLOCK=32)


def test_the_first_of_several_operations():
    x = torch.ones(20)
    # Of the lanes beyond the 20 the logarithm is infinite, and nothing is stored.
    assert not born(logarithm, (1,), x, torch.zeros(20), 20, BLOCK=32)
    x[4] = 0.0
    only(born(logarithm, (1,), x, torch.zeros(20), 20, BLOCK=32), BORN, logarithm, None)
    # What is not finite when it is loaded is not born here.
    x[4] = float("inf")
    assert not born(logarithm, (1,), x, torch.zeros(20), 20, BLOCK=32)


def test_a_sum_that_is_not_finite():
    x = torch.ones(3, 20)
    assert not born(exponentials, (3,), x, torch.zeros(3), 20, BLOCK=32)
    x[2, 5] = 100.0
    only(born(exponentials, (3,), x, torch.zeros(3), 20, BLOCK=32), BORN, exponentials, None, program=(2, 0, 0))
