"""Modules and convert: checkpoints both ways, the same results as torch's layers, and what is left alone is said."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn

import gradlab.torch as lab
from gradlab.kernels import conv2d_triton, cross_entropy_triton, linear_triton, relu_triton


def network(layers):
    return nn.Sequential(
        layers.Conv2d(1, 4, 3, stride=2, padding=1),
        layers.ReLU(),
        layers.Conv2d(4, 4, 3, padding="same", groups=2),
        nn.Flatten(),
        layers.Linear(64, 5),
    ).double()


def gradients(model, loss, x, t):
    model.zero_grad()
    value = loss(model(x), t)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def batch(device):
    return torch.randn(3, 1, 8, 8, dtype=torch.float64, device=device), torch.tensor([0, 4, -100], device=device)


def test_checkpoints_load_both_ways(device):
    ours, theirs = network(lab).to(device), network(nn).to(device)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file))
    x, t = batch(device)
    assert_equal(gradients(ours, lab.CrossEntropyLoss(), x, t), gradients(theirs, nn.CrossEntropyLoss(), x, t))
    theirs.load_state_dict(ours.state_dict())


def test_modules_are_torchs_subclasses_and_print_alike():
    assert isinstance(lab.Linear(2, 3), nn.Linear)
    assert repr(lab.Conv2d(2, 4, 3, groups=2)) == repr(nn.Conv2d(2, 4, 3, groups=2))


def test_a_graph_names_its_ops(device):
    """What a traceback, a profiler or `print(y)` shows of a gradient is the op's name."""
    x, t = batch(device)
    x.requires_grad_()
    flat = x.reshape(24, 8)
    weight = torch.ones(4, 1, 3, 3, dtype=x.dtype, device=device)
    results = {
        "Conv2d": lab.conv2d(x, weight),
        "MaxPool2d": lab.max_pool2d(x, 2),
        "Linear": lab.linear(flat, flat),
        "CrossEntropy": lab.cross_entropy(flat[:3], t, reduction="none"),
        "Tanh": lab.tanh(flat),
    }
    for name, y in results.items():
        # A view may come after it.
        nodes = [y.grad_fn, *(node for node, _ in y.grad_fn.next_functions)]
        assert f"{name}Backward" in [node.name() for node in nodes if node is not None]


def test_convert_keeps_the_model_and_swaps_its_layers(device, monkeypatch):
    theirs = network(nn).to(device)
    ours = copy.deepcopy(theirs)
    parameters = list(ours.parameters())
    done = lab.convert(ours)
    assert done.model is ours
    assert all(a is b for a, b in zip(parameters, ours.parameters(), strict=True))
    assert done.swapped == ["0", "1", "2", "4"]
    assert list(done.left) == ["3"]
    assert "Flatten is not among the hand-written layers" in str(done)
    x, t = batch(device)
    assert_equal(gradients(ours, nn.CrossEntropyLoss(), x, t), gradients(theirs, nn.CrossEntropyLoss(), x, t))
    # The layers do run hand-written kernels: without their kernels nothing comes out.
    for module, name in ((linear_triton, "matmul"), (conv2d_triton, "forward"), (relu_triton, "relu_mask")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *a: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ours(x)
    again = lab.convert(ours)
    assert not again.swapped


def test_convert_takes_a_single_layer_and_a_loss(monkeypatch):
    layer = nn.Linear(2, 3)
    assert type(lab.convert(layer).model) is lab.Linear
    loss = lab.convert(nn.CrossEntropyLoss()).model
    monkeypatch.setattr(cross_entropy_triton, "loss", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


def test_convert_says_what_it_leaves_alone():
    class Own(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    model = nn.ModuleDict(
        {
            "own": Own(2, 2),
            "circular": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
            "relu": nn.ReLU(inplace=True),
            "norm": nn.LayerNorm(2),
            "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
            "weighted": nn.CrossEntropyLoss(torch.ones(2)),
            "fine": nn.Linear(2, 2),
        }
    )
    done = lab.convert(model)
    assert done.swapped == ["loss", "weighted", "fine"]
    assert set(done.left) == {"own", "circular", "relu", "norm"}
    assert "padding_mode 'circular', hand-written only with 'zeros'" in done.left["circular"]
    x, t = torch.randn(3, 2), torch.tensor([0, 1, 1])
    for ours, theirs in (
        (model["loss"], nn.CrossEntropyLoss(label_smoothing=0.1)),
        (model["weighted"], nn.CrossEntropyLoss()),
    ):
        torch.testing.assert_close(ours(x, t), theirs(x, t))
    assert torch.equal(model["own"](torch.zeros(1, 2)), model["own"].bias[None] + 1)


def test_converted_model_trains(device):
    model = lab.convert(network(nn).to(device)).model
    optimizer = lab.Adam(model.parameters(), lr=0.01)
    x, t = batch(device)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = lab.CrossEntropyLoss()(model(x), t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_cross_entropy_loss_takes_a_cap_and_a_z_loss_too():
    x, t, w = torch.randn(3, 4), torch.tensor([0, 1, 3]), torch.rand(4)
    options = {"label_smoothing": 0.1, "z_loss": 0.3, "softcap": 2.0}
    torch.testing.assert_close(lab.CrossEntropyLoss(w, **options)(x, t), lab.cross_entropy(x, t, w, **options))


BAD = {
    "mode": (
        lambda: lab.Conv2d(1, 1, 3, padding_mode="reflect"),
        ValueError,
        "Conv2d: padding_mode is 'reflect', wanted 'zeros'",
    ),
    "inplace": (lambda: lab.ReLU(inplace=True), ValueError, "ReLU: inplace is True, wanted False"),
    "no module": (
        lambda: lab.convert(torch.relu),
        TypeError,
        "convert: model is a builtin_function_or_method, wanted a torch.nn",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
