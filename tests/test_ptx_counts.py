"""What the executor of PTX counts: kernels whose sectors, passes and instructions are known by arithmetic."""

import numpy as np
import pytest

from gradlab.profiling.ptx.counts import Counts, passes
from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.global_memory import Extent, GlobalMemory
from gradlab.profiling.ptx.kinds import KINDS, kind
from gradlab.profiling.ptx.parse import parse
from gradlab.profiling.ptx.totals import by_kind, by_line, totals
from gradlab.profiling.ptx.traffic import Traffic

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 x, .param .u64 y) {
  .reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %rd<16>; .reg .f64 %d<4>;
  .shared .align 16 .b8 tile[8192];
  .file 1 "/somewhere/kernel.py"
  .file 2 "/triton/standard.py"
  ld.param.u64 %rd1, [x];
  ld.param.u64 %rd2, [y];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
"""


def run(body, threads=32, grid=1, floats=8192, blocks=None):
    """Execute a kernel on two aligned arrays; its program and what was counted."""
    memory = np.zeros(2 * floats + 16, np.float32)
    x = -(-memory.ctypes.data // 64) * 64
    y = x + 4 * floats
    program = parse(HEAD + body + "\n ret;\n}")
    extents = [Extent(x, 4 * floats, "x_ptr"), Extent(y, 4 * floats, "y_ptr")]
    done = execute(program, (grid, 1, 1), threads, 0, [x, y], extents, blocks=blocks)
    assert not done.faults, done.faults
    return done


def accesses(done, root):
    """The sums of the instructions of a root."""
    chosen = np.array([i.index for i in done.program.instructions if i.root == root and not i.has("param")])
    return totals(done.counts, chosen)


# Bytes between lanes, the first address, bytes of an access -> sectors of a warp.
COALESCING = {
    "contiguous": (4, 0, "b32", 4),
    "offset by one": (4, 4, "b32", 5),
    "offset by a sector": (4, 32, "b32", 4),
    "every second": (8, 0, "b32", 8),
    "a sector each": (32, 0, "b32", 32),
    "a column of a matrix with rows of 128 bytes": (128, 0, "b32", 32),
    "all the same": (0, 64, "b32", 1),
    "half precision": (2, 0, "b16", 2),
    "half precision, offset by one": (2, 2, "b16", 3),
    "64 bits": (8, 0, "b64", 8),
    "128 bits": (16, 0, "v4.b32", 16),
    "128 bits, offset by one access": (16, 16, "v4.b32", 17),
}
_REGISTERS = {"b16": "%h1", "b32": "%r5", "b64": "%rd5", "v4.b32": "{%r5, %r6, %r7, %r8}"}
_SIZES = {"b16": 2, "b32": 4, "b64": 8, "v4.b32": 16}


@pytest.mark.parametrize("name", COALESCING)
@pytest.mark.parametrize("store", [False, True])
def test_sectors_of_a_request(name, store):
    stride, first, width, sectors = COALESCING[name]
    access = f"st.global.{width} [%rd4+{first}], {_REGISTERS[width]};"
    if not store:
        access = f"ld.global.{width} {_REGISTERS[width]}, [%rd4+{first}];"
    done = run(f"mul.wide.u32 %rd3, %r1, {stride}; add.s64 %rd4, %rd1, %rd3; {access}", threads=64)
    found = accesses(done, "st" if store else "ld")
    # Two warps, the second one's lanes behind the first one's.
    assert (found.requests, found.sectors, found.moved) == (2, 2 * sectors, 64 * _SIZES[width])


def test_lanes_without_a_true_guard_ask_for_nothing():
    done = run("""
      mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;
      setp.lt.u32 %p1, %r1, 8; setp.lt.u32 %p2, %r1, 0;
      @%p1 ld.global.b32 %r5, [%rd4];
      @%p2 ld.global.b32 %r6, [%rd4];
    """)
    found = accesses(done, "ld")
    assert (found.issued, found.threads, found.requests, found.sectors, found.moved) == (2, 8, 1, 1, 32)
    assert found.active == 8 / 64


def test_a_tensor_is_read_again():
    """Two blocks read one line of x twice each and write a line of y each."""
    done = run(
        """
      mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;
      ld.global.b32 %r5, [%rd4]; ld.global.b32 %r6, [%rd4];
      shl.b32 %r3, %r2, 7; cvt.u64.u32 %rd5, %r3; add.s64 %rd6, %rd2, %rd5; add.s64 %rd7, %rd6, %rd3;
      st.global.b32 [%rd7], %r5;
    """,
        grid=2,
    )
    x, y = done.counts.traffic.tensors()
    assert (x.name, x.read, x.distinct_read, x.again, x.written) == ("x_ptr", 16, 4, 4.0, 0)
    # L1 keeps what a block has read: of four requests two go further.
    assert x.fetched == 8
    assert (y.name, y.written, y.distinct_written, y.read) == ("y_ptr", 8, 8, 0)


def test_l1_is_each_blocks_own():
    """Two warps of each of two blocks read one line: it is fetched once a block."""
    done = run(
        "and.b32 %r3, %r1, 31; mul.wide.u32 %rd3, %r3, 4; add.s64 %rd4, %rd1, %rd3; ld.global.b32 %r5, [%rd4];", 64, 2
    )
    (x,) = done.counts.traffic.tensors()
    assert (x.read, x.fetched, x.distinct_read) == (16, 8, 4)


def test_the_first_blocks_alone():
    body = "mul.wide.u32 %rd3, %r2, 4; add.s64 %rd4, %rd2, %rd3; st.global.b32 [%rd4], 1;"
    for blocks in (1, 3, 5, None):
        done = run(body, grid=5, blocks=blocks)
        assert accesses(done, "st").issued == (blocks or 5)


@pytest.mark.parametrize(("cache", "size"), [("cg", 16), ("ca", 8)])
def test_asynchronous_copies_read_sectors_and_write_shared_memory(cache, size):
    done = run(f"""
      mov.u32 %r3, tile; mad.lo.u32 %r4, %r1, {size}, %r3; mul.wide.u32 %rd3, %r1, {size}; add.s64 %rd4, %rd1, %rd3;
      cp.async.{cache}.shared.global [%r4], [%rd4], {size}; cp.async.{cache}.shared.global [%r4], [%rd4], {size};
      cp.async.wait_all;
    """)
    (x,) = done.counts.traffic.tensors()
    assert (x.read, x.fetched) == (2 * size, 2 * size if cache == "cg" else size)
    found = totals(done.counts)
    assert (found.shared_requests, found.shared_moved, found.passes) == (2, 2 * 32 * size, 2 * size // 4)
    assert done.counts.in_flight == 2 * 32 * size


def test_what_goes_past_l1_is_fetched_each_time():
    counts = Counts(1, True, GlobalMemory([Extent(4096, 1024, "x")]))
    addresses, lanes = 4096 + 16 * np.arange(32), np.arange(32)
    for cached in (True, True, False, False):
        counts.global_access(0, addresses, lanes, 16, False, cached)
    counts.next_blocks()
    (x,) = counts.traffic.tensors()
    assert (x.read, x.fetched, x.distinct_read) == (64, 48, 16)


def test_bulk_copies_pass_all_banks():
    counts = Counts(1)
    counts.shared_pieces(0, 2, 160)
    found = totals(counts)
    assert (found.shared_requests, found.shared_moved, found.passes, found.ideal) == (2, 320, 4, 3)


def test_memory_that_arguments_share_is_one_tensor():
    memory = GlobalMemory(
        [Extent(4096, 256, "x"), Extent(8192, 64, "y"), Extent(4128, 64, "out"), Extent(4128, 32, "x")]
    )
    traffic = Traffic(memory)
    traffic.add(traffic.number(np.array([4096, 8192, 8224, 4100])), np.zeros(4, np.int64), False, True)
    traffic.next_blocks()
    one, two = traffic.tensors()
    assert (one.name, one.size, one.read, one.fetched, one.distinct_read) == ("x, out", 256, 2, 1, 1)
    assert (two.name, two.read) == ("y", 2)


def test_memory_that_comes_out_of_a_table_is_counted_from_then_on():
    """Tensors that no argument names are asked for when an address lies in none; what was counted before stays."""
    memory = GlobalMemory(
        [Extent(8192, 64, "x")], lambda: [Extent(4096, 64, "a tensor"), Extent(8192, 128, "all of x")]
    )
    counts, lanes = Counts(1, True, memory), np.arange(2)
    counts.global_access(0, np.array([8192, 8224]), lanes, 4, write=False)
    addresses = np.array([4096, 8256])
    assert memory.allowed(addresses, 4) is None
    counts.global_access(0, addresses, lanes, 4, write=False)
    counts.next_blocks()
    one, two = counts.traffic.tensors()
    assert (one.name, one.read, one.fetched) == ("a tensor", 1, 1)
    assert (two.name, two.read, two.fetched, two.distinct_read) == ("all of x", 3, 3, 3)


def test_many_reads_are_kept_small():
    """What is kept of reads grows with the sectors that blocks touch, not with the reads."""
    traffic = Traffic(GlobalMemory([Extent(0, 2**20, "x")]))
    sectors = np.arange(2**15)
    for _ in range(40):
        traffic.add(sectors, np.zeros(sectors.size, np.int64), False, True)
    assert sum(a.size for a in traffic._pending) <= 2**18 + sectors.size
    traffic.next_blocks()
    (x,) = traffic.tensors()
    assert (x.read, x.fetched) == (40 * 2**15, 2**15)


# Words between lanes, words of an access -> passes of a load, of a store.
CONFLICTS = {
    "contiguous": (1, 1, 1, 1),
    "one word for all": (0, 1, 1, 1),
    "2 ways": (2, 1, 2, 2),
    "odd stride": (3, 1, 1, 1),
    "4 ways": (4, 1, 4, 4),
    "8 ways": (8, 1, 8, 8),
    "32 ways, a column of 32 words": (32, 1, 32, 32),
    "a column of padded rows": (33, 1, 1, 1),
    "64 bits, contiguous": (2, 2, 2, 2),
    "64 bits, every second": (4, 2, 4, 4),
    "64 bits, one for all": (0, 2, 1, 2),
    "128 bits, contiguous": (4, 4, 4, 4),
    "128 bits, every second": (8, 4, 8, 8),
    "128 bits, rows of 128 bytes": (32, 4, 32, 32),
    "128 bits, rows of 144 bytes": (36, 4, 4, 4),
    "128 bits, one for all": (0, 4, 2, 4),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_passes_of_shared_memory(name):
    stride, words, load, store = CONFLICTS[name]
    width = {1: "b32", 2: "b64", 4: "v4.b32"}[words]
    register = _REGISTERS[width]
    done = run(f"""
      mov.u32 %r3, tile; mad.lo.u32 %r4, %r1, {4 * stride}, %r3;
      st.shared.{width} [%r4], {register}; bar.sync 0; ld.shared.{width} {register}, [%r4];
    """)
    stored, loaded = accesses(done, "st"), accesses(done, "ld")
    assert (stored.passes, loaded.passes) == (store, load)
    assert (loaded.shared_requests, loaded.shared_moved) == (1, 128 * words)
    assert stored.ideal <= words
    assert loaded.ways >= 1
    assert stored.ways == max(1.0, store / words) if stride else stored.ways == 1.0


@pytest.mark.parametrize(
    ("lanes", "offsets", "size", "wanted"),
    [
        # Bytes: four lanes share a word.
        (range(32), range(32), 1, 1),
        (range(32), range(0, 64, 2), 2, 1),
        # Two lanes share each address of 16 bytes, neighbours or those two apart: half of the passes.
        (range(32), [16 * (n // 2) for n in range(32)], 16, 2),
        (range(32), [16 * (n // 4 * 2 + n % 2) for n in range(32)], 16, 2),
        (range(32), [16 * (n // 2) for n in range(0, 64, 2)], 16, 4),
        # Eight lanes alone are one quarter; a warp of which the last quarter is left out has three.
        (range(8), range(0, 128, 16), 16, 1),
        (range(24), range(0, 384, 16), 16, 3),
        # Two warps do not share a pass, even with one address.
        (range(64), [0] * 64, 4, 2),
        # Lanes of a warp that do not follow each other: three words of bank 0.
        ([0, 9, 31], [0, 128, 256], 4, 3),
    ],
)
def test_passes_of_lanes(lanes, offsets, size, wanted):
    assert passes(np.array(list(offsets)), np.array(list(lanes)), size, write=False) == wanted


def test_accesses_that_are_met_again_have_the_same_passes():
    """Some words further is the same; a byte further, with other lanes or as a store is worked out anew."""
    counts, lanes = Counts(11), np.arange(32)
    offsets = 16 * (lanes // 2)
    known = [
        (offsets, lanes, 16, False, 2),
        (offsets + 1280, lanes, 16, False, 2),
        (offsets, lanes, 16, True, 4),
        (4 * lanes, lanes, 4, False, 1),
        (4 * lanes + 4, lanes, 4, False, 1),
        (130 * (lanes == 31), lanes, 2, False, 2),
        (130 * (lanes == 31) + 2, lanes, 2, False, 1),
        (8 * lanes, lanes, 4, False, 2),
        (8 * lanes + 64, lanes, 4, False, 2),
        (offsets, lanes + 8, 16, False, 3),
    ]
    for n, (at, who, size, write, _) in enumerate([*known, *known]):
        counts.shared_access(n % len(known), at, who, size, write)
    assert counts.passes.tolist() == [*[2 * wanted for *_, wanted in known], 0]


def test_a_branch_that_parts_a_warp_is_counted_once():
    done = run(
        """
      setp.lt.u32 %p1, %r1, 40;
      @%p1 bra $LESS;
      add.u32 %r3, %r1, 1;
      add.u32 %r3, %r3, 1;
      bra $END;
    $LESS:
      add.u32 %r3, %r1, 2;
    $END:
    """,
        threads=96,
    )
    # Of three warps the first takes it whole, the second in part, the third not at all.
    assert totals(done.counts).divergent == 1
    assert accesses(done, "add").issued == 2 * 2 + 2
    assert accesses(done, "add").threads == 2 * 56 + 40


def test_instructions_by_kind():
    done = run(
        """
      add.s32 %r3, %r1, 1; xor.b32 %r3, %r3, 7; mad.lo.s32 %r3, %r3, 3, %r1;
      setp.gt.s32 %p1, %r3, 4; max.f32 %f1, %f2, %f3; selp.b32 %r4, %r3, 0, %p1;
      fma.rn.f32 %f1, %f2, %f3, %f4; ex2.approx.f32 %f2, %f1; cvt.rn.f32.s32 %f3, %r3; div.full.f32 %f1, %f2, %f3;
      add.f64 %d1, %d2, %d3; fma.rn.f16 %h1, %h2, %h3, %h1;
      shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1; bar.sync 0;
    """,
        threads=64,
    )
    found = {name: sums.issued // 2 for name, sums in by_kind(done.program, done.counts).items()}
    assert found == {
        "integer": 2,
        "multiply": 1,
        "compare": 3,
        "float32": 1,
        "half": 1,
        "float64": 1,
        "special": 2,
        "convert": 1,
        "move": 4,
        "exchange": 1,
        "control": 1,
        "barrier": 1,
    }
    assert sum(found.values()) * 2 == totals(done.counts).issued


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        ("ld.param.u64 %rd1, [x];", "move"),
        ("ld.shared.b32 %r1, [%r2];", "shared"),
        ("st.shared::cta.b32 [%r2], %r1;", "shared"),
        ("ld.volatile.global.b32 %r1, [%rd2];", "load"),
        ("st.b32 [%rd2], %r1;", "store"),
        ("st.local.b32 [%rd2], %r1;", "local"),
        ("atom.global.add.f32 %f1, [%rd1], %f2;", "atomic"),
        ("cp.async.cg.shared.global [%r1], [%rd2], 0x10;", "copy"),
        ("cp.async.wait_group 2;", "barrier"),
        ("cp.async.commit_group;", "barrier"),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];",
            "copy",
        ),
        ("wgmma.fence.sync.aligned;", "barrier"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 1, 1, 1, 0, 1;", "tensor"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};", "tensor"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];", "shared"),
        ("fma.rn.bf16x2 %r1, %r2, %r3, %r4;", "half"),
        ("sub.s64 %rd1, %rd2, %rd3;", "integer"),
    ],
)
def test_kind_of(statement, wanted):
    (instruction, _) = parse(".entry k() {\n .reg .b32 %r<9>;\n" + statement + "\n ret;\n}").instructions
    assert kind(instruction) == wanted
    assert wanted in KINDS


def test_lines_are_the_kernels_own():
    """What a line calls counts on that line; what stands on no line of the file, on 0."""
    done = run("""
      .loc 1 10 0
      add.u32 %r3, %r1, 1;
      .loc 2 77 5, function_name $L__info_string0, inlined_at 1 12 8
      add.u32 %r3, %r1, 1;
      add.u32 %r3, %r1, 1;
      .loc 1 10 4
      add.u32 %r3, %r1, 1;
      .loc 2 90 1
    """)
    found = by_line(done.program, done.counts, "/elsewhere/kernel.py")
    assert {line: sums.issued for line, sums in found.items()} == {0: 5, 10: 2, 12: 2}


def test_lines_of_callers_in_a_comment():
    """What LLVM writes of them until it has directives for it: the place itself, then its callers, innermost first."""
    done = run("""
      .loc 2 77 5  // standard.py:77:5 @[ helper.py:5:3 @[ kernel.py:12:8 ] ]
      add.u32 %r3, %r1, 1;
      .loc 2 0 5  // standard.py:0:5
      add.u32 %r3, %r1, 1;
    """)
    (place,) = {i.place for i in done.program.instructions if i.root == "add"}
    assert [str(p) for p in (place, *place.callers)] == [
        "/triton/standard.py:77",
        "helper.py:5",
        "/somewhere/kernel.py:12",
    ]
    assert by_line(done.program, done.counts, "kernel.py")[12].issued == 3
