"""What Triton's language compiles to beyond the lab's own kernels, executed as a GPU would and held against torch."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl

from gradlab.profiling.emulate.compiled_triton import prepare
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.parse import parse

N = 128


def launch(kernel, arch, *args, warps=4):
    """Run one block of a kernel as `arch` would, and give what it did."""
    made = prepare(kernel, args, {"num_warps": warps, "num_stages": 2}, TARGETS[arch])
    done = execute(
        parse(made.ptx), (1, 1, 1), made.threads, made.shared, [*made.arguments, 0, 0], made.extents, check=True
    )
    assert done.faults == []
    return done


@triton.jit
def _dot(a, b, c, S: tl.constexpr, K: tl.constexpr, SUMS: tl.constexpr, TURNED: tl.constexpr):
    rows, depth = tl.arange(0, S)[:, None], tl.arange(0, K)
    x = tl.load(a + rows * K + depth[None, :])
    y = tl.load(b + depth[:, None] * (1 if TURNED else S) + tl.arange(0, S)[None, :] * (K if TURNED else 1))
    tl.store(c + rows * S + tl.arange(0, S)[None, :], tl.dot(x, y, out_dtype=SUMS, input_precision="tf32"))


DOTS = [
    ("sm_90", torch.int8, torch.int32, tl.int32, "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"),
    ("sm_90", torch.float8_e4m3fn, torch.float32, tl.float32, "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3"),
    ("sm_90", torch.float8_e5m2, torch.float32, tl.float32, "wgmma.mma_async.sync.aligned.m64n64k32.f32.e5m2.e5m2"),
    ("sm_90", torch.float32, torch.float32, tl.float32, "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32"),
    ("sm_90", torch.float16, torch.float16, tl.float16, "wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16"),
    ("sm_90", torch.float64, torch.float64, tl.float64, "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64"),
    ("sm_80", torch.int8, torch.int32, tl.int32, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"),
    ("sm_80", torch.float32, torch.float32, tl.float32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
]


@pytest.mark.parametrize(
    ("arch", "dtype", "result", "sums", "opcode"), DOTS, ids=[f"{d[0]}-{str(d[1])[6:]}" for d in DOTS]
)
def test_dots(arch, dtype, result, sums, opcode):
    """Of small integers, which every type has: exact."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (64, 64), generator=generator) for _ in "ab")
    c, turned = torch.zeros(64, 64, dtype=result), dtype != torch.int8
    done = launch(_dot, arch, a.to(dtype), (b.T.contiguous() if turned else b).to(dtype), c, 64, 64, sums, turned)
    assert (c.double() == a.double() @ b.double()).all()
    used = [i for i in done.program.instructions if ".".join(i.opcode) == opcode]
    assert used
    assert sum(int(done.counts.operations[i.index]) for i in used) == 2 * 64**3


@triton.jit
def _random(x, S: tl.constexpr):
    i = tl.arange(0, S)
    tl.store(x + i, tl.randn(3, i))


def test_random_numbers():
    """Philox, and a cosine with a table of constants and an array in local memory."""
    x, want = torch.zeros(N), torch.zeros(N)
    launch(_random, "sm_90", x, N)
    _random[(1,)](want, N)
    torch.testing.assert_close(x, want, rtol=1e-5, atol=1e-6)


@triton.jit
def _sines(x, y, S: tl.constexpr):
    i = tl.arange(0, S)
    tl.store(y + i, tl.sin(tl.load(x + i)))


def test_a_function_that_libdevice_calls():
    """The sine of large float64 is reduced by a function of the module."""
    x, y = torch.linspace(-1e12, 1e12, N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    launch(_sines, "sm_80", x, y, N)
    torch.testing.assert_close(y, x.sin(), rtol=1e-13, atol=1e-15)


@triton.jit
def _arranged(x, y, z, S: tl.constexpr):
    i = tl.arange(0, S)
    v = tl.load(x + i)
    tl.store(y + i, tl.sort(v))
    tl.store(z + i, tl.cumsum(v))
    tl.store(z + S + i, tl.gather(v, S - 1 - i, 0))
    tl.store(z + 2 * S + tl.arange(0, 16), tl.histogram(v & 15, 16))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_elements_that_change_places(arch):
    x = torch.randperm(N, generator=torch.Generator().manual_seed(1)).int() * 3
    y, z = torch.zeros(N, dtype=torch.int32), torch.zeros(2 * N + 16, dtype=torch.int32)
    launch(_arranged, arch, x, y, z, N)
    assert (y == x.sort().values).all()
    assert (z == torch.cat([x.cumsum(0), x.flip(0), torch.bincount(x & 15, minlength=16)])).all()


@triton.jit
def _casts(x, y, z, S: tl.constexpr):
    i = tl.arange(0, S)
    v = tl.load(x + i)
    tl.store(y + i, v.to(tl.float8e5))
    tl.atomic_add(z + i % 2, (v * 0 + 1).to(tl.bfloat16))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_small_floats_and_half_precision_atomics(arch):
    """On sm_80 both are made of many instructions, the atomics with a loop that compares and swaps."""
    x = torch.randn(32, generator=torch.Generator().manual_seed(2)) * 30
    y, z = torch.zeros(32, dtype=torch.float8_e5m2), torch.zeros(2, dtype=torch.bfloat16)
    launch(_casts, arch, x, y, z, 32, warps=1)
    assert (y.float() == x.to(torch.float8_e5m2).float()).all()
    assert (z == 16).all()
