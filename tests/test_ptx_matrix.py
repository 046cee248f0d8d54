"""ldmatrix, stmatrix, mma and wgmma in small kernels of PTX, against NumPy.

Where an element lies in registers or shared memory is written here element by element, as PTX ISA 8.7 has it in tables.
Numbers are small integers: every product and sum is exact.
"""

import ml_dtypes
import numpy as np
import pytest

from tests.ptx_kernels import run

RANDOM = np.random.default_rng(5)
TYPES = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "tf32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "s8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f32": np.dtype(np.float32),
    "s32": np.dtype(np.int32),
}


def small(kind, *shape):
    """Integers that every type has, and their negatives where it has those."""
    return RANDOM.integers(0 if kind == "u8" else -4, 5, shape).astype(TYPES[kind])


def left(lane, i, kind, rows):
    """Row and column of element i of a lane's fragment of A, "Matrix Fragments for mma": of each type its table."""
    group, thread = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):
        row = group if i % 4 < 2 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if kind in ("tf32", "f64"):
        if rows == 8:
            return group, thread
        return (group if i % 2 == 0 else group + 8), thread + 4 * (i // 2)
    if rows == 8:
        return group, thread * 4 + (i & 3)
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def right(lane, i, kind):
    """Row and column of element i of a lane's fragment of B."""
    group, thread = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if kind in ("tf32", "f64"):
        return thread + 4 * i, group
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def sums(lane, i):
    """Row and column of element i of a lane's fragment of C and D."""
    return (lane >> 2) + (0 if i < 2 else 8), (lane % 4) * 2 + (i & 1)


def words(values, place, number, bits):
    """[warp, lane, word] of matrices [warp, row, column]: a lane has `number` elements."""
    warps = len(values)
    found = np.zeros((warps, 32, number), values.dtype)
    for lane in range(32):
        for i in range(number):
            found[:, lane, i] = values[(slice(None), *place(lane, i))]
    return found.view(np.dtype(f"u{bits // 8}"))


def loads(register, words_, number, parameter, bits, thread="%r500"):
    """Statements that load a thread's own words."""
    each = bits // 8
    lines = [f"ld.param.u64 %rd200, [p{parameter}];", f"mad.wide.u32 %rd201, {thread}, {each * number}, %rd200;"]
    lines += [f"ld.global.b{bits} {register}{words_ + n}, [%rd201+{each * n}];" for n in range(number)]
    return lines


def stores(register, first, number, parameter, bits, thread="%r500"):
    each = bits // 8
    lines = [f"ld.param.u64 %rd200, [p{parameter}];", f"mad.wide.u32 %rd201, {thread}, {each * number}, %rd200;"]
    return lines + [f"st.global.b{bits} [%rd201+{each * n}], {register}{first + n};" for n in range(number)]


# The number of a thread in the whole grid.
THREAD = [
    "mov.u32 %r500, %tid.x;",
    "mov.u32 %r501, %ctaid.x;",
    "mov.u32 %r502, %ntid.x;",
    "mad.lo.s32 %r500, %r501, %r502, %r500;",
]


def several(register, first, number):
    return "{" + ", ".join(f"{register}{first + n}" for n in range(number)) + "}"


MMA = [
    (16, 16, "f16", "f32"),
    (16, 16, "f16", "f16"),
    (16, 8, "f16", "f32"),
    (16, 16, "bf16", "f32"),
    (16, 8, "bf16", "f32"),
    (16, 4, "tf32", "f32"),
    (16, 8, "tf32", "f32"),
    (8, 4, "f64", "f64"),
    (16, 4, "f64", "f64"),
    (16, 8, "f64", "f64"),
    (16, 16, "f64", "f64"),
    (8, 16, "s8", "s32"),
    (16, 16, "s8", "s32"),
    (16, 32, "s8", "s32"),
    (16, 32, "u8", "s32"),
    (16, 32, "e4m3", "f32"),
    (16, 32, "e5m2", "f32"),
]


@pytest.mark.parametrize(("rows", "depth", "kind", "sum_kind"), MMA, ids=str)
def test_mma(rows, depth, kind, sum_kind):
    blocks, threads = 2, 64
    warps = blocks * threads // 32
    a, b, c = small(kind, warps, rows, depth), small(kind, warps, depth, 8), small(sum_kind, warps, rows, 8)
    bits = 64 if kind == "f64" else 32
    per = bits // (8 * a.itemsize)
    na, nb, nc = rows * depth // 32, depth * 8 // 32, rows * 8 // 32
    sum_words = nc * c.itemsize * 8 // bits
    given = [
        words(a, lambda lane, i: left(lane, i, kind, rows), na, bits),
        words(b, lambda lane, i: right(lane, i, kind), nb, bits),
        words(c, sums, nc, bits),
    ]
    out = np.zeros_like(given[2])
    name = "%rd" if bits == 64 else "%r"
    fragments = [several(name, at, n) for at, n in ((50, sum_words), (0, na // per), (20, nb // per), (30, sum_words))]
    body = [*THREAD, *loads(name, 0, na // per, 0, bits), *loads(name, 20, nb // per, 1, bits)]
    body += loads(name, 30, sum_words, 2, bits)
    opcode = f"mma.sync.aligned.m{rows}n8k{depth}.row.col.{sum_kind}.{kind}.{kind}.{sum_kind}"
    body += [f"{opcode} {', '.join(fragments)};", *stores(name, 50, sum_words, 3, bits)]
    ran = run("\n".join(body), *given, out, threads=threads, grid=(blocks, 1, 1))
    assert ran.kinds == []
    want = np.matmul(a.astype(np.float64), b.astype(np.float64)) + c.astype(np.float64)
    np.testing.assert_array_equal(out, words(want.astype(c.dtype), sums, nc, bits))
    assert ran.executed.counts.operations.sum() == 2 * rows * 8 * depth * warps


def test_sums_of_integers_wrap_or_saturate():
    for saturates, want in (("", -(2**31) + 127 * 127 * 32 - 1), (".satfinite", 2**31 - 1)):
        a, b = np.full((1, 16, 32), 127, np.int8), np.full((1, 32, 8), 127, np.int8)
        c = np.full((1, 32, 4), 2**31 - 1, np.int32)
        given = [words(a, lambda lane, i: left(lane, i, "s8", 16), 16, 32)]
        given += [words(b, lambda lane, i: right(lane, i, "s8"), 8, 32), c]
        out = np.zeros((32, 4), np.int32)
        body = [*THREAD, *loads("%r", 0, 4, 0, 32), *loads("%r", 20, 2, 1, 32), *loads("%r", 30, 4, 2, 32)]
        body += [f"mma.sync.aligned.m16n8k32.row.col{saturates}.s32.s8.s8.s32 {several('%r', 50, 4)}, "]
        body[-1] += f"{several('%r', 0, 4)}, {several('%r', 20, 2)}, {several('%r', 30, 4)};"
        run("\n".join([*body, *stores("%r", 50, 4, 3, 32)]), *given, out)
        assert (out == want).all()


def test_tensor_cores_drop_the_low_bits_of_float32():
    """1 + 2^-11 as tf32 is 1: of 23 bits ten are taken."""
    a = np.full((1, 16, 8), 1 + 2**-11, np.float32)
    given = [words(a, lambda lane, i: left(lane, i, "tf32", 16), 4, 32)]
    given += [words(np.ones((1, 8, 8), np.float32), lambda lane, i: right(lane, i, "tf32"), 2, 32)]
    out = np.zeros((32, 4), np.float32)
    body = [*THREAD, *loads("%r", 0, 4, 0, 32), *loads("%r", 20, 2, 1, 32)]
    body += [f"mov.b32 %r{n}, 0;" for n in range(30, 34)]
    body += [f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {several('%r', 50, 4)}, {several('%r', 0, 4)}, "]
    body[-1] += f"{several('%r', 20, 2)}, {several('%r', 30, 4)};"
    run("\n".join([*body, *stores("%r", 50, 4, 2, 32)]), *given, out)
    assert (out == 8).all()


def test_a_warp_that_lacks_threads_cannot_multiply():
    body = [*THREAD, "setp.eq.u32 %p1, %r500, 3;", "@%p1 ret;", *(f"mov.b32 %r{n}, 0;" for n in range(12))]
    body += [
        f"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {several('%r', 0, 4)}, {several('%r', 4, 2)}, {{%r6}}, "
    ]
    body[-1] += f"{several('%r', 8, 4)};"
    assert run("\n".join(body)).kinds == ["partial warp"]


def filled(number, parameter):
    """Statements that copy `number` bytes of a parameter to the start of shared memory, 16 by a thread."""
    lines = [f"ld.param.u64 %rd210, [p{parameter}];", "mov.u32 %r510, %tid.x;", "shl.b32 %r510, %r510, 4;"]
    lines += ["cvt.u64.u32 %rd211, %r510;", "add.s64 %rd210, %rd210, %rd211;", "mov.u32 %r509, %ntid.x;"]
    lines += ["shl.b32 %r509, %r509, 4;", "cvt.u64.u32 %rd212, %r509;", f"$FILL{parameter}:"]
    lines += [f"setp.ge.u32 %p60, %r510, {number};", f"@%p60 bra $FILLED{parameter};"]
    lines += ["ld.global.v4.b32 {%r505, %r506, %r507, %r508}, [%rd210];", "mov.u32 %r504, smem;"]
    lines += ["add.s32 %r504, %r504, %r510;", "st.shared.v4.b32 [%r504], {%r505, %r506, %r507, %r508};"]
    lines += ["add.s32 %r510, %r510, %r509;", "add.s64 %rd210, %rd210, %rd212;", f"bra.uni $FILL{parameter};"]
    return [*lines, f"$FILLED{parameter}:", "bar.sync 0;"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_ldmatrix(number, turned):
    data = RANDOM.integers(0, 2**16, (64, 8)).astype(np.uint16)
    rows = np.stack([RANDOM.permutation(64)[:32] for _ in range(2)])
    out = np.zeros((2, 32, number, 2), np.uint16)
    body = [*THREAD, *filled(data.nbytes, 0), *loads("%r", 1, 1, 1, 32), "mov.u32 %r2, smem;"]
    body += ["mad.lo.s32 %r3, %r1, 16, %r2;"]
    body += [f"ldmatrix.sync.aligned.m8n8.x{number}{'.trans' * turned}.shared.b16 {several('%r', 10, number)}, [%r3];"]
    ran = run(
        "\n".join([*body, *stores("%r", 10, number, 2, 32)]), data, rows.astype(np.uint32), out, threads=64, shared=1024
    )
    assert ran.kinds == []
    for warp, lane, matrix, j in np.ndindex(2, 32, number, 2):
        row, column = lane // 4, lane % 4 * 2 + j
        row, column = (column, row) if turned else (row, column)
        assert out[warp, lane, matrix, j] == data[rows[warp, 8 * matrix + row], column]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_stmatrix(number, turned):
    data = RANDOM.integers(0, 2**16, (32, number, 2)).astype(np.uint16)
    rows = RANDOM.permutation(32)
    out = np.zeros((32, 8), np.uint16)
    body = [*THREAD, *loads("%r", 1, 1, 0, 32), *loads("%r", 10, number, 1, 32), "mov.u32 %r2, smem;"]
    body += ["mad.lo.s32 %r3, %r1, 16, %r2;"]
    body += [f"stmatrix.sync.aligned.m8n8.x{number}{'.trans' * turned}.shared.b16 [%r3], {several('%r', 10, number)};"]
    body += ["bar.sync 0;", "mad.lo.s32 %r4, %r500, 16, %r2;"]
    body += ["ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r4];", *stores("%r", 20, 4, 2, 32)]
    ran = run("\n".join(body), rows.astype(np.uint32), data, out, shared=512)
    assert ran.kinds == []
    want = np.full((32, 8), 0xFFFF, np.uint16)
    for lane, matrix, j in np.ndindex(32, number, 2):
        row, column = lane // 4, lane % 4 * 2 + j
        row, column = (column, row) if turned else (row, column)
        want[rows[8 * matrix + row], column] = data[lane, matrix, j]
    np.testing.assert_array_equal(out, want)


def test_movmatrix():
    data, out = RANDOM.integers(0, 2**16, (2, 8, 8)).astype(np.uint16), np.zeros((2, 8, 8), np.uint16)
    body = [*THREAD, *loads("%r", 1, 1, 0, 32), "movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;"]
    run("\n".join([*body, *stores("%r", 2, 1, 1, 32)]), data, out, threads=64)
    np.testing.assert_array_equal(out, data.swapaxes(1, 2))


@pytest.mark.parametrize(("stride", "passes"), [(16, 4), (32, 8), (64, 16), (128, 32), (144, 4)])
def test_bank_conflicts_of_ldmatrix(stride, passes):
    """Eight rows of 16 bytes are one pass where they lie in different banks."""
    body = [*THREAD, "mov.u32 %r2, smem;", f"mad.lo.s32 %r3, %r500, {stride}, %r2;"]
    body += [f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {several('%r', 10, 4)}, [%r3];"]
    ran = run("\n".join(body), shared=32 * stride)
    assert ran.executed.counts.passes.sum() == passes
