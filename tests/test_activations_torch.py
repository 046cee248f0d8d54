"""sigmoid and tanh on torch: digits at both ends and near 0, layouts, every order, transforms, modules, bad input."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import backend
from gradlab.kernels.common import elementwise_triton

OPS = {"sigmoid": (lab.sigmoid, torch.sigmoid), "tanh": (lab.tanh, torch.tanh)}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def drawn(device, *shape, dtype=torch.float64):
    return (2 * torch.randn(shape, dtype=torch.float64)).to(device, dtype).requires_grad_()


# A few roundings: exp, a sum, a quotient.
ULPS = {torch.float64: 8, torch.float32: 8}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_digit_from_the_smallest_to_the_largest(device, op, dtype):
    hand, native = op
    size = torch.logspace(-300 if dtype == torch.float64 else -37, 2.8, 4001, dtype=torch.float64)
    x = torch.cat([-size.flip(0), torch.zeros(1, dtype=torch.float64), size]).to(device, dtype)
    want = native(x.double())
    normal = want.abs() >= torch.finfo(dtype).tiny
    error = ((hand(x).double() - want) / want).abs()[normal]
    assert error.nan_to_num().max() <= ULPS[dtype] * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 2)


def test_the_gradients_digits_where_it_vanishes(device, op):
    """1 - y^2 and y (1 - y) near the flat ends: as many digits as y leaves."""
    hand, native = op
    x = torch.linspace(-18, 18, 721, dtype=torch.float64, device=device, requires_grad=True)
    got, want = (torch.autograd.grad(f(x).sum(), x)[0] for f in (hand, native))
    assert ((got - want).abs() <= 8 * torch.finfo(torch.float64).eps + 1e-12 * want).all()


def test_infinities_nan_and_signed_zero(device, op):
    hand, native = op
    x = torch.tensor(
        [float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e308, -1e308], dtype=torch.float64, device=device
    )
    got, want = hand(x), native(x)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    # A NaN's sign says nothing.
    assert torch.equal(got.signbit()[~want.isnan()], want.signbit()[~want.isnan()])


@pytest.mark.parametrize("layout", ["plain", "transposed", "sliced", "expanded", "channels last", "scalar", "empty"])
def test_layouts_and_cotangents(device, op, layout):
    hand, native = op
    x = drawn(device, 2, 3, 4, 5).detach()
    x = {
        "plain": lambda: x,
        "transposed": lambda: x.transpose(1, 3),
        "sliced": lambda: x[:, ::2, 1:3],
        "expanded": lambda: x[:1].expand(2, 3, 4, 5),
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "scalar": lambda: x[0, 0, 0, 0],
        "empty": lambda: x[:0],
    }[layout]().requires_grad_()
    before = x.detach().clone()
    y, want = hand(x), native(x)
    assert y.stride() == want.stride()
    torch.testing.assert_close(y, want, rtol=4e-15, atol=0)
    for dy in (
        torch.ones((), dtype=x.dtype, device=device).expand_as(y),
        torch.randn_like(y),
        torch.randn(y.shape[::-1], dtype=x.dtype, device=device).permute(tuple(reversed(range(y.ndim)))),
    ):
        one, other = (torch.autograd.grad(z, x, dy, retain_graph=True)[0] for z in (y, want))
        torch.testing.assert_close(one, other, rtol=1e-13, atol=2e-14)
    assert torch.equal(x, before)


def test_small_tiles(device, op, monkeypatch):
    monkeypatch.setattr(elementwise_triton, "block", lambda size, most, least=16: 16 if least == 16 else 2)
    hand, native = op
    x = drawn(device, 7, 45)
    torch.testing.assert_close(hand(x), native(x), rtol=4e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_errs_at_most_twice_as_much_as_torch(device, op, dtype):
    hand, native = op
    x = drawn(device, 4096, dtype=dtype)
    dy = torch.randn(4096, device=device).to(dtype)
    exact = x.detach().double().requires_grad_()
    truth = native(exact)
    truth = (truth, *torch.autograd.grad(truth, exact, dy.double()))
    rows = [(y, *torch.autograd.grad(y, x, dy)) for y in (hand(x), native(x))]
    for got, want, true in zip(*rows, truth, strict=True):
        assert got.dtype == dtype
        assert (got - true).abs().max() <= 2 * (want - true).abs().max()
        assert (got - true).abs().mean() <= 2 * (want - true).abs().mean()


def test_gradcheck_and_gradgradcheck(device, op):
    x = drawn(device, 3, 5)
    assert gradcheck(op[0], (x,))
    assert gradgradcheck(op[0], (x,))


def test_every_order(device, op):
    """To the fifth, each under a plain sum, by what torch says."""
    x = drawn(device, 6)
    ys = [f(x) for f in op]
    for _ in range(5):
        ys = [torch.autograd.grad(y.sum(), x, create_graph=True)[0] for y in ys]
        torch.testing.assert_close(*ys, rtol=1e-10, atol=1e-11)


def test_transforms(device, op):
    x = drawn(device, 3, 4, 5).detach()
    for dim in range(3):
        torch.testing.assert_close(*(vmap(f, in_dims=dim, out_dims=1)(x) for f in op))
    scalars = [lambda x, f=f: (f(x) ** 2).sum() for f in op]
    torch.testing.assert_close(*(vmap(vmap(grad(f), in_dims=1), in_dims=0)(x) for f in scalars))
    torch.testing.assert_close(*(jacrev(f)(x[0]) for f in op))
    torch.testing.assert_close(*(vmap(jacrev(jacrev(f)))(x[0]) for f in scalars))


@pytest.mark.parametrize("name", sorted({"aot_eager", backend()}))
def test_one_graph(device, op, name):
    torch.compiler.reset()
    x = drawn(device, 6, 5)
    compiled = torch.compile(lambda x: op[0](x) * 2, fullgraph=True, backend=name)
    got, want = compiled(x), op[0](x) * 2
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, want)))


def test_modules_and_convert(device, op):
    x = drawn(device, 3, 4)
    kind = op[0].__name__.capitalize()
    native = getattr(torch.nn, kind)()
    want = native(x)
    for module in (getattr(lab, kind)(), lab.convert(native).model):
        assert type(module) is getattr(lab, kind)
        torch.testing.assert_close(module(x), want)
        assert type(module(x).grad_fn).__name__.startswith(kind)


def test_bad_input_is_one_line(op):
    name = op[0].__name__
    with pytest.raises(TypeError, match=f"^{name}: dtype of input is int64, wanted one of float64"):
        op[0](torch.arange(3))
    with pytest.raises(TypeError, match=rf"^{name}: input is a float, wanted a torch\.Tensor"):
        op[0](1.0)
    with pytest.raises(TypeError, match=rf"^{name}: layout of input is torch\.sparse_coo"):
        op[0](torch.eye(3).to_sparse())
