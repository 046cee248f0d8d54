"""What the CPU's compiler is not given, or cannot be given: each one line of words, or the right numbers."""

import dataclasses
import errno
import os
import sys

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import gradlab.torch as lab
from gradlab.kernels.cpu import cache_triton, machine
from gradlab.kernels.runtime import compiled_triton


@pytest.fixture
def afresh(monkeypatch):
    """Nothing is compiled yet in this process."""
    monkeypatch.setattr(compiled_triton, "_prepared", {})
    monkeypatch.setattr(compiled_triton, "_kernels", {})


def on(monkeypatch, **other):
    """From then on kernels are compiled for another CPU, which runs here."""
    described = dataclasses.replace(machine.host(), **other)
    monkeypatch.setattr(machine, "host", lambda: described)


@JITFunction
def _double_kernel(x_ptr, n, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n) * 2, mask=i < n)


def run(x):
    compiled_triton.run(_double_kernel, (1,), (x, 6), {"B": 8})
    return x.tolist()


def steps():
    """Outputs and gradients of layers with a product, divisions, exponentials, gathers and masks."""
    torch.manual_seed(0)
    x, w = torch.randn(5, 37, requires_grad=True), torch.randn(19, 37, requires_grad=True)
    target = torch.tensor([3, 18, 0, 7, 7])
    y = lab.cross_entropy(lab.sigmoid(lab.linear(x, w, activation="relu")), target, label_smoothing=0.1)
    native = torch.nn.functional.cross_entropy((x @ w.T).relu().sigmoid(), target, label_smoothing=0.1)
    return [y, *torch.autograd.grad(y, (x, w))], [native, *torch.autograd.grad(native, (x, w))]


def plainest():
    """Features of a CPU that has what every one of its architecture has."""
    return {"vector_bits": 128} | ({"cpu": "x86-64", "features": ""} if "x86_64" in machine.host().triple else {})


@pytest.mark.parametrize("other", [{"vector_bits": 128}, plainest()], ids=["128 bits", "no AVX"])
def test_a_cpu_of_narrow_vectors_computes_the_same(monkeypatch, afresh, other):
    on(monkeypatch, **other)
    for ours, native in zip(*steps(), strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "bits"), [("128", 128), ("512", machine.host.__wrapped__().vector_bits)])
def test_vectors_are_no_wider_than_requested(monkeypatch, given, bits):
    monkeypatch.setenv("GRADLAB_CPU_VECTOR_BITS", given)
    assert machine.host.__wrapped__().vector_bits == bits


@pytest.mark.parametrize("given", ["", "77", "wide"])
def test_vectors_of_no_width_are_refused(monkeypatch, given):
    monkeypatch.setenv("GRADLAB_CPU_VECTOR_BITS", given)
    with pytest.raises(ValueError, match=rf"^GRADLAB_CPU_VECTOR_BITS is '{given}', wanted 128, 256 or 512$"):
        machine.host.__wrapped__()


def test_llvmlite_that_is_missing_is_one_line(monkeypatch, afresh):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    for name in ("_binding", "host"):
        monkeypatch.setattr(machine, name, getattr(machine, name).__wrapped__)
    said = (
        r"^Triton kernels on a CPU are compiled with llvmlite, which is not installed: pip install 'gradlab\[torch\]', "
    )
    with pytest.raises(machine.NoCompiler, match=said + "or set GRADLAB_CPU=interpret$"):
        lab.relu(torch.ones(3))


def test_another_machines_target_is_refused():
    source = compiled_triton.source(_double_kernel, (torch.ones(8), 6), {"B": 8})
    with pytest.raises(ValueError, match=r"^cpu: the target's architecture is 'z80', wanted '\w+'$"):
        triton.compile(source, target=GPUTarget("cpu", "z80", 1))


def test_a_dtype_that_no_kernel_takes_is_refused():
    with pytest.raises(
        TypeError, match=r"^triton: argument of a kernel is a tensor of torch.complex64, wanted one of float64, "
    ):
        run(torch.ones(8, dtype=torch.complex64))


def test_a_full_disk_costs_the_cache_and_nothing_else(monkeypatch, tmp_path, afresh):
    real = os.replace

    def replace(source, target):
        if str(target).startswith(str(tmp_path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    cache_triton._warn.cache_clear()
    with pytest.warns(
        UserWarning, match=r"cannot be written \(No space left on device\): kernels are compiled for this"
    ):
        assert run(torch.ones(8)) == [2.0] * 6 + [1.0] * 2
    assert run(torch.ones(8)) == [2.0] * 6 + [1.0] * 2
