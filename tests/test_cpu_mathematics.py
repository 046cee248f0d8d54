"""Mathematical functions as LLVM IR: errors in ulp over all exponents, edges, the same bits at every width."""

import ctypes
import functools
import re

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gradlab.kernels.cpu import machine, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.mathematics import FUNCTIONS, PREDICATES, ULPS
from gradlab.kernels.cpu.mathematics_trigonometry import TWO_OVER_PI, TWO_OVER_PI_BITS

FLOAT = {"f32": np.float32, "f64": np.float64}
BITS = {"f32": np.uint32, "f64": np.uint64}
OPERANDS = {"pow": 2, "atan2": 2, "hypot": 2, "fmod": 2, "copysign": 2}
EXACT = ("copysign", "floor", "ceil", "trunc", "round", "rint", "nearbyint", "abs")
# The C library's long double, with which results are compared: by the bits of its fraction.
LONG = {63: "x86_fp80", 112: "fp128"}.get(np.finfo(np.longdouble).nmant)
needs_long_double = pytest.mark.skipif(LONG is None, reason="no long double that is longer than double")


def loop(name, kind, operands, step, body):
    """`void name(in0, in1, out, n)`: out[i] = body's %r of %v0, %v1 = in0[i], in1[i]."""
    pointers = [f"ptr %in{i}" for i in range(operands)]
    element = kind.split()[-1].rstrip(">")
    size = {"float": 4, "double": 8}.get(element, 16)
    loads = [
        f"  %p{i} = getelementptr {element}, ptr %in{i}, i64 %i\n  %v{i} = load {kind}, ptr %p{i}, align {size}"
        for i in range(operands)
    ]
    return "\n".join([
        f"define void @{name}({', '.join(pointers)}, ptr %out, i64 %n) {{",
        "entry:", "  br label %loop", "loop:", "  %i = phi i64 [ 0, %entry ], [ %next, %more ]", *loads, *body,
        f"  %q = getelementptr {element}, ptr %out, i64 %i", f"  store {kind} %r, ptr %q, align {size}",
        "  br label %more", "more:", f"  %next = add i64 %i, {step}", "  %again = icmp ult i64 %next, %n",
        "  br i1 %again, label %loop, label %done", "done:", "  ret void", "}",
    ])  # fmt: skip


def module(names, element, width, vector_bits):
    b = Emitter(vector_bits)
    loops = []
    with b.lanes(width):
        for name in names:
            b.lines = []
            operands = OPERANDS.get(name, 1)
            result = FUNCTIONS[name](b, element, *(f"%v{i}" for i in range(operands)))
            kind = b.type(element)
            body = [*b.lines, f"  %r = select i1 true, {kind} {result}, {kind} {result}"]
            loops.append(loop(f"loop_{name}", kind, operands, max(width, 1), body))
    return "\n".join([*b.declarations.values(), *b.helpers.values(), *loops])


@functools.cache
def compiled(element, width, vector_bits=None):
    vector_bits = vector_bits or machine.host().vector_bits
    ir = module(FUNCTIONS, element, width, vector_bits)
    return machine.Code(machine.object_code(ir, machine.host()))


def run(code, name, *operands):
    operands = [np.ascontiguousarray(x) for x in operands]
    out = np.empty_like(operands[0])
    call = code.function(name, None, *[ctypes.c_void_p] * (len(operands) + 1), ctypes.c_int64)
    call(*(x.ctypes.data for x in operands), out.ctypes.data, out.size)
    return out


def computed(name, *operands, width=16, vector_bits=None):
    element = "f32" if operands[0].dtype == np.float32 else "f64"
    assert operands[0].size % 16 == 0, "whole vectors"
    return run(compiled(element, width, vector_bits), f"loop_{name}", *operands)


@functools.cache
def library():
    """The C library's functions for long double, in loops."""
    text = []
    names = [name for name in FUNCTIONS if name not in ("rsqrt", "abs")]
    for name in names:
        operands = OPERANDS.get(name, 1)
        given = ", ".join(f"{LONG} %v{i}" for i in range(operands))
        text.append(f"declare {LONG} @{name}l({', '.join([LONG] * operands)})")
        text.append(loop(f"loop_{name}", LONG, operands, 1, [f"  %r = call {LONG} @{name}l({given})"]))
    return machine.Code(machine.object_code("\n".join(text), machine.host()))


def exactly(name, *operands):
    with np.errstate(all="ignore"):
        operands = [x.astype(np.longdouble) for x in operands]
        if name == "rsqrt":
            return 1 / np.sqrt(operands[0])
        return np.abs(operands[0]) if name == "abs" else run(library(), f"loop_{name}", *operands)


def ulps(result, exact):
    """Errors in units of the last place of the correctly rounded result; infinite for a wrong NaN, inf or sign of 0."""
    kind = np.finfo(result.dtype)
    with np.errstate(all="ignore"):
        rounded = exact.astype(result.dtype)
        digit = np.spacing(np.minimum(np.abs(rounded), np.nextafter(kind.max, 0, dtype=result.dtype))).astype(
            exact.dtype
        )
        # Next to the largest number stands infinity.
        beyond = np.where(
            np.isinf(result) & np.isfinite(exact), np.copysign(np.longdouble(2.0) ** kind.maxexp, result), result
        )
        error = np.abs(beyond.astype(exact.dtype) - exact) / digit
    error = np.where(np.isinf(rounded) & (result == rounded), 0, error)
    error = np.where(np.isinf(exact) & (result != rounded), np.inf, error)
    error = np.where(np.isnan(exact) != np.isnan(result), np.inf, np.where(np.isnan(exact), 0, error))
    return np.where((result == 0) & (np.signbit(result) != np.signbit(rounded)), np.inf, error)


def whole(*parts):
    """One array of whole vectors."""
    x = np.concatenate(parts)
    return np.concatenate([x, np.ones(-x.size % 16, x.dtype)])


def everywhere(element, count, seed=0):
    """Numbers of every exponent and sign, as many of each; more of usual sizes; edges."""
    rng, kind = np.random.default_rng(seed), np.finfo(FLOAT[element])
    step = 2**kind.bits // count
    patterns = np.arange(count, dtype=BITS[element]) * BITS[element](step) + rng.integers(
        0, step, count, dtype=BITS[element]
    )
    usual = [
        rng.uniform(low, high, count // 5) for low, high in ((-1, 1), (0.5, 2), (-20, 20), (-1200, 1200), (-1e5, 1e5))
    ]
    edges = [0.0, kind.smallest_subnormal, 3 * kind.smallest_subnormal, kind.tiny, kind.tiny - kind.smallest_subnormal,
             kind.eps, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 10.0, 1000.0, kind.max, np.inf, np.nan,
             *(np.log(np.longdouble(2)) * n for n in (0.5, 1, 1.5, kind.maxexp, kind.minexp, kind.maxexp + 1)),
             kind.maxexp, kind.maxexp - 1, kind.minexp - kind.nmant, kind.minexp - kind.nmant - 1,
             *(2.0**n for n in range(-20, 20)), *(n * np.pi / 2 for n in range(9))]  # fmt: skip
    edges = np.array(edges, FLOAT[element])
    with np.errstate(all="ignore"):
        edges = np.concatenate([edges, np.nextafter(edges, -edges), np.nextafter(edges, 2 * edges)])
    return whole(patterns.view(FLOAT[element]), *(x.astype(FLOAT[element]) for x in usual), edges, -edges)


def arguments(name, element, count):
    x = everywhere(element, count)
    if name not in OPERANDS:
        return (x,)
    several = (0.0, 0.5, 1.0, 2.0, 2.5, 3.0, np.inf, np.nan)
    pairs = np.array([(a, b) for a in (*several, *np.negative(several)) for b in (*several, *np.negative(several))])
    given = [(x, np.random.default_rng(1).permutation(x)), pairs.T]
    if name == "pow":
        # Powers that are neither 0 nor infinite are rare among all.
        rng, largest = np.random.default_rng(2), np.finfo(FLOAT[element]).maxexp
        base = 2.0 ** rng.uniform(-largest + 2, largest, count)
        base[: count // 2] = rng.uniform(0.5, 2, count // 2)
        exponents = rng.uniform(-1.1, 1.1, count) * largest / np.log2(base)
        base[::3], exponents[::3] = -base[::3], np.rint(exponents[::3])
        given.append((base, exponents))
    with np.errstate(over="ignore", invalid="ignore"):
        return tuple(whole(*(part.astype(FLOAT[element]) for part in parts)) for parts in zip(*given, strict=True))


def worst(name, *operands, **how):
    """The largest error, with what makes it."""
    error = ulps(computed(name, *operands, **how), exactly(name, *operands))
    at = error.argmax()
    return error[at], [float(x[at]) for x in operands]


@needs_long_double
@pytest.mark.parametrize("element", FLOAT)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(name, element):
    bound = dict(ULPS, **dict.fromkeys(EXACT, (0.0, 0.0)))[name][element == "f64"]
    error, at = worst(name, *arguments(name, element, 60_000 if element == "f32" else 30_000))
    # The reference is itself a little off.
    assert error <= bound + 0.01, f"{name} is {error:.3f} ulp off at {at}"


@needs_long_double
@pytest.mark.parametrize("element", FLOAT)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_next_to_multiples_of_pi(name, element):
    """There the reduced argument is what rounding left: only its own digits count."""
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        sizes = np.concatenate(
            [np.arange(1.0, 2000), 10 ** rng.uniform(0, 12, 20_000), 10 ** rng.uniform(0, 300, 2000)]
        )
        half_pi = np.longdouble(np.pi / 2) + np.longdouble(6.123233995736766e-17)
        x = (np.rint(sizes) * half_pi).astype(FLOAT[element])
    hard = {"f32": [16367173 * 2.0**72], "f64": [6381956970095103 * 2.0**797]}[element]
    x = whole(x, np.nextafter(x, 0), -x, np.array(hard, FLOAT[element]))
    error, at = worst(name, x)
    assert error <= ULPS[name][element == "f64"] + 0.01, f"{name} is {error:.3f} ulp off at {at}"


@pytest.mark.parametrize("element", FLOAT)
def test_every_width_gives_the_same_bits(element):
    """Scalars, narrow and wide vectors, with the instructions of wide registers and without them."""
    others = [{"width": width} for width in (0, 4, 8)] + [{"width": 16, "vector_bits": 128}]
    for name in FUNCTIONS:
        operands = arguments(name, element, 4000)
        wide = computed(name, *operands)
        for how in others:
            other = computed(name, *operands, **how)
            same = (other.view(BITS[element]) == wide.view(BITS[element])) | (np.isnan(other) & np.isnan(wide))
            at = same.argmin()
            assert same.all(), f"{name} at {how}: {other[at]!r}, wanted {wide[at]!r}, at {[x[at] for x in operands]}"


@pytest.mark.parametrize(("element", "width"), [("f32", 16), ("f64", 0)])
def test_predicates(element, width):
    b = Emitter(machine.host().vector_bits)
    loops = []
    with b.lanes(width):
        for name, write in PREDICATES.items():
            b.lines = []
            kind = b.type(element)
            found = write(b, element, "%v0")
            body = [*b.lines, f"  %r = uitofp {b.type('i1')} {found} to {kind}"]
            loops.append(loop(name, kind, 1, max(width, 1), body))
    code = machine.Code(machine.object_code("\n".join([*b.declarations.values(), *loops]), machine.host()))
    x = everywhere(element, 1000)
    for name in PREDICATES:
        np.testing.assert_array_equal(run(code, name, x), getattr(np, name)(x), err_msg=name)


MACHINES = [
    ("x86_64-unknown-linux-gnu", "haswell", 256),
    ("x86_64-unknown-linux-gnu", "skylake-avx512", 512),
    ("aarch64-unknown-linux-gnu", "neoverse-n1", 128),
]


@pytest.mark.parametrize(("triple", "cpu", "bits"), MACHINES)
def test_only_fmod_calls_the_c_library(triple, cpu, bits):
    for element in FLOAT:
        ir = module(FUNCTIONS, element, bits // types.bits(element), bits)
        assert "fptosi" not in ir, "poison of NaN and of what is out of range"
        text = machine.assembly(ir, machine.named(triple, cpu, vector_bits=bits))
        called = set(re.findall(r"^\s+(?:callq|bl|movabsq)\s+\$?([A-Za-z][\w.]*)", text, re.MULTILINE))
        # Far arguments of sin, cos and tan go from lane to lane in functions of the module.
        assert {name for name in called if not name.startswith("math.")} == {"fmodf" if element == "f32" else "fmod"}


def test_other_floats_are_refused():
    with pytest.raises(NotImplementedError, match="exp of f16, wanted f32 or f64"):
        FUNCTIONS["exp"](Emitter(128), "f16", "%x")


def test_two_over_pi():
    """By Machin's formula: pi = 16 atan(1/5) - 4 atan(1/239)."""
    one = 1 << TWO_OVER_PI_BITS + 64

    def arc_tangent(inverse):
        total, power, n = 0, one // inverse, 1
        while power:
            total += power // n if n % 4 == 1 else -(power // n)
            power, n = power // inverse**2, n + 2
        return total

    pi = 16 * arc_tangent(5) - 4 * arc_tangent(239)
    assert (2 * one << TWO_OVER_PI_BITS) // pi == TWO_OVER_PI
