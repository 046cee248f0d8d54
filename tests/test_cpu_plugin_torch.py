"""The back end `cpu` as Triton finds and drives it: kernels of anybody on CPU tensors, its cache, its errors."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl
from triton.backends import Backend, backends
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from gradlab.kernels.cpu import cache_triton, machine
from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.driver import CPUDriver

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    """The back end is active and its cache empty; the folder of that cache."""
    monkeypatch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(triton.knobs.cache, "manager_class", None)
    before = driver._active
    driver.set_active(CPUDriver())
    yield tmp_path / "cache"
    for kernel in globals().values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()
    if hasattr(CompiledKernel, "__del__"):
        # From Triton 3.8 on a kernel asks the active driver to unload it: it has to go before the driver does.
        gc.collect()
    driver._active = before


def fresh(kernel):
    """A kernel as a new process has it: nothing is compiled in memory."""
    return triton.JITFunction(kernel.fn, debug=kernel.debug)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, scale, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = at < n
    x = tl.load(x_ptr + at, mask=kept)
    y = tl.load(y_ptr + at, mask=kept)
    tl.store(out_ptr + at, x + y * scale, mask=kept)


@triton.jit
def double_kernel(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at, mask=at < n) * 2, mask=at < n)


@triton.jit(debug=True)
def positive_kernel(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.device_assert(tl.load(x_ptr + at, mask=at < n, other=1.0) > 0, "x is positive")


@triton.jit
def print_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.device_print("x", tl.load(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)))


@triton.jit
def count_kernel(out_ptr):
    tl.atomic_add(out_ptr, tl.program_id(0) * 0.1 + 0.7)


@triton.jit
def tuple_kernel(pair, factor: tl.constexpr, out_ptr):
    tl.store(out_ptr, tl.load(pair[0]) * factor + pair[1])


@triton.jit
def tile_kernel(source, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at[:, None] * BLOCK + at[None, :], source.load([0, 0]))


def added(n=1000, block=256, kernel=None, **options):
    """Launch `add_kernel`, as a new process does unless a kernel is given, and check what it wrote."""
    kernel = kernel or fresh(add_kernel)
    x, y = torch.randn(n), torch.randn(n)
    out = torch.full((n,), torch.nan)
    handle = kernel[(triton.cdiv(n, block),)](x, y, out, n, 0.5, BLOCK=block, **options)
    torch.testing.assert_close(out, x + y * 0.5)
    return handle


def test_a_kernel_runs_on_cpu_tensors():
    handle = added()
    assert handle.name == "add_kernel"
    assert set(handle.asm) >= {"ttir", "llir", "obj"}
    assert Binary.unseal(handle.asm["obj"], handle.hash).stored == (2,)


def test_one_binary_serves_what_only_a_gpu_tells_apart(compiled):
    kernel = fresh(add_kernel)
    added(n=1000, kernel=kernel)
    added(n=1024, kernel=kernel)
    added(num_warps=8, num_stages=5, num_ctas=2, maxnreg=64, waves_per_eu=2)
    assert len(compiled) == 1
    added(enable_fp_fusion=False)
    assert len(compiled) == 2


def test_a_host_may_divide_a_gpus_resources_by_a_kernels():
    kernel = add_kernel.warmup(*torch.zeros(3, 5), 5, 2.0, BLOCK=16, grid=(1,))
    kernel._init_handles()
    has = driver.active.utils.get_device_properties(driver.active.get_current_device())
    threads = kernel.metadata.num_warps * has["warpSize"]
    programs = min(has["max_num_regs"] // (kernel.n_regs * threads), has["max_shared_mem"] // kernel.metadata.shared)
    assert programs > 1000
    out = torch.empty(5)
    kernel[(1, 1, 1)](torch.ones(5), torch.ones(5), out, 5, 2.0, 16)
    assert out.tolist() == [3.0] * 5


def test_a_compiled_kernel_is_launched_with_its_constants_too():
    x, y, out = torch.ones(8), torch.ones(8), torch.zeros(8)
    compiled = fresh(add_kernel)[(1,)](x, y, out, 8, 0.5, BLOCK=8)
    compiled[1, 1, 1](x, y, out, 5, 1.0, 8)
    assert out.tolist() == [2.0] * 5 + [1.5] * 3
    with pytest.raises(TypeError, match="add_kernel: 4 arguments were given, wanted 6, constants among them"):
        compiled[1, 1, 1](x, y, out, 8)


def test_an_option_that_nobody_knows_is_refused():
    with pytest.raises(KeyError, match="num_wraps"):
        added(num_wraps=4)


def test_autotuning_and_do_bench():
    tuned = triton.autotune([triton.Config({"BLOCK": b}, num_warps=w) for b in (64, 256) for w in (1, 4)], key=["n"])(
        fresh(add_kernel)
    )
    x, out = torch.randn(1000), torch.empty(1000)

    def call():
        tuned[lambda meta: (triton.cdiv(1000, meta["BLOCK"]),)](x, x, out, 1000, 2.0)

    call()
    torch.testing.assert_close(out, 3 * x)
    assert tuned.best_config.kwargs["BLOCK"] in (64, 256)
    assert triton.testing.do_bench(call, warmup=1, rep=2) > 0
    low, high = driver.active.get_benchmarker()(call, quantiles=(0.2, 0.8), rep=1)
    assert 0 < low <= high


def test_scalars_tuples_and_constants_reach_their_arguments():
    out = torch.zeros(1)
    tuple_kernel[(1,)]((torch.tensor([3.0]), 4), 10, out)
    assert out.item() == 34
    half = triton.reinterpret(torch.tensor([0x3C00], dtype=torch.int16), tl.float16)
    tuple_kernel[(1,)]((half, 4), 10, out)
    assert out.item() == 14


def test_a_tensor_descriptor_made_on_the_host():
    x = torch.randn(20, 16)[2:18]
    out = torch.empty(16, 16)
    tile_kernel[(1,)](TensorDescriptor.from_tensor(x, [16, 16]), out, BLOCK=16)
    assert torch.equal(out, x)


def test_a_parameter_and_a_subclass_with_memory_are_tensors():
    class Named(torch.Tensor):
        pass

    for x in (torch.nn.Parameter(torch.ones(8)), torch.ones(8).as_subclass(Named)):
        double_kernel[(1,)](x, 8, BLOCK=8)
        assert x.detach().tolist() == [2.0] * 8


class View:
    """What Triton takes for a tensor though it is none: a type and an address."""

    def __init__(self, address, device="cpu"):
        self.address = address
        self.dtype = torch.float32
        self.device = device

    def data_ptr(self):
        return self.address


def test_an_object_with_a_type_and_an_address_is_a_tensor():
    x = torch.ones(8)
    double_kernel[(1,)](View(x[3:].data_ptr()), 4, BLOCK=8)
    assert x.tolist() == [1, 1, 1, 2, 2, 2, 2, 1]
    with pytest.raises(ValueError, match="double_kernel: x_ptr is a View on cuda:0, wanted a tensor on the CPU"):
        double_kernel[(1,)](View(x.data_ptr(), "cuda:0"), 4, BLOCK=8)
    assert x.sum() == 12


class Wrapper(torch.Tensor):
    """A tensor that is made of others, as a DTensor is."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("no operation is wanted of this tensor")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.ones(8, device="meta"), "double_kernel: x_ptr is a Tensor on meta, wanted a tensor on the CPU"),
        (lambda: torch.ones(8, dtype=torch.complex64).conj().imag, "negated lazily, wanted its resolve_neg"),
        (lambda: Wrapper(torch.ones(8)), "x_ptr is a Wrapper, which has no memory of its own"),
    ],
    ids=["meta", "negated", "wrapper"],
)
def test_a_tensor_that_is_not_what_its_address_says_is_refused(make, said):
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        double_kernel[(1,)](make(), 8, BLOCK=8)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_other_arguments_that_have_no_memory_are_refused():
    from torch._subclasses import FakeTensorMode

    numpy = pytest.importorskip("numpy")
    with FakeTensorMode():
        fake = torch.ones(8)
    for bad in (numpy.ones(8), [1.0]):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            double_kernel[(1,)](bad, 8, BLOCK=8)
    with pytest.raises(TypeError, match="double_kernel: x_ptr is a FakeTensor, which has no memory of its own"):
        double_kernel[(1,)](fake, 8, BLOCK=8)
    seen = []

    def batched(x):
        with pytest.raises((TypeError, RuntimeError)):
            double_kernel[(1,)](x, 8, BLOCK=8)
        seen.append(x)
        return x

    torch.vmap(batched)(torch.ones(2, 8))
    assert seen


def test_a_grid_of_nothing_and_grids_that_are_refused():
    x = torch.ones(8)
    double_kernel[(0,)](x, 8, BLOCK=8)
    double_kernel[(4, 0)](x, 8, BLOCK=8)
    assert x.tolist() == [1.0] * 8
    with pytest.raises(ValueError, match=r"double_kernel: the grid is \(-1, 1, 1\)"):
        double_kernel[(-1,)](x, 8, BLOCK=8)
    with pytest.raises(ValueError, match="along an axis"):
        double_kernel[(1, 2**31)](x, 8, BLOCK=8)


def test_a_failed_assertion_names_message_place_and_program():
    x = torch.ones(64)
    positive_kernel[(1, 4)](x, 64, BLOCK=16)
    x[37] = -1
    with pytest.raises(AssertionError, match=r"test_cpu_plugin_torch.py:\d+: x is positive \(program \(0, 2, 0\)"):
        positive_kernel[(1, 4)](x, 64, BLOCK=16)


def test_printed_values_come_in_program_order(capsys):
    print_kernel[(2,)](torch.tensor([1.5, -2.0, 0.0, 1e3]), BLOCK=2)
    assert capsys.readouterr().out.splitlines() == [
        "pid (0, 0, 0) idx (0) x: 1.500000",
        "pid (0, 0, 0) idx (1) x: -2.000000",
        "pid (1, 0, 0) idx (0) x: 0.000000",
        "pid (1, 0, 0) idx (1) x: 1000.000000",
    ]


def test_atomic_sums_have_the_same_bits_each_time():
    expected = torch.zeros(1)
    for program in range(3000):
        expected += torch.tensor(program, dtype=torch.float32) * 0.1 + 0.7
    for among in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(among)
        try:
            out = torch.zeros(1)
            handle = count_kernel[(3000,)](out)
        finally:
            torch.set_num_threads(before)
        assert Binary.unseal(handle.asm["obj"]).ordered
        assert out.item() == pytest.approx(expected.item(), rel=1e-5)


def test_launch_hooks_are_called_around_a_launch():
    seen = []
    enter, leave = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    note = [lambda metadata: seen.append(("enter", metadata.get()["name"])), lambda _: seen.append("leave")]
    enter.add(note[0])
    leave.add(note[1])
    try:
        added()
    finally:
        enter.remove(note[0])
        leave.remove(note[1])
    assert seen == [("enter", "add_kernel"), "leave"]


def test_compiled_kernels_come_back_from_disk(compiled):
    first = added()
    assert added().hash == first.hash
    assert len(compiled) == 1


def test_another_cpu_has_files_of_its_own(monkeypatch):
    name = CPUBackend(triton.backends.compiler.GPUTarget("cpu", "", 32)).hash()
    other = dataclasses.replace(machine.host(), features="+other")
    monkeypatch.setattr(machine, "host", lambda: other)
    assert CPUBackend(driver.active.get_current_target()).hash() != name


def damage(folder, how):
    """Spoil the files of the one kernel in a cache."""
    (obj,), (text,) = folder.glob("*/add_kernel.obj"), folder.glob("*/add_kernel.json")
    if how == "empty object":
        obj.write_bytes(b"")
    elif how == "short object":
        obj.write_bytes(obj.read_bytes()[:-40])
    elif how == "flipped bit":
        data = bytearray(obj.read_bytes())
        data[100] ^= 8
        obj.write_bytes(data)
    elif how == "another kernel's object":
        binary = Binary.unseal(obj.read_bytes())
        obj.write_bytes(binary.seal("ab" * 32))
    elif how == "no object":
        obj.unlink()
    elif how == "short metadata":
        text.write_text(text.read_text()[:50])
    elif how == "another kernel's metadata":
        text.write_text(json.dumps({**json.loads(text.read_text()), "hash": "ab" * 32}))


@pytest.mark.parametrize(
    "how",
    [
        "empty object",
        "short object",
        "flipped bit",
        "another kernel's object",
        "no object",
        "short metadata",
        "another kernel's metadata",
    ],
)
def test_a_damaged_file_is_compiled_anew(cpu, compiled, how):
    added()
    damage(cpu, how)
    added()
    assert len(compiled) == 2
    added()
    assert len(compiled) == 2, "the file was not repaired"


def test_a_damaged_file_is_never_run(cpu):
    handle = added()
    for data in (handle.asm["obj"][:-1], b"", b"\x7fELF" * 100):
        with pytest.raises(RuntimeError, match=r"add_kernel: .*TRITON_ALWAYS_COMPILE=1"):
            driver.active.utils.load_binary("add_kernel", data, 0, 0)


def test_a_folder_that_cannot_be_written_is_replaced(monkeypatch, compiled):
    monkeypatch.setattr(triton.knobs.cache, "dir", "/dev/null/cache")
    cache_triton._warn.cache_clear()
    kernel = fresh(add_kernel)
    with pytest.warns(UserWarning, match="/dev/null/cache cannot be written .* TRITON_CACHE_DIR names another"):
        added(kernel=kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        added(kernel=kernel)
        added()
    assert len(compiled) == 1


def test_a_folder_that_becomes_unwritable_is_read_and_replaced(monkeypatch, compiled):
    added()
    real = os.replace

    def refuse(source, target):
        if "gradlab-triton-" not in str(target):
            raise PermissionError(13, "Permission denied", target)
        return real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    added()
    assert len(compiled) == 1
    cache_triton._warn.cache_clear()
    with pytest.warns(UserWarning, match="Permission denied"):
        added(enable_fp_fusion=False)
    assert len(compiled) == 2


def test_a_cache_that_the_user_chose_stays(monkeypatch):
    class Mine(triton.runtime.cache.FileCacheManager):
        pass

    monkeypatch.setattr(triton.knobs.cache, "manager_class", Mine)
    CPUDriver()
    assert triton.knobs.cache.manager_class is Mine
    added()


def test_llvms_own_complaint_is_one_line(monkeypatch):
    def refuse(ir, host):
        raise RuntimeError("LLVM IR parsing error\n<string>:3:1: error: expected a value\n")

    monkeypatch.setattr(machine, "object_code", refuse)
    with pytest.raises(RuntimeError, match=r"^add_kernel: LLVM does not take .*LLVM IR parsing error.*$"):
        added()


def script(tmp_path, body):
    """What a fresh process prints, in which the back end is installed."""
    installed = tmp_path / "gradlab_cpu-0.dist-info"
    if not installed.exists():
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: gradlab-cpu\nVersion: 0\n")
        (installed / "entry_points.txt").write_text("[triton.backends]\ncpu = gradlab.kernels.cpu\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    settings = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path / "kernels")}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_DEFAULT_BACKEND": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=120, env=settings
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_triton_finds_the_back_end_and_imports_nothing_heavy_with_it(tmp_path):
    said = script(
        tmp_path,
        """
        import sys, triton
        print(triton.backends.backends["cpu"].compiler.__module__)
        print([m for m in ("torch", "llvmlite", "numpy", "gradlab.kernels.cpu.machine") if m in sys.modules])
    """,
    )
    assert said.splitlines() == ["gradlab.kernels.cpu.compiler", "[]"]


def test_the_back_end_is_active_where_there_is_no_gpu(tmp_path):
    said = script(
        tmp_path,
        f"""
        import sys, torch, triton
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_cpu_plugin_torch as t
        x = torch.ones(100)
        t.double_kernel[(7,)](x, 100, BLOCK=16)
        print(type(triton.runtime.driver.active).__module__, x.sum().item())
    """,
    )
    assert said.split() == ["gradlab.kernels.cpu.driver", "200.0"]


def test_torch_takes_triton_for_usable():
    from torch.utils._triton import has_triton

    assert has_triton.__wrapped__()


def test_a_gpu_goes_before_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not CPUDriver.is_active()
    monkeypatch.setenv("TRITON_DEFAULT_BACKEND", "cpu")
    assert CPUDriver.is_active()
