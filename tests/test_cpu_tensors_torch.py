"""Triton's language on a CPU: blocks, shapes, sorts, scans, reductions and dots of tensors; against torch."""

import threading

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl

pytestmark = pytest.mark.usefixtures("triton_cpu")


# Blocks of memory.


@triton.jit
def block_pointer_kernel(x_ptr, y_ptr, M, N, stride, BM: tl.constexpr, BN: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (M, N), (stride, 1), (0, 0), (BM, BN), (1, 0))
    y = tl.make_block_ptr(y_ptr, (N, M), (1, N), (0, 0), (BN, BM), (0, 1))
    for _ in range(tl.cdiv(N, BN)):
        tile = tl.load(x, boundary_check=(0, 1), padding_option="zero")
        tl.store(y, tl.trans(tile) * 2, boundary_check=(0, 1))
        x = tl.advance(x, (0, BN))
        y = tl.advance(y, (BN, 0))


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers_advance_and_stop_at_the_boundary():
    x = torch.randn(7, 40)[:, :37]
    y = torch.full((7, 37), 9.0)
    block_pointer_kernel[(1,)](x, y, 7, 37, x.stride(0), BM=8, BN=16)
    assert torch.equal(y, 2 * x)


@triton.jit
def descriptor_kernel(x_ptr, y_ptr, z_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BM, BN])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN])
    z = tl.make_tensor_descriptor(z_ptr, [N], [1], [BN])
    for j in range(tl.cdiv(N, BN)):
        at = [tl.program_id(0) * BM, j * BN]
        tile = x.load(at)
        y.store(at, tile + 1)
        z.atomic_add([j * BN], tl.sum(tile, 0))


def test_tensor_descriptors_load_store_and_add():
    x = torch.randn(20, 24)
    y, z = torch.full_like(x, 9), torch.zeros(24)
    descriptor_kernel[(3,)](x, y, z, 20, 24, BM=8, BN=16)
    assert torch.equal(y, x + 1)
    torch.testing.assert_close(z, x.sum(0), rtol=1e-5, atol=1e-5)


# Shapes.


@triton.jit
def shapes_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    both = tl.join(x, y)
    tl.store(out_ptr + tl.arange(0, 2 * N), tl.reshape(both, (2 * N,)))
    tl.store(out_ptr + 2 * N + tl.arange(0, 2 * N), tl.interleave(y, x))
    a, b = tl.split(both * 2)
    tl.store(out_ptr + 4 * N + at, a - b)
    cube = tl.reshape(x, (2, N // 4, 2))
    turned = tl.permute(cube, (2, 0, 1))
    tl.store(out_ptr + 5 * N + at, tl.ravel(turned))
    tl.store(out_ptr + 6 * N + tl.arange(0, 2 * N), tl.cat(x, y, can_reorder=True))
    flat = tl.reshape(tl.trans(tl.reshape(y, (N // 4, 4))), (N,))
    tl.store(out_ptr + 8 * N + at, flat)
    spread = tl.broadcast_to(tl.expand_dims(tl.sum(cube, 2), 2), (2, N // 4, 2))
    tl.store(out_ptr + 9 * N + at, tl.reshape(spread, (N,)))


def test_shapes():
    N = 32
    x, y = torch.randn(N), torch.randn(N)
    out = torch.empty(10 * N)
    shapes_kernel[(1,)](x, y, out, N=N)
    cube = x.view(2, N // 4, 2)
    want = [
        torch.stack([x, y], 1),
        torch.stack([y, x], 1),
        2 * x - 2 * y,
        cube.permute(2, 0, 1),
        x,
        y,
        y.view(N // 4, 4).T,
        cube.sum(2, keepdim=True).expand(2, N // 4, 2),
    ]
    torch.testing.assert_close(out, torch.cat([w.reshape(-1) for w in want]), rtol=0, atol=0)


@triton.jit
def gather_kernel(x_ptr, index_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, AXIS: tl.constexpr):
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + rows * N + columns)
    if AXIS == 0:  # noqa: SIM108
        at = tl.arange(0, K)[:, None] * N + columns
    else:
        at = rows * K + tl.arange(0, K)[None, :]
    tl.store(out_ptr + at, tl.gather(x, tl.load(index_ptr + at), axis=AXIS))


@pytest.mark.parametrize("axis", [0, 1])
def test_gather(axis):
    x = torch.randn(8, 16)
    shape = (4, 16) if axis == 0 else (8, 4)
    index = torch.randint(0, x.shape[axis], shape)
    out = torch.empty(shape)
    gather_kernel[(1,)](x, index.int(), out, M=8, N=16, K=4, AXIS=axis)
    assert torch.equal(out, x.gather(axis, index))


@triton.jit
def histogram_kernel(x_ptr, out_ptr, n, N: tl.constexpr, BINS: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at, mask=at < n, other=-1)
    tl.store(out_ptr + tl.arange(0, BINS), tl.histogram(x, BINS))
    tl.store(out_ptr + BINS + tl.arange(0, BINS), tl.histogram(x, BINS, mask=at % 2 == 0))


def test_histogram():
    x = torch.randint(0, 8, (64,), dtype=torch.int32)
    out = torch.empty(16, dtype=torch.int32)
    histogram_kernel[(1,)](x, out, 50, N=64, BINS=8)
    assert out[:8].tolist() == torch.bincount(x[:50], minlength=8).tolist()
    assert out[8:].tolist() == torch.bincount(x[:50:2], minlength=8).tolist()


# Order.


@triton.jit
def sort_kernel(x_ptr, up_ptr, down_ptr, top_ptr, turned_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + rows * N + columns)
    tl.store(up_ptr + rows * N + columns, tl.sort(x))
    tl.store(down_ptr + rows * N + columns, tl.sort(x, descending=True))
    tl.store(top_ptr + rows * K + tl.arange(0, K)[None, :], tl.topk(x, K))
    tl.store(turned_ptr + rows * N + columns, tl.flip(x, 1))


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_sort_topk_and_flip(dtype):
    x = (torch.randn(4, 32) * 5).to(getattr(torch, dtype))
    up, down, turned, top = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x), torch.empty_like(x[:, :8])
    sort_kernel[(1,)](x, up, down, top, turned, M=4, N=32, K=8)
    assert torch.equal(up, x.sort(1).values)
    assert torch.equal(down, x.sort(1, descending=True).values)
    assert torch.equal(top, x.topk(8, 1).values)
    assert torch.equal(turned, x.flip(1))


@triton.jit
def chain_kernel(x_ptr, y_ptr, B: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, B)
    x = tl.load(x_ptr + at)
    for _ in tl.static_range(N):
        x = tl.where(x > 0, tl.sum(x) - x, x + 1)
    tl.store(y_ptr + at, x)


def test_code_grows_with_a_chain_whose_every_link_is_reduced_not_with_its_square():
    x = torch.tensor([3, -2, 5, -7, 1, 0, -1, 4])
    out = torch.empty_like(x)
    sizes = []
    for links in (20, 80):
        sizes.append(chain_kernel[(1,)](x, out, B=8, N=links).asm["llir"].count("\n"))
        wanted = x
        for _ in range(links):
            wanted = torch.where(wanted > 0, wanted.sum() - wanted, wanted + 1)
        assert torch.equal(out, wanted)
    assert sizes[1] < 5 * sizes[0]


@triton.jit
def wide_kernel(x_ptr, y_ptr, at_ptr, N, B: tl.constexpr):
    row, column = tl.program_id(0) * N, tl.arange(0, B)
    x = tl.load(x_ptr + row + column, mask=column < N, other=float("-inf")).to(tl.float32)
    tl.store(at_ptr + tl.program_id(0), tl.argmax(x, 0))
    e = tl.exp(x - tl.max(x))
    tl.store(y_ptr + row + column, tl.cumsum(e / tl.sum(e), 0), mask=column < N)


def test_a_tile_of_65536_elements_needs_no_stack():
    # A thread's stack is set small: what a tile of this width keeps lies elsewhere.
    x, y, at = torch.randn(2, 50001), torch.empty(2, 50001), torch.empty(2, dtype=torch.int32)
    before = threading.stack_size(2**19)
    try:
        thread = threading.Thread(target=lambda: wide_kernel[(2,)](x, y, at, 50001, B=65536))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert at.tolist() == x.argmax(1).tolist()
    torch.testing.assert_close(y, x.double().softmax(1).cumsum(1).float(), rtol=50001**0.5 * 2**-23, atol=1e-6)


@triton.jit
def largest(a, i, b, j):
    swap = (b > a) | ((b == a) & (j > i))
    return tl.where(swap, b, a), tl.where(swap, j, i)


@triton.jit
def linear(a, b, c, d):
    # x -> a x + b, then x -> c x + d.
    return a * c, b * c + d


@triton.jit
def scan_kernel(x_ptr, out_ptr, index_ptr, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr, BACK: tl.constexpr):
    size: tl.constexpr = M * N
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.cumsum(x, AXIS, reverse=BACK))
    tl.store(out_ptr + size + at, tl.cumprod(x, AXIS, reverse=BACK))
    high, where = tl.associative_scan((x, at), AXIS, largest, reverse=BACK)
    tl.store(out_ptr + 2 * size + at, high)
    tl.store(index_ptr + at, where)
    _, state = tl.associative_scan((x * 0.5, x), AXIS, linear, reverse=BACK)
    tl.store(out_ptr + 3 * size + at, state)


@pytest.mark.parametrize(("axis", "back"), [(0, False), (1, True)])
def test_scans(axis, back):
    x = torch.randn(8, 16)
    out, index = torch.empty(4, 8, 16), torch.empty(8, 16, dtype=torch.int32)
    scan_kernel[(1,)](x, out, index, M=8, N=16, AXIS=axis, BACK=back)
    y = x.flip(axis) if back else x

    def turned(t):
        return t.flip(axis) if back else t

    state, states = torch.zeros_like(y.select(axis, 0)), []
    for row in y.unbind(axis):
        state = state * row * 0.5 + row
        states.append(state)
    want = [y.cumsum(axis), y.cumprod(axis), y.cummax(axis).values, torch.stack(states, axis)]
    torch.testing.assert_close(out, torch.stack([turned(w) for w in want]), rtol=1e-5, atol=1e-5)
    flat = torch.arange(128).view(8, 16)
    assert torch.equal(index.long(), flat.gather(axis, turned_index(y, axis, back)))


def turned_index(y, axis, back):
    """Where the largest so far stands, counted from the front."""
    where = y.cummax(axis).indices
    return (y.shape[axis] - 1 - where).flip(axis) if back else where


@triton.jit
def extremes_kernel(x_ptr, out_ptr, at_ptr, M: tl.constexpr, N: tl.constexpr):
    rows = tl.arange(0, M)
    x = tl.load(x_ptr + rows[:, None] * N + tl.arange(0, N)[None, :])
    high, where = tl.max(x, 1, return_indices=True)
    low, lower = tl.min(x, 1, return_indices=True, return_indices_tie_break_left=False)
    tl.store(out_ptr + rows, high)
    tl.store(out_ptr + M + rows, low)
    tl.store(at_ptr + rows, where)
    tl.store(at_ptr + M + rows, tl.argmin(x, 1))
    tl.store(at_ptr + 2 * M + rows, tl.argmax(x, axis=1, tie_break_left=True))
    tl.store(at_ptr + 3 * M, tl.argmax(tl.reshape(x, (M * N,)), 0))
    tl.store(at_ptr + 4 * M + rows, lower)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_extremes_with_their_places_and_ties(dtype):
    x = torch.randint(-3, 4, (8, 64)).to(getattr(torch, dtype))
    out, at = torch.empty(16, dtype=x.dtype), torch.zeros(40, dtype=torch.int32)
    extremes_kernel[(1,)](x, out, at, M=8, N=64)
    wide = x.double()
    first = (wide == wide.amax(1, keepdim=True)).int().argmax(1)
    last = (wide == wide.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(out.double(), torch.cat([wide.amax(1), wide.amin(1)]))
    assert at[:8].tolist() == first.tolist()
    assert at[8:16].tolist() == last.tolist()
    assert at[16:24].tolist() == first.tolist()
    assert at[24].item() == (wide.view(-1) == wide.max()).int().argmax().item()
    assert (wide.gather(1, at[32:, None].long())[:, 0] == wide.amin(1)).all()


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def welford(mean, m2, n, mean_, m2_, n_):
    total = n + n_
    delta = mean_ - mean
    part = tl.where(total == 0, 0.0, n_ / total)
    return mean + delta * part, m2 + m2_ + delta * delta * n * part, total


@triton.jit
def reductions_kernel(x_ptr, i_ptr, out_ptr, bits_ptr, M: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    at = rows[:, None] * N + columns[None, :]
    x, i = tl.load(x_ptr + at), tl.load(i_ptr + at)
    tl.store(out_ptr + columns, tl.reduce(x, 0, product))
    mean, m2, n = tl.reduce((x, tl.zeros_like(x), tl.full(x.shape, 1.0, tl.float32)), 1, welford)
    tl.store(out_ptr + N + rows, mean)
    tl.store(out_ptr + N + M + rows, m2 / n)
    tl.store(out_ptr + N + 2 * M, tl.sum(x))
    tl.store(out_ptr + N + 2 * M + 1, tl.max(tl.sum(x, 1, keep_dims=True)))
    tl.store(bits_ptr + rows, tl.xor_sum(i, 1))
    tl.store(bits_ptr + M + rows, tl.reduce_or(i, 1))
    tl.store(bits_ptr + 2 * M + rows, tl.sum((i > 0).to(tl.int1), 1))


def test_reductions_with_functions_of_ones_own():
    x, i = torch.randn(8, 16), torch.randint(-999, 999, (8, 16), dtype=torch.int32)
    out, bits = torch.empty(16 + 18), torch.empty(24, dtype=torch.int32)
    reductions_kernel[(1,)](x, i, out, bits, M=8, N=16)
    want = torch.cat([x.prod(0), x.mean(1), x.var(1, correction=0), x.sum()[None], x.sum(1).max()[None]])
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    xor, disj = torch.zeros(8, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    for column in i.T:
        xor, disj = xor ^ column, disj | column
    assert torch.equal(bits, torch.cat([xor, disj, (i > 0).sum(1).int()]))


# Products.


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, d_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, OUT: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    c = tl.load(c_ptr + m[:, None] * N + n[None, :])
    d = tl.dot(a, b, c, out_dtype=OUT)
    tl.store(d_ptr + m[:, None] * N + n[None, :], d)


@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (2, 4, 8), (1, 16, 4), (8, 1, 2), (16, 2, 16), (4, 8, 1)])
def test_dots_of_small_tiles(M, N, K):
    a, b, c = torch.randn(M, K), torch.randn(K, N), torch.randn(M, N)
    d = torch.empty(M, N)
    dot_kernel[(1,)](a, b, c, d, M=M, N=N, K=K, OUT=tl.float32)
    torch.testing.assert_close(d, a @ b + c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ("int8", "int32"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float64", "float64"),
        ("float8_e4m3fn", "float32"),
        ("float8_e5m2", "float16"),
    ],
)
def test_dots_of_every_type(given, out):
    M, N, K = 16, 32, 64
    dtype, wide = getattr(torch, given), getattr(torch, out)
    if given == "int8":
        a, b = (torch.randint(-128, 128, shape, dtype=dtype) for shape in ((M, K), (K, N)))
        c = torch.randint(-999, 999, (M, N), dtype=wide)
    else:
        a, b, c = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype), torch.randn(M, N).to(wide)
    d = torch.empty(M, N, dtype=wide)
    dot_kernel[(1,)](a, b, c, d, M=M, N=N, K=K, OUT=getattr(tl, out))
    want = a.double() @ b.double() + c.double()
    # Products are exact in the accumulator's type or wider; K + 1 sums round, and once the result.
    bound = (K + 1) * 2.0**-53 if out == "float64" else (K + 1) * 2.0**-24
    bound *= (a.double().abs() @ b.double().abs() + c.double().abs()).max().item()
    if out == "float16":
        bound += 2.0**-11 * want.abs().max().item()
    assert (d.double() - want).abs().max().item() <= (0 if out == "int32" else bound)


@triton.jit
def batched_dot_kernel(a_ptr, b_ptr, d_ptr, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    z, m, n, k = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + z[:, None, None] * M * K + m[None, :, None] * K + k[None, None, :])
    b = tl.load(b_ptr + z[:, None, None] * N * K + n[None, :, None] * K + k[None, None, :])
    d = tl.dot(a, tl.permute(b, (0, 2, 1)))
    tl.store(d_ptr + z[:, None, None] * M * N + m[None, :, None] * N + n[None, None, :], d)


def test_batched_dots():
    a, b = torch.randn(4, 8, 16), torch.randn(4, 32, 16)
    d = torch.empty(4, 8, 32)
    batched_dot_kernel[(1,)](a, b, d, B=4, M=8, N=32, K=16)
    torch.testing.assert_close(d, a @ b.mT, rtol=1e-5, atol=1e-5)


@triton.jit
def collatz(x, y):
    steps = y * 0
    while x != 1:
        if x % 2 == 0:  # noqa: SIM108
            x = x // 2
        else:
            x = 3 * x + 1
        steps += 1
    if steps > 20:
        return steps, -steps
    return steps, y


@triton.jit
def mapped_kernel(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    steps, other = tl.map_elementwise(collatz, tl.load(x_ptr + at), at)
    tl.store(out_ptr + at, steps)
    tl.store(out_ptr + N + at, other)


@pytest.mark.skipif(not hasattr(tl, "map_elementwise"), reason="this Triton has no map_elementwise")
def test_a_scalar_function_on_every_element():
    x = torch.tensor([1, 7, 27, 6, 97, 2, 3, 8], dtype=torch.int32)
    out = torch.empty(16, dtype=torch.int32)
    mapped_kernel[(1,)](x, out, N=8)
    steps = [0, 16, 111, 8, 118, 1, 7, 3]
    assert out[:8].tolist() == steps
    assert out[8:].tolist() == [-s if s > 20 else i for i, s in enumerate(steps)]


@triton.jit
def table_kernel(out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    odd = tl.reshape(tl.join(tl.full((N // 2,), 0, tl.int32), tl.full((N // 2,), 1, tl.int32)), (N,))
    tl.store(out_ptr + at, odd * 10 + at)


def test_tensors_that_are_constant():
    # Triton folds a join of constants into one dense constant where it can.
    out = torch.empty(8, dtype=torch.int32)
    table_kernel[(1,)](out, N=8)
    assert out.tolist() == [0, 11, 2, 13, 4, 15, 6, 17]
