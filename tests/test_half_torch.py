"""Half precision on torch, judged by error against float64: at most twice the native layer's."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.kernels.runtime.launch_triton import interpreting

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def native_linear(x, w, b):
    return F.relu(F.linear(x, w, b))


def results(layer, inputs, extra, dy):
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = layer(*inputs, *extra)
    return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def ratio(hand, native, inputs, extra, dy):
    """Each result's root-mean-square error over the native's, both against float64 on the same rounded inputs."""
    truth = results(native, [t.double() for t in inputs], extra, dy.double())
    ours, theirs = results(hand, inputs, extra, dy), results(native, inputs, extra, dy)
    found = []
    for t, a, b in zip(truth, ours, theirs, strict=True):
        assert a.dtype == b.dtype == inputs[0].dtype
        # The error that rounding a perfect result gives is nobody's fault: no less is asked of the native one.
        rounding = (t - t.to(a.dtype).double()).square().mean().sqrt()
        error = [(t - z.double()).square().mean().sqrt() for z in (a, b)]
        found.append((error[0] / torch.maximum(error[1], rounding).clamp_min(1e-30)).item())
    return found


@HALF
def test_linear(device, dtype):
    x, w, b = (torch.randn(s, device=device).to(dtype) for s in ((64, 96), (48, 96), (48,)))
    dy = torch.randn(64, 48, device=device).to(dtype)
    found = ratio(lambda *a: lab.linear(*a, activation="relu"), native_linear, (x, w, b), (), dy)
    assert max(found) <= 2, found


@HALF
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(device, dtype, reduction):
    x = (3 * torch.randn(64, 50, device=device)).to(dtype)
    t = torch.randint(0, 50, (64,), device=device)
    dy = (torch.randn(64, device=device) if reduction == "none" else torch.tensor(1.5, device=device)).to(dtype)
    found = ratio(
        lambda x, t: lab.cross_entropy(x, t, reduction=reduction),
        lambda x, t: F.cross_entropy(x, t, reduction=reduction),
        (x,),
        (t,),
        dy,
    )
    assert max(found) <= 2, found


@pytest.mark.parametrize("running", [contextlib.nullcontext, interpreting])
def test_bfloat16_rounds_to_nearest_even(device, running):
    """1 + 2^-8 lies between two bfloat16 neighbours: to even is 1, and 1 + 3 * 2^-8 goes up; truncation goes down."""
    x = torch.tensor([[1.0, 2.0**-8], [1.0, 3 * 2.0**-8]], device=device).to(torch.bfloat16)
    with running():
        y = lab.linear(x, torch.ones(1, 2, dtype=torch.bfloat16, device=device))
    assert y.flatten().tolist() == [1.0, 1.0 + 2.0**-6]
