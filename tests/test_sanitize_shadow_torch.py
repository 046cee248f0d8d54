"""Memory that nobody has written, races between programs, two values for one element: found, and nothing else is."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

import gradlab
from tests.sanitized import cpu_driver, line, only

cpu = pytest.fixture(autouse=True)(cpu_driver)

UNWRITTEN, STORED, LOADED, TWICE = (
    "uninitialised load",
    "race with a store",
    "race with a load",
    "two values for one element",
)


def fresh(*shape, dtype=torch.float32):
    """Memory of torch.empty, made while launches are examined."""
    return lambda: torch.empty(*shape, dtype=dtype)


def examined(kernel, grid, *args, **constants):
    """The faults of one launch; arguments that are functions are called first."""
    with gradlab.sanitize(raises=False) as report:
        kernel[grid](*[a() if callable(a) else a for a in args], **constants)
    return report.faults


@triton.jit
def adding(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(y_ptr + i, mask=i < n, other=0.0)  # fault
    tl.store(y_ptr + i, y + tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def filling(y_ptr, n, value, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, value, mask=i < n)  # fault


@triton.jit
def overlapping(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)  # fault


@triton.jit
def one_total(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0)))  # fault


@triton.jit
def sliding(x_ptr, n, BLOCK: tl.constexpr, BY: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (i + BY >= 0) & (i + BY < n)
    x = tl.load(x_ptr + i + BY, mask=inside, other=0.0)  # load
    tl.store(x_ptr + i, x, mask=i < n)  # store


@triton.jit
def halves(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i // 2, tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)  # fault


@triton.jit
def squashed(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    inside = (m < M) & (n < N)
    x = tl.load(x_ptr + m * N + n, mask=inside, other=0.0)
    tl.store(y_ptr + n + 0 * m, x, mask=inside)  # fault


@triton.jit
def product(a_ptr, b_ptr, c_ptr, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    total = tl.load(c_ptr + m[:, None] * BN + n[None, :])  # fault
    for start in range(0, K, BK):
        a = tl.load(a_ptr + m[:, None] * K + start + k[None, :])
        total += tl.dot(a, tl.load(b_ptr + (start + k[:, None]) * BN + n[None, :]), input_precision="ieee")
    tl.store(c_ptr + m[:, None] * BN + n[None, :], total)


@triton.jit
def split(x_ptr, y_ptr, n, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    part = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + part * n + i, mask=i < n, other=0.0)
    y = tl.load(y_ptr + i, mask=i < n, other=0.0)
    tl.store(y_ptr + i, x + y, mask=i < n)  # store


@triton.jit
def counting(x_ptr, count_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(count_ptr + tl.load(x_ptr + i, mask=i < n, other=0), 1, mask=i < n)  # fault


@triton.jit
def peeking(count_ptr, y_ptr):
    if tl.program_id(0) == 0:
        tl.atomic_add(count_ptr, 1)
    else:
        tl.store(y_ptr + tl.program_id(0), tl.load(count_ptr))  # fault


@triton.jit
def locked(lock_ptr, total_ptr, x_ptr):
    x = tl.load(x_ptr + tl.program_id(0))
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(total_ptr, tl.load(total_ptr) + x)
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def last_one(x_ptr, parts_ptr, count_ptr, y_ptr, P: tl.constexpr):
    p = tl.program_id(0)
    tl.store(parts_ptr + p, tl.load(x_ptr + p))
    if tl.atomic_add(count_ptr, 1) == P - 1:
        tl.store(y_ptr, tl.sum(tl.load(parts_ptr + tl.arange(0, P))))


@triton.jit
def table(table_ptr, n, BLOCK: tl.constexpr):
    ptr = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, BLOCK)
    tl.store(ptr + i, 1.0 + tl.program_id(0), mask=i < n)  # fault


@triton.jit
def copying(table_ptr, n, BLOCK: tl.constexpr):
    pair = table_ptr + 2 * tl.program_id(0)
    x_ptr = tl.load(pair).to(tl.pointer_type(tl.float32))
    y_ptr = tl.load(pair + 1).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def walking(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(0, n, BLOCK):
        total += tl.load(x_ptr + i)  # fault
        x_ptr += BLOCK
    tl.store(y_ptr + i, total)


@triton.jit
def narrowed(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(x_ptr + i, x + 1.0, mask=i // (BLOCK // 2) == tl.program_id(0))


def test_memory_that_nobody_has_written():
    found = examined(adding, (4,), torch.ones(1000), fresh(1000), 1000, BLOCK=256)
    only(found, UNWRITTEN, adding, "y_ptr", index=0, count=1000, stored=None)


@pytest.mark.parametrize("write", ["fill_", "copy_", "numpy", "slice", "out"])
def test_memory_that_torch_or_numpy_has_written(write):
    def made():
        y = torch.empty(1000)
        match write:
            case "fill_":
                y.fill_(2.0)
            case "copy_":
                y.copy_(torch.ones(1000))
            case "numpy":
                y.numpy()[:] = 1.0
            case "slice":
                y[:600], y[600:] = 1.0, 2.0
            case "out":
                torch.add(torch.ones(1000), 1, out=y)
        return y

    assert not examined(adding, (4,), torch.ones(1000), made, 1000, BLOCK=256)


def test_half_of_it_is_written():
    def made():
        y = torch.empty(1000)
        y[:700] = 1.0
        return y

    found = examined(adding, (4,), torch.ones(1000), made, 1000, BLOCK=256)
    only(found, UNWRITTEN, adding, "y_ptr", index=700, count=300, program=(2, 0, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.int64])
def test_elements_of_other_sizes(dtype):
    x = torch.ones(1000, dtype=dtype)
    found = examined(adding, (4,), x, fresh(1000, dtype=dtype), 1000, BLOCK=256)
    only(found, UNWRITTEN, adding, "y_ptr", index=0, count=1000)
    zero = lambda: torch.empty(1000, dtype=dtype).zero_()
    assert not examined(adding, (4,), x, zero, 1000, BLOCK=256)


def test_a_launch_that_wrote_too_little_is_named():
    with gradlab.sanitize(raises=False) as report:
        y = torch.empty(1000)
        filling[(3,)](y, 1000, 1.0, BLOCK=256)
        adding[(4,)](torch.ones(1000), y, 1000, BLOCK=256)
    only(report.faults, UNWRITTEN, adding, "y_ptr", index=768, count=232)
    assert report.faults[0].stored[:2] == (1, "filling")
    with gradlab.sanitize():
        y = torch.empty(1000)
        filling[(4,)](y, 1000, 1.0, BLOCK=256)
        adding[(4,)](torch.ones(1000), y, 1000, BLOCK=256)


def test_an_accumulator_that_is_not_set():
    a, b = torch.ones(16, 64), torch.ones(64, 16)
    only(examined(product, (1,), a, b, fresh(16, 16), 64, BM=16, BN=16, BK=32), UNWRITTEN, product, "c_ptr", count=256)
    assert not examined(product, (1,), a, b, torch.zeros(16, 16), 64, BM=16, BN=16, BK=32)


def test_a_pointer_that_a_loop_moves():
    found = examined(walking, (1,), fresh(256), torch.zeros(64), 256, BLOCK=64)
    only(found, UNWRITTEN, walking, "x_ptr", index=0, count=256)


def test_tiles_that_overlap():
    found = examined(overlapping, (4,), torch.ones(1000), fresh(1000), 1000, BLOCK=256)
    only(found, STORED, overlapping, "y_ptr", index=255, program=(1, 0, 0), other=(0, 0, 0), count=3)
    assert not examined(overlapping, (1,), torch.ones(1000), fresh(1000), 1000, BLOCK=1024)


def test_every_program_writes_one_element():
    found = examined(one_total, (4,), torch.ones(1000), fresh(1), 1000, BLOCK=256)
    only(found, STORED, one_total, "y_ptr", index=0, count=3)
    assert not examined(one_total, (1,), torch.ones(200), fresh(1), 200, BLOCK=256)


@pytest.mark.parametrize(("by", "kind", "mark"), [(1, LOADED, "# store"), (-1, STORED, "# load")])
def test_a_load_and_a_store_race_in_whatever_order_they_ran(by, kind, mark):
    (fault,) = examined(sliding, (4,), torch.ones(1000), 1000, BLOCK=256, BY=by)
    assert (fault.kind, fault.line, fault.argument) == (kind, line(sliding, mark), "x_ptr")
    assert (fault.program, fault.other, fault.count) == ((1, 0, 0), (0, 0, 0), 3)
    # Within one program every load comes before the store.
    assert not examined(sliding, (1,), torch.ones(1000), 1000, BLOCK=1024, BY=by)
    assert not examined(sliding, (4,), torch.ones(1000), 1000, BLOCK=256, BY=0)


def test_a_split_sum_without_atomics():
    found = examined(split, (2, 3), torch.ones(3, 500), torch.zeros(500), 500, BLOCK=256, PARTS=3)
    # Who loads what it stores then is told by its store.
    assert {(f.kind, f.access, f.argument) for f in found} == {(STORED, "load", "y_ptr"), (STORED, "store", "y_ptr")}
    assert {f.other for f in found} == {(0, 0, 0)}
    assert {f.program for f in found} == {(0, 1, 0)}
    assert not examined(split, (2, 1), torch.ones(1, 500), torch.zeros(500), 500, BLOCK=256, PARTS=1)


def test_a_load_of_more_than_is_stored_is_remembered():
    found = examined(narrowed, (2,), torch.ones(64), BLOCK=64)
    assert {(f.kind, f.access, f.count) for f in found} == {(STORED, "load", 32), (LOADED, "store", 32)}


def test_two_lanes_of_a_store():
    x = torch.arange(100.0)
    only(examined(halves, (1,), x, fresh(50), 100, BLOCK=128), TWICE, halves, "y_ptr", index=0, count=50)
    assert not examined(halves, (1,), torch.ones(100), fresh(50), 100, BLOCK=128)


def test_two_rows_of_a_store():
    x = torch.arange(60.0).reshape(3, 20)
    only(examined(squashed, (1,), x, fresh(20), 3, 20, BM=4, BN=32), TWICE, squashed, "y_ptr", index=0, count=40)
    assert not examined(squashed, (1,), torch.ones(3, 20), fresh(20), 3, 20, BM=4, BN=32)


def test_atomics_race_with_what_is_none():
    kinds = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])
    assert not examined(counting, (2,), kinds, torch.zeros(3, dtype=torch.int32), 8, BLOCK=4)
    only(examined(counting, (2,), kinds, fresh(3, dtype=torch.int32), 8, BLOCK=4), UNWRITTEN, counting, "count_ptr")
    found = examined(peeking, (3,), torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32))
    only(found, STORED, peeking, "count_ptr", access="load", other=(0, 0, 0), count=2)


def test_what_atomics_order_is_no_race():
    zero = torch.zeros(1, dtype=torch.int32)
    total = torch.zeros(1)
    assert not examined(locked, (5,), zero, total, torch.ones(5))
    assert total.item() == 5
    y = torch.zeros(1)
    assert not examined(last_one, (4,), torch.ones(4), fresh(4), zero.clone(), y, P=4)
    assert y.item() == 4


def test_tensors_of_a_table_that_are_one():
    a, b = torch.zeros(100), torch.zeros(100)
    addresses = lambda *tensors: torch.tensor([t.data_ptr() for t in tensors])
    only(examined(table, (3,), addresses(a, b, a), 100, BLOCK=128), STORED, table, None, other=(0, 0, 0), count=100)
    assert not examined(table, (2,), addresses(a, b), 100, BLOCK=128)


@pytest.mark.parametrize(
    ("pairs", "races"),
    [
        ("ab cd", set()),
        ("ab ca", {(LOADED, "store", (0, 0, 0))}),
        ("ab bc", {(STORED, "load", (0, 0, 0))}),
        # What b is held against as a store's address changes when it is loaded.
        ("ab bc db", {(STORED, "load", (0, 0, 0)), (STORED, "store", (0, 0, 0)), (LOADED, "store", (1, 0, 0))}),
    ],
)
def test_tensors_of_a_table_that_some_programs_load_and_others_store(pairs, races):
    tensors = {name: torch.zeros(100) for name in "abcd"}
    addresses = torch.tensor([tensors[name].data_ptr() for name in pairs.replace(" ", "")])
    found = examined(copying, (len(pairs.split()),), addresses, 100, BLOCK=128)
    assert {(f.kind, f.access, f.other) for f in found} == races


def test_launches_do_not_race_with_each_other():
    with gradlab.sanitize():
        y = torch.empty(1000)
        for value in range(3):
            filling[(4,)](y, 1000, float(value), BLOCK=256)
            adding[(4,)](torch.ones(1000), y, 1000, BLOCK=256)
    assert torch.equal(y, torch.full((1000,), 3.0))


def test_memory_that_is_used_again_is_not_what_it_was():
    with gradlab.sanitize():
        for _ in range(5):
            filling[(4,)](torch.empty(1000), 1000, 1.0, BLOCK=256)
            adding[(4,)](torch.ones(1000), torch.zeros(1000), 1000, BLOCK=256)


def test_ticks_begin_anew(monkeypatch):
    from gradlab.kernels.cpu import sanitize_torch

    monkeypatch.setattr(sanitize_torch, "LAST_TICK", 10)
    with gradlab.sanitize(raises=False) as report:
        y = torch.empty(1000)
        for _ in range(4):
            filling[(3,)](y, 1000, 1.0, BLOCK=256)
            overlapping[(2,)](torch.ones(1000), y, 400, BLOCK=256)
        adding[(4,)](torch.ones(1000), y, 1000, BLOCK=256)
    assert [(f.kind, f.count, f.launches) for f in report.faults] == [(STORED, 4, 4), (UNWRITTEN, 232, 1)]


NEVER = "result never written"


def test_a_result_that_is_not_all_written_and_that_torch_reads():
    with gradlab.sanitize(raises=False) as report:
        y = torch.empty(1000)
        filling[(3,)](y, 1000, 1.0, BLOCK=256)
        assert not report.faults
        y.sum()  # read
    (fault,) = report.faults
    assert (fault.kind, fault.argument, fault.line, fault.index) == (NEVER, "y_ptr", line(filling), 768)
    assert (fault.count, fault.launch, fault.program) == (232, 1, None)
    assert fault.reader.startswith(f"sum at {__file__}:")
    assert f"result never written: y_ptr[768] and 231 more, which sum at {__file__}:" in str(report)


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y[:768].sum(),
        lambda y: torch.empty_like(y),
        lambda y: y.view(10, 100).t().shape,
        lambda y: y[768:].fill_(1.0).sum() + y.sum(),
        lambda y: torch.add(torch.ones(1000), 1.0, out=y).sum(),
        lambda y: y.new_zeros(3).sum(),
        lambda y: y.copy_(torch.ones(1000)).sum(),
    ],
)
def test_what_is_not_read_of_it_need_not_be_written(use):
    with gradlab.sanitize():
        y = torch.empty(1000)
        filling[(3,)](y, 1000, 1.0, BLOCK=256)
        use(y)


@pytest.mark.parametrize(
    "use", [lambda y: y[500:].clone(), lambda y: y.reshape(10, 100) @ torch.ones(100), torch.Tensor.tolist]
)
def test_other_ways_of_reading(use):
    with gradlab.sanitize(raises=False) as report:
        y = torch.empty(1000)
        filling[(3,)](y, 1000, 1.0, BLOCK=256)
        use(y)
        use(y)
    assert [(f.kind, f.index, f.count, f.launches) for f in report.faults] == [(NEVER, 768, 232, 1)]


def test_transforms_of_torch_go_on():
    """What has no memory of its own is never asked for it, and what is compiled is one graph as ever."""

    def loss(x, w):
        y = torch.empty(3)
        y.fill_(1.0)
        return (gradlab_linear(x, w) * 2).sum() + y.sum()

    from gradlab.torch import linear as gradlab_linear

    x, w = torch.ones(8, 16), torch.ones(4, 16, requires_grad=True)
    want = loss(x, w)
    with gradlab.sanitize() as report:
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w)
        compiled.backward()
        assert report.launches
        assert torch.func.grad(lambda w: loss(x, w))(w).shape == w.shape
        assert torch.vmap(lambda row: gradlab_linear(row, w))(x).shape == (8, 4)
    assert torch.equal(compiled, want)


def test_what_no_kernel_has_stored_is_torchs_own():
    with gradlab.sanitize():
        torch.empty(1000).sum()
