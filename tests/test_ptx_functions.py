"""What a module has beside a kernel's instructions: functions, constants, local memory; carries; locks of blocks."""

import numpy as np
import pytest

from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError, parse
from gradlab.profiling.ptx.schedule import ORDERS
from tests.ptx_kernels import run, text

RANDOM = np.random.default_rng(3)
ADDRESS = ["mov.u32 %r100, %tid.x;", "ld.param.u64 %rd100, [p0];", "mad.wide.u32 %rd101, %r100, 8, %rd100;"]
ADDRESS += ["ld.param.u64 %rd102, [p1];", "mad.wide.u32 %rd103, %r100, 8, %rd102;", "ld.global.b64 %rd0, [%rd101];"]


def module(body, more, *arrays, threads=32):
    """Run a kernel of a module that has more than it."""
    extents = [Extent(a.ctypes.data, a.nbytes, f"p{n}") for n, a in enumerate(arrays)]
    program = parse(more[0] + text("\n".join(body), len(arrays)) + more[1])
    return execute(program, (1, 1, 1), threads, 0, [a.ctypes.data for a in arrays], extents)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("root", ["add", "sub", "mad"])
def test_carries_make_numbers_of_four_words(root, bits):
    def number(words):
        return sum(int(word) << (bits * n) for n, word in enumerate(words))

    kind = np.dtype(f"u{bits // 8}")
    # Words of only ones and zeros carry through.
    a, b, c = (RANDOM.choice(np.array([0, 1, 2**bits - 1, 2**bits // 3], kind), (32, 4)) for _ in "abc")
    out, name, size = np.zeros((32, 4), kind), "%r" if bits == 32 else "%rd", bits // 8
    body = ["mov.u32 %r500, %tid.x;"]
    for n in range(4):
        body += [f"ld.param.u64 %rd200, [p{n}];", f"mad.wide.u32 %rd{201 + n}, %r500, {4 * size}, %rd200;"]
    for n in range(3):
        body += [f"ld.global.u{bits} {name}{10 * n + w}, [%rd{201 + n}+{size * w}];" for w in range(4)]
    if root == "mad":
        # a times the first word of b, and c.
        body += [f"mad.lo.cc.u{bits} {name}40, {name}0, {name}10, {name}20;"]
        body += [f"madc.lo.cc.u{bits} {name}{40 + w}, {name}{w}, {name}10, {name}{20 + w};" for w in (1, 2, 3)]
        body += [f"mad.hi.cc.u{bits} {name}41, {name}0, {name}10, {name}41;"]
        body += [f"madc.hi.cc.u{bits} {name}42, {name}1, {name}10, {name}42;"]
        body += [f"madc.hi.u{bits} {name}43, {name}2, {name}10, {name}43;"]
        want = [number(x) * int(y[0]) + number(z) for x, y, z in zip(a, b, c, strict=True)]
    else:
        body += [f"{root}.cc.u{bits} {name}40, {name}0, {name}10;"]
        body += [f"{root}c{'.cc' * (w < 3)}.u{bits} {name}{40 + w}, {name}{w}, {name}{10 + w};" for w in (1, 2, 3)]
        sign = 1 if root == "add" else -1
        want = [number(x) + sign * number(y) for x, y in zip(a, b, strict=True)]
    body += [f"st.global.u{bits} [%rd204+{size * w}], {name}{40 + w};" for w in range(4)]
    assert run("\n".join(body), a, b, c, out).kinds == []
    assert [number(row) for row in out] == [value % 2 ** (4 * bits) for value in want]


def test_local_memory_is_of_each_thread():
    """By its own addresses, and by generic ones."""
    data, out = RANDOM.integers(0, 2**63, 64), np.zeros(64, np.int64)
    body = [".local .align 8 .b8 depot[40];", *ADDRESS, "mov.b64 %rd1, depot;", "cvta.local.u64 %rd2, %rd1;"]
    body += ["st.local.b64 [%rd1+8], %rd0;", "ld.b32 %r1, [%rd2+8];", "st.b32 [%rd2+16], %r1;"]
    body += ["ld.local.b32 %r2, [depot+12];", "st.local.b32 [depot+20], %r2;", "ld.local.b64 %rd3, [%rd1+16];"]
    ran = run("\n".join([*body, "st.global.b64 [%rd103], %rd3;"]), data, out, threads=64)
    assert ran.kinds == []
    np.testing.assert_array_equal(out, data)
    body += ["st.local.b64 [%rd1+40], %rd0;"]
    assert run("\n".join(body), data, out, threads=64).kinds == ["out of bounds"]


FUNCTION = """
.func (.param .b64 back) triple(
    .param .b64 what
)
{
    .local .align 8 .b8 depot[8];
    .reg .b64 %rd<9>;
    .reg .pred %p<3>;
    ld.param.b64 %rd0, [what];
    st.local.b64 [depot], %rd0;
    setp.lt.s64 %p1, %rd0, 0;
    @%p1 bra $NEGATIVE;
    add.s64 %rd1, %rd0, %rd0;
    add.s64 %rd1, %rd1, %rd0;
    st.param.b64 [back], %rd1;
    ret;
$NEGATIVE:
    ld.local.b64 %rd2, [depot];
    neg.s64 %rd2, %rd2;
    st.param.b64 [back], %rd2;
    ret;
}
"""
CALL = """{{
    .param .b64 param0;
    .param .b64 retval0;
    st.param.b64 [param0], {0};
    call.uni (retval0), triple, (param0);
    ld.param.b64 {0}, [retval0];
}}"""


def test_functions_have_registers_labels_and_memory_of_their_own():
    """Called twice, in threads that take both of its ways."""
    data = np.concatenate([np.arange(16), -np.arange(1, 17)])
    out = np.zeros(32, np.int64)
    body = [*ADDRESS, "mov.b64 %rd1, 5;", CALL.format("%rd0"), CALL.format("%rd0"), "add.s64 %rd0, %rd0, %rd1;"]
    ran = module([*body, "st.global.b64 [%rd103], %rd0;"], ("", FUNCTION), data, out)
    assert ran.faults == []
    np.testing.assert_array_equal(out, np.where(data < 0, -3 * data, 9 * data) + 5)


def test_constants_of_a_module():
    out = np.zeros((32, 2), np.int32)
    head = ".global .align 4 .b8 table[12] = {1, 0, 0, 0, 255, 255, 255, 255};\n.global .align 4 .u32 other = 7;\n"
    body = [
        "mov.u32 %r1, %tid.x;",
        "ld.param.u64 %rd0, [p0];",
        "mad.wide.u32 %rd0, %r1, 8, %rd0;",
        "rem.u32 %r1, %r1, 3;",
    ]
    body += [
        "mov.b64 %rd1, table;",
        "mad.wide.u32 %rd1, %r1, 4, %rd1;",
        "ld.global.b32 %r2, [%rd1];",
        "mov.b64 %rd2, other;",
    ]
    body += ["ld.global.b32 %r3, [%rd2];", "st.global.v2.b32 [%rd0], {%r2, %r3};"]
    assert module(body, (head, ""), out).faults == []
    np.testing.assert_array_equal(out, np.stack([np.array([1, -1, 0])[np.arange(32) % 3], np.full(32, 7)], 1))


def test_a_failed_assertion_is_a_fault_with_its_text():
    head = ".global .align 1 .b8 words[10] = {116, 111, 111, 32, 108, 97, 114, 103, 101};\n"
    body = ["mov.u32 %r1, %tid.x;", "setp.lt.u32 %p1, %r1, 30;", "@%p1 bra $FINE;", "mov.b64 %rd1, words;"]
    body += [
        "{",
        ".param .b64 param0;",
        "st.param.b64 [param0], %rd1;",
        "call.uni __assertfail, (param0);",
        "}",
        "trap;",
    ]
    (fault,) = module([*body, "$FINE:"], (head, "")).faults
    assert (fault.kind, fault.text) == ("failed assertion", "'too large' in 2 threads")


def test_a_call_of_what_is_not_there_is_one_line():
    with pytest.raises(PTXError, match=r"^emulate: instruction is call\.uni other, \(\) .*wanted a form.*$"):
        run("call.uni other, ();")


def test_registers_of_a_scope_are_its_own():
    """Ranges too, which two pieces of inline assembly may declare with two types."""
    out = np.zeros(64, np.int64)
    body = [*ADDRESS, "{ .reg .b32 a<2>; mov.b32 a0, 7; mov.b32 a1, a0; cvt.u64.u32 %rd1, a1; }"]
    body += ["{ .reg .b64 a<2>; mov.b64 a0, 1099511627776; add.s64 %rd1, %rd1, a0; }", "st.global.b64 [%rd103], %rd1;"]
    run("\n".join(body), out, out)
    assert (out[:32] == 2**40 + 7).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_lock_between_blocks(order):
    """All take it in turn, whoever spins while another holds it; a barrier is in the loop of those that wait."""
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int32)
    body = ["ld.param.u64 %rd0, [p0];", "ld.param.u64 %rd1, [p1];", "mov.u32 %r0, %tid.x;", "setp.eq.u32 %p0, %r0, 0;"]
    body += ["mov.u32 %r9, smem;", "$TRY:", "@%p0 atom.global.acquire.gpu.cas.b32 %r1, [%rd0], 0, 1;"]
    body += ["@%p0 st.shared.b32 [%r9], %r1;", "bar.sync 0;", "ld.shared.b32 %r2, [%r9];", "bar.sync 0;"]
    body += ["setp.ne.u32 %p1, %r2, 0;", "@%p1 bra $TRY;", "@!%p0 bra $OUT;", "ld.global.b32 %r3, [%rd1];"]
    body += ["add.s32 %r3, %r3, 1;", "st.global.b32 [%rd1], %r3;", "$OUT:", "bar.sync 0;"]
    body += ["@%p0 atom.global.release.gpu.exch.b32 %r4, [%rd0], 0;"]
    ran = run("\n".join(body), lock, total, threads=64, grid=(5, 1, 1), shared=16, order=order, budget=10**6)
    assert ran.kinds == []
    assert (lock[0], total[0]) == (0, 5)
