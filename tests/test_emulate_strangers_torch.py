"""`gradlab emulate` on what strangers bring: what cannot be executed ends in one line, and nothing crashes."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl
from rich.console import Console
from triton.language.extra import libdevice

from gradlab.profiling.emulate.command import EmulateArgs, emulate
from gradlab.profiling.emulate.compare import How, function
from gradlab.profiling.machine_code.targets import TARGETS


@triton.jit
def twice_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def far_kernel(x_ptr, y_ptr, far, BLOCK: tl.constexpr):
    i = tl.program_id(0) * far + tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + i))


@triton.jit
def before_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr + i, tl.load(x_ptr + i - 1))


@triton.jit
def bytes_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(tl.float32))


@triton.jit
def reversed_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.inline_asm_elementwise("prmt.b32 $0, $1, $1, 0x0123;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(y_ptr + i, y)


@triton.jit
def corner_kernel(x_ptr, y_ptr, M, N, B: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [B, B])
    y = tl.make_tensor_descriptor(y_ptr, [N, M], [M, 1], [B, B])
    for n in range(0, N, B):
        y.store([n, 0], tl.trans(x.load([0, n])))


def run(fn, *args, arch="sm_90", **options):
    return function(fn, args, "torch", "fn", "float32", How(TARGETS[arch], options={"check": True, **options}))


def twice(x, **options):
    y = torch.empty_like(x)
    twice_kernel[(4,)](x, y, x.numel(), BLOCK=256, **options)
    return y


def test_descriptors_that_a_kernel_makes_are_where_a_gpu_wants_them():
    # Their memory is the launch's, at a multiple of 128 bytes.
    result = run(lambda x, y: corner_kernel[(1,)](x, y, 32, 72, B=32), torch.randn(32, 72), torch.zeros(72, 32))
    assert result.ok, result
    assert [c.largest for c in result.comparisons] == [0, 0]


def test_options_of_other_gpus_are_left_out_and_clusters_refused():
    x = torch.randn(1000)
    assert run(lambda x: twice(x, waves_per_eu=2, matrix_instr_nonkdim=16), x).ok
    for arch in ("sm_80", "sm_90"):
        error = run(lambda x: twice(x, num_ctas=2), x, arch=arch).error
        assert error == "emulate: num_ctas of twice_kernel is 2, wanted 1: clusters are not executed"


def test_a_kernel_that_does_not_compile_is_one_line():
    x = torch.randn(64).to(torch.float8_e4m3fn)
    error = run(lambda x: bytes_kernel[(1,)](x, torch.zeros(64), BLOCK=64), x, arch="sm_80").error
    assert error.startswith("emulate: bytes_kernel (")
    assert "came with CompilationError" in error
    assert "type fp8e4nv not supported" in error
    assert error.endswith(", wanted a launch that compiles for sm_80")
    assert "\n" not in error


def test_what_the_cpu_cannot_compile_is_executed_and_held_against_nothing():
    x, y = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    seen = []
    result = run(lambda x, y: (reversed_kernel[(1,)](x, y, BLOCK=64), seen.append(y)), x, y)
    assert (result.ok, len(result.launches), result.comparisons) == (True, 1, ())
    assert "assembly is not compiled for CPUs" in result.unheld
    assert seen[0].tolist() == [i << 24 for i in range(64)]


def test_a_kernel_that_leaves_its_tensors_does_not_run_on_the_cpu():
    # Which would end this process: 8 GB behind x.
    result = run(lambda x, y: far_kernel[(2,)](x, y, 2**31 - 8, BLOCK=64), torch.zeros(64), torch.zeros(64))
    assert [f.kind for f in result.launches[0].executed.faults] == ["out of bounds"]
    assert result.unheld == "the CPU does not run what has such a fault: out of bounds"
    assert (result.ok, result.comparisons) == (False, ())


def test_an_address_before_a_tensor_and_an_atomic_are_named():
    both = torch.zeros(4096)
    x, y = both[2000:2064], both[:8]
    result = run(lambda x, y: before_kernel[(1,)](x, y, BLOCK=16), x, y)
    words = sorted(f.text for f in result.launches[0].executed.faults)
    assert [w.split(",")[0] for w in words] == ["atomic operation on byte 32 of y_ptr", "load of byte -4 of x_ptr"]


@triton.jit
def first_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, libdevice.ffs(tl.load(x_ptr + i)))


@triton.jit
def product_kernel(x_ptr, w_ptr, y_ptr, K, B: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, B)[:, None], tl.arange(0, B), tl.arange(0, BK)
    total = tl.zeros((B, B), tl.float32)
    for k0 in range(0, K, BK):
        x, w = tl.load(x_ptr + m * K + k0 + k), tl.load(w_ptr + (k0 + k)[:, None] * B + n)
        total = tl.dot(x, w, total)
    tl.store(y_ptr + m * B + n, total)


def product(x, w, size=32, **options):
    y = torch.empty(size, size)
    product_kernel[(1,)](x, w, y, x.shape[1], B=size, BK=32, **options)
    return y


def test_the_first_bit():
    x = torch.tensor([0, 1, 2, 12, -1, -(2**31), 2**30, 96], dtype=torch.int32)
    seen = torch.zeros_like(x)
    result = run(lambda x: first_kernel[(1,)](x, seen, BLOCK=8), x)
    assert (result.ok, seen.tolist()) == (True, [0, 1, 2, 3, 1, 32, 31, 6])


def test_products_of_tf32_are_held_to_its_rounding():
    result = run(product, torch.randn(32, 64), torch.randn(64, 32), arch="sm_80")
    (y, *_) = result.comparisons
    assert y.ok
    # 2**-11 for each of two factors is more than float32 would be allowed.
    assert 1e-6 < y.largest < y.allowed < 0.1


def test_blocks_that_no_gpu_has_are_refused():
    x = torch.randn(1000)
    assert run(lambda x: twice(x, num_warps=64), x).error == (
        "emulate: twice_kernel has blocks of 2048 threads, wanted at most 1024"
    )
    given = torch.randn(256, 256), torch.randn(256, 256)
    error = run(lambda x, w: product(x, w, 256, num_warps=8, num_stages=4), *given, arch="sm_80").error
    assert error.endswith("bytes of shared memory, wanted at most 166,912, which a block of sm_80 has")


def test_a_backward_that_changes_its_cotangent_and_a_gradient_of_zero():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return twice(x)

        @staticmethod
        def backward(ctx, dy):
            dy.mul_(3).sub_(dy.mean())
            return twice(dy)

    result = run(Twice.apply, torch.randn(1000, requires_grad=True))
    assert result.ok, result
    # Ones would be zeros there, which nothing may be off from.
    assert result.comparisons[-1].allowed > 1e-4


def test_tensors_without_memory_are_refused():
    error = run(lambda x: twice_kernel[(4,)](x.to("meta"), x, 1000, BLOCK=256), torch.zeros(1000)).error
    assert error == "emulate: x_ptr is a tensor on meta, wanted one on a CPU"


def test_compiled_functions_launch_the_kernels_that_are_in_them():
    result = run(torch.compile(twice), torch.randn(1000))
    assert result.ok, result
    assert len(result.launches) == 1


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x: x + 1, "launches no program of a Triton kernel, wanted a function that does"),
        (lambda x: twice_kernel[(0,)](x, x, 0, BLOCK=64), "launches no program of a Triton kernel"),
        (lambda x: {}["key"], "raised KeyError: 'key', wanted a function that runs on tensors of a CPU"),
    ],
)
def test_functions_that_launch_nothing_or_raise(fn, said):
    result = run(fn, torch.zeros(4))
    assert result.error.startswith(f"emulate: fn {said}")
    assert not result.ok
    assert "\n" not in result.error


def test_a_launch_that_lacks_arguments_is_one_line():
    error = run(lambda x: twice_kernel[(1,)](x, x), torch.zeros(4)).error
    assert error.startswith("emulate: twice_kernel (")
    assert "came with TypeError: " in error
    assert error.endswith(" 'n' and 'BLOCK', wanted a launch that compiles for sm_90")


FILES = {
    "raise ValueError('two\\nlines')": "(ValueError: two lines), wanted a file that can be imported",
    "raise SystemExit(3)": "(SystemExit: 3), wanted a file that can be imported",
    "def f(x): ...\ndef f_args(): return 1 / 0": "f_args raised ZeroDivisionError: division by zero, wanted a tuple",
}


@pytest.mark.parametrize(("text", "said"), FILES.items())
def test_files_that_cannot_be_used(text, said, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match="emulate: ") as caught:
        emulate(EmulateArgs(f"{tmp_path}/own.py::f"), Console(quiet=True))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["relu", "own.py::f"])
def test_kernels_that_are_interpreted_are_refused(target, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="emulate: TRITON_INTERPRET is set, wanted it unset"):
        emulate(EmulateArgs(target, sides=["torch"]), Console(quiet=True))
