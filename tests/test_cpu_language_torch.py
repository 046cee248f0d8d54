"""Triton's language on a CPU: control flow, calls, atomics, arguments, what a kernel says; against torch and Python."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

from gradlab.kernels.cpu.lower import Unsupported

pytestmark = pytest.mark.usefixtures("triton_cpu")


# Control flow.


@triton.jit
def collatz_kernel(n_ptr, steps_ptr):
    n = tl.load(n_ptr + tl.program_id(0))
    steps = 0
    while n != 1:
        if n % 2 == 0:  # noqa: SIM108
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    tl.store(steps_ptr + tl.program_id(0), steps)


def test_a_while_loop_with_branches():
    n = torch.tensor([1, 7, 27, 97, 871], dtype=torch.int32)
    steps = torch.zeros_like(n)
    collatz_kernel[(5,)](n, steps)
    assert steps.tolist() == [0, 16, 111, 118, 178]


@triton.jit
def newton_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    y = tl.maximum(x, 1.0)
    while tl.max(tl.abs(y * y - x) / x) > 1e-5:
        y = 0.5 * (y + x / y)
    tl.store(y_ptr + at, y)


def test_a_while_loop_that_carries_a_tensor():
    x = torch.rand(64) * 100 + 0.1
    y = torch.empty(64)
    newton_kernel[(1,)](x, y, BLOCK=64)
    torch.testing.assert_close(y, x.sqrt(), rtol=1e-5, atol=0)


@triton.jit
def nested_kernel(x_ptr, y_ptr, n, early, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    at = pid * BLOCK + tl.arange(0, BLOCK)
    if pid * BLOCK >= n:
        return
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    if early > 0:
        if pid == 1:
            tl.store(y_ptr + at, x - 1, mask=at < n)
            return
        if pid == 2:  # noqa: SIM108
            x = x * 2
        else:
            x = -x
    else:
        x += 0.5
    tl.store(y_ptr + at, x, mask=at < n)


def test_nested_branches_with_early_returns():
    x = torch.randn(70)
    for early in (0, 5):
        y = torch.full((70,), 9.0)
        nested_kernel[(6,)](x, y, 70, early, BLOCK=16)
        want = x + 0.5
        if early:
            want = -x
            want[16:32] = x[16:32] - 1
            want[32:48] = x[32:48] * 2
        torch.testing.assert_close(y, want, rtol=0, atol=0)


@triton.jit
def two_ways_kernel(flag_ptr, out_ptr):
    # Triton joins the two stores into one block, which both ways of one branch lead to.
    if tl.load(flag_ptr) > 0:
        tl.store(out_ptr, 7)
        return
    tl.store(out_ptr, 5)


def test_two_ways_to_one_place_with_other_values():
    out = torch.empty(1, dtype=torch.int32)
    for flag, value in ((1, 7), (-3, 5)):
        two_ways_kernel[(1,)](torch.tensor([flag], dtype=torch.int32), out)
        assert out.item() == value


@triton.jit
def chosen(x, flag):
    if flag > 2:
        return x * 2
    if flag > 1:
        return x + 1
    return -x


@triton.jit
def returned_kernel(flag_ptr, x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    flag = tl.load(flag_ptr)
    tl.store(out_ptr + at, chosen(tl.load(x_ptr + at), flag))
    tl.store(out_ptr + BLOCK, chosen(flag * 1.0, flag))


def test_a_function_returns_from_several_places():
    x, out = torch.randn(8), torch.empty(9)
    for flag, f in ((3, lambda v: v * 2), (2, lambda v: v + 1), (0, lambda v: -v)):
        returned_kernel[(1,)](torch.tensor([flag]), x, out, BLOCK=8)
        torch.testing.assert_close(out[:8], f(x))
        assert out[8].item() == f(float(flag))


@triton.jit(noinline=True)
def pair(x, y, scale):
    return x * scale + y, y, scale + 1


@triton.jit(noinline=True)
def write(p, value, n):
    if n < 0:
        return
    at = tl.arange(0, 16)
    tl.store(p + at, at + value, mask=at < n)


@triton.jit(noinline=True)
def summed(p, n):
    total = 0.0
    for i in range(n):
        total += tl.load(p + i)
    return total


@triton.jit
def calls_kernel(x_ptr, out_ptr, n):
    z, y, scale = pair(tl.load(x_ptr), tl.load(x_ptr + 1), 2.0)
    w, _, scale = pair(z, y, scale)
    write(out_ptr, w, n)
    write(out_ptr + 16, summed(x_ptr, 8) * scale, 16)
    write(out_ptr + 32, z, -1)


def test_functions_that_are_not_inlined():
    x, out = torch.randn(16), torch.zeros(48)
    calls_kernel[(1,)](x, out, 10)
    at, w = torch.arange(16), (x[0] * 2 + x[1]) * 3 + x[1]
    want = torch.cat([torch.where(at < 10, at + w, 0), at + x[:8].sum() * 4, torch.zeros(16)])
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@triton.jit
def loops_kernel(x_ptr, out_ptr, n, stride, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32) + 1
    p = x_ptr + at
    jump = at * 0 + stride
    for i in tl.range(0, n, num_stages=3, loop_unroll_factor=2):
        for j in tl.static_range(2):
            # Two carried tensors change places, and the pointers move by a tensor, another one each time.
            a, b = b, a + tl.load(p) * (j + 1)
        p += jump * (i + 1)
    k = 0
    for i in range(n, 0, -2):
        k += i
    tl.store(out_ptr + at, a)
    tl.store(out_ptr + BLOCK + at, b)
    tl.store(out_ptr + 2 * BLOCK, k)


def test_loops_that_carry_permuted_tensors_and_pointers():
    x, out = torch.randn(200), torch.empty(33)
    loops_kernel[(1,)](x, out, 5, 7, BLOCK=16)
    a, b, p = torch.zeros(16), torch.ones(16), 0
    for i in range(5):
        for j in range(2):
            a, b = b, a + x[p : p + 16] * (j + 1)
        p += 7 * (i + 1)
    torch.testing.assert_close(out, torch.cat([a, b, torch.tensor([5.0 + 3 + 1])]))


@triton.jit
def permuted_kernel(x_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (at * 5 + 3) % BLOCK)
    tl.store(x_ptr + at, x + 1)
    tl.store(x_ptr + (BLOCK - 1 - at), tl.load(x_ptr + at))


def test_stores_over_what_is_read_at_another_place():
    x = torch.randn(64)
    at = torch.arange(64)
    want = (x[(at * 5 + 3) % 64] + 1).flip(0)
    permuted_kernel[(1,)](x, BLOCK=64)
    assert torch.equal(x, want)


# Atomic operations.


@triton.jit
def atomics_kernel(x_ptr, index_ptr, sums, highs, lows, ands, ors, xors, olds, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, where = tl.load(x_ptr + at, mask=at < n), tl.load(index_ptr + at, mask=at < n, other=0)
    old = tl.atomic_add(sums + where, x, mask=at < n)
    tl.store(olds + at, old, mask=at < n)
    tl.atomic_max(highs + where, x, mask=at < n)
    tl.atomic_min(lows + where, x, mask=at < n)
    if x.dtype.is_int():
        tl.atomic_and(ands + where, x, mask=at < n)
        tl.atomic_or(ors + where, x, mask=at < n)
        tl.atomic_xor(xors + where, x, mask=at < n)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_atomic_operations_on_shared_places(dtype):
    dtype = getattr(torch, dtype)
    n, places = 100, 5
    x = torch.randint(-1000, 1000, (n,)).to(dtype)
    index = torch.randint(0, places, (n,), dtype=torch.int32)
    sums, highs, lows, ands, ors, xors = (torch.zeros(places, dtype=dtype) for _ in range(6))
    ands.fill_(-1)
    olds = torch.zeros_like(x)
    atomics_kernel[(4,)](x, index, sums, highs, lows, ands, ors, xors, olds, n, BLOCK=32)
    running, found = [0] * places, [[0, 0, -1, 0, 0] for _ in range(places)]
    for i, place in zip(x.tolist(), index.tolist(), strict=True):
        high, low, conj, disj, odd = found[place]
        running[place] += i
        w = int(i)
        found[place] = [max(high, i), min(low, i), conj & w, disj | w, odd ^ w]
    before = [0] * places
    for k, (i, place) in enumerate(zip(x.tolist(), index.tolist(), strict=True)):
        assert olds[k].item() == before[place]
        before[place] += i
    assert sums.tolist() == running
    assert highs.tolist() == [f[0] for f in found]
    assert lows.tolist() == [f[1] for f in found]
    if not dtype.is_floating_point:
        assert ands.tolist() == [f[2] for f in found]
        assert ors.tolist() == [f[3] for f in found]
        assert xors.tolist() == [f[4] for f in found]


@triton.jit
def locked_kernel(lock, total, count, seen):
    pid = tl.program_id(0)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    old = tl.load(total)
    tl.store(total, old * 2 + pid)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)
    tl.store(seen + pid, tl.atomic_add(count, 1, sem="relaxed", scope="cta"))


def test_a_lock_by_compare_and_swap():
    lock, total, count = (torch.zeros(1, dtype=torch.int32) for _ in range(3))
    seen = torch.full((6,), -1, dtype=torch.int32)
    locked_kernel[(6,)](lock, total, count, seen)
    assert (lock.item(), total.item(), count.item()) == (0, 57, 6)
    assert seen.tolist() == [0, 1, 2, 3, 4, 5]


@triton.jit
def half_atomics_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr + at % 2, tl.load(x_ptr + at))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_atomic_sums_of_narrow_floats_round_each_time(dtype):
    x = torch.randn(16).to(getattr(torch, dtype))
    out, want = torch.zeros(2, dtype=x.dtype), torch.zeros(2, dtype=x.dtype)
    for k in range(16):
        want[k % 2] += x[k]
    half_atomics_kernel[(1,)](x, out, BLOCK=16)
    assert torch.equal(out, want)


# Arguments.


@triton.jit
def masked_kernel(x_ptr, y_ptr, z_ptr, n, other, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n, other=other))
    tl.store(z_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
    ],
)
def test_masked_loads_of_every_type(dtype):
    dtype = getattr(torch, dtype)
    x = torch.randint(0, 2, (16,)).to(dtype) if dtype == torch.bool else (torch.randn(16) * 100).abs().to(dtype)
    y, z = torch.zeros(16, dtype=dtype), torch.zeros(16, dtype=dtype)
    masked_kernel[(1,)](x, y, z, 9, 1, BLOCK=16)
    inside = torch.arange(16) < 9
    assert torch.equal(y.double(), torch.where(inside, x.double(), 1))
    assert torch.equal(z.double(), torch.where(inside, x.double(), 0))


@triton.jit
def arguments_kernel(parts, nothing, flag, small, large, half, out_ptr, KIND: tl.constexpr):
    inner, more = parts
    p, scale = inner
    value = tl.load(p) * scale
    if more is not None:
        value += tl.load(more)
    if nothing is None:
        value += 1
    if flag:
        value += 10
    if KIND == "wide":
        value += (large >> 33).to(tl.float32)
    tl.store(out_ptr, value + small + half)


def test_arguments_of_every_kind():
    x, y, out = torch.tensor([3.0]), torch.tensor([100.0]), torch.empty(1)
    arguments_kernel[(1,)](((x, 2), None), None, True, -5, 2**34, 0.5, out, KIND="wide")
    assert out.item() == 6 + 1 + 10 + 2 - 5 + 0.5
    arguments_kernel[(1,)](((x, 1), y), x, False, 1, -(2**40), 1e-3, out, KIND="narrow")
    assert out.item() == pytest.approx(3 + 100 + 1 + 1e-3, rel=1e-6)


@triton.jit
def address_table_kernel(table, lengths, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    p = tl.load(table + pid).to(tl.pointer_type(tl.float32))
    at = tl.arange(0, BLOCK)
    n = tl.load(lengths + pid)
    tl.store(p + at, tl.load(p + at, mask=at < n) * (pid + 1), mask=at < n)


def test_addresses_that_are_loaded():
    tensors = [torch.randn(n) for n in (3, 8, 1)]
    want = [t * (i + 1) for i, t in enumerate(tensors)]
    table = torch.tensor([t.data_ptr() for t in tensors])
    address_table_kernel[(3,)](table, torch.tensor([3, 8, 1]), BLOCK=8)
    assert all(torch.equal(t, w) for t, w in zip(tensors, want, strict=True))


@triton.jit
def far_kernel(x_ptr, out_ptr, row, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + row.to(tl.int64) * 2**30 + at))


def test_offsets_past_two_gigabytes():
    # Address space alone is taken: the pages between stay untouched.
    x = torch.empty(2**31 + 16, dtype=torch.int8)
    x[2**31 :] = torch.arange(16, dtype=torch.int8)
    out = torch.zeros(16, dtype=torch.int8)
    far_kernel[(1,)](x, out, 2, BLOCK=16)
    assert out.tolist() == list(range(16))


@triton.constexpr_function
def twice(n):
    return n * 2


@triton.jit
def constants_kernel(out_ptr, N: tl.constexpr):
    SIZE: tl.constexpr = twice(N)
    tl.static_assert(SIZE == 2 * N)
    values = (1, 2.5, N)
    at = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for i in tl.static_range(len(values)):
        total += values[i] * at
    tl.store(out_ptr + at, total)


def test_constexpr_functions_and_tuples():
    out = torch.empty(16)
    constants_kernel[(1,)](out, N=8)
    assert torch.equal(out, torch.arange(16) * 11.5)


# What a kernel says.


@triton.jit
def spoken_kernel(x_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.device_print("start")
    tl.device_print("x: ", x, BLOCK)
    tl.device_assert(x < 10, "x is small")


def test_prints_and_assertions(capfd):
    spoken_kernel[(1,)](torch.tensor([1, -2], dtype=torch.int8), BLOCK=2, debug=True)
    said = capfd.readouterr().out
    assert "start" in said
    assert "-2" in said
    with pytest.raises(AssertionError, match="x is small"):
        spoken_kernel[(1,)](torch.tensor([1, 12], dtype=torch.int8), BLOCK=2, debug=True)


@triton.jit
def dependent_kernel(x_ptr, y_ptr):
    i = tl.arange(0, 8)
    tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + i)
    tl.extra.cuda.gdc_launch_dependents()
    tl.store(y_ptr + i, x + 1)


def test_a_launch_waits_for_nothing_where_launches_are_over():
    x, y = torch.arange(8.0), torch.zeros(8)
    dependent_kernel[(1,)](x, y, launch_pdl=True)
    assert torch.equal(y, x + 1)


@triton.jit
def assembly_kernel(x_ptr):
    x = tl.load(x_ptr)
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x_ptr, y)


@triton.jit
def acting_kernel(x_ptr):
    at = tl.arange(0, 4)
    tl.inline_asm_elementwise("nanosleep.u32 $1;", "=r,r", [at], dtype=tl.int32, is_pure=False, pack=1)
    tl.store(x_ptr + at, at)


@pytest.mark.parametrize(("kernel", "instruction"), [(assembly_kernel, "mov.b32"), (acting_kernel, "nanosleep")])
def test_what_is_not_lowered_names_op_kernel_and_line(kernel, instruction):
    with pytest.raises(Unsupported) as caught:
        kernel[(1,)](torch.ones(4, dtype=torch.int32))
    said = str(caught.value)
    assert "\n" not in said
    name = kernel.fn.__name__
    for word in (name, instruction, "tt.elementwise_inline_asm", "test_cpu_language_torch.py:", "TRITON_INTERPRET=1"):
        assert word in said
