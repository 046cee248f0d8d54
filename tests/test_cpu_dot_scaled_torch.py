"""`tl.dot_scaled` on the back end `cpu`: 4-bit and 8-bit floats with their scales, against tables of their values."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl
from triton.backends import Backend, backends
from triton.runtime.driver import driver

from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.driver import CPUDriver

# The sign stands in front of an exponent of two bits and one of the fraction.
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": torch.bfloat16}
GROUP = 32


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """The back end is active."""
    monkeypatch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
    before = driver._active
    driver.set_active(CPUDriver())
    yield
    for kernel in (scaled_kernel, small_groups_kernel):
        kernel.device_caches.clear()
    driver._active = before


@triton.jit
def scaled_kernel(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    c_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    A_PACK: tl.constexpr = 2 if A == "e2m1" else 1
    B_PACK: tl.constexpr = 2 if B == "e2m1" else 1
    m, n, g = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K // 32)
    ka, kb = tl.arange(0, K // A_PACK), tl.arange(0, K // B_PACK)
    a = tl.load(a_ptr + m[:, None] * (K // A_PACK) + ka[None, :])
    b = tl.load(b_ptr + kb[:, None] * N + n[None, :])
    a_scale = tl.load(a_scale_ptr + m[:, None] * (K // 32) + g[None, :])
    b_scale = None
    if b_scale_ptr is not None:
        b_scale = tl.load(b_scale_ptr + n[:, None] * (K // 32) + g[None, :])
    c = tl.load(c_ptr + m[:, None] * N + n[None, :])
    c = tl.dot_scaled(a, a_scale, A, b, b_scale, B, c)
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)


def operand(kind, rows, K, seed):
    """[rows K] in memory, and its values in float64."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "e2m1":
        nibbles = torch.randint(16, (rows, K), generator=generator)
        values = E2M1[nibbles & 7] * (1 - 2 * (nibbles >> 3))
        return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8), values.double()
    narrow = torch.randn(rows, K, generator=generator).to(TYPES[kind])
    return narrow, narrow.double()


@pytest.mark.parametrize(
    ("a_kind", "b_kind", "K"), [("e2m1", "e2m1", 64), ("e2m1", "e4m3", 64), ("e5m2", "e2m1", 32), ("e4m3", "bf16", 64)]
)
def test_a_scaled_dot(a_kind, b_kind, K):
    M, N = 16, 32
    a, a_values = operand(a_kind, M, K, 0)
    b, b_values = operand(b_kind, N, K, 1)
    # Bytes of exponents around 2^0; only 4-bit and 8-bit floats have scales.
    a_scale, b_scale = (torch.randint(120, 134, (rows, K // GROUP), dtype=torch.uint8) for rows in (M, N))
    if b_kind == "bf16":
        b_scale = None
    factors = [1.0 if s is None else 2.0 ** (s.double() - 127).repeat_interleave(GROUP, 1) for s in (a_scale, b_scale)]
    c = torch.randn(M, N)
    want = (a_values * factors[0]) @ (b_values * factors[1]).T + c
    size = (a_values * factors[0]).abs() @ (b_values * factors[1]).abs().T + c.abs()
    packed = [x.view(torch.uint8) if x.element_size() == 1 else x for x in (a, b)]
    scaled_kernel[(1,)](packed[0], a_scale, packed[1].T.contiguous(), b_scale, c, M, N, K, a_kind, b_kind)
    # K products and c are summed in float32.
    assert ((c - want).abs() <= (K + 1) * 2.0**-24 * size).all()


def test_scales_at_their_ends():
    a, _ = operand("e2m1", 16, 32, 0)
    a.fill_(0x22)
    b = torch.ones(32, 16, dtype=torch.bfloat16)
    scale = torch.full((16, 1), 127, dtype=torch.uint8)
    scale[:3, 0] = torch.tensor([0, 255, 254], dtype=torch.uint8)
    c = torch.zeros(16, 16)
    scaled_kernel[(1,)](a, scale, b, None, c, 16, 16, 32, "e2m1", "bf16")
    assert c[0].tolist() == [2.0**-122] * 16
    assert c[1].isnan().all()
    assert c[2].isinf().all()
    assert (c[3:] == 32).all()


@triton.jit
def small_groups_kernel(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr):
    m, g, k = tl.arange(0, 16), tl.arange(0, 2), tl.arange(0, 16)
    a, b = tl.load(a_ptr + m[:, None] * 16 + k[None, :]), tl.load(b_ptr + m[:, None] * 16 + k[None, :])
    at = m[:, None] * 2 + g[None, :]
    a_scale, b_scale = tl.load(a_scale_ptr + at), tl.load(b_scale_ptr + at)
    tl.store(c_ptr + m[:, None] * 16 + m[None, :], tl.dot_scaled(a, a_scale, "e2m1", b.T, b_scale, "e2m1"))


def test_scales_of_sixteen_that_are_8_bit_floats():
    (a, a_values), (b, b_values) = operand("e2m1", 16, 32, 0), operand("e2m1", 16, 32, 1)
    scales = (torch.rand(2, 16, 2) + 0.1).to(torch.float8_e4m3fn)
    c = torch.zeros(16, 16)
    small_groups_kernel[(1,)](a, scales[0], b, scales[1], c)
    factors = scales.double().repeat_interleave(16, 2)
    torch.testing.assert_close(c.double(), (a_values * factors[0]) @ (b_values * factors[1]).T, rtol=1e-6, atol=1e-5)
