"""Accesses outside of a tensor's own elements: found with their line and argument, and masked off."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

import gradlab
from tests.sanitized import cpu_driver, faults, line, only

cpu = pytest.fixture(autouse=True)(cpu_driver)


@triton.jit
def off_by_one(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i <= n, other=0.0)  # fault
    tl.store(y_ptr + i, x + 1.0, mask=i < n)


@triton.jit
def unmasked_store(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0))  # fault


@triton.jit
def one_before(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(x_ptr + i - 1, mask=i < n, other=0.0)  # fault
    tl.store(y_ptr + i, before, mask=i < n)


@triton.jit
def rows(x_ptr, y_ptr, M, N, stride, BM: tl.constexpr, BN: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    n = tl.arange(0, BN)[None, :]
    x = tl.load(x_ptr + m * stride + n, mask=m < M, other=0.0)  # fault
    tl.store(y_ptr + m * N + n, x, mask=(m < M) & (n < N))


@triton.jit
def row_sum(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = 0.0
    for start in range(0, N + BLOCK, BLOCK):
        n = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x_ptr + row * N + n, mask=n < N + 1, other=0.0))  # fault
    tl.store(y_ptr + row, total)


@triton.jit
def product(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a_ptrs = a_ptr + m[:, None] * K + k[None, :]
    b_ptrs = b_ptr + k[:, None] * N + n[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        a = tl.load(a_ptrs, mask=(m[:, None] < M) & (start + k[None, :] < K), other=0.0)
        b = tl.load(b_ptrs, mask=n[None, :] < N, other=0.0)  # fault
        total += tl.dot(a, b, input_precision="ieee")
        a_ptrs += BK
        b_ptrs += BK * N
    tl.store(c_ptr + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def walking(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(n // BLOCK + 1):
        total += tl.load(x_ptr + tl.arange(0, BLOCK))  # fault
        x_ptr += BLOCK
    tl.store(y_ptr + tl.arange(0, BLOCK), total)


@triton.jit
def block_pointers(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    shape, strides, offsets = (M, N), (N, 1), (tl.program_id(0) * BM, 0)
    x = tl.make_block_ptr(x_ptr, shape, strides, offsets, (BM, BN), (1, 0))
    y = tl.make_block_ptr(y_ptr, shape, strides, offsets, (BM, BN), (1, 0))
    tile = tl.load(x)  # fault
    tl.store(y, tile, boundary_check=(0, 1))


@triton.jit
def one_scalar(x_ptr, y_ptr, n):
    last = tl.load(x_ptr + n)  # fault
    tl.store(y_ptr + tl.program_id(0), last)


@triton.jit
def counting(x_ptr, count_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kind = tl.load(x_ptr + i, mask=i < n, other=0)
    tl.atomic_add(count_ptr + kind, 1, mask=i < n)  # fault


@triton.jit
def swapping(lock_ptr, n):
    tl.atomic_cas(lock_ptr + n, 0, 1)  # fault


@triton.jit
def embedding(i_ptr, w_ptr, y_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    w = tl.load(w_ptr + tl.load(i_ptr + row) * N + n, mask=n < N, other=0.0)  # fault
    tl.store(y_ptr + row * N + n, w, mask=n < N)


@triton.jit
def transposed(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    x = tl.load(x_ptr + m * N + n, mask=(m < M) & (n < N), other=0.0)
    tl.store(y_ptr + n * (M + 1) + m, x, mask=(m < M) & (n < N))  # fault


@triton.jit
def fetch(ptr, i):
    return tl.load(ptr + i)  # fault


@triton.jit
def calling(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, fetch(x_ptr, i), mask=i < n)  # call


@triton.jit(noinline=True)
def fetch_apart(ptr, i):
    return tl.load(ptr + i)  # fault


@triton.jit
def calling_apart(x_ptr, y_ptr, n):
    tl.store(y_ptr, fetch_apart(x_ptr, n))


@triton.jit
def table(table_ptr, sizes_ptr, BLOCK: tl.constexpr):
    tensor = tl.program_id(0)
    ptr = tl.load(table_ptr + tensor).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, BLOCK)
    n = tl.load(sizes_ptr + tensor)
    tl.store(ptr + i, 1.0, mask=i < n)  # fault


@triton.jit
def bottomless(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < 3, other=0.0)  # fault
    tl.store(y_ptr + i, x)


@triton.jit
def searching(x_ptr, y_ptr):
    i = 0
    x = tl.load(x_ptr)
    while x < 10.0:
        i += 1
        x = tl.load(x_ptr + i)  # fault
        if i > 20:
            x = 11.0
    tl.store(y_ptr, i)


@triton.jit
def chosen(a_ptr, b_ptr, y_ptr, which, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if which > 5:
        tl.store(y_ptr + i, tl.load(a_ptr + i))  # fault
    else:
        tl.store(y_ptr + i, tl.load(b_ptr + i, mask=i < n))


@triton.jit
def scanned(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i * 2, mask=i < n, other=0.0)  # fault
    tl.store(y_ptr + i, tl.cumsum(x, 0), mask=i < n)


OUT = "out of bounds"
X, Y = torch.ones(1000), torch.zeros(1000)


def test_one_past_the_end_is_found_and_masked_off():
    y = torch.zeros(1000)
    found = faults(off_by_one, (4,), X, y, 1000, BLOCK=256)
    only(found, OUT, off_by_one, "x_ptr", index=1000, access="load", count=1, masked=True)
    (fault,) = found
    assert (fault.program, fault.grid) == ((3, 0, 0), (4, 1, 1))
    assert (fault.shape, fault.stride, fault.dtype, fault.span) == ((1000,), (1,), "float32", 1000)
    assert torch.equal(y, X + 1)


def test_a_store_past_the_end_leaves_what_is_there():
    memory = torch.zeros(1024)
    found = faults(unmasked_store, (4,), X, memory[:1000], 1000, BLOCK=256)
    only(found, OUT, unmasked_store, "y_ptr", index=1000, access="store", count=24, masked=False)
    assert memory.sum() == 1000


def test_in_front_of_the_first():
    only(faults(one_before, (1,), X, Y, 256, BLOCK=256), OUT, one_before, "x_ptr", index=-1, count=1)


@pytest.mark.parametrize(("rows_", "columns", "index"), [(3, 6, 6), (4, 16, 64)])
def test_a_row_that_is_too_long(rows_, columns, index):
    """In a view with gaps between its rows, the gaps are not its own."""
    x = torch.ones(4, 16)[:rows_, :columns]
    y = torch.zeros(rows_, columns)
    wide = 2 * columns if columns == 16 else 8
    found = faults(rows, (1,), x, y, rows_, columns, 16, BM=4, BN=wide)
    only(found, OUT, rows, "x_ptr", count=rows_ * 2 if columns == 6 else 16)
    assert found[0].index == index


def test_a_whole_view_with_gaps_is_no_fault():
    x, y = torch.ones(4, 16)[:, :8], torch.zeros(4, 8)
    assert not faults(rows, (1,), x, y, 4, 8, 16, BM=4, BN=8)


def test_every_other_element():
    found = faults(off_by_one, (1,), X[::2], torch.zeros(400), 400, BLOCK=512)
    only(found, OUT, off_by_one, "x_ptr", index=1, stride=(2,))


def test_an_expanded_gradient_has_one_element():
    found = faults(off_by_one, (1,), torch.ones(()).expand(100), torch.zeros(100), 99, BLOCK=128)
    only(found, OUT, off_by_one, "x_ptr", index=1, stride=(0,), count=99)


def test_a_reduction_in_a_loop():
    only(faults(row_sum, (3,), torch.ones(3, 50), torch.zeros(3), 50, BLOCK=16), OUT, row_sum, "x_ptr", index=150)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dot_whose_last_rows_are_not_masked(dtype):
    a, b = torch.ones(20, 40, dtype=dtype), torch.ones(40, 24, dtype=dtype)
    c = torch.zeros(20, 24)
    found = faults(product, (2, 2), a, b, c, 20, 24, 40, BM=16, BN=16, BK=32)
    only(found, OUT, product, "b_ptr", index=40 * 24, program=(0, 0, 0))
    assert torch.equal(c, torch.full((20, 24), 40.0))


def test_a_dot_whose_rows_are_whole():
    a, b = torch.ones(20, 64), torch.ones(64, 24)
    assert not faults(product, (2, 2), a, b, torch.zeros(20, 24), 20, 24, 64, BM=16, BN=16, BK=32)


def test_a_pointer_that_a_loop_moves():
    only(faults(walking, (1,), torch.ones(256), torch.zeros(64), 256, BLOCK=64), OUT, walking, "x_ptr", index=256)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers():
    x = torch.ones(5, 12)
    found = faults(block_pointers, (2,), x, torch.zeros(5, 12), 5, 12, BM=4, BN=16)
    only(found, OUT, block_pointers, "x_ptr", index=60)
    whole = torch.ones(8, 16)
    assert not faults(block_pointers, (2,), whole, torch.zeros(8, 16), 8, 16, BM=4, BN=16)


def test_one_scalar():
    only(faults(one_scalar, (1,), X, Y, 1000), OUT, one_scalar, "x_ptr", index=1000)
    assert not faults(one_scalar, (1,), X, Y, 999)


def test_an_atomic():
    kinds, counts = torch.tensor([0, 1, 2, 3, 2]), torch.zeros(3, dtype=torch.int32)
    only(faults(counting, (1,), kinds, counts, 5, BLOCK=8), OUT, counting, "count_ptr", index=3, access="atomic")
    assert counts.tolist() == [1, 1, 2]
    only(faults(swapping, (1,), torch.zeros(1, dtype=torch.int32), 1), OUT, swapping, "lock_ptr", index=1)


@pytest.mark.parametrize(("row", "index"), [(7, 70), (-1, -10)])
def test_a_gathered_row(row, index):
    rows_ = torch.tensor([3, row, 0])
    found = faults(embedding, (3,), rows_, torch.ones(7, 10), torch.zeros(3, 10), 10, BLOCK=16)
    only(found, OUT, embedding, "w_ptr", index=index, count=10, program=(1, 0, 0))


def test_wrong_strides():
    found = faults(transposed, (1,), torch.ones(5, 6), torch.zeros(6, 5), 5, 6, BM=8, BN=8)
    only(found, OUT, transposed, "y_ptr", index=30, access="store")


def test_through_an_inlined_callee():
    (fault,) = faults(calling, (1,), torch.ones(20), torch.zeros(20), 20, BLOCK=32)
    assert (fault.line, fault.argument, fault.index) == (line(fetch), "x_ptr", 20)
    assert fault.callers == ((__file__, line(calling, "# call")),)


def test_through_a_callee_that_is_not_inlined():
    (fault,) = faults(calling_apart, (1,), torch.ones(20), torch.zeros(20), 20)
    assert (fault.line, fault.argument, fault.index) == (line(fetch_apart), "x_ptr", 20)


def test_a_table_of_addresses():
    tensors = [torch.zeros(7), torch.zeros(30), torch.zeros(64)]
    addresses = torch.tensor([t.data_ptr() for t in tensors])
    sizes = torch.tensor([7, 32, 64])
    (fault,) = faults(table, (3,), addresses, sizes, BLOCK=64)
    assert (fault.kind, fault.line, fault.argument, fault.index) == (OUT, line(table), None, 30)
    assert (fault.program, fault.shape, fault.count) == ((1, 0, 0), (30,), 2)
    assert not faults(table, (3,), addresses, torch.tensor([7, 30, 64]), BLOCK=64)


def test_an_address_of_nothing():
    (fault,) = faults(table, (1,), torch.tensor([64]), torch.tensor([3]), BLOCK=64)
    assert (fault.line, fault.argument, fault.shape, fault.count) == (line(table), None, None, 3)


def test_no_elements_at_all():
    only(faults(bottomless, (1,), torch.empty(0), torch.zeros(16), BLOCK=16), OUT, bottomless, "x_ptr", span=0, count=3)


def test_a_loop_that_does_not_end_in_time():
    only(faults(searching, (1,), torch.zeros(8), torch.zeros(1)), OUT, searching, "x_ptr", index=8)


def test_a_branch():
    a, b, y = torch.ones(10), torch.ones(10), torch.zeros(16)
    only(faults(chosen, (1,), a, b, y, 6, 10, BLOCK=16), OUT, chosen, "a_ptr", index=10)
    assert not faults(chosen, (1,), a, b, y, 4, 10, BLOCK=16)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float16, torch.float64])
def test_elements_of_other_sizes(dtype):
    x, y = torch.ones(100, dtype=dtype), torch.zeros(100, dtype=torch.float32)
    only(faults(scanned, (1,), x, y, 60, BLOCK=64), OUT, scanned, "x_ptr", index=100, count=10)
    assert not faults(scanned, (1,), x, y, 50, BLOCK=64)


def test_it_raises_at_the_end_or_at_once():
    def twice(first):
        with gradlab.sanitize(first=first) as report:
            for _ in range(2):
                off_by_one[(4,)](X, Y, 1000, BLOCK=256)
                launched.append(report.launches)

    launched = []
    for first in (False, True):
        with pytest.raises(gradlab.SanitizeError, match=r"out of bounds: load of x_ptr\[1000\]") as found:
            twice(first)
        assert len(found.value.report.faults) == 1
    assert len(launched) == 2


def test_one_place_is_told_once():
    with gradlab.sanitize(raises=False) as report:
        for i in range(3):
            assert report.launches == i
            off_by_one[(4,)](X, Y, 1000, BLOCK=256)
    (fault,) = report.faults
    assert (fault.count, fault.launches, report.launches, bool(report)) == (3, 3, 3, False)
    # Outside of it nothing is examined, and nothing is compiled otherwise.
    off_by_one[(4,)](X, Y, 1000, BLOCK=256)
    assert report.launches == 3
