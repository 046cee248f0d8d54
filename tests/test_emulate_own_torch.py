"""Anybody's Triton kernels, compiled for a GPU and executed on this CPU: values, gradients, faults, refusals."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl

from gradlab.profiling.emulate.compare import How, function
from gradlab.profiling.machine_code.own_torch import launching
from gradlab.profiling.machine_code.targets import TARGETS


@triton.jit
def add_kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z_ptr + i, tl.load(x_ptr + i, mask=i < n) + tl.load(y_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def careless_kernel(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)  # no mask
    tl.store(z_ptr + i, x, mask=i < n)


@triton.jit
def half_kernel(x_ptr, z_ptr, scale, plus, SCALED: tl.constexpr):
    i = tl.arange(0, 64)
    x = tl.load(x_ptr + i)
    tl.store(z_ptr + i, x * scale + plus if SCALED else x)


@triton.jit
def sums_kernel(table_ptr, z_ptr, N: tl.constexpr):
    row = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(z_ptr + tl.program_id(0), tl.sum(tl.load(row + tl.arange(0, N))))


@triton.autotune([triton.Config({"BLOCK": 128}, num_warps=2), triton.Config({"BLOCK": 512})], key=["n"])
@triton.jit
def tuned_kernel(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z_ptr + i, tl.exp(tl.load(x_ptr + i, mask=i < n)), mask=i < n)


@triton.jit
def scan_kernel(x_ptr, z_ptr, count_ptr):
    i = tl.arange(0, 256)
    x = tl.load(x_ptr + i)
    tl.store(z_ptr + i, tl.cumsum(x, 0))
    tl.atomic_add(count_ptr + x % 8, 1)


def run(fn, *args, arch="sm_90", dtype="float32", **options):
    how = How(TARGETS[arch], **({"budget": options.pop("budget")} if "budget" in options else {}), options=options)
    return function(fn, args, "torch", "fn", dtype, how)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("order", ["together", "first", "last"])
def test_a_function_that_launches_a_kernel(arch, order):
    x, y = torch.randn(1000), torch.randn(1000)

    def add(x, y):
        z = torch.empty_like(x)
        add_kernel[(4,)](x, y, z, 1000, BLOCK=256)
        return z

    result = run(add, x, y, arch=arch, order=order)
    assert result.ok, result
    (launch,) = result.launches
    assert (launch.kernel, launch.grid, launch.threads) == ("add", (4, 1, 1), 128)
    # Four blocks of four warps; 1000 floats are 125 sectors.
    counts = launch.executed.counts
    assert counts.issued.sum() > 4 * 4 * 10
    assert [c.what for c in result.comparisons] == ["result 0", "argument 0", "argument 1"]


def test_a_load_without_a_mask_is_found_with_its_line():
    x, z = torch.randn(1000), torch.zeros(1000)
    result = run(lambda x, z: careless_kernel[(4,)](x, z, 1000, BLOCK=256), x, z)
    assert not result.ok
    (fault,) = result.launches[0].executed.faults
    assert fault.kind == "out of bounds"
    assert "of x_ptr, which has 4000 bytes" in fault.text
    source = Path(__file__).read_text().splitlines()
    assert source[fault.place.line - 1].strip() == "x = tl.load(x_ptr + i)  # no mask"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_scalars_and_dtypes(dtype):
    x = torch.randn(64).to(dtype)
    z = torch.zeros_like(x)
    result = run(lambda x, z: half_kernel[(1,)](x, z, 3.25, -2, SCALED=True), x, z, dtype=str(dtype)[6:])
    assert result.ok, result
    assert result.launches[0].executed.counts.issued.sum() > 0


def test_tensors_that_a_kernel_reaches_by_a_table_of_addresses():
    rows = [torch.randn(64) for _ in range(5)]
    table = torch.tensor([row.data_ptr() for row in rows])
    # Another tensor of the process has no memory of its own.
    kept: list[torch.Tensor] = []
    torch.func.vmap(lambda row: kept.append(row) or row)(torch.zeros(2, 2))
    result = run(lambda table, z: sums_kernel[(5,)](table, z, N=64), table, torch.zeros(5))
    assert result.ok, result
    table[2] = 4096
    result = run(lambda table, z: None, table, torch.zeros(5))
    assert result.launches == ()


def test_an_autotuned_kernel_takes_its_first_configuration():
    x = torch.randn(700)

    def exp(x):
        z = torch.empty_like(x)
        tuned_kernel[lambda m: (triton.cdiv(700, m["BLOCK"]),)](x, z, 700)
        return z

    result = run(exp, x)
    assert result.ok, result
    assert result.launches[-1].threads in (64, 128)


def test_scans_and_atomics():
    x = torch.randint(0, 100, (256,), dtype=torch.int32)
    result = run(lambda x, z, n: scan_kernel[(1,)](x, z, n), x, torch.zeros_like(x), torch.zeros(8, dtype=torch.int32))
    assert result.ok, result


def test_gradients_of_a_function():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            z = torch.empty_like(x)
            add_kernel[(1,)](x, x, z, x.numel(), BLOCK=64)
            return z

        @staticmethod
        def backward(ctx, dz):
            dx = torch.empty_like(dz)
            add_kernel[(1,)](dz, dz, dx, dz.numel(), BLOCK=64)
            return dx

    result = run(Double.apply, torch.randn(50, requires_grad=True))
    assert result.ok, result
    assert [launch.direction for launch in result.launches] == ["forward", "backward", "backward"]
    assert result.comparisons[-1].what == "gradient of argument 0"


def test_a_wrong_result_is_seen(monkeypatch):
    """A GPU's kernel that is another one than the CPU's gives another result."""
    from gradlab.profiling.emulate import launches_torch

    real = launches_torch.prepare

    def spoilt(*args):
        made = real(*args)
        import dataclasses

        return dataclasses.replace(made, ptx=made.ptx.replace("add.f32", "sub.f32"))

    monkeypatch.setattr(launches_torch, "prepare", spoilt)
    z = torch.zeros(64)
    result = run(lambda x, y, z: add_kernel[(1,)](x, y, z, 64, BLOCK=64), torch.randn(64), torch.randn(64), z)
    assert not result.ok
    assert [c.ok for c in result.comparisons] == [True, True, False]


def test_more_instructions_than_the_budget_are_refused_early():
    x = torch.zeros(2**20)
    result = run(lambda x: add_kernel[(4096,)](x, x, x, 2**20, BLOCK=256), x, budget=10_000)
    assert not result.ok
    assert result.error.startswith("emulate: add takes about ")
    assert "wanted at most 10,000" in result.error
    assert "\n" not in result.error


def test_launches_are_tritons_again_afterwards():
    before = triton.JITFunction.run
    assert run(lambda x: 1 / 0, torch.zeros(1)).error == (
        "emulate: fn raised ZeroDivisionError: division by zero, wanted a function that runs on tensors of a CPU"
    )
    assert triton.JITFunction.run is before
    z = torch.zeros(64)
    add_kernel[(1,)](torch.ones(64), torch.ones(64), z, 64, BLOCK=64)
    assert z.tolist() == [2.0] * 64


def test_a_kernel_needs_a_grid_beside_it():
    with pytest.raises(
        ValueError, match="emulate: target is the kernel add_kernel, wanted a function that launches it"
    ):
        launching(add_kernel, "add_kernel", "emulate")


def test_a_function_that_works_in_place_and_gives_nothing():
    def double(x):
        add_kernel[(1,)](x, x, x, x.numel(), BLOCK=64)

    result = run(double, torch.randn(64, requires_grad=True))
    assert result.ok, result
    assert [c.what for c in result.comparisons] == ["argument 0"]
    assert len(result.launches) == 1


def test_a_wide_access_past_the_end_says_its_bytes():
    def copy(x):
        z = torch.empty(64)[:62]
        careless_kernel[(1,)](x, z, 64, BLOCK=64)
        return z

    result = run(copy, torch.randn(64))
    (fault,) = result.launches[0].executed.faults
    assert re.search(r"store of (bytes \d+ to \d+|byte 248) of z_ptr, which has 248 bytes", fault.text), fault.text
