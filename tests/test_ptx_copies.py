"""Asynchronous copies, mbarriers, barriers of a block and tensor maps, in small kernels of PTX held against NumPy."""

import itertools

import numpy as np
import pytest

from gradlab.profiling.ptx import tensor_maps
from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import parse
from tests.ptx_kernels import HEAD, Ran, run

MODES = [(order, late) for order in ("together", "first", "last") for late in (True, False)]
RANDOM = np.random.default_rng(3)
# %r0 the thread, %r1 four times it; %rd0, %rd1 the arrays; %r2 shared memory.
START = """
mov.u32 %r0, %tid.x;
shl.b32 %r1, %r0, 2;
mov.b32 %r2, smem;
ld.param.u64 %rd0, [p0];
ld.param.u64 %rd1, [p1];
"""
LAST = """
mad.wide.u32 %rd11, %r0, 4, %rd1;
st.global.b32 [%rd11], %r50;
"""


def copied(copy: str, wait: str, size: int, threads: int = 32, **options):
    """Copy `size` bytes a thread to shared memory; give what lies there after the wait."""
    x = RANDOM.integers(0, 2**32, threads * size // 4, dtype=np.uint32)
    y = np.zeros_like(x)
    body = (
        START
        + f"""
    mad.lo.u32 %r3, %r0, {size}, %r2;
    mad.wide.u32 %rd2, %r0, {size}, %rd0;
    mad.wide.u32 %rd3, %r0, {size}, %rd1;
    setp.lt.u32 %p1, %r0, 7;
    min.u32 %r6, %r0, {size};
    {copy}
    {wait}
    """
    )
    for n in range(size // 4):
        body += f"ld.shared.b32 %r5, [%r3+{4 * n}];\nst.global.b32 [%rd3+{4 * n}], %r5;\n"
    return x, y, run(body, x, y, threads=threads, shared=threads * size, **options)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_copy_lands_at_its_wait(size, late):
    kind = "cg" if size == 16 else "ca"
    copy = f"cp.async.{kind}.shared.global [%r3], [%rd2], {size};"
    for wait in ("cp.async.commit_group;\ncp.async.wait_group 0;", "cp.async.wait_all;"):
        x, y, ran = copied(copy, wait, size, late=late, check=True)
        assert ran.kinds == []
        np.testing.assert_array_equal(y, x)
        assert ran.executed.counts.in_flight == 32 * size
    for wait in (
        "",
        "cp.async.commit_group;",
        "cp.async.commit_group;\ncp.async.wait_group 1;",
        "cp.async.wait_group 0;",
    ):
        x, y, ran = copied(copy, wait, size, late=late, check=True)
        assert ran.kinds == ["copy in flight"] * (size // 4)
        np.testing.assert_array_equal(y, np.full_like(x, 2**32 - 1) if late else x)


def test_copy_counts_sectors():
    _, _, ran = copied("cp.async.cg.shared.global [%r3], [%rd2], 16;", "cp.async.wait_all;", 16)
    index = next(i.index for i in ran.executed.program.instructions if i.root == "cp")
    counts = ran.executed.counts
    assert (counts.sectors[index], counts.moved[index], counts.requests[index]) in [(16, 512, 1), (17, 512, 1)]


def test_copy_fills_with_zeros():
    x, y, ran = copied("cp.async.ca.shared.global [%r3], [%rd2], 8, %r6;", "cp.async.wait_all;", 8, check=True)
    keep = np.minimum(np.arange(32), 8)[:, None] > np.arange(8)
    np.testing.assert_array_equal(y.view(np.uint8).reshape(32, 8), np.where(keep, x.view(np.uint8).reshape(32, 8), 0))
    assert ran.kinds == []
    x, y, ran = copied("cp.async.cg.shared.global [%r3], [%rd2], 16, %p1;", "cp.async.wait_all;", 16)
    np.testing.assert_array_equal(y.reshape(32, 4), np.where(np.arange(32)[:, None] < 7, 0, x.reshape(32, 4)))
    policy = "createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;\n"
    text = policy + "cp.async.cg.shared.global.L2::cache_hint [%r3], [%rd2], 16, %rd9;"
    x, y, ran = copied(text, "cp.async.wait_all;", 16)
    np.testing.assert_array_equal(y, x)


def test_copy_outside():
    x, y, ran = copied(
        "add.s64 %rd2, %rd2, 64;\ncp.async.cg.shared.global [%r3], [%rd2], 16;", "cp.async.wait_all;", 16
    )
    assert ran.kinds == ["out of bounds"]
    assert ran.executed.faults[0].count == 1
    assert "byte 512 of p0, which has 512" in ran.executed.faults[0].text
    np.testing.assert_array_equal(y[:-16], x[16:])
    np.testing.assert_array_equal(y[-16:], 2**32 - 1)
    # What is not read may lie anywhere.
    text = "add.s64 %rd2, %rd2, 1000000;\ncp.async.cg.shared.global [%r3], [%rd2], 16, 0;"
    _, y, ran = copied(text, "cp.async.wait_all;", 16)
    assert ran.kinds == []
    assert not y.any()
    _, _, ran = copied("add.u32 %r3, %r3, 8;\ncp.async.cg.shared.global [%r3], [%rd2], 16;", "cp.async.wait_all;", 16)
    assert "misaligned address" in ran.kinds


def test_groups_are_waited_for_in_order():
    x, y = np.arange(96, dtype=np.uint32), np.zeros(32, np.uint32)
    body = START + "add.u32 %r3, %r2, %r1;\nmad.wide.u32 %rd2, %r0, 4, %rd0;\n"
    for n in range(3):
        body += f"cp.async.ca.shared.global [%r3+{128 * n}], [%rd2+{128 * n}], 4;\ncp.async.commit_group;\n"
    body += "cp.async.wait_group {left};\nld.shared.b32 %r50, [%r3+{byte}];\n" + LAST
    for left, group in itertools.product(range(4), range(3)):
        ran = run(body.format(left=left, byte=128 * group), x, y, shared=384, check=True)
        right = left + group < 3
        assert ran.kinds == ([] if right else ["copy in flight"])
        np.testing.assert_array_equal(y, x[32 * group : 32 * group + 32] if right else np.full(32, 2**32 - 1))


RING = (
    START
    + """
setp.ne.u32 %p1, %r0, 0;
@%p1 bra $READY;
mbarrier.init.shared::cta.b64 [%r2], 32;
mbarrier.init.shared::cta.b64 [%r2+8], 1;
mbarrier.init.shared::cta.b64 [%r2+16], 32;
mbarrier.init.shared::cta.b64 [%r2+24], 1;
$READY:
bar.sync 0;
shr.u32 %r3, %r0, 5;
and.b32 %r4, %r0, 31;
setp.eq.u32 %p2, %r4, 0;
mov.u32 %r10, 0;
setp.eq.u32 %p3, %r3, 1;
@%p3 bra $CONSUME;
$PRODUCE:
and.b32 %r11, %r10, 1;
mad.lo.u32 %r12, %r11, 16, %r2;
shr.u32 %r13, %r10, 1;
and.b32 %r14, %r13, 1;
xor.b32 %r15, %r14, 1;
{empty}
mad.lo.u32 %r16, %r11, 128, %r2;
mad.lo.u32 %r16, %r4, 4, %r16;
mad.lo.u32 %r17, %r10, 32, %r4;
mad.wide.u32 %rd4, %r17, 4, %rd0;
ld.global.b32 %r18, [%rd4];
st.shared.b32 [%r16+64], %r18;
{filled}
add.u32 %r10, %r10, 1;
setp.lt.u32 %p4, %r10, 6;
@%p4 bra $PRODUCE;
bra $DONE;
$CONSUME:
and.b32 %r11, %r10, 1;
mad.lo.u32 %r12, %r11, 16, %r2;
shr.u32 %r13, %r10, 1;
and.b32 %r14, %r13, 1;
{full}
mad.lo.u32 %r16, %r11, 128, %r2;
mad.lo.u32 %r16, %r4, 4, %r16;
ld.shared.b32 %r18, [%r16+64];
mad.lo.u32 %r17, %r10, 32, %r4;
mad.wide.u32 %rd4, %r17, 4, %rd1;
st.global.b32 [%rd4], %r18;
bar.warp.sync -1;
{emptied}
add.u32 %r10, %r10, 1;
setp.lt.u32 %p4, %r10, 6;
@%p4 bra $CONSUME;
$DONE:
"""
)
WAIT = "{{\n.reg .pred complete;\nwaiting:\nmbarrier.{}.parity.shared::cta.b64 complete, [%r12{}], {};\n@!complete bra waiting;\n}}"
RIGHT = {
    "empty": WAIT.format("try_wait", "+8", "%r15"),
    "filled": "mbarrier.arrive.shared::cta.b64 _, [%r12];",
    "full": WAIT.format("try_wait", "", "%r14"),
    "emptied": "@%p2 mbarrier.arrive.release.cta.shared::cta.b64 %rd9, [%r12+8], 1;",
}


def ring(order: str = "together", late: bool = True, **changed):
    """Two stages of a ring between a warp that fills them and one that reads them, six times in all."""
    x, y = np.arange(192, dtype=np.uint32) * 3, np.zeros(192, np.uint32)
    ran = run(RING.format(**{**RIGHT, **changed}), x, y, threads=64, shared=512, order=order, late=late, check=True)
    return x, y, ran


@pytest.mark.parametrize(("order", "late"), MODES)
def test_ring_of_mbarriers(order, late):
    x, y, ran = ring(order, late)
    assert ran.kinds == []
    np.testing.assert_array_equal(y, x)
    asking = WAIT.format("test_wait", "", "%r14")
    _, y, ran = ring(order, late, full=asking)
    assert ran.kinds == []
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("order", ["together", "first", "last"])
def test_ring_with_faults(order):
    # A ring that is out of step shows it by what happens first.
    broken = {"race in shared memory", "deadlock", "uninitialised shared memory"}
    for change, kinds in (
        ({"empty": ""}, broken),
        ({"full": ""}, broken),
        ({"empty": WAIT.format("try_wait", "+8", "%r14")}, {"deadlock"}),
        ({"full": WAIT.format("try_wait", "", "%r15")}, broken),
        ({"emptied": ""}, {"deadlock"}),
        ({"filled": "@%p2 " + RIGHT["filled"]}, {"deadlock"}),
        ({"filled": "mbarrier.arrive.shared::cta.b64 _, [%r12+32];"}, {"misused barrier", "deadlock"}),
        ({"filled": RIGHT["filled"] * 2}, broken | {"misused barrier"}),
        ({"filled": "st.shared.b32 [%r12], %r0;\n" + RIGHT["filled"]}, {"misused barrier", "race in shared memory"}),
    ):
        found = set(ring(order, **change)[2].kinds)
        assert found, change
        assert found <= kinds, change
    text = ring(order, emptied="")[2].executed.faults[0].text
    assert "mbarrier at byte 8 of shared memory: phase 0 never completes, 1 of 1 arrivals" in text


def test_phases_by_their_state_and_counts():
    body = (
        START
        + """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 32;
    bar.warp.sync -1;
    mbarrier.arrive.shared::cta.b64 %rd5, [%r2];
    mbarrier.test_wait.shared::cta.b64 %p2, [%r2], %rd5;
    @%p1 mbarrier.arrive_drop.shared::cta.b64 _, [%r2];
    setp.gt.u32 %p3, %r0, 0;
    @%p3 mbarrier.arrive.shared::cta.b64 %rd6, [%r2];
    mbarrier.test_wait.parity.shared::cta.b64 %p4, [%r2], 1;
    @%p3 mbarrier.arrive.shared::cta.b64 _, [%r2];
    mbarrier.test_wait.parity.shared::cta.b64 %p5, [%r2], 0;
    mbarrier.test_wait.parity.shared::cta.b64 %p6, [%r2], 1;
    selp.b32 %r50, 1, 0, %p2;
    @%p4 add.u32 %r50, %r50, 2;
    @%p5 add.u32 %r50, %r50, 4;
    @%p6 add.u32 %r50, %r50, 8;
    """
        + LAST
    )
    x, y = np.zeros(1, np.uint32), np.zeros(32, np.uint32)
    ran = run(body, x, y, shared=8, check=True)
    assert ran.kinds == []
    # After the first phase, the second and the third, of 31 arrivals, which have parities 0, 1, 0; the fourth is open.
    np.testing.assert_array_equal(y, 7)


def test_a_barrier_that_is_overwritten():
    body = "mov.b32 %r2, smem;\nmov.u32 %r0, %tid.x;\nsetp.eq.u32 %p1, %r0, 0;\n"
    body += "@%p1 mbarrier.init.shared::cta.b64 [%r2], 32;\n{}bar.warp.sync -1;\n"
    body += "mbarrier.arrive.shared::cta.b64 _, [%r2];"
    over = "@%p1 st.shared.b64 [%r2], 7;\n"
    end = "@%p1 mbarrier.inval.shared::cta.b64 [%r2];\n"
    for between, kinds in (("", []), (over, ["misused barrier"]), (end, ["misused barrier"])):
        assert run(body.format(between), shared=8, check=True).kinds == kinds
    # After its end its bytes are anybody's.
    body = body.replace(
        "mbarrier.arrive.shared::cta.b64 _, [%r2];", end + over + "bar.sync 0;\nld.shared.b64 %rd1, [%r2];"
    )
    assert run(body.format(""), shared=8, check=True).kinds == []


def test_a_barrier_that_has_ended_needs_no_proxy_fence():
    body = (
        START
        + """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
    @%p1 mbarrier.init.shared::cta.b64 [%r2+1024], 1;
    @%p1 mbarrier.inval.shared::cta.b64 [%r2];
    STORE
    bar.warp.sync -1;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+1024], 512;
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0], 512, [%r2+1024];
    """
        + WAIT.format("try_wait", "", "0").replace("%r12", "%r2+1024")
        + """
    mad.lo.u32 %r3, %r0, 16, %r2;
    ld.shared.b32 %r50, [%r3];
    """
        + LAST
    )
    x = np.frombuffer(RANDOM.bytes(512 + 16), np.uint32)
    x = x[-(x.ctypes.data // 4) % 4 :][:128]
    for store, kinds in (("", []), ("@%p1 st.shared.b64 [%r2], 7;", ["missing proxy fence"])):
        y = np.zeros(32, np.uint32)
        ran = run(body.replace("STORE", store), x, y, shared=1032, check=True)
        assert ran.kinds == kinds
        np.testing.assert_array_equal(y, x[::4])


def test_a_barrier_that_is_made_again():
    body = (
        START
        + """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 32;
    bar.warp.sync -1;
    mbarrier.arrive.shared::cta.b64 _, [%r2];
    @%p1 mbarrier.inval.shared::cta.b64 [%r2];
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 32;
    bar.warp.sync -1;
    mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    mbarrier.test_wait.parity.shared::cta.b64 %p3, [%r2], 1;
    selp.b32 %r50, 1, 0, %p2;
    @%p3 add.u32 %r50, %r50, 2;
    """
        + LAST
    )
    y = np.zeros(32, np.uint32)
    assert run(body, np.zeros(1, np.uint32), y, shared=8, check=True).kinds == []
    np.testing.assert_array_equal(y, 2)


def test_bytes_that_are_expected():
    body = (
        START
        + """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2+1024], 1;
    bar.warp.sync -1;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+1024], BYTES;
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0], 512, [%r2+1024];
    add.s64 %rd3, %rd0, 512;
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+512], [%rd3], 512, [%r2+1024];
    """
        + WAIT.format("try_wait", "", "0").replace("%r12", "%r2+1024")
        + """
    mad.lo.u32 %r3, %r0, 32, %r2;
    ld.shared.b32 %r50, [%r3];
    """
        + LAST
    )
    x = np.frombuffer(RANDOM.bytes(1024 + 16), np.uint32)
    x = x[-(x.ctypes.data // 4) % 4 :][:256]
    for order, late in MODES:
        y = np.zeros(32, np.uint32)
        ran = run(body.replace("BYTES", "1024"), x, y, shared=1032, check=True, order=order, late=late)
        assert ran.kinds == []
        assert ran.executed.counts.in_flight == (1024 if late else 512)
        np.testing.assert_array_equal(y, x[::8])
        for wrong in (512, 1040, 1536):
            ran = run(body.replace("BYTES", str(wrong)), x, y, shared=1032, check=True, order=order, late=late)
            assert "wrong byte count of a barrier" in ran.kinds, wrong
            assert set(ran.kinds) <= {"wrong byte count of a barrier", "copy in flight"}, wrong
            if late and wrong == 512:
                said = " ".join(fault.text for fault in ran.executed.faults)
                assert "completes a phase while a copy of 512 bytes to it is on its way" in said
    index = next(i.index for i in ran.executed.program.instructions if i.root == "cp")
    assert ran.executed.counts.sectors[index] == 16 + (x.ctypes.data % 32 != 0)


@pytest.mark.parametrize("late", [True, False])
def test_copies_that_arrive_at_a_barrier(late):
    for form, count in (("noinc.", 32), ("", 1)):
        body = (
            START
            + f"""
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [%r2+128], {count};
        bar.sync 0;
        setp.ge.u32 %p2, %r0, 32;
        @%p2 bra $WAIT;
        add.u32 %r3, %r2, %r1;
        mad.wide.u32 %rd2, %r0, 4, %rd0;
        cp.async.ca.shared.global [%r3], [%rd2], 4;
        cp.async.mbarrier.arrive.{form}shared::cta.b64 [%r2+128];
        {"@%p1 mbarrier.arrive.shared::cta.b64 _, [%r2+128];" if not form else ""}
        $WAIT:
        """
            + WAIT.format("try_wait", "", "0").replace("%r12", "%r2+128")
            + """
        and.b32 %r4, %r0, 31;
        mad.lo.u32 %r3, %r4, 4, %r2;
        ld.shared.b32 %r50, [%r3];
        """
            + LAST
        )
        x, y = np.arange(32, dtype=np.uint32) + 5, np.zeros(64, np.uint32)
        for order in ("together", "first", "last"):
            ran = run(body, x, y, threads=64, shared=136, check=True, late=late, order=order)
            assert ran.kinds == []
            np.testing.assert_array_equal(y, np.tile(x, 2))


def test_copies_at_a_barrier_need_a_proxy_fence():
    body = (
        START
        + """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2+128], 32;
    bar.warp.sync -1;
    add.u32 %r3, %r2, %r1;
    mad.wide.u32 %rd2, %r0, 4, %rd0;
    cp.async.ca.shared.global [%r3], [%rd2], 4;
    cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r2+128];
    """
        + WAIT.format("try_wait", "", "0").replace("%r12", "%r2+128")
        + """
    FENCE
    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 128;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    )
    x = np.arange(32, dtype=np.uint32)
    for fence, kinds in (("fence.proxy.async;", []), ("fence.acq_rel.cta;", ["missing proxy fence"])):
        y = aligned((32,), np.uint32)
        assert run(body.replace("FENCE", fence), x, y, shared=136, check=True).kinds == kinds
        np.testing.assert_array_equal(y, x)


def test_barriers_of_some_threads():
    body = (
        START
        + """
    shr.u32 %r3, %r0, 5;
    add.u32 %r4, %r2, %r1;
    setp.eq.u32 %p1, %r3, 0;
    @%p1 bra $GIVE;
    setp.eq.u32 %p2, %r3, 1;
    @%p2 bra $TAKE;
    bra $DONE;
    $GIVE:
    st.shared.b32 [%r4], %r0;
    bar.arrive 3, 64;
    bra $DONE;
    $TAKE:
    {wait}
    ld.shared.b32 %r50, [%r4+-128];
    """
        + LAST
        + "$DONE:\nbar.sync 0;\n"
    )
    x = np.zeros(1, np.uint32)
    for order in ("together", "first", "last"):
        y = np.zeros(96, np.uint32)
        ran = run(body.format(wait="bar.sync 3, 64;"), x, y, threads=96, shared=512, check=True, order=order)
        assert ran.kinds == []
        np.testing.assert_array_equal(y, [0] * 32 + list(range(32)) + [0] * 32)
        ran = run(body.format(wait=""), x, y, threads=96, shared=512, check=True, order=order)
        assert "race in shared memory" in ran.kinds or "uninitialised shared memory" in ran.kinds
        ran = run(body.format(wait="bar.sync 3, 96;"), x, y, threads=96, shared=512, check=True, order=order)
        assert ran.kinds == ["deadlock"] * len(ran.kinds)
        assert ran.kinds
        assert "barrier 3: 64 of 96 threads" in " ".join(f.text for f in ran.executed.faults)


def test_a_barrier_of_some_threads_again():
    turn = "st.shared.b32 [%r4+{0}], %r0;\nbar.arrive 3, 64;\n"
    take = "bar.sync 3, 64;\nld.shared.b32 %r5, [%r4+{0}];\nadd.u32 %r50, %r50, %r5;\n"
    body = START + "and.b32 %r3, %r1, 127;\nadd.u32 %r4, %r2, %r3;\nmov.b32 %r50, 0;\nsetp.ge.u32 %p1, %r0, 32;\n"
    body += "@%p1 bra $TAKE;\n" + turn.format(0) + "bar.sync 4;\n" + turn.format(128) + "bra $DONE;\n"
    body += "$TAKE:\n" + take.format(0) + "bar.sync 4;\n" + take.format(128) + LAST + "$DONE:\n"
    for order in ("together", "first", "last"):
        y = np.zeros(64, np.uint32)
        assert run(body, np.zeros(1, np.uint32), y, threads=64, shared=256, check=True, order=order).kinds == []
        np.testing.assert_array_equal(y[32:], 2 * np.arange(32))


def test_barriers_reduce():
    body = (
        START
        + """
    setp.lt.u32 %p1, %r0, 40;
    bar.red.popc.u32 %r50, 0, %p1;
    bar.red.and.pred %p2, 0, %p1;
    bar.red.or.pred %p3, 0, 64, %p1;
    @%p2 add.u32 %r50, %r50, 100;
    @%p3 add.u32 %r50, %r50, 1000;
    """
        + LAST
    )
    for order in ("together", "first", "last"):
        y = np.zeros(64, np.uint32)
        assert run(body, np.zeros(1, np.uint32), y, threads=64, order=order, check=True).kinds == []
        np.testing.assert_array_equal(y, 1040)


TENSORS = {1: ((100,), (128,)), 2: ((20, 72), (8, 64)), 3: ((3, 9, 24), (2, 4, 16)), 4: ((2, 3, 5, 16), (2, 2, 3, 8))}
TENSORS[5] = ((2, 2, 3, 4, 16), (1, 2, 2, 3, 16))


def tensor_kernel(body: str, *arguments, extents, shared: int, grid=(1, 1, 1), threads: int = 32, **options) -> Ran:
    parameters = [
        f".param .align 64 .b8 p{n}[128]" if isinstance(a, bytes) else f".param .u64 p{n}"
        for n, a in enumerate(arguments)
    ]
    program = parse(HEAD.format(parameters=",\n".join(parameters), body=body))
    found = [Extent(a.ctypes.data, a.nbytes, f"tensor {n}") for n, a in enumerate(extents)]
    return Ran(execute(program, grid, threads, shared, arguments, found, check=True, **options), list(extents))


def aligned(shape, dtype, to: int = 16):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + to, np.uint8)
    start = -raw.ctypes.data % to
    return raw[start : start + size].view(dtype).reshape(shape)


def strided(x) -> list[int]:
    return [s // x.itemsize for s in x.strides]


def box_of(x, at, box, fill):
    """The box of an array that begins at these coordinates, the outermost first."""
    found = np.full(box, fill, x.dtype)
    for index in np.ndindex(*box):
        place = tuple(a + i for a, i in zip(at, index, strict=True))
        if all(0 <= p < n for p, n in zip(place, x.shape, strict=True)):
            found[index] = x[place]
    return found


def unswizzled(data: bytes, swizzle: int) -> np.ndarray:
    """Shared memory as it would be without a swizzle: chunks of 16 bytes change places within eight lines of 128."""
    chunks = np.frombuffer(data, np.uint8).reshape(-1, 16)
    number = np.arange(len(chunks))
    # By the pattern of the documentation: of 128 bytes every line permutes, of 64 every second, of 32 every fourth.
    line = number // 8
    other = {0: number, 1: number ^ (line & 1), 2: number ^ (line & 3), 3: number ^ (line & 7)}[swizzle]
    return chunks[other].reshape(-1)


LOAD = (
    """
mov.u32 %r0, %tid.x;
mov.b32 %r2, smem;
setp.eq.u32 %p1, %r0, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r2+32768], 1;
bar.warp.sync -1;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+32768], {size};
mov.b64 %rd3, p0;
cvta.param.u64 %rd4, %rd3;
@%p1 cp.async.bulk.tensor.{rank}d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd4, {{{at}}}], [%r2+32768];
"""
    + WAIT.format("try_wait", "", "0").replace("%r12", "%r2+32768").replace("{", "{{").replace("}", "}}")
    + """
ld.param.u64 %rd1, [p1];
mul.lo.u32 %r3, %r0, 4;
$LOOP:
add.u32 %r4, %r2, %r3;
ld.shared.b32 %r5, [%r4];
cvt.u64.u32 %rd5, %r3;
add.s64 %rd6, %rd1, %rd5;
st.global.b32 [%rd6], %r5;
add.u32 %r3, %r3, 128;
setp.lt.u32 %p2, %r3, {size};
@%p2 bra $LOOP;
"""
)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("dtype", "element"), [(np.float16, 6), (np.float32, 7), (np.uint8, 0), (np.float64, 9)])
def test_boxes_of_tensors(rank, dtype, element):
    shape, box = TENSORS[rank]
    if np.dtype(dtype).itemsize == 1:
        shape, box = (*shape[:-1], shape[-1] * 4), (*box[:-1], max(box[-1], 16))
    whole = aligned((*shape[:-1], -(-shape[-1] // 16) * 16), dtype)
    whole[...] = RANDOM.integers(1, 100, whole.shape)
    x = whole[..., : shape[-1]]
    size = int(np.prod(box)) * x.itemsize
    for fill, first, late in ((0, 0, True), (1, 0, False), (0, -3, True), (1, 5, True), (0, 16, False)):
        at = [min(n - 1, 1) for n in shape[:-1]] + [first]
        given = tensor_maps.encode(x.ctypes.data, shape, strided(x), box, element, 0, fill)
        y = np.zeros(size, np.uint8)
        text = LOAD.format(size=size, rank=rank, at=", ".join(str(a) for a in reversed(at)))
        ran = tensor_kernel(text, given, y.ctypes.data, extents=[whole, y], shared=32776, late=late)
        assert ran.kinds == []
        want = box_of(x, at, box, np.nan if fill and element >= 6 else 0)
        np.testing.assert_array_equal(y.view(dtype).reshape(box), want)


@pytest.mark.parametrize("swizzle", [1, 2, 3])
def test_boxes_swizzled(swizzle):
    box = (24, 8 << swizzle)
    x = aligned((40, 128), np.uint16)
    x[...] = np.arange(x.size).reshape(x.shape)
    y = np.zeros(box, np.uint16)
    given = tensor_maps.encode(x.ctypes.data, x.shape, strided(x), box, 1, swizzle)
    text = LOAD.format(size=y.nbytes, rank=2, at="8, 10")
    assert tensor_kernel(text, given, y.ctypes.data, extents=[x, y], shared=32776).kinds == []
    np.testing.assert_array_equal(unswizzled(y.tobytes(), swizzle).view(np.uint16), box_of(x, (10, 8), box, 0).ravel())


def test_boxes_with_faults():
    x = aligned((20, 64), np.float16)
    y = np.zeros((8, 64), np.float16)
    right = LOAD.format(size=1024, rank=2, at="0, 0")

    def kinds(text=right, base=0, strides=(64, 1), shape=(20, 64), box=(8, 64)):
        given = tensor_maps.encode(x.ctypes.data + base, shape, strides, box, 6)
        ran = tensor_kernel(text, given, y.ctypes.data, extents=[x, y], shared=32776)
        return {f.kind for f in ran.executed.faults} - {"deadlock", "wrong byte count of a barrier"}

    assert kinds() == set()
    assert kinds(base=8) == {"misaligned address"}
    assert kinds(strides=(65, 1)) == {"misaligned address"}
    assert kinds(shape=(21, 64), text=LOAD.format(size=1024, rank=2, at="0, 20")) == {"out of bounds"}
    assert kinds(text=LOAD.format(size=1024, rank=1, at="0")) == {"wrong tensor map"}
    assert kinds(box=(8, 257)) == {"wrong tensor map"}
    assert kinds(text=right.replace("[%r2], [%rd4", "[%r2+64], [%rd4")) == {"misaligned address"}


STORE = """
mov.u32 %r0, %tid.x;
mov.b32 %r2, smem;
ld.param.u64 %rd1, [p1];
mul.lo.u32 %r3, %r0, 4;
$LOOP:
add.u32 %r4, %r2, %r3;
cvt.u64.u32 %rd5, %r3;
add.s64 %rd6, %rd1, %rd5;
ld.global.b32 %r5, [%rd6];
st.shared.b32 [%r4], %r5;
add.u32 %r3, %r3, 128;
setp.lt.u32 %p2, %r3, {size};
@%p2 bra $LOOP;
{fence}
bar.sync 0;
setp.eq.u32 %p1, %r0, 0;
mov.b64 %rd3, p0;
cvta.param.u64 %rd4, %rd3;
@%p1 {copy} [%rd4, {{{at}}}], [%r2];
cp.async.bulk.commit_group;
{wait}
{after}
"""
TO = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
DONE = "cp.async.bulk.wait_group.read 0;"


def stored(
    x, y, at, copy=TO, swizzle=0, element=7, fence="fence.proxy.async.shared::cta;", wait=DONE, after="", late=True
):
    text = STORE.format(size=y.nbytes, copy=copy, at=at, fence=fence, wait=wait, after=after)
    given = tensor_maps.encode(x.ctypes.data, x.shape, strided(x), y.shape, element, swizzle)
    return tensor_kernel(text, given, y.ctypes.data, extents=[x, y], shared=32768, threads=64, late=late)


@pytest.mark.parametrize("late", [True, False])
def test_boxes_are_stored(late):
    y = RANDOM.standard_normal((8, 16)).astype(np.float32)
    for first, row in ((4, 2), (-5, -2), (28, 9)):
        x = aligned((12, 36), np.float32)
        want = x.copy()
        assert stored(x, y, f"{first}, {row}", late=late).kinds == []
        for i, j in np.ndindex(*y.shape):
            if 0 <= row + i < 12 and 0 <= first + j < 36:
                want[row + i, first + j] = y[i, j]
        np.testing.assert_array_equal(x, want)
    # The swizzle of a store is the load's.
    x, y = aligned((8, 64), np.float16), np.arange(512).reshape(8, 64).astype(np.float16)
    assert stored(x, y, "0, 0", swizzle=3, element=6, late=late).kinds == []
    np.testing.assert_array_equal(x, unswizzled(y.tobytes(), 3).view(np.float16).reshape(8, 64))


@pytest.mark.parametrize(
    ("operation", "compute", "dtype", "element"),
    [
        ("add", np.add, np.float32, 7),
        ("add", np.add, np.float16, 6),
        ("min", np.minimum, np.int32, 3),
        ("max", np.maximum, np.uint32, 2),
        ("xor", np.bitwise_xor, np.uint64, 4),
    ],
)
def test_boxes_are_reduced(operation, compute, dtype, element):
    x = aligned((12, 40), dtype)
    x[...] = RANDOM.integers(0, 100, x.shape)
    y = RANDOM.integers(0, 100, (8, 16)).astype(dtype)
    want = x.copy()
    want[3:11, 8:24] = compute(x[3:11, 8:24], y)
    copy = f"cp.reduce.async.bulk.tensor.2d.global.shared::cta.{operation}.bulk_group"
    assert stored(x, y, "8, 3", copy, element=element).kinds == []
    np.testing.assert_array_equal(x, want)


def test_rows_are_stored_and_reduced():
    for copy, want in (
        ("cp.async.bulk.global.shared::cta.bulk_group", lambda x, y: y),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32", np.add),
    ):
        x, y = aligned((64,), np.float32), RANDOM.standard_normal(64).astype(np.float32)
        x[...] = 2
        expected = want(x, y)
        text = STORE.format(size=256, copy=copy, at="", fence="fence.proxy.async;", wait=DONE, after="")
        text = text.replace("[%rd4, {}], [%r2]", "[%rd4], [%r2], 256").replace(
            "mov.b64 %rd3, p0", "ld.param.u64 %rd4, [p0]"
        )
        text = text.replace("cvta.param.u64 %rd4, %rd3;", "")
        ran = tensor_kernel(text, x.ctypes.data, y.ctypes.data, extents=[x, y], shared=32768, threads=64)
        assert ran.kinds == []
        np.testing.assert_array_equal(x, expected)


def test_faults_of_stores():
    y = np.ones((8, 16), np.float32)
    again = "bar.sync 0;\nst.shared.b32 [%r2], %r0;\n"
    for change, kind in (
        ({"fence": ""}, "missing proxy fence"),
        ({"wait": "", "after": again}, "shared operand in flight"),
        ({"wait": ""}, "shared operand in flight"),
        ({"wait": "cp.async.bulk.wait_group.read 1;", "after": again}, "shared operand in flight"),
        ({"after": "@!%p1 st.shared.b32 [%r2], %r0;\n"}, "race in shared memory"),
    ):
        for late in (True, False):
            ran = stored(aligned((12, 36), np.float32), y, "0, 0", late=late, **change)
            assert kind in ran.kinds, change
    ran = stored(aligned((12, 36), np.float32), y, "0, 0", after="bar.sync 0;\n@%p1 st.shared.b32 [%r2], %r0;\n")
    assert ran.kinds == []


def test_maps_made_by_the_kernel():
    x, y = aligned((20, 72), np.float16), np.zeros((8, 64), np.float16)
    x[...] = np.arange(x.size).reshape(x.shape)
    scratch = aligned((128,), np.uint8, 128)
    fields = [("rank", "1"), ("elemtype", "6"), ("swizzle_mode", "0"), ("fill_mode", "0"), ("interleave_layout", "0")]
    fields += [("box_dim", "0, %r10"), ("box_dim", "1, %r11"), ("global_dim", "0, %r12"), ("global_dim", "1, %r13")]
    fields += [("element_stride", "0, %r14"), ("element_stride", "1, %r14")]
    make = """
    ld.param.u64 %rd0, [p0];
    ld.param.u64 %rd4, [p2];
    mul.lo.u32 %r3, %r0, 4;
    add.u32 %r3, %r3, %r2;
    mov.u32 %r9, 0;
    st.shared.b32 [%r3+2048], %r9;
    bar.warp.sync -1;
    cvt.u64.u32 %rd8, %r2;
    add.s64 %rd8, %rd8, 2048;
    mov.u64 %rd9, 144;
    mov.u32 %r10, 64;
    mov.u32 %r11, 8;
    mov.u32 %r12, 72;
    mov.u32 %r13, 20;
    mov.u32 %r14, 1;
    @%p1 tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%rd8], %rd0;
    @%p1 tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%rd8], 0, %rd9;
    """
    make += "\n".join(
        f"@%p1 tensormap.replace.tile.{name}.shared::cta.b1024.b32 [%rd8], {value};" for name, value in fields
    )
    make += """
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd4], [%rd8], 128;
    fence.proxy.tensormap::generic.acquire.gpu [%rd4], 128;
    """
    text = LOAD.format(size=1024, rank=2, at="5, 9").replace("mov.b64 %rd3, p0;\n", make)
    text = text.replace("cvta.param.u64 %rd4, %rd3;", "")
    ran = tensor_kernel(text, x.ctypes.data, y.ctypes.data, scratch.ctypes.data, extents=[x, y, scratch], shared=32776)
    assert ran.kinds == []
    np.testing.assert_array_equal(y, box_of(x, (9, 5), (8, 64), 0))
    found = tensor_maps.decode(scratch.tobytes())
    assert found == tensor_maps.decode(tensor_maps.encode(x.ctypes.data, (20, 72), (72, 1), (8, 64), 6))
    assert (found.shape, found.strides, found.box, found.kind) == ((72, 20), (2, 144), (64, 8), "f16")
