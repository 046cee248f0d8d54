"""relu on torch."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck

import gradlab.torch as lab


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (37,), (5, 7), (2, 3, 4, 5), (0, 3), (3, 0)])
def test_values_and_gradient_are_exact(device, dtype, shape):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    y, wanted = lab.relu(x), torch.relu(x)
    assert torch.equal(y, wanted)
    dy = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(z, x, dy)[0] for z in (y, wanted)))


def test_edges(device):
    x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")], device=device, requires_grad=True)
    y = lab.relu(x)
    torch.testing.assert_close(y, torch.relu(x), rtol=0, atol=0, equal_nan=True)
    dy = torch.ones_like(y)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(torch.relu(x), x, dy)[0])


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_layouts(device, layout):
    x = torch.randn(2, 3, 4, 5, device=device)
    x = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(0, 3),
        "sliced": lambda: x[:, :, ::2, 1:4],
        "expanded": lambda: x[:1].expand(2, 3, 4, 5),
    }[layout]().requires_grad_()
    y = lab.relu(x)
    assert torch.equal(y, torch.relu(x))
    assert y.stride() == torch.relu(x).stride()
    for dy in (torch.ones((), device=device).expand_as(y), torch.randn_like(y), torch.randn(5, 4, 3, 2).to(device)):
        dy = dy if dy.shape == y.shape else torch.randn_like(y).contiguous()
        assert torch.equal(*(torch.autograd.grad(z, x, dy, retain_graph=True)[0] for z in (y, torch.relu(x))))


def test_gradcheck_and_gradgradcheck(device):
    x = torch.randn(3, 5, dtype=torch.float64, device=device)
    x = (x + 0.1 * x.sign()).requires_grad_()
    assert gradcheck(lab.relu, (x,))
    assert gradgradcheck(lab.relu, (x,))


def test_bad_input_is_one_line():
    with pytest.raises(TypeError, match="relu: dtype of input is int64, wanted one of float64"):
        lab.relu(torch.arange(3))
    with pytest.raises(TypeError, match=r"relu: input is a float, wanted a torch\.Tensor"):
        lab.relu(1.0)
