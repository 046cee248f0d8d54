"""AOTInductor with Triton kernels on a CPU: shared libraries that torch's C++ loads, called as it calls them."""

import ctypes
import shutil

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")
heuristics = pytest.importorskip("torch._inductor.runtime.triton_heuristics")

import triton.language as tl
from triton.backends import Backend, backends
from triton.runtime.driver import driver

from gradlab.kernels.cpu.ahead_torch import libraries
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.driver import CPUDriver

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    monkeypatch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    before = driver._active
    driver.set_active(CPUDriver())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    driver._active = before


@triton.jit
def scaled_kernel(x_ptr, y_ptr, n, little, scale, wide, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.device_assert(n < 1000, "too many")
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(y_ptr + i, x * scale + wide + little + tl.sum(x, axis=0), mask=i < n)


@triton.jit
def printing_kernel(x_ptr):
    tl.device_print("x", tl.load(x_ptr))


SIGNATURE = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "little": "i16", "scale": "fp32", "wide": "fp64"}


def compiled(kernel, signature, constants):
    source = triton.compiler.ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    return triton.compile(source, options={"debug": True})


def loaded(folder, made, files):
    """The function of a launcher, and the address of its kernel."""
    paths = [folder / "kernel.so", folder / "launcher.so"]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    kernel, launcher = map(ctypes.CDLL, map(str, paths))
    return launcher.run_from_nativert, ctypes.cast(getattr(kernel, made.metadata.name), ctypes.c_void_p)


def test_a_launcher_reads_the_arguments_of_torchs_wrapper(tmp_path):
    """Integers come as int64, numbers as float, whatever the kernel takes; the launcher computes the grid."""
    made = compiled(scaled_kernel, SIGNATURE, {"BLOCK": 64})
    run, kernel = loaded(
        tmp_path, made, libraries(made, SIGNATURE, ["x = (*static_cast<int64_t *>(args[2]) + 63) / 64;"])
    )
    x, y = torch.randn(150), torch.zeros(151)
    numbers = ctypes.c_int64(150), ctypes.c_int64(-7), ctypes.c_float(1.5), ctypes.c_float(0.25)
    values = [x.data_ptr(), y.data_ptr(), *map(ctypes.addressof, numbers)]
    run(1, 1, 1, 1, (ctypes.c_void_p * len(values))(*values), kernel)
    sums = torch.stack([part.sum() for part in x.split(64)]).repeat_interleave(64)[:150]
    torch.testing.assert_close(y[:150], x * 1.5 + 0.25 - 7 + sums)
    assert y[150] == 0


def test_what_is_not_served_is_reported():
    made = compiled(printing_kernel, {"x_ptr": "*fp32"}, {})
    with pytest.raises(NotImplementedError, match=r"printing_kernel: tl\.device_print has nowhere to print to"):
        libraries(made, {"x_ptr": "*fp32"}, [])
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "little": "i16", "scale": "fp16", "wide": "fp64"}
    made = compiled(scaled_kernel, signature, {"BLOCK": 64})
    with pytest.raises(NotImplementedError, match="scaled_kernel: scale is a f16, wanted an address"):
        libraries(made, signature, [])


class Network(torch.nn.Module):
    """Inductor's own kernels, with an index that they check, and one of the user."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 48)
        self.norm = torch.nn.LayerNorm(48)
        self.last = torch.nn.Linear(48, 5)

    def forward(self, labels, x):
        hidden = self.norm(self.table(labels) + x)
        scaled = torch.empty_like(hidden)
        flat = hidden.numel()
        scaled_kernel[(triton.cdiv(flat, 64),)](hidden, scaled, flat, 3, 0.5, 0.25, BLOCK=64)
        return self.last(torch.nn.functional.gelu(scaled)).softmax(-1)


# torch's own loader of packages calls what torch's pytree deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.skipif(
    not hasattr(heuristics.CachingAutotuner, "save_cpu_kernel"), reason="this torch saves no Triton kernel for a CPU"
)
def test_a_network_is_packaged_and_runs_as_it_does_eagerly(tmp_path):
    torch.manual_seed(0)
    network = Network().eval()
    inputs = torch.randint(10, (4,)), torch.randn(4, 48)
    rows = torch.export.Dim("rows", min=2, max=16)
    settings = {
        "cpu_backend": "triton",
        "compile_threads": 1,
        "triton.autotune_pointwise": False,
        # What torch's C++ compiler does to the code between kernels is not looked at.
        "aot_inductor.compile_wrapper_opt_level": "O0",
    }
    with torch.no_grad(), torch._inductor.config.patch(settings):
        exported = torch.export.export(network, inputs, dynamic_shapes=({0: rows}, {0: rows}), strict=True)
        path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "network.pt2"))
        packaged = torch._inductor.aoti_load_package(path)
        for n in (4, 7):
            inputs = torch.randint(10, (n,)), torch.randn(n, 48)
            torch.testing.assert_close(packaged(*inputs), network(*inputs))
        with pytest.raises(RuntimeError, match="index out of bounds"):
            packaged(torch.tensor([3, 10]), torch.randn(2, 48))
