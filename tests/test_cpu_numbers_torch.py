"""Triton's language on a CPU: casts, 8-bit floats, integers, random numbers, the device library; against torch."""

import math

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl
from triton.language.extra.cuda import libdevice

pytestmark = pytest.mark.usefixtures("triton_cpu")

DTYPES = ["int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


# Casts.


@triton.jit
def cast_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, ROUNDING: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    tl.store(y_ptr + at, x.to(y_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING), mask=at < n)


def cast(x, dtype, rounding=None):
    y = torch.empty(x.shape, dtype=dtype)
    n = x.numel()
    cast_kernel[(triton.cdiv(n, 1024),)](x, y, n, BLOCK=min(1024, triton.next_power_of_2(n)), ROUNDING=rounding)
    return y


@triton.jit
def casts_kernel(x_ptr, a, b, c, d, e, f, g, h, i, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    for p in tl.static_range(9):
        q = (a, b, c, d, e, f, g, h, i)[p]
        tl.store(q + at, x.to(q.dtype.element_ty))


@pytest.mark.parametrize("source", DTYPES)
def test_casts_between_all_types(source):
    # What every type can hold: out of range torch itself gives what the CPU does.
    x = torch.tensor([0, 1, 2, 3, 100, 127, 5, 7]).to(getattr(torch, source))
    if x.dtype.is_signed:
        x[:4] *= -1 if source.startswith("int") else 1
    outs = [torch.empty(8, dtype=getattr(torch, name)) for name in DTYPES]
    casts_kernel[(1,)](x, *outs, BLOCK=8)
    for out in outs:
        assert torch.equal(out, x.to(out.dtype)), out.dtype


def test_integers_round_to_narrow_floats_once():
    x = torch.tensor([2**24 + 2**16 + 1, 2**30 + 2**22 + 1, -(2**31), 2049, 2051, 65519, 0, 2**31 - 1]).int()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        # torch rounds float64 to a narrow float by way of float32: once where the number is exact there.
        values = [float(v) for v in x.tolist()]
        assert cast(x, dtype).double().tolist() == [nearest(v, dtype) for v in values]


def nearest(value, dtype):
    """A number rounded to nearest even, of a dtype's digits."""
    digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[dtype]
    if not value:
        return 0.0
    unit = 2.0 ** (math.frexp(abs(value))[1] - digits)
    rounded = round(value / unit) * unit
    return math.copysign(math.inf, value) if dtype == torch.float16 and abs(rounded) > 65504 else rounded


SMALL = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.mark.parametrize("name", SMALL)
def test_all_8_bit_floats_widen(name):
    x = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    for dtype in (torch.float32, torch.float16):
        torch.testing.assert_close(cast(x, dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SMALL)
def test_floats_round_to_8_bits(name):
    dtype = getattr(torch, name)
    largest = torch.finfo(dtype).max
    # All float16 numbers: each number of 8 bits, the ties between, and what is next to them.
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    # As a GPU's instruction does it, what is too large becomes the largest number; torch gives NaN or infinity.
    want = x.clamp(-largest, largest).to(dtype)
    found = cast(x, dtype)
    torch.testing.assert_close(found.float(), want.float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(cast(x.half(), dtype).view(torch.uint8), found.view(torch.uint8))


@pytest.mark.parametrize("target", ["float8_e5m2", "bfloat16", "float16"])
def test_floats_round_toward_zero(target):
    dtype = getattr(torch, target)
    x = torch.cat([torch.randn(1000) * 100, torch.randn(500) * 1e-6, torch.tensor([0.0, -0.0, 1.0, 57344.0, 60000.0])])
    x[:4] = torch.tensor([1e30, -1e30, math.inf, 3e-39])
    found = cast(x, dtype, "rtz").float()
    held = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max) if target != "bfloat16" else x
    near = held.to(dtype).float()
    finite = x.isfinite()
    assert (found.abs() <= x.abs())[finite].all()
    # The nearest, or the one before it.
    below = near.to(dtype)
    words = below.view(torch.int8 if target == "float8_e5m2" else torch.int16)
    stepped = (words - (near.abs() > x.abs()).to(words.dtype)).view(dtype).float()
    assert torch.equal(found[finite], stepped[finite])


@triton.jit
def small_constant_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), tl.full((BLOCK,), 1.3, out_ptr.dtype.element_ty))


# The front end of Triton 3.6 asks its builder for a constant of 8 bits, which the builder has not.
@pytest.mark.skipif(triton.__version__.startswith("3.6."), reason="this Triton's front end makes no such constants")
@pytest.mark.parametrize("name", SMALL[:2])
def test_constants_of_8_bits(name):
    out = torch.empty(4, dtype=getattr(torch, name))
    small_constant_kernel[(1,)](out, BLOCK=4)
    assert torch.equal(out.float(), torch.full((4,), 1.3).to(out.dtype).float())


@triton.jit
def small_cast_kernel(out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.zeros((BLOCK,), out_ptr.dtype.element_ty))
    tl.store(out_ptr + BLOCK + at, tl.where(at > 1, -1000.0, 0.01).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("name", SMALL[:2])
def test_numbers_are_cast_to_8_bits(name):
    out = torch.empty(8, dtype=getattr(torch, name))
    small_cast_kernel[(1,)](out, BLOCK=4)
    high = min(1000.0, torch.finfo(out.dtype).max)
    want = torch.tensor([0.0] * 4 + [0.01] * 2 + [-high] * 2).to(out.dtype)
    assert torch.equal(out.float(), want.float())


# Integers.


@triton.jit
def integers_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x // y)
    tl.store(out_ptr + BLOCK + at, x % y)
    tl.store(out_ptr + 2 * BLOCK + at, x >> (y & 7))
    tl.store(out_ptr + 3 * BLOCK + at, x << (y & 7))
    tl.store(out_ptr + 4 * BLOCK + at, (x ^ y) + (~x & y) - (x | 3))
    tl.store(out_ptr + 5 * BLOCK + at, tl.maximum(x, y) - tl.minimum(x, y))
    tl.store(out_ptr + 6 * BLOCK + at, tl.abs(x) * (x > y))
    if n is not None:
        tl.store(out_ptr + 7 * BLOCK + at, tl.cdiv(x, n))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32"])
def test_integer_arithmetic(dtype):
    dtype = getattr(torch, dtype)
    low, high = max(torch.iinfo(dtype).min, -(2**40)), min(torch.iinfo(dtype).max, 2**40)
    x, y = torch.randint(low, high, (256,)).to(dtype), torch.randint(1, high, (256,)).to(dtype)
    y = torch.where(torch.arange(256) % 3 == 0, (y.long() % 5 + 1), y.long()).to(dtype)
    if dtype.is_signed:
        y = torch.where(torch.arange(256) % 2 == 0, -y, y)
    out = torch.empty(8 * 256, dtype=dtype)
    # Triton refuses to divide an unsigned number by a signed one of as many bits.
    divided = dtype != torch.uint32
    integers_kernel[(1,)](x, y, out, 3 if divided else None, BLOCK=256)
    a, b = x.long(), y.long()
    shift = b & 7
    want = [
        a.div(b, rounding_mode="trunc"),
        a.fmod(b),
        a >> shift,
        a << shift,
        (a ^ b) + (~a & b) - (a | 3),
        torch.maximum(a, b) - torch.minimum(a, b),
        a.abs() * (a > b),
        (a + 2).div(3, rounding_mode="trunc"),
    ]
    bits = torch.iinfo(dtype).bits
    mask = (1 << bits) - 1 if bits < 64 else -1
    names = ["//", "%", ">>", "<<", "bits", "range", "abs", "cdiv"]
    for name, part, w in zip(names[: 7 + divided], out.split(256), want, strict=False):
        assert torch.equal(part.long() & mask, w & mask), name


# Random numbers.


@triton.jit
def random_kernel(seed, u_ptr, i_ptr, n_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(u_ptr + at, tl.rand(seed, at))
    tl.store(i_ptr + at, tl.randint(seed, at).to(tl.int32, bitcast=True))
    tl.store(n_ptr + at, tl.randn(seed, at))


def philox(counter, seed):
    """The first word of Philox-4x32-10 at (counter, 0, 0, 0), in Python's integers."""
    c, k = [counter, 0, 0, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_random_numbers_are_philox():
    seed = 2**33 + 12345
    u, i, n = torch.empty(256), torch.empty(256, dtype=torch.int32), torch.empty(256)
    random_kernel[(4,)](seed, u, i, n, BLOCK=64)
    words = [philox(k, seed) for k in range(256)]
    assert (i.long() & 0xFFFFFFFF).tolist() == [w[0] for w in words]

    def uniform(word):
        signed = word - 2**32 if word >= 2**31 else word
        return (-signed - 1 if signed < 0 else signed) * 4.6566127342e-10

    torch.testing.assert_close(u, torch.tensor([uniform(w[0]) for w in words]), rtol=1e-6, atol=0)
    radius = [math.sqrt(-2 * math.log(max(1e-7, uniform(w[0])))) for w in words]
    want = [r * math.cos(2 * math.pi * uniform(w[1])) for r, w in zip(radius, words, strict=True)]
    torch.testing.assert_close(n, torch.tensor(want), rtol=1e-4, atol=1e-5)


# The device library.


@triton.jit
def unary_kernel(x_ptr, y_ptr, n, F: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.5)
    tl.store(y_ptr + at, F(x), mask=at < n)


@triton.jit
def binary_kernel(x_ptr, y_ptr, z_ptr, n, F: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + at, mask=at < n, other=0.5), tl.load(y_ptr + at, mask=at < n, other=1)
    tl.store(z_ptr + at, F(x, y), mask=at < n)


def mapped(name, x, out=None):
    y = torch.empty(x.shape, dtype=out or x.dtype)
    unary_kernel[(1,)](x, y, x.numel(), F=getattr(libdevice, name), BLOCK=triton.next_power_of_2(x.numel()))
    return y


def by_mpmath(name, order, x):
    """Bessel functions: torch's own are good to eight digits only."""
    mpmath = pytest.importorskip("mpmath")
    return torch.tensor([float(getattr(mpmath, name)(order, v)) for v in x.tolist()], dtype=x.dtype)


FLOATS = {
    "acosh": torch.acosh,
    "asinh": torch.asinh,
    "atanh": torch.atanh,
    "erfinv": torch.erfinv,
    "normcdf": torch.special.ndtr,
    "normcdfinv": torch.special.ndtri,
    "lgamma": torch.lgamma,
    "exp10": lambda x: 10**x,
    "rcbrt": lambda x: x.abs().pow(-1 / 3).copysign(x),
    "sinpi": lambda x: (x * math.pi).sin(),
    "cospi": lambda x: (x * math.pi).cos(),
    "saturatef": lambda x: x.clamp(0, 1),
    "rint": torch.round,
    "tgamma": lambda x: torch.tensor([math.gamma(v) for v in x.tolist()], dtype=x.dtype),
    "trunc": torch.trunc,
    "j0": lambda x: by_mpmath("besselj", 0, x),
    "y1": lambda x: by_mpmath("bessely", 1, x),
    "cyl_bessel_i0": lambda x: by_mpmath("besseli", 0, x),
    "cyl_bessel_i1": lambda x: by_mpmath("besseli", 1, x),
    "erfcinv": lambda x: torch.erfinv(1 - x),
    "logb": lambda x: x.abs().log2().floor(),
}
RANGES = {"acosh": (1, 9), "atanh": (-1, 1), "erfinv": (-1, 1), "normcdfinv": (0, 1), "erfcinv": (0, 2), "y1": (0, 9)}
RANGES |= dict.fromkeys(("cyl_bessel_i0", "cyl_bessel_i1"), (-40, 40))


@pytest.mark.parametrize("name", FLOATS)
def test_library_functions_of_floats(name):
    low, high = RANGES.get(name, (-5, 5))
    x = torch.rand(61, dtype=torch.float64) * (high - low) + low
    # Bounds of torch's own functions, and of Newton's steps where a derivative is steep.
    if name != "saturatef":
        torch.testing.assert_close(mapped(name, x), FLOATS[name](x), rtol=1e-10, atol=1e-12)
    single = x.float()
    torch.testing.assert_close(mapped(name, single), FLOATS[name](single.double()).float(), rtol=1e-6, atol=1e-7)


def test_library_functions_at_their_ends():
    def said(name, *values):
        return mapped(name, torch.tensor(values)).tolist()

    assert said("erfinv", 1.0, -1.0, 0.0) == [math.inf, -math.inf, 0.0]
    assert said("normcdfinv", 0.0, 1.0, 0.5) == [-math.inf, math.inf, 0.0]
    assert said("acosh", 1.0, math.inf) == [0.0, math.inf]
    assert all(map(math.isnan, said("erfinv", 1.5, math.nan, -2.0) + said("acosh", 0.5) + said("atanh", 2.0)))
    assert said("cyl_bessel_i0", 0.0, -math.inf, 1000.0) == [1.0, math.inf, math.inf]
    assert said("cyl_bessel_i1", 0.0, -math.inf, 1e-30) == [0.0, -math.inf, pytest.approx(5e-31)]
    # Finite, where e^x is not: x = 711 in float64.
    assert mapped("cyl_bessel_i0", torch.tensor([711.0], dtype=torch.float64)).isfinite().all()
    assert said("erfinv", 1e-30) == [pytest.approx(8.862269e-31, rel=1e-6)]


INTEGERS = {
    "popc": lambda v: bin(v & 0xFFFFFFFF).count("1"),
    "clz": lambda v: 32 - (v & 0xFFFFFFFF).bit_length(),
    "ffs": lambda v: (v & -v).bit_length(),
    "brev": lambda v: int(f"{v & 0xFFFFFFFF:032b}"[::-1], 2),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_library_functions_of_integers(name):
    x = torch.tensor([0, 1, -1, 6, 2**31 - 1, -(2**31), 12345, -77], dtype=torch.int32)
    want = torch.tensor([INTEGERS[name](v) for v in x.tolist()]).to(torch.int32)
    assert torch.equal(mapped(name, x), want)


def test_library_functions_from_floats_to_integers():
    x = torch.tensor([0.5, 1.5, -2.5, 1e30, -1e30, math.nan, 7.99, -7.99])
    top, bottom = 2**31 - 1, -(2**31)
    assert mapped("float2int_rn", x, torch.int32).tolist() == [0, 2, -2, top, bottom, 0, 8, -8]
    assert mapped("float2int_rz", x, torch.int32).tolist() == [0, 1, -2, top, bottom, 0, 7, -7]
    assert mapped("float2int_rd", x, torch.int32).tolist() == [0, 1, -3, top, bottom, 0, 7, -8]
    assert mapped("llrint", x[:3], torch.int64).tolist() == [0, 2, -2]
    assert mapped("float_as_int", x[:2], torch.int32).tolist() == x[:2].view(torch.int32).tolist()
    assert mapped("ilogb", torch.tensor([1.0, 0.3, 1000.0]), torch.int32).tolist() == [0, -2, 9]


BINARY = {
    "nextafter": torch.nextafter,
    "fmod": torch.fmod,
    "hypot": torch.hypot,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "fdim": lambda x, y: (x - y).clamp(min=0),
    "remainder": lambda x, y: x - y * (x / y).round(),
    "copysign": torch.copysign,
    "div_rn": torch.div,
}


@pytest.mark.parametrize("name", BINARY)
def test_library_functions_of_two_floats(name):
    x, y = torch.rand(40) * 9, torch.randn(40)
    z = torch.empty(40)
    binary_kernel[(1,)](x, y, z, 40, F=getattr(libdevice, name), BLOCK=64)
    want = BINARY[name](x.double(), y.double()).float() if name != "nextafter" else torch.nextafter(x, y)
    exact = name in ("nextafter", "copysign", "div_rn")
    torch.testing.assert_close(z, want, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def test_a_quotient_rounded_toward_zero_and_whole_powers():
    x, y, z = torch.rand(256) * 9, torch.randn(256), torch.empty(256)
    binary_kernel[(1,)](x, y, z, 256, F=libdevice.div_rz, BLOCK=256)
    exact = x.double() / y.double()
    assert (z.double().abs() <= exact.abs()).all()
    assert (torch.nextafter(z, z * math.inf).double().abs() > exact.abs()).all()
    n = torch.arange(-4, 4, dtype=torch.int32)
    binary_kernel[(1,)](x[:8], n, z[:8], 8, F=libdevice.pow, BLOCK=8)
    torch.testing.assert_close(z[:8], x[:8] ** n)
    binary_kernel[(1,)](x[:8], n, z[:8], 8, F=libdevice.ldexp, BLOCK=8)
    assert torch.equal(z[:8], torch.ldexp(x[:8], n))


# A constant that is no splat: no front end writes one, other producers of Triton IR may.

TABLE = """
module {
  tt.func public @table_kernel(%out: !tt.ptr<i32>, %flags: !tt.ptr<i1>) {
    %at = tt.make_range {end = 4 : i32, start = 0 : i32} : tensor<4xi32>
    %values = arith.constant dense<[5, -1, 70000, 3]> : tensor<4xi32>
    %truths = arith.constant dense<[true, false, false, true]> : tensor<4xi1>
    %0 = tt.splat %out : !tt.ptr<i32> -> tensor<4x!tt.ptr<i32>>
    %1 = tt.addptr %0, %at : tensor<4x!tt.ptr<i32>>, tensor<4xi32>
    %2 = arith.addi %values, %at : tensor<4xi32>
    tt.store %1, %2, %truths : tensor<4x!tt.ptr<i32>>
    tt.return
  }
}
"""


def test_a_constant_tensor_of_different_elements(tmp_path):
    from gradlab.kernels.cpu.binary import Binary
    from gradlab.kernels.cpu.launching import Kernel

    path = tmp_path / "table.ttir"
    path.write_text(TABLE)
    found = triton.compile(str(path), target=triton.runtime.driver.active.get_current_target())
    out = torch.zeros(4, dtype=torch.int32)
    Kernel(Binary.unseal(found.asm["obj"]))((1, 1, 1), [out.data_ptr(), 0])
    assert out.tolist() == [5, 0, 0, 6]
