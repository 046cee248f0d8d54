"""linear on torch: values, derivatives up to the third, layouts, dtypes, bad input."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gradlab.torch as lab
from gradlab.kernels.common import column_sum_triton, matmul_triton
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.tiles_triton import Tile

EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
RELU = pytest.mark.parametrize("activation", [None, "relu"])


def random(*shape, dtype=torch.float64, device="cpu", grad=True):
    return torch.randn(shape, dtype=torch.float64, device=device).to(dtype).requires_grad_(grad)


def native(x, w, b=None, activation=None):
    y = F.linear(x, w, b)
    return F.relu(y) if activation == "relu" else y


def close(got, wanted, terms, dtype=torch.float64):
    """Equal but for the rounding of sums of `terms`, each of the order of the largest value, and of the result."""
    carried = EPS[dtype] if dtype == torch.float64 else EPS[torch.float32]
    allowed = (8 + terms) * carried + EPS[dtype] if dtype in (torch.float16, torch.bfloat16) else (8 + terms) * carried
    scale = wanted.abs().max().item() if wanted.numel() else 1.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2 * allowed * max(scale, 1.0))


@RELU
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(device, lead, bias, activation):
    x, w = random(*lead, 7, device=device), random(4, 7, device=device)
    b = random(4, device=device) if bias else None
    inputs = [t for t in (x, w, b) if t is not None]
    y, wanted = lab.linear(x, w, b, activation=activation), native(x, w, b, activation)
    close(y, wanted, 7)
    dy = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        close(got, want, 20)


@RELU
def test_gradcheck_and_gradgradcheck(device, activation):
    inputs = (random(2, 3, 4, device=device), random(3, 4, device=device), random(3, device=device))

    def fn(x, w, b):
        return lab.linear(x, w, b, activation=activation)

    assert native(*inputs).abs().min() > 1e-4, "a difference would straddle the kink"
    assert gradcheck(fn, inputs)
    assert gradgradcheck(fn, inputs)


@RELU
def test_hessian_of_a_scalar_loss_is_the_natives(device, activation):
    w, b = random(3, 4, device=device), random(3, device=device)
    x = random(2, 4, device=device)

    def hessian(layer):
        return torch.autograd.functional.hessian(
            lambda *a: layer(*a, activation=activation).square().sum(), (x, w, b), vectorize=False
        )

    for got, want in zip(hessian(lab.linear), hessian(native), strict=True):
        for one, other in zip(got, want, strict=True):
            close(one, other, 30)


def test_third_derivative_is_exact(device):
    x, w = random(2, 3, device=device), random(2, 3, device=device)

    def third(layer):
        y = layer(x, w, activation="relu").pow(3).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
        return torch.autograd.grad(h.square().sum(), w)[0]

    wanted = third(native)
    assert wanted.abs().max() > 0
    close(third(lab.linear) / wanted.abs().max(), wanted / wanted.abs().max(), 100)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t(),
    "sliced": lambda t: torch.cat([t, t], 1)[:, ::2] * 1 if t.shape[1] < 2 else torch.stack([t, -t], 2)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
    "stride 0 twice": lambda t: t[:1, :1].expand_as(t),
}


@RELU
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["x", "w", "dy"])
def test_any_strides(device, layout, which, activation):
    x, w, dy = random(5, 6, device=device, grad=False), random(3, 6, device=device), random(5, 3, device=device)
    x, w, dy = (layout(t.detach()) if name == which else t.detach() for name, t in (("x", x), ("w", w), ("dy", dy)))
    x, w = x.requires_grad_(), w.requires_grad_()
    got = torch.autograd.grad(lab.linear(x, w, activation=activation), (x, w), dy)
    want = torch.autograd.grad(native(x, w, activation=activation), (x, w), dy)
    for one, other in zip(got, want, strict=True):
        close(one, other, 12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_strided_half_inputs_on_every_device(device, dtype):
    x = torch.randn(6, 8, device=device).to(dtype)[:, ::2]
    b = torch.ones((), device=device, dtype=dtype).expand(3)
    w = torch.randn(4, 3, device=device).to(dtype).t()
    close(lab.linear(x, w, b), native(x.double(), w.double(), b.double()), 4, dtype)


def test_sum_backward_hands_over_an_expanded_gradient(device):
    x, w, b = random(5, 4, device=device), random(3, 4, device=device), random(3, device=device)
    lab.linear(x, w, b, activation="relu").sum().backward()
    got = [t.grad.clone() for t in (x, w, b)]
    for t in (x, w, b):
        t.grad = None
    native(x, w, b, "relu").sum().backward()
    for one, t in zip(got, (x, w, b), strict=True):
        close(one, t.grad, 10)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_each_subset_of_gradients(device, needed):
    inputs = [random(3, 4, device=device), random(2, 4, device=device), random(2, device=device)]
    inputs = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    lab.linear(*inputs, activation="relu").square().sum().backward()
    got = [t.grad for t in inputs]
    again = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    native(*again, activation="relu").square().sum().backward()
    for i, (one, t) in enumerate(zip(got, again, strict=True)):
        assert (one is None) == (i not in needed)
        if one is not None:
            close(one, t.grad, 10)


def test_backward_twice_and_repeat_give_the_same_bits(device):
    x, w, b = (random(*s, device=device, dtype=torch.float32) for s in ((9, 5), (4, 5), (4,)))
    y = lab.linear(x, w, b, activation="relu")
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
    second = torch.autograd.grad(y, (x, w, b), dy)
    other = torch.autograd.grad(lab.linear(x, w, b, activation="relu"), (x, w, b), dy)
    for a, c, d in zip(first, second, other, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(a, d)


def test_inputs_and_cotangent_stay_bit_for_bit(device):
    tensors = [random(3, 4, device=device), random(2, 4, device=device), random(2, device=device)]
    dy = torch.randn(3, 2, dtype=torch.float64, device=device)
    before = [t.detach().clone() for t in (*tensors, dy)]
    lab.linear(*tensors, activation="relu").backward(dy)
    for t, was in zip((*tensors, dy), before, strict=True):
        assert torch.equal(t.detach(), was)


def test_gradient_lies_as_its_tensor(device):
    x, w = random(5, 4, device=device), random(3, 4, device=device)
    lab.linear(x, w).sum().backward()
    assert w.grad.is_contiguous()
    assert x.grad.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (3, 0)])
def test_empty_axes_work_as_natives(device, shape):
    x = torch.zeros(*shape, device=device, requires_grad=True)
    w = torch.randn(2, shape[-1], device=device, requires_grad=True)
    b = torch.randn(2, device=device, requires_grad=True)
    y, wanted = lab.linear(x, w, b), F.linear(x, w, b)
    assert torch.equal(y, wanted)
    for got, want in zip(
        torch.autograd.grad(y.sum(), (x, w, b)), torch.autograd.grad(wanted.sum(), (x, w, b)), strict=True
    ):
        assert torch.equal(got, want)


def test_weight_without_an_output_axis(device):
    x, w, b = random(5, 4, device=device), random(4, device=device), random(device=device)
    close(lab.linear(x, w), F.linear(x, w), 4)
    close(lab.linear(x, w, b), x @ w + b, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_programs_and_partial_tiles(device, dtype, monkeypatch):
    """Small tiles: many programs, ragged edges, a K loop."""
    monkeypatch.setattr(matmul_triton, "tile", lambda what, like, M, K, N: Tile(16, 16, 16))
    monkeypatch.setattr(column_sum_triton, "block", lambda size, most, least=16: 16)
    x, w, b = (random(*s, dtype=dtype, device=device) for s in ((37, 50), (35, 50), (35,)))
    y = lab.linear(x, w, b, activation="relu")
    close(y, native(x.double(), w.double(), b.double(), "relu"), 50, dtype)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, w, b), dy)
    masked_dy = torch.where(y > 0, dy, 0).double()
    for one, want in zip(got, (masked_dy @ w.double(), masked_dy.t() @ x.double(), masked_dy.sum(0)), strict=True):
        close(one, want, 50, dtype)


@pytest.mark.parametrize("masked", [False, True])
def test_tall_column_sum_in_two_passes(device, masked):
    a, mask = torch.randn(1100, 20, device=device), torch.randn(1100, 20, device=device)
    wanted = torch.where(mask > 0, a, 0) if masked else a
    close(column_sum(a, mask if masked else None), wanted.double().sum(0), 1100, torch.float32)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_shapes_at_random(M, K, N, relu):
    activation = "relu" if relu else None
    x, w, b = random(M, K), random(N, K), random(N)
    y, wanted = lab.linear(x, w, b, activation=activation), native(x, w, b, activation)
    close(y, wanted, K)
    dy = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(wanted, (x, w, b), dy), strict=True
    ):
        close(got, want, max(M, K, N))


T = torch.zeros
BAD = {
    "shapes": (lambda: lab.linear(T(2, 3), T(4, 5)), ValueError, r"linear: weight of shape \[4, 5\] is K = 5, wanted K = 3"),
    "bias": (lambda: lab.linear(T(2, 3), T(4, 3), T(5)), ValueError, r"linear: bias of shape \[5\] is N = 5, wanted N = 4"),
    "bias rank": (lambda: lab.linear(T(2, 3), T(4, 3), T(4, 1)), ValueError, r"linear: bias of shape \[4, 1\]"),
    "weight rank": (lambda: lab.linear(T(2, 3), T(4, 3, 1)), ValueError, r"linear: weight of shape \[4, 3, 1\]"),
    "scalar": (lambda: lab.linear(T(()), T(4, 1)), ValueError, r"linear: input of shape \[\]"),
    "mixed": (lambda: lab.linear(T(2, 3), T(4, 3).double()), TypeError, "dtype of weight is float64, wanted float32 like"),
    "integers": (lambda: lab.linear(T(2, 3).long(), T(4, 3)), TypeError, "dtype of input is int64, wanted one of float64"),
    "complex": (lambda: lab.linear(T(2, 3) * 1j, T(4, 3)), TypeError, "dtype of input is complex64"),
    "no tensor": (lambda: lab.linear([1.0], T(4, 1)), TypeError, "input is a list, wanted a torch.Tensor"),
    "sparse": (lambda: lab.linear(T(2, 3).to_sparse(), T(4, 3)), TypeError, "layout of input is torch.sparse_coo"),
    "device": (lambda: lab.linear(T(2, 3), T(4, 3, device="meta")), ValueError, "device of weight is meta, wanted cpu like input"),
    "activation": (lambda: lab.linear(T(2, 3), T(4, 3), activation="gelu"), ValueError, "activation is 'gelu', wanted one of"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
