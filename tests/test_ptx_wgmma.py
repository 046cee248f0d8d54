"""wgmma in small kernels of PTX, against NumPy: types, layouts in shared memory, and what is in flight.

Where an element lies is written here element by element, from CUTLASS' canonical layouts
(include/cute/atom/mma_traits_sm90_gmma.hpp) and PTX ISA 8.7. Numbers are small integers, so that sums are exact.
"""

import numpy as np
import pytest

from gradlab.profiling.ptx.descriptors import passes
from gradlab.profiling.ptx.schedule import ORDERS
from tests.ptx_kernels import run
from tests.test_ptx_matrix import THREAD, TYPES, filled, loads, several, small, stores

SWIZZLES = {16: 0, 128: 1, 64: 2, 32: 3}
# Rows of shared memory that a piece of 16 bytes changes its place after.
EVERY = {128: 1, 64: 2, 32: 4}


def swizzled(line, row, piece):
    """The place of a piece in its line: Swizzle<3, 4, 3>, <2, 4, 3>, <1, 4, 3> of CUTLASS."""
    return piece if line == 16 else piece ^ (row // EVERY[line] % (line // 16))


def shared(matrix, line, mn_major, start, gap=0):
    """A matrix [row, K] as bytes of shared memory at `start`, a multiple of 1024, and its descriptor.

    Args:
        line: bytes of a line of an atom.
        gap: bytes left free between atoms.
    """
    rows, depth = matrix.shape
    size, per = matrix.itemsize, line // matrix.itemsize
    atom = 8 * line + gap
    if mn_major:
        # Atoms of `line` bytes of rows and eight of K; along K they lie behind each other.
        to_depth, to_rows = atom, atom * (depth // 8)
    else:
        to_depth, to_rows = (atom * (rows // 8), atom) if line == 16 else (0, atom)
    data = np.zeros(2**16, np.uint8)
    for row in range(rows):
        for k in range(depth):
            if mn_major:
                base, across, along = row // per * to_rows + k // 8 * to_depth, k % 8, row % per * size
            elif line == 16:
                base, across, along = row // 8 * to_rows + k * size // 16 * to_depth, row % 8, k * size % 16
            else:
                base, across, along = row // 8 * to_rows, row % 8, k * size
            place = base + across * line + swizzled(line, across, along // 16) * 16 + along % 16
            data[place : place + size] = np.atleast_1d(matrix[row, k]).view(np.uint8)
    # Without a swizzle an MN-major matrix has its strides the other way round.
    leading, stride = (to_rows, to_depth) if mn_major and line > 16 else (to_depth, to_rows)
    bits = (start >> 4) | (leading >> 4) << 16 | (stride >> 4) << 32 | SWIZZLES[line] << 62
    end = 1 + np.flatnonzero(data)[-1] if data.any() else 0
    return data[: -(-int(end) // 1024) * 1024], bits


def sums(lane, i):
    """Row and column of element i of a lane of 128 in D, "Register Fragments for wgmma"."""
    return 16 * (lane // 32) + lane % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def of_lanes(matrices, place, number):
    """[group, lane, element] of matrices [group, row, column]."""
    found = np.zeros((len(matrices), 128, number), matrices.dtype)
    for lane in range(128):
        for i in range(number):
            found[:, lane, i] = matrices[(slice(None), *place(lane, i))]
    return found


def left(lane, i, each):
    """Row and column of element i of a lane's fragment of A: four registers of `each` elements."""
    register = i // each
    return 16 * (lane // 32) + lane % 32 // 4 + 8 * (register % 2), each * (lane % 4 + 4 * (register // 2)) + i % each


CASES = [
    ("f16", "f32", 64, 128, 128, ""),
    ("f16", "f16", 32, 128, 128, ""),
    ("f16", "f32", 16, 16, 16, ""),
    ("f16", "f32", 64, 128, 128, "A"),
    ("f16", "f32", 64, 64, 64, "B"),
    ("f16", "f32", 64, 32, 32, "AB"),
    ("f16", "f32", 64, 16, 16, "AB"),
    ("f16", "f32", 128, 128, 128, "B"),
    ("f16", "f32", 256, 128, 128, "AB"),
    ("bf16", "f32", 64, 64, 32, ""),
    ("bf16", "f32", 64, 0, 128, ""),
    ("bf16", "f32", 64, 0, 128, "B"),
    ("bf16", "f32", 8, 128, 128, ""),
    ("tf32", "f32", 64, 128, 64, ""),
    ("tf32", "f32", 24, 0, 32, ""),
    ("s8", "s32", 64, 128, 128, ""),
    ("s8", "s32", 32, 0, 16, ""),
    ("u8", "s32", 32, 32, 64, ""),
    ("e4m3", "f32", 64, 128, 128, ""),
    ("e5m2", "f32", 64, 0, 64, ""),
    ("e5m2", "f16", 32, 64, 64, ""),
]


@pytest.mark.parametrize(("kind", "sum_kind", "columns", "a_line", "b_line", "mn_major"), CASES, ids=str)
def test_wgmma(kind, sum_kind, columns, a_line, b_line, mn_major):
    """Two blocks of two warp groups, each with its own A; a line of 0 is an A in registers."""
    size = TYPES[kind].itemsize
    depth, groups = 32 // size, 4
    a, b = small(kind, groups, 64, depth), small(kind, columns, depth)
    c = small(sum_kind, groups, 64, columns)
    number = columns // 2
    words = number * c.itemsize // 4
    given, out = of_lanes(c, sums, number), np.zeros((groups, 128, number), c.dtype)
    b_data, b_bits = shared(b, b_line, "B" in mn_major, 0, gap=0 if b_line > 16 else 16)
    flags = "" if kind in ("s8", "u8") else ", 1, 1"
    if a_line:
        # A of both groups of a block behind B.
        starts = [len(b_data), len(b_data) + 2**13]
        both = [shared(m, a_line, "A" in mn_major, starts[n % 2]) for n, m in enumerate(a)]
        memory = np.zeros((2, len(b_data) + 2**14), np.uint8)
        for n, (data, _) in enumerate(both):
            memory[n // 2, starts[n % 2] : starts[n % 2] + len(data)] = data
        memory[:, : len(b_data)] = b_data
        a_words, operand = np.array([bits for _, bits in both], np.uint64).repeat(128), "%rd10"
        fetch = loads("%rd", 10, 1, 2, 64)
        flags += f", {int('A' in mn_major)}" if size == 2 else ""
    else:
        memory = np.stack([b_data, b_data])
        a_words, operand = of_lanes(a, lambda lane, i: left(lane, i, 4 // size), 16 // size), several("%r", 0, 4)
        fetch = loads("%r", 0, 4, 2, 32)
    flags += f", {int('B' in mn_major)}" if size == 2 else ""
    body = [*THREAD, f"mul.wide.u32 %rd220, %r501, {memory.shape[1]};", *filled(memory.shape[1], 0)]
    body[len(THREAD) + 2] += "add.s64 %rd210, %rd210, %rd220;"
    body += [*fetch, *loads("%r", 200, words, 1, 32), f"mov.b64 %rd11, {b_bits};", "setp.eq.u32 %p1, 0, 0;"]
    body += ["fence.proxy.async;", "bar.sync 0;", "wgmma.fence.sync.aligned;"]
    opcode = f"wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.{sum_kind}.{kind}.{kind}"
    body += [f"{opcode} {several('%r', 200, words)}, {operand}, %rd11, %p1{flags};"]
    body += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;", *stores("%r", 200, words, 3, 32)]
    options = {"threads": 256, "grid": (2, 1, 1), "shared": memory.shape[1]}
    ran = run("\n".join(body), memory, given, a_words, out, **options)
    assert ran.kinds == []
    assert ran.executed.notes == []
    want = np.matmul(a.astype(np.float64), b.T.astype(np.float64)) + c.astype(np.float64)
    np.testing.assert_array_equal(out, of_lanes(want.astype(c.dtype), sums, number))
    counts = ran.executed.counts
    assert counts.operations.sum() == 2 * 64 * columns * depth * groups


# Of 16 columns without a swizzle: 128 bytes for eight of them, 256 for all along half of K.
PLAIN = 128 >> 4 << 32 | 256 >> 4 << 16


def kernel(
    before="", between="", after="wgmma.wait_group.sync.aligned 0;", fence="wgmma.fence.sync.aligned;", keep="1"
):
    """A wgmma of ones with A in registers; D of 16 columns is in %r200 to %r207, B at the start of shared memory."""
    body = [*THREAD, *filled(1024, 0), *(f"mov.b32 %r{n}, 0x3f803f80;" for n in range(4))]
    body += [*(f"mov.b32 %r{n}, 0f40000000;" for n in range(200, 208)), f"mov.b64 %rd11, {PLAIN};"]
    body += ["setp.ne.u32 %p1, %r500, 12345;", "fence.proxy.async;", "bar.sync 0;", fence, before]
    body += [f"wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {several('%r', 200, 8)}, {several('%r', 0, 4)}, "]
    body[-1] += f"%rd11, {keep}, 1, 1, 0;"
    body += ["wgmma.commit_group.sync.aligned;", between, after]
    return "\n".join([*body, *stores("%r", 200, 8, 1, 32)])


def ones(body, **options):
    """Run a kernel whose B is 1, and give what it did and its D."""
    data, out = np.full(2048, 0x3F80, np.uint16), np.zeros((128, 8), np.float32)
    ran = run(body, data, out, threads=128, shared=4096, **options)
    return ran, out


def notes(ran):
    return sorted({note.kind for note in ran.executed.notes})


@pytest.mark.parametrize(("keep", "want"), [("1", 18), ("0", 16), ("%p1", 18), ("!%p1", 16)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_sums_are_kept_or_not(keep, want, order):
    ran, out = ones(kernel(keep=keep), order=order)
    assert (ran.kinds, notes(ran)) == ([], [])
    assert (out == want).all()


@pytest.mark.parametrize(("signs", "want"), [("-1, 1", -14), ("1, -1", -14), ("-1, -1", 18)])
def test_a_matrix_may_be_negated(signs, want):
    _, out = ones(kernel().replace("1, 1, 1, 0;", f"1, {signs}, 0;"))
    assert (out == want).all()


# What is done wrong with registers, which an assembler repairs.
REGISTERS = {
    "no wait": {"after": ""},
    "a wait that leaves the group": {"after": "wgmma.wait_group.sync.aligned 1;"},
    "sums read before the wait": {"between": "mov.b32 %r300, %r203;"},
    "sums written before the wait": {"between": "mov.b32 %r203, 0;"},
    "A written before the wait": {"between": "mov.b32 %r2, 0;"},
}


@pytest.mark.parametrize("name", REGISTERS)
@pytest.mark.parametrize("order", ORDERS)
def test_registers_in_flight(name, order):
    ran, _ = ones(kernel(**REGISTERS[name]), order=order)
    assert (ran.kinds, notes(ran)) == ([], ["register in flight"])
    assert all("%r" in note.text for note in ran.executed.notes)


@pytest.mark.parametrize("between", ["mov.b32 %r300, %r2;", "mov.b32 %r400, 0;", "bar.sync 0;"])
def test_what_may_be_done_while_a_wgmma_is_in_flight(between):
    ran, out = ones(kernel(between=between))
    assert (ran.kinds, notes(ran)) == ([], [])
    assert (out == 18).all()


FENCES = {
    "no fence": {"fence": ""},
    "A written behind the fence": {"before": "mov.b32 %r1, 0x3f803f80;"},
    "sums written behind the fence": {"before": "mov.b32 %r207, 0f40000000;"},
    "sums read behind the fence": {"before": "mov.b32 %r300, %r207;"},
}


@pytest.mark.parametrize("name", FENCES)
@pytest.mark.parametrize("order", ORDERS)
def test_missing_fences(name, order):
    ran, _ = ones(kernel(**FENCES[name]), order=order)
    assert (ran.kinds, notes(ran)) == ([], ["missing wgmma.fence"])


def test_the_first_wgmma_needs_a_fence_whatever_it_uses():
    """Here nobody has touched its sums, and its matrices lie in shared memory."""
    text = kernel(fence="", keep="0").replace(several("%r", 0, 4), "%rd11").replace("1, 1, 0;", "1, 1, 0, 0;")
    text = "\n".join(line for line in text.split("\n") if "0f40000000" not in line)
    assert notes(ones(text)[0]) == ["missing wgmma.fence"]


AGAIN = "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {}, {}, %rd11, 1, 1, 1, 0;"


@pytest.mark.parametrize(("columns", "want"), [(16, []), (8, ["missing wgmma.fence"])])
def test_wgmmas_of_one_shape_need_no_fence_between_them(columns, want):
    """Of another shape they do, for the same sums."""
    again = AGAIN.format(columns, several("%r", 200, columns // 2), several("%r", 0, 4))
    ran, out = ones(kernel(between=f"{again} wgmma.commit_group.sync.aligned;"))
    assert (ran.kinds, notes(ran)) == ([], want)
    assert (out[:, :4] == 34).all()


def test_an_older_group_may_be_waited_for_alone():
    again = AGAIN.format(8, several("%r", 210, 4), several("%r", 0, 4))
    zero = "".join(f"mov.b32 %r{n}, 0;" for n in range(210, 214))
    text = kernel(f"{zero} wgmma.fence.sync.aligned;", f"{again} wgmma.commit_group.sync.aligned;")
    text = text.replace("wait_group.sync.aligned 0", "wait_group.sync.aligned 1")
    ran, out = ones(text)
    assert (ran.kinds, notes(ran)) == ([], [])
    assert (out == 18).all()
    ran, _ = ones(text.replace("%r200;", "%r210;"))
    assert notes(ran) == ["register in flight"]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("place", "wrong"), [(0, True), (512, False)])
def test_shared_memory_in_flight(place, wrong, order, check):
    """What a wgmma reads may be written after the wait, and anything else before it; no assembler sees that."""
    store = f"mov.u32 %r300, smem; mad.lo.s32 %r300, %r500, 4, %r300; st.shared.b32 [%r300+{place}], %r500;"
    ran, _ = ones(kernel(between=store), order=order, check=check)
    assert bool(ran.kinds) == wrong
    assert notes(ran) == []
    waited = "wgmma.wait_group.sync.aligned 0; bar.sync 0;" + store
    ran, _ = ones(kernel(after=waited), order=order, check=check)
    assert ran.kinds == []


def test_a_wgmma_of_some_warps_waits_for_the_others():
    text = kernel(before="setp.lt.u32 %p5, %r500, 32; @%p5 ret;")
    assert ones(text)[0].kinds == ["deadlock"]


def test_an_operand_past_shared_memory_is_a_fault():
    ran, _ = ones(kernel().replace(f"mov.b64 %rd11, {PLAIN};", f"mov.b64 %rd11, {PLAIN | 4000 >> 4};"))
    assert ran.kinds == ["out of bounds"]


@pytest.mark.parametrize(
    ("line", "stride", "want"), [(128, 1024, 32), (64, 512, 32), (32, 256, 32), (16, 128, 32), (128, 1088, 32)]
)
def test_swizzled_operands_have_no_bank_conflicts(line, stride, want):
    """128 rows of 32 bytes are 32 passes of 128."""
    assert passes(SWIZZLES[line] << 62 | stride >> 4 << 32 | (stride * 16) >> 4 << 16, 128, 16, False) == want


def test_a_line_of_128_bytes_without_a_swizzle_conflicts():
    """Its eight rows begin in one bank: the descriptor of an interleaved matrix with rows 128 bytes apart."""
    assert passes(128 >> 4 << 32 | 16 >> 4 << 16, 8, 16, False) == 2
    assert passes(1 << 62, 8, 16, False) == 2
