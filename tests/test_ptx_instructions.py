"""Instructions on registers, each against Python's integers, exact fractions or NumPy, in a small kernel of PTX."""

import math
from fractions import Fraction

import numpy as np
import pytest

from gradlab.profiling.ptx.parse import PTXError, parse
from tests.ptx_kernels import elementwise, run, text

RANDOM = np.random.default_rng(7)
CORNERS = np.array([0, 1, 2, 3, 31, 32, 33, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 5, 1234567891])
U32 = np.concatenate([CORNERS, RANDOM.integers(0, 2**32, 50)]).astype(np.uint32)
V32 = U32[RANDOM.permutation(len(U32))]
W32 = U32[RANDOM.permutation(len(U32))]
S32, T32 = U32.view(np.int32), V32.view(np.int32)
U64 = np.concatenate([U32.astype(np.uint64) << np.uint64(17), RANDOM.integers(0, 2**64, 64, dtype=np.uint64)])
V64 = U64[RANDOM.permutation(len(U64))]
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, 65504.0, 1e30, 3.5, 2.5, -2.5])
F32 = np.concatenate([SPECIAL, RANDOM.standard_normal(51)]).astype(np.float32)
G32 = F32[RANDOM.permutation(len(F32))]
H32 = F32[RANDOM.permutation(len(F32))]
SMALL = RANDOM.integers(0, 40, len(U32)).astype(np.uint32)


def ints(compute, dtype, *inputs):
    """What a function of Python's integers gives, wrapped to a dtype."""
    bits = np.dtype(dtype).itemsize * 8
    wrapped = [compute(*map(int, values)) % 2**bits for values in zip(*inputs, strict=True)]
    return np.array(wrapped, f"u{bits // 8}").view(dtype)


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bits_at(value, start, length):
    return (value >> start) & ((1 << length) - 1)


INTEGER = [
    ("add.s32 {d}, {a}, {b};", lambda a, b: a + b, S32, T32),
    ("sub.s32 {d}, {a}, {b};", lambda a, b: a - b, S32, T32),
    ("mul.lo.s32 {d}, {a}, {b};", lambda a, b: a * b, S32, T32),
    ("mul.hi.s32 {d}, {a}, {b};", lambda a, b: a * b >> 32, S32, T32),
    ("mul.hi.u32 {d}, {a}, {b};", lambda a, b: a * b >> 32, U32, V32),
    ("mul.hi.u64 {d}, {a}, {b};", lambda a, b: a * b >> 64, U64, V64),
    ("mul.hi.s64 {d}, {a}, {b};", lambda a, b: a * b >> 64, U64.view(np.int64), V64.view(np.int64)),
    ("mad.lo.s32 {d}, {a}, {b}, {c};", lambda a, b, c: a * b + c, S32, T32, W32.view(np.int32)),
    ("mad.hi.u32 {d}, {a}, {b}, {c};", lambda a, b, c: (a * b >> 32) + c, U32, V32, W32),
    ("min.s32 {d}, {a}, {b};", min, S32, T32),
    ("max.u32 {d}, {a}, {b};", max, U32, V32),
    ("abs.s32 {d}, {a};", abs, S32),
    ("neg.s64 {d}, {a};", lambda a: -a, U64.view(np.int64)),
    ("sad.s32 {d}, {a}, {b}, {c};", lambda a, b, c: c + abs(a - b), S32, T32, W32.view(np.int32)),
    ("and.b32 {d}, {a}, {b};", lambda a, b: a & b, U32, V32),
    ("or.b64 {d}, {a}, {b};", lambda a, b: a | b, U64, V64),
    ("xor.b32 {d}, {a}, {b};", lambda a, b: a ^ b, U32, V32),
    ("not.b32 {d}, {a};", lambda a: ~a, U32),
    ("cnot.b32 {d}, {a};", lambda a: a == 0, U32),
    ("shl.b32 {d}, {a}, {b};", lambda a, b: a << b, U32, SMALL),
    ("shr.u32 {d}, {a}, {b};", lambda a, b: a >> b, U32, SMALL),
    ("shr.s32 {d}, {a}, {b};", lambda a, b: a >> b, S32, SMALL),
    ("shf.l.wrap.b32 {d}, {a}, {b}, {c};", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32, U32, V32, SMALL),
    ("shf.r.wrap.b32 {d}, {a}, {b}, {c};", lambda a, b, c: (b << 32 | a) >> (c & 31), U32, V32, SMALL),
    ("shf.r.clamp.b32 {d}, {a}, {b}, {c};", lambda a, b, c: (b << 32 | a) >> min(c, 32), U32, V32, SMALL),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0x96;", lambda a, b, c: a ^ b ^ c, U32, V32, W32),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xe8;", lambda a, b, c: a & b | a & c | b & c, U32, V32, W32),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xf2;", lambda a, b, c: a | ~b & c, U32, V32, W32),
    ("bfe.u32 {d}, {a}, {b}, 7;", lambda a, b: bits_at(a, b, 7), U32, SMALL),
    ("bfe.s32 {d}, {a}, 4, 6;", lambda a: bits_at(a, 4, 5) - (bits_at(a, 9, 1) << 5), S32),
    ("bfi.b32 {d}, {a}, {b}, 5, 9;", lambda a, b: b & ~(511 << 5) | (a & 511) << 5, U32, V32),
    ("popc.b32 {d}, {a};", lambda a: a.bit_count(), U32),
    ("clz.b32 {d}, {a};", lambda a: 32 - a.bit_length(), U32),
    ("brev.b32 {d}, {a};", lambda a: int(f"{a:032b}"[::-1], 2), U32),
    ("bfind.u32 {d}, {a};", lambda a: a.bit_length() - 1, U32),
    ("bfind.shiftamt.u32 {d}, {a};", lambda a: 32 - a.bit_length() if a else -1, U32),
    ("bfind.s32 {d}, {a};", lambda a: (a if a >= 0 else ~a).bit_length() - 1, S32),
    ("prmt.b32 {d}, {a}, {b}, 0x5410;", lambda a, b: a & 0xFFFF | (b & 0xFFFF) << 16, U32, V32),
    ("prmt.b32 {d}, {a}, {b}, 0x7632;", lambda a, b: a >> 16 | b >> 16 << 16, U32, V32),
    ("prmt.b32 {d}, {a}, {b}, 0x8888;", lambda a, b: 0xFFFFFFFF * (a >> 7 & 1), U32, V32),
    ("cvt.u32.u8 {d}, {a};", lambda a: a & 255, U32),
    ("cvt.s32.s8 {d}, {a};", lambda a: (a & 127) - (a & 128), U32),
    ("cvt.sat.u8.s32 {d}, {a};", lambda a: min(max(a, 0), 255), S32),
    ("cvt.sat.s16.u32 {d}, {a};", lambda a: min(a, 2**15 - 1), U32),
    ("selp.b32 {d}, {a}, {b}, {c};", lambda a, b, c: a if c else b, U32, V32, U32 > V32),
    ("slct.s32.s32 {d}, {a}, {b}, {c};", lambda a, b, c: a if c >= 0 else b, S32, T32, W32.view(np.int32)),
]


@pytest.mark.parametrize("case", INTEGER, ids=lambda c: c[0].split()[0])
def test_integers(case):
    instruction, compute, *inputs = case
    assert np.array_equal(elementwise(instruction, inputs[0].dtype, *inputs), ints(compute, inputs[0].dtype, *inputs))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_division_goes_towards_zero(kind):
    x, y = (S32, T32) if kind[1:] == "32" else (U64, V64)
    dtype = np.dtype(f"{kind[0].replace('s', 'i')}{int(kind[1:]) // 8}")
    x, y = x.view(dtype), np.where(y.view(dtype) == 0, 3, y.view(dtype)).astype(dtype)
    assert np.array_equal(elementwise(f"div.{kind} {{d}}, {{a}}, {{b}};", dtype, x, y), ints(truncated, dtype, x, y))
    want = ints(lambda a, b: a - truncated(a, b) * b, dtype, x, y)
    assert np.array_equal(elementwise(f"rem.{kind} {{d}}, {{a}}, {{b}};", dtype, x, y), want)


def test_a_wide_product_has_twice_the_bits():
    got = elementwise("mul.wide.s32 {d}, {a}, {b};", np.int64, S32, T32)
    assert np.array_equal(got, S32.astype(np.int64) * T32)
    wide = U64[: len(S32)].view(np.int64)
    got = elementwise("mad.wide.s32 {d}, {a}, {b}, {c};", np.int64, S32, T32, wide)
    assert np.array_equal(got, S32.astype(np.int64) * T32 + wide)


FLOATS = [
    ("add.f32 {d}, {a}, {b};", np.add),
    ("sub.rn.f32 {d}, {a}, {b};", np.subtract),
    ("mul.f32 {d}, {a}, {b};", np.multiply),
    ("div.full.f32 {d}, {a}, {b};", np.divide),
    ("min.f32 {d}, {a}, {b};", np.fmin),
    ("max.f32 {d}, {a}, {b};", np.fmax),
    ("max.NaN.f32 {d}, {a}, {b};", np.maximum),
    ("copysign.f32 {d}, {a}, {b};", lambda a, b: np.copysign(b, a)),
]


@pytest.mark.parametrize("case", FLOATS, ids=lambda c: c[0].split()[0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats(case, dtype):
    instruction, compute = case
    x, y = F32.astype(dtype), G32.astype(dtype)
    with np.errstate(all="ignore"):
        want = compute(x, y)
    got = elementwise(instruction.replace("f32", "f32" if dtype == np.float32 else "f64"), dtype, x, y)
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_fma_rounds_once(kind):
    """Against exact fractions, with sums that cancel and sums that fall halfway between two numbers."""
    x = np.concatenate([RANDOM.standard_normal(300), 1 + RANDOM.integers(0, 64, 100) / 64])
    y = np.concatenate([RANDOM.standard_normal(300), 1 + RANDOM.integers(0, 64, 100) / 128])
    z = np.concatenate([-x[:150] * y[:150], RANDOM.standard_normal(150), 2.0 ** RANDOM.integers(-30, 15, 100)])
    if kind == "bf16":
        packed = [bf16(v) for v in (x, y, z)]
        values = [(p.astype(np.uint32) << 16).view(np.float32) for p in packed]
    else:
        packed = values = [v.astype(np.float32 if kind == "f32" else np.float16) for v in (x, y, z)]
    got = elementwise(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", packed[0].dtype, *packed)
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(*values, strict=True)]
    if kind == "bf16":
        got = (got.astype(np.uint32) << 16).view(np.float32)
    places = {"f32": 24, "f16": 11, "bf16": 8}[kind]
    least = {"f32": -149, "f16": -24, "bf16": -133}[kind]
    assert [float(v) for v in got] == [nearest(e, places, least) for e in exact]


def nearest(exact, places, least):
    """The float of so many binary places nearest to a fraction, ties to even."""
    if not exact:
        return 0.0
    unit = max(math.floor(math.log2(abs(exact))) - places + 1, least)
    while abs(exact) / Fraction(2) ** unit >= 2**places:
        unit += 1
    while abs(exact) / Fraction(2) ** unit < 2 ** (places - 1) and unit > least:
        unit -= 1
    return float(round(exact / Fraction(2) ** unit) * Fraction(2) ** unit)


def bf16(values):
    """bfloat16's bits, by exact fractions."""
    rounded = np.array([nearest(Fraction(float(v)), 8, -133) for v in values], np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("compare", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_of_floats_know_nan(compare):
    operator = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}.get(compare)
    operator = operator or np.greater_equal
    nan = np.isnan(F32) | np.isnan(G32)
    ordered = elementwise(f"setp.{compare}.f32 {{d}}, {{a}}, {{b}};", np.bool_, F32, G32)
    unordered = elementwise(f"setp.{compare}u.f32 {{d}}, {{a}}, {{b}};", np.bool_, F32, G32)
    assert np.array_equal(ordered, operator(F32, G32) & ~nan)
    assert np.array_equal(unordered, operator(F32, G32) | nan)


def test_comparisons_of_integers_know_signs():
    assert np.array_equal(elementwise("setp.lt.s32 {d}, {a}, {b};", np.bool_, S32, T32), S32 < T32)
    assert np.array_equal(elementwise("setp.lt.u32 {d}, {a}, {b};", np.bool_, U32, V32), U32 < V32)
    got = elementwise("setp.gt.and.u32 {d}, {a}, {b}, {c};", np.bool_, U32, V32, U32 % 2 == 0)
    assert np.array_equal(got, (U32 > V32) & (U32 % 2 == 0))


@pytest.mark.parametrize("way", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers(way):
    rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[way](F32.astype(np.float64))
    want = np.where(np.isnan(rounded), 0, np.clip(rounded, -(2**31), 2**31 - 1)).astype(np.int64).astype(np.int32)
    assert np.array_equal(elementwise(f"cvt.{way}.s32.f32 {{d}}, {{a}};", np.int32, F32), want)


def test_narrow_floats():
    with np.errstate(over="ignore"):
        half = F32.astype(np.float16)
    assert np.array_equal(elementwise("cvt.rn.f16.f32 {d}, {a};", np.float16, F32), half, equal_nan=True)
    finite = F32[np.isfinite(F32) & (F32 != 0)]
    assert np.array_equal(elementwise("cvt.rn.bf16.f32 {d}, {a};", np.uint16, finite), bf16(finite))
    got = elementwise("cvt.rn.bf16x2.f32 {d}, {a}, {b};", np.uint32, finite, finite[::-1].copy())
    assert np.array_equal(got, bf16(finite).astype(np.uint32) << 16 | bf16(finite[::-1]))
    assert np.array_equal(
        elementwise("cvt.f32.bf16 {d}, {a};", np.float32, bf16(finite)).view(np.uint32) >> 16, bf16(finite)
    )


def test_pairs_are_two_numbers():
    x, y = (RANDOM.standard_normal(64).astype(np.float16) for _ in range(2))
    got = elementwise("add.f16x2 {d}, {a}, {b};", np.uint32, x.view(np.uint32), y.view(np.uint32))
    assert np.array_equal(got.view(np.float16), x + y)
    got = elementwise("max.bf16x2 {d}, {a}, {b};", np.uint32, bf16(x).view(np.uint32), bf16(y).view(np.uint32))
    assert np.array_equal(
        got.view(np.uint16),
        bf16(
            np.maximum(
                (bf16(x).astype(np.uint32) << 16).view(np.float32), (bf16(y).astype(np.uint32) << 16).view(np.float32)
            )
        ),
    )
    pairs = [np.random.default_rng(n).integers(-(2**15), 2**15, 64).astype(np.int16) for n in (0, 1)]
    for form, plain in (
        ("add.s16x2", np.add),
        ("add.u16x2", np.add),
        ("min.s16x2", np.minimum),
        ("max.s16x2", np.maximum),
    ):
        got = elementwise(f"{form} {{d}}, {{a}}, {{b}};", np.uint32, *(pair.view(np.uint32) for pair in pairs))
        assert np.array_equal(got.view(np.int16), plain(*pairs)), form


@pytest.mark.parametrize("exact", [True, False])
def test_approximations_keep_within_what_is_documented(exact):
    x = np.abs(RANDOM.standard_normal(64)).astype(np.float32) + np.float32(0.1)
    for name, compute, allowed in (
        ("ex2", np.exp2, 2**-22),
        ("rcp", lambda v: 1 / v, 2**-23),
        ("tanh", np.tanh, 2**-11),
    ):
        out = np.zeros(64, np.float32)
        run(
            f"""mov.u32 %r0, %tid.x; ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1];
            mad.wide.u32 %rd2, %r0, 4, %rd0; mad.wide.u32 %rd3, %r0, 4, %rd1;
            ld.global.f32 %r1, [%rd2]; {name}.approx.f32 %r2, %r1; st.global.f32 [%rd3], %r2;""",
            x,
            out,
            threads=64,
            exact=exact,
        )
        error = np.abs(out / compute(x.astype(np.float64)) - 1)
        assert error.max() <= (0 if exact else allowed) + 2**-24
        assert exact or error.max() > allowed / 2


def test_shuffles_within_segments():
    lane = np.arange(32)
    for mode, clamp, other in (
        ("bfly.b32", 31, lane ^ 5),
        ("down.b32", 31, np.where(lane + 5 < 32, lane + 5, lane)),
        ("up.b32", 0, np.where(lane >= 5, lane - 5, lane)),
        ("idx.b32", 31, np.full(32, 5)),
        # Segments of eight lanes.
        ("down.b32", 0x181F, np.where(lane % 8 < 3, lane + 5, lane)),
    ):
        got = elementwise(f"shfl.sync.{mode} {{d}}, {{a}}, 5, {clamp}, -1;", np.uint32, (lane * 7).astype(np.uint32))
        assert np.array_equal(got, other * 7), mode


def test_votes_and_reductions_of_a_warp():
    values = np.arange(64, dtype=np.uint32)
    odd = values % 2 == 1
    assert set(
        elementwise(
            "vote.sync.ballot.b32 {d}, {a}, -1;",
            np.uint32,
            odd.astype(bool),
        )
    ) == {0xAAAAAAAA}
    assert (
        elementwise("vote.sync.any.pred {d}, {a}, -1;", np.bool_, values == 40).tolist() == [False] * 32 + [True] * 32
    )
    assert set(elementwise("redux.sync.add.u32 {d}, {a}, -1;", np.uint32, values)) == {31 * 16, 31 * 16 + 1024}
    assert set(elementwise("redux.sync.max.u32 {d}, {a}, -1;", np.uint32, values)) == {31, 63}


def test_threads_part_and_meet():
    """Loops as often as the thread's number says, in two ways by its parity: 3 n for odd threads, 2 n for others."""
    out = np.zeros(256, np.uint32)
    body = """
    ld.param.u64 %rd0, [p0]; mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x; mad.lo.s32 %r1, %r0, 128, %r1;
    and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 1; mov.u32 %r2, 0; mov.u32 %r3, 0;
    $LOOP: setp.ge.u32 %p2, %r3, %r1; @%p2 bra $END;
    @%p1 bra $ODD; add.u32 %r2, %r2, 2; bra.uni $NEXT;
    $ODD: add.u32 %r2, %r2, 3;
    $NEXT: add.u32 %r3, %r3, 1; bra.uni $LOOP;
    $END: mad.wide.u32 %rd1, %r1, 4, %rd0; st.global.u32 [%rd1], %r2;"""
    for order in ("together", "first", "last"):
        out[:] = 0
        ran = run(body, out, threads=128, grid=(2, 1, 1), order=order)
        n = np.arange(256)
        assert np.array_equal(out, n * np.where(n % 2 == 1, 3, 2))
        assert ran.executed.counts.divergent.sum() > 0


def test_the_counts_of_a_loop_are_exact():
    body = """mov.u32 %r0, 0; $LOOP: add.u32 %r0, %r0, 1; setp.lt.u32 %p1, %r0, 10; @%p1 bra $LOOP;"""
    ran = run(body, np.zeros(1, np.uint32), threads=128, grid=(3, 1, 1))
    # One mov, ten times three, one ret, by four warps of three blocks; the last jump is not taken.
    assert ran.executed.counts.issued.sum() == (1 + 30 + 1) * 4 * 3
    assert ran.executed.counts.threads.sum() == (1 + 30 + 1 - 1) * 128 * 3


def test_scopes_have_registers_and_labels_of_their_own():
    one = "{ .reg .b32 t; mov.u32 t, 0; again: add.u32 t, t, 1; setp.lt.u32 %p1, t, 3; @%p1 bra again; add.u32 %r1, %r1, t; }"
    out = np.zeros(1, np.uint32)
    run(f"mov.u32 %r1, 0;\n{one}\n{one}\nld.param.u64 %rd0, [p0]; st.global.u32 [%rd0], %r1;", out, threads=32)
    assert out[0] == 6


def test_atomics_add_every_lane():
    total, old = np.zeros(1, np.uint32), np.zeros(64, np.uint32)
    body = """ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; mov.u32 %r0, %tid.x;
    atom.global.add.u32 %r1, [%rd0], 3; mad.wide.u32 %rd2, %r0, 4, %rd1; st.global.u32 [%rd2], %r1;"""
    run(body, total, old, threads=64)
    assert total[0] == 192
    assert sorted(old) == list(range(0, 192, 3))


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("ld.global.u32 %r1, [%rd0+64];", "out of bounds", "byte 64 of p0, which has 16"),
        ("st.global.u32 [%rd0+-4], 7;", "out of bounds", "store of"),
        ("ld.global.u32 %r1, [%rd0+2];", "misaligned address", "no multiple of 4"),
        ("ld.shared.u32 %r1, [smem+64];", "out of bounds", "byte 64 of shared memory, of which a block has 64"),
        (
            "mov.u64 %rd9, 64; ld.global.u32 %r1, [%rd9];",
            "out of bounds",
            "in no tensor; the nearest is p0, of 16 bytes",
        ),
    ],
)
def test_accesses_that_a_gpu_would_not_allow(body, kind, words):
    ran = run(f"ld.param.u64 %rd0, [p0]; {body}", np.zeros(4, np.uint32), threads=64, shared=64)
    (fault,) = ran.executed.faults
    assert fault.kind == kind
    assert words in fault.text
    assert fault.place.file == "kernel.py"


def test_an_unknown_instruction_is_one_line_that_names_it():
    with pytest.raises(
        PTXError, match=r"^emulate: instruction is frobnicate.f32 %r1, %r2 \(kernel.py:1\), wanted one of"
    ) as e:
        run("frobnicate.f32 %r1, %r2;", np.zeros(1))
    assert "\n" not in str(e.value)


def test_a_module_without_a_kernel_is_refused():
    with pytest.raises(PTXError, match=r"emulate: ptx has no \.entry, wanted a kernel"):
        parse(".version 8.7\n")
    assert parse(text("", 0)).name == "kernel"
