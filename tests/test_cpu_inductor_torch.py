"""torch.compile with inductor's Triton kernels on the back end `cpu`: networks forward and backward, against eager.

`torch._inductor.config.cpu_backend = "triton"` is all that a user sets. The compiler of C++ is named so that nothing
finds it: this way of inductor's needs none.
"""

import copy
import shutil

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")
inductor = pytest.importorskip("torch._inductor")

import torch.nn.functional as F
import triton.language as tl
from torch import nn
from torch._dynamo.utils import counters
from triton.backends import Backend, backends
from triton.runtime.driver import driver

import gradlab
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.driver import CPUDriver

CXX = inductor.config.cpp.cxx
SETTINGS = {
    "cpu_backend": "triton",
    "cpp.cxx": ("no-such-compiler",),
    "compile_threads": 1,
    # One tile a kernel; the first test below has inductor choose.
    "triton.autotune_pointwise": False,
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    """The back end is the one that inductor finds; its caches are empty."""
    monkeypatch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
    # Inductor writes TRITON_CACHE_DIR itself; both are put back.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    before = driver._active
    driver.set_active(CPUDriver())
    torch._dynamo.reset()
    counters.clear()
    with inductor.config.patch(SETTINGS):
        yield
    torch._dynamo.reset()
    driver._active = before


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels(count, classes):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


def agrees(network, batches, dynamic=None, rounding=None):
    """Loss, gradients and buffers of a compiled network are those of eager, batch by batch.

    Args:
        rounding: relative to the largest element of each tensor; a few of the dtype's by default.
    """
    eager = copy.deepcopy(network)
    fast = torch.compile(network, fullgraph=True, dynamic=dynamic)
    for batch in batches:
        results = []
        for model in (fast, eager):
            x = batch[0].clone().requires_grad_()
            loss = model(x, *batch[1:])
            loss.backward()
            results.append({"loss": loss.detach(), "x": x.grad})
        for name, parameter in eager.named_parameters():
            results[0][name], results[1][name] = network.get_parameter(name).grad, parameter.grad
        for name, buffer in eager.named_buffers():
            results[0][name], results[1][name] = network.get_buffer(name), buffer
        for name, wanted in results[1].items():
            bound = 32 * torch.finfo(batch[0].dtype).eps if rounding is None else rounding
            # A gradient that is nought but for rounding is as exact as the sums that cancel in it.
            largest = max(wanted.abs().max().item(), 0.1)
            torch.testing.assert_close(
                results[0][name], wanted, rtol=0, atol=bound * largest, msg=lambda said, name=name: f"{name}: {said}"
            )
        network.zero_grad()
        eager.zero_grad()


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(20, 32), nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x, target):
        return F.cross_entropy(self.last(F.gelu(self.norm(self.first(x)))), target)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(128, 10)

    def forward(self, x, target):
        pooled = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return F.cross_entropy(self.last(pooled.flatten(1)), target)


class Block(nn.Module):
    """A transformer's block; attention through scaled_dot_product_attention."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return (x + self.down(F.gelu(self.up(self.after(x))))).square().mean()


def test_a_perceptron_with_batches_of_any_size(compiled):
    torch.manual_seed(0)
    with inductor.config.patch({"triton.autotune_pointwise": True}):
        agrees(Perceptron(), [(normal(n, 20, seed=n), labels(n, 10)) for n in (16, 24, 7)], dynamic=True)
    assert compiled


def test_a_convolutional_network(compiled):
    torch.manual_seed(0)
    agrees(Images(), [(normal(4, 3, 8, 8), labels(4, 10))])
    assert compiled


def test_a_transformer_block(compiled):
    torch.manual_seed(0)
    agrees(Block(), [(normal(2, 12, 32),)])
    assert compiled


class Gate(nn.Module):
    """Reductions, functions and a cast; no product, which inductor leaves to torch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(24)

    def forward(self, x):
        return (self.norm(x).sigmoid() * x.softmax(-1).log1p()).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_floats(dtype, compiled):
    # Eager rounds to bfloat16 after every operation, a fused kernel at its end.
    agrees(Gate().to(dtype), [(normal(5, 24, dtype=dtype),)], rounding=0.02 if dtype is torch.bfloat16 else None)
    assert compiled


def test_dropout_keeps_the_same_elements_back_as_forth():
    x = torch.ones(4000, requires_grad=True)
    y = torch.compile(lambda x: F.dropout(x, 0.25), fullgraph=True)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # Within five standard deviations of the mean.
    assert abs((y == 0).double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@triton.heuristics({"BLOCK": lambda given: triton.next_power_of_2(min(given["n"], 64))})
@triton.jit
def scaled_sum_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = at < n
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=kept) + 2 * tl.load(y_ptr + at, mask=kept), mask=kept)


def test_a_users_kernel_within_a_compiled_function(compiled):
    def function(x, y):
        out, n = torch.empty_like(x), x.numel()
        scaled_sum_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x.sin(), y, out, n)
        return out * 3

    x, y = normal(100), normal(100, seed=1)
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x, y), (x.sin() + 2 * y) * 3)
    assert len(compiled) == 3


def test_a_graph_comes_back_from_inductors_cache(compiled):
    def double(x):
        return (x * 2).sin()

    x = normal(100)
    for _ in range(2):
        torch.testing.assert_close(torch.compile(double, fullgraph=True)(x), double(x))
        torch._dynamo.reset()
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert len(compiled) == 1


def test_kernels_are_examined_while_launches_are():
    with gradlab.sanitize(raises=False) as report:
        rows = torch.compile(lambda i, w: F.embedding(i, w).sin(), fullgraph=True)
        rows(torch.tensor([3, 49, 0]), normal(50, 33))
        assert report.launches
        assert not report.faults
        rows(torch.tensor([3, 50, 0]), normal(50, 33))
    assert [fault.kind for fault in report.faults] == ["failed assertion", "out of bounds"]
    assert (report.faults[1].index, report.faults[1].count) == (50 * 33, 33)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor's own way on a CPU asks for g++")
def test_without_the_setting_inductor_writes_cpp(monkeypatch, compiled):
    from torch._inductor.async_compile import AsyncCompile

    written = []

    def kept(self, arguments, source):
        written.append(source)
        return lambda *unused: None

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", kept)
    # Which vectors the CPU has is found out by compiling a program for each.
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", list)
    with inductor.config.patch({"cpu_backend": "cpp", "cpp.cxx": CXX, "fx_graph_cache": False}):
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(normal(64))
    (source,) = written
    assert "std::sin" in source
    assert not compiled
