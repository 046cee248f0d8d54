"""Faults that well-known kernels have had, made anew and small: the sanitizer or the check finds each."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

import gradlab
from gradlab.profiling.sanitize.words import headline
from tests.sanitized import cpu_driver, faults, line, only

cpu = pytest.fixture(autouse=True)(cpu_driver)

OUT, OVERFLOW, BORN = "out of bounds", "integer overflow", "birth of a NaN or infinity"


@triton.jit
def relu_backward(dy_ptr, x_ptr, dx_ptr, n, BLOCK: tl.constexpr):
    """dx = dy where x > 0, of a dy that is taken for contiguous: that of `y.sum()` has one element in memory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + i, mask=i < n, other=0.0)  # fault
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(dx_ptr + i, tl.where(x > 0, dy, 0.0), mask=i < n)


@triton.jit
def head_rows(q_ptr, y_ptr, first_head, stride_h, N, BLOCK: tl.constexpr):
    """Attention's offset of a head, head x stride in 32 bits, and then the tile's rows."""
    q_ptr += (first_head + tl.program_id(0)) * stride_h  # offset
    n = tl.arange(0, BLOCK)
    q = tl.load(q_ptr + n, mask=n < N, other=0)  # load
    tl.store(y_ptr + tl.program_id(0) * N + n, q, mask=n < N)


@triton.jit
def matmul_rows(a_ptr, y_ptr, first_row, K, stride, BM: tl.constexpr, BK: tl.constexpr):
    """A product's pointers, row x stride in 32 bits for each row of the tile."""
    m, k = first_row + tl.arange(0, BM), tl.arange(0, BK)
    a = tl.load(a_ptr + (m[:, None] * stride + k[None, :]), mask=k[None, :] < K, other=0.0)  # fault
    tl.store(y_ptr + tl.arange(0, BM), tl.sum(a, axis=1))


@triton.jit
def adam_that_does_nothing(p_ptr, g_ptr, rows, columns, lr, BLOCK: tl.constexpr):
    """The number of parameters wraps to less than 0: no program has any, and none is changed."""
    n = rows * columns  # fault
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(p_ptr + i, mask=i < n, other=0.0)
    tl.store(p_ptr + i, p - lr * tl.load(g_ptr + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def log_sum_exp(x_ptr, y_ptr, N, lowest, BLOCK: tl.constexpr):
    """The log-sum-exp of a row whose running maximum starts at `lowest`."""
    largest, total = lowest, 0.0
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + tl.program_id(0) * N + n, mask=n < N, other=-float("inf"))
        new = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new))
        largest = new
    y = tl.log(total)  # fault
    tl.store(y_ptr + tl.program_id(0), largest + y)


@triton.jit
def masked_softmax(x_ptr, y_ptr, first_key, N, BLOCK: tl.constexpr):
    """The weights of a query over the keys from the first visible on: a part of the keys may have none."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + n, mask=n < N, other=0.0)
    x = tl.where((n >= first_key) & (n < N), x, -float("inf"))
    e = tl.exp(x - tl.max(x))  # fault
    tl.store(y_ptr + n, e, mask=n < N)


@triton.jit
def whole_blocks(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """What Pallas gives Triton for a block: no mask, also where the last block is not whole."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)  # load
    tl.store(y_ptr + i, 2 * x)  # store


@triton.jit
def key_gradient(q_ptr, dk_ptr, N, D, stride_q, BN: tl.constexpr, BD: tl.constexpr):
    """The gradient of the keys, stored with the strides of the queries."""
    n, d = tl.arange(0, BN)[:, None], tl.arange(0, BD)[None, :]
    inside = (n < N) & (d < D)
    q = tl.load(q_ptr + n * stride_q + d, mask=inside, other=0.0)
    tl.store(dk_ptr + n * stride_q + d, q, mask=inside)  # fault


@triton.jit
def all_of(table_ptr, sizes_ptr, BLOCK: tl.constexpr):
    """A multi-tensor step over a table of addresses, in which a wrapper of a tensor has none: 0."""
    ptr = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, BLOCK)
    p = tl.load(ptr + i, mask=i < tl.load(sizes_ptr + tl.program_id(0)), other=0.0)  # fault
    tl.store(ptr + i, 0.9 * p, mask=i < tl.load(sizes_ptr + tl.program_id(0)))


def born(kernel, grid, *args, **constants):
    with gradlab.sanitize(raises=False, floats=True) as report:
        kernel[grid](*args, **constants)
    return report.faults


def test_an_expanded_gradient_that_is_read_as_if_contiguous():
    x = torch.ones(100, requires_grad=True)
    given = []
    x.register_hook(given.append)
    x.sum().backward()
    (dy,) = given
    only(faults(relu_backward, (1,), dy, x.detach(), torch.empty(100), 100, BLOCK=128), OUT, relu_backward, "dy_ptr")
    assert not faults(relu_backward, (1,), dy.contiguous(), x.detach(), torch.empty(100), 100, BLOCK=128)


def test_an_offset_of_a_head_in_32_bits():
    # Past 2^31 elements; its pages are never touched, but for a few.
    q, y = torch.empty(513 * 2**22, dtype=torch.int8), torch.empty(4, 64, dtype=torch.int8)
    found = faults(head_rows, (3,), q, y, 510, 2**22, 64, BLOCK=64)
    assert [(f.kind, f.line, f.program, f.index) for f in found] == [
        (OVERFLOW, line(head_rows, "# offset"), (2, 0, 0), None),
        (OUT, line(head_rows, "# load"), (2, 0, 0), -(2**31)),
    ]
    assert not faults(head_rows, (2,), q, y, 510, 2**22, 64, BLOCK=64)


def test_an_offset_of_a_row_in_32_bits():
    a, y = torch.empty(2**31 + 2**18, dtype=torch.int8).view(-1, 2**15), torch.empty(16)
    found = faults(matmul_rows, (1,), a, y, 2**16 - 12, 32, 2**15, BM=16, BK=32)
    only(found, OVERFLOW, matmul_rows, "a_ptr")
    assert headline(found[0]) == "integer overflow: load of a_ptr, whose offset of 32 bits has wrapped"
    assert not faults(matmul_rows, (1,), a, y, 2**16 - 16, 32, 2**15, BM=16, BK=32)


def test_a_step_of_an_optimizer_that_does_nothing():
    p, g = torch.ones(512), torch.ones(512)
    found = faults(adam_that_does_nothing, (2,), p, g, 2**17, 2**14, 0.1, BLOCK=256)
    only(found, OVERFLOW, adam_that_does_nothing, None)
    assert torch.equal(p, torch.ones(512))
    assert not faults(adam_that_does_nothing, (2,), p, g, 2, 256, 0.1, BLOCK=256)


def test_a_running_maximum_that_starts_at_0():
    x, y = torch.zeros(3, 20) - 200, torch.empty(3)
    only(born(log_sum_exp, (3,), x, y, 20, 0.0, BLOCK=16), BORN, log_sum_exp, None)
    assert y.isneginf().all()
    assert not born(log_sum_exp, (3,), x, y, 20, -float("inf"), BLOCK=16)
    assert not born(log_sum_exp, (3,), x + 200, y, 20, 0.0, BLOCK=16)


def test_a_row_of_attention_that_sees_no_key():
    x, y = torch.ones(40), torch.empty(40)
    only(born(masked_softmax, (3,), x, y, 20, 40, BLOCK=16), BORN, masked_softmax, None, program=(0, 0, 0))
    assert not born(masked_softmax, (3,), x, y, 10, 40, BLOCK=16)


def test_a_block_that_pallas_does_not_mask():
    found = faults(whole_blocks, (3,), torch.ones(40), torch.empty(40), BLOCK=16)
    assert [(f.kind, f.line, f.argument, f.index, f.count) for f in found] == [
        (OUT, line(whole_blocks, "# load"), "x_ptr", 40, 8),
        (OUT, line(whole_blocks, "# store"), "y_ptr", 40, 8),
    ]
    assert not faults(whole_blocks, (3,), torch.ones(48), torch.empty(48), BLOCK=16)


def test_a_gradient_that_is_stored_with_anothers_strides():
    q = torch.ones(8, 48)[:, :16]
    found = faults(key_gradient, (1,), q, torch.empty(8, 16), 8, 16, 48, BN=8, BD=16)
    only(found, OUT, key_gradient, "dk_ptr", index=144)
    assert not faults(key_gradient, (1,), q, torch.empty(8, 48)[:, :16], 8, 16, 48, BN=8, BD=16)


def test_a_tensor_without_an_address():
    a, b, sizes = torch.ones(30), torch.ones(20), torch.tensor([30, 20])
    found = faults(all_of, (2,), torch.tensor([a.data_ptr(), 0]), sizes, BLOCK=32)
    assert {(f.kind, f.argument, f.shape, f.program, f.count) for f in found} == {(OUT, None, None, (1, 0, 0), 20)}
    assert not faults(all_of, (2,), torch.tensor([a.data_ptr(), b.data_ptr()]), sizes, BLOCK=32)


# What is no access and no number that is born: `gradlab check` compares the function.


@triton.jit
def capped(x_ptr, y_ptr, N, cap, LATE: tl.constexpr, BLOCK: tl.constexpr):
    """The log-sum-exp of a row of soft-capped logits; the padding is masked before the cap, or after it."""
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * N + n, mask=n < N, other=-float("inf")).to(tl.float32)
    x = cap * (2 * tl.sigmoid(2 * x / cap) - 1)
    if LATE:
        x = tl.where(n < N, x, -float("inf"))
    largest = tl.max(x)
    tl.store(y_ptr + tl.program_id(0), largest + tl.log(tl.sum(tl.exp(x - largest))))


@triton.jit
def squares(x_ptr, y_ptr, dx_ptr, n, BLOCK: tl.constexpr):
    """The sum of squares and, in the same pass, its gradient."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(y_ptr, tl.sum(x * x))
    tl.store(dx_ptr + i, 2 * x, mask=i < n)


class Capped(torch.autograd.Function):
    """Its backward is that of the function that it should be."""

    @staticmethod
    def forward(ctx, x, cap, late):
        ctx.save_for_backward(x)
        ctx.cap = cap
        y = torch.empty(x.shape[0])
        capped[(x.shape[0],)](x, y, x.shape[1], cap, LATE=late, BLOCK=triton.next_power_of_2(x.shape[1]))
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        t = torch.tanh(x / ctx.cap)
        return dy[:, None] * (ctx.cap * t).softmax(1) * (1 - t * t), None, None


class Squares(torch.autograd.Function):
    """The sum of squares, whose gradient is made in forward: over its input, or in memory of its own."""

    @staticmethod
    def forward(ctx, x, over):
        x = x.contiguous()
        y, dx = torch.empty(1, dtype=x.dtype), x if over else torch.empty_like(x)
        squares[(1,)](x, y, dx, x.numel(), BLOCK=64)
        ctx.save_for_backward(dx)
        return y

    @staticmethod
    def backward(ctx, dy):
        (dx,) = ctx.saved_tensors
        return dy * dx, None


def wrong(fn, *args, **options):
    """What the check calls wrong."""
    report = gradlab.check(fn, *args, raises=False, **options)
    return {finding.check for finding in report.findings if finding.verdict == "wrong"}


@pytest.mark.parametrize("late", [False, True])
def test_a_soft_cap_in_front_of_the_paddings_mask(late):
    x = torch.linspace(-2, 2, 82).reshape(2, 41)
    found = wrong(
        lambda x: Capped.apply(x, 1.0, late),
        x,
        reference=lambda x: torch.logsumexp(torch.tanh(x), 1),
        parts=("reference",),
    )
    assert bool(found) == (not late), found


@pytest.mark.parametrize("over", [False, True])
def test_a_gradient_that_is_written_over_the_input(over):
    found = wrong(lambda x: Squares.apply(x, over), torch.linspace(-2, 2, 10, dtype=torch.float64), parts=("contract",))
    assert ("memory unchanged" in found) == bool(found) == over, found
