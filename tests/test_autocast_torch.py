"""torch.autocast and GradScaler through the hand-written layers: cast where torch casts, as good, in one graph."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab

HALF = [torch.bfloat16, torch.float16]


def draws(device, *shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]


OPS = {
    "linear": (lab.linear, F.linear, [(7, 33), (5, 33), (5,)]),
    "conv2d": (lab.conv2d, F.conv2d, [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]),
    "relu": (lab.relu, F.relu, [(4, 5)]),
    "linear_cross_entropy": (
        lambda h, w, b: lab.linear_cross_entropy(h, w, torch.arange(7, device=h.device) % 5, b, reduction="none"),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), torch.arange(7, device=h.device) % 5, reduction="none"),
        [(7, 33), (5, 33), (5,)],
    ),
    "cross_entropy": (
        lambda x: lab.cross_entropy(x, x.detach().argmin(1)),
        lambda x: F.cross_entropy(x, x.detach().argmin(1)),
        [(6, 5)],
    ),
}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_results_and_gradients_have_torchs_dtypes_and_its_error(device, name, dtype):
    hand, native, shapes = OPS[name]
    found = []
    for fn in (hand, native):
        args = draws(device, *shapes)
        with torch.autocast(device.type, dtype):
            y = fn(*args)
        dy = torch.ones_like(y) if y.ndim == 0 else torch.linspace(-1, 1, y.numel(), device=device).reshape(y.shape)
        found.append((y, *torch.autograd.grad(y, args, dy.to(y.dtype))))
    exact = [a.detach().double().requires_grad_() for a in draws(device, *shapes)]
    truth = native(*exact)
    dy = (
        torch.ones_like(truth)
        if truth.ndim == 0
        else torch.linspace(-1, 1, truth.numel(), device=device).reshape(truth.shape)
    )
    truth = (truth, *torch.autograd.grad(truth, exact, dy.to(found[0][0].dtype).double()))
    for got, want, true in zip(*found, truth, strict=True):
        assert got.dtype == want.dtype
        got, want, true = got.detach(), want.detach(), true.detach()
        # A native layer that happens to be exact leaves room for one rounding.
        rounding = true.abs().max().item() * torch.finfo(got.dtype).eps / 2
        assert (got - true).abs().max() <= 2 * (want - true).abs().max() + rounding


def test_float64_and_disabled_regions_stay(device):
    x, w, b = draws(device, (7, 33), (5, 33), (5,), dtype=torch.float64)
    with torch.autocast(device.type, torch.bfloat16):
        assert lab.linear(x, w, b).dtype == torch.float64
        with torch.autocast(device.type, enabled=False):
            assert lab.linear(x.float(), w.float()).dtype == torch.float32
    assert lab.linear(x.float(), w.float()).dtype == torch.float32


def test_mixed_dtypes_are_cast_within_and_refused_without(device):
    x, w, b = draws(device, (7, 33), (5, 33), (5,))
    with torch.autocast(device.type, torch.bfloat16):
        assert lab.linear(x.bfloat16(), w, b).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="linear: dtype of weight is float32, wanted bfloat16 like input"):
        lab.linear(x.bfloat16(), w, b)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_one_graph_under_autocast(device, name):
    torch.compiler.reset()
    hand, _, shapes = OPS[name]
    args = draws(device, *shapes)

    def cast(*args):
        with torch.autocast(device.type, torch.bfloat16):
            return hand(*args)

    got, want = torch.compile(cast, fullgraph=True, backend="aot_eager")(*args), cast(*args)
    assert got.dtype == want.dtype == torch.bfloat16
    assert torch.equal(got, want)
    for one, other in zip(*(torch.autograd.grad(y.float().sin().sum(), args) for y in (got, want)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_grad_scaler_scales_skips_and_steps(device, optimizer):
    """As torch's own layers and optimizer in the same loop: an overflow halves the scale and moves no weight."""
    curves = []
    for layers, losses, optim in ((lab, lab, lab), (torch.nn, F, torch.optim)):
        torch.manual_seed(0)
        model = layers.Linear(33, 5).to(device)
        stepper = getattr(optim, optimizer)(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**15)
        (x,) = draws(device, (7, 33))
        seen = []
        for k in range(6):
            stepper.zero_grad()
            with torch.autocast(device.type, torch.float16):
                # The third batch overflows float16 in backward.
                loss = losses.cross_entropy(model(x.detach()), torch.arange(7, device=device) % 5) * (
                    1e6 if k == 2 else 1
                )
            before = model.weight.detach().clone()
            scaler.scale(loss).backward()
            scaler.step(stepper)
            scaler.update()
            assert torch.equal(before, model.weight.detach()) == (k == 2)
            seen.append(loss.item())
        assert scaler.get_scale() == 2.0**14
        curves.append(seen)
    assert curves[0][0] > curves[0][-1]
    assert curves[0] == pytest.approx(curves[1], rel=4e-3)
