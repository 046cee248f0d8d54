"""mse_loss and binary_cross_entropy_with_logits on torch: options, layouts, extremes, orders, transforms, bad input."""

import decimal
import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import backend
from gradlab.kernels.common import reduce_triton

OPS = {
    "mse_loss": (lab.mse_loss, F.mse_loss),
    "binary_cross_entropy_with_logits": (lab.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits),
}
REDUCTIONS = ["none", "mean", "sum"]


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def drawn(device, *shape, dtype=torch.float64):
    """Predictions or logits, and targets between 0 and 1."""
    x = 3 * torch.randn(shape, dtype=torch.float64)
    return [t.to(device, dtype).requires_grad_() for t in (x, torch.rand(shape, dtype=torch.float64))]


def assert_same(op, args, **options):
    leaves = [a for a in args if a.requires_grad]
    found = []
    for f in op:
        y = f(*args, **options)
        cotangents = [
            torch.ones((), dtype=y.dtype, device=y.device).expand_as(y),
            torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape),
        ]
        cotangents.append(
            torch.randn(
                y.shape[::-1], dtype=y.dtype, device=y.device, generator=torch.Generator(y.device).manual_seed(0)
            ).permute(tuple(reversed(range(y.ndim))))
        )
        found.append([y, *(g for dy in cotangents for g in torch.autograd.grad(y, leaves, dy, retain_graph=True))])
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype
        # Sums of at most a few hundred terms, and logs near 0.
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (37,), (4, 5, 6), (0,), (3, 0)])
def test_value_and_gradients(device, op, reduction, shape):
    if 0 in shape and reduction == "mean":
        assert op[0](*drawn(device, *shape)).isnan()
        return
    assert_same(op, drawn(device, *shape), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "channels last"])
def test_layouts(device, op, reduction, layout):
    x, t = (a.detach() for a in drawn(device, 2, 3, 4, 5))
    x = {
        "transposed": lambda: x.transpose(1, 3).contiguous().transpose(1, 3),
        "sliced": lambda: torch.cat([x, x], 3)[..., ::2],
        "expanded": lambda: x[:1].expand(2, 3, 4, 5),
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
    }[layout]()
    before = x.clone()
    assert_same(op, [x.requires_grad_(), t.requires_grad_()], reduction=reduction)
    assert torch.equal(x, before)


WEIGHTS = [(), (5,), (4, 1), (4, 5), (1, 1)]


@pytest.mark.parametrize(
    ("weight", "pos_weight", "reduction"), list(itertools.product([None, *WEIGHTS], [None, *WEIGHTS], REDUCTIONS))
)
def test_every_pair_of_weights(device, weight, pos_weight, reduction):
    args = drawn(device, 4, 5)
    w, p = (None if s is None else torch.rand(s, dtype=torch.float64, device=device) * 3 for s in (weight, pos_weight))
    assert_same(OPS["binary_cross_entropy_with_logits"], args, weight=w, pos_weight=p, reduction=reduction)


@pytest.mark.parametrize("pos_weight", [None, 2.5])
def test_extreme_logits_keep_their_digits(device, pos_weight):
    x = torch.tensor(
        [-1e4, -700, -100, -37, -1e-8, 0, 1e-8, 1e-300, 37, 100, 700, 1e4], dtype=torch.float64, device=device
    )
    p = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64, device=device)
    for target in (0.0, 1.0, 0.25):
        leaf, t = x.clone().requires_grad_(), torch.full_like(x, target)
        y = lab.binary_cross_entropy_with_logits(leaf, t, reduction="none", pos_weight=p)
        # log sigmoid, spelt out in 400 digits.
        decimal.getcontext().prec = 400
        p10, t10 = decimal.Decimal(pos_weight or 1), decimal.Decimal(target)
        want, slope = [], []
        for value in x.tolist():
            away = (-decimal.Decimal(value)).exp()
            yes, no = 1 / (1 + away), away / (1 + away)
            want.append(float(-p10 * t10 * yes.ln() - (1 - t10) * no.ln()))
            slope.append(float((1 - t10) * yes - p10 * t10 * no))
        torch.testing.assert_close(y, torch.tensor(want, dtype=torch.float64, device=device), rtol=1e-14, atol=0)
        (dx,) = torch.autograd.grad(y.sum(), leaf)
        # A difference of two sure answers has the digits of the larger one.
        digits = 0 if target in (0, 1) else 1e-15
        torch.testing.assert_close(dx, torch.tensor(slope, dtype=torch.float64, device=device), rtol=1e-14, atol=digits)


def test_infinities_and_nan_as_torch(device, op):
    x = torch.tensor([float("nan"), 1.0, 2.0], dtype=torch.float64, device=device)
    t = torch.tensor([0.0, float("nan"), 1.0], dtype=torch.float64, device=device)
    for reduction in REDUCTIONS:
        got, want = (f(x, t, reduction=reduction) for f in op)
        assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lower_precision_errs_at_most_twice_as_much_as_torch(device, op, dtype, reduction):
    args = drawn(device, 2048, dtype=dtype)
    exact = [a.detach().double().requires_grad_() for a in args]
    truth = op[1](*exact, reduction=reduction)
    truth = [truth, *torch.autograd.grad(truth.sum(), exact)]
    rows = [[y, *torch.autograd.grad(y.sum(), args)] for y in (f(*args, reduction=reduction) for f in op)]
    for got, want, true in zip(*rows, truth, strict=True):
        assert got.dtype == dtype
        got, want, true = got.detach(), want.detach(), true.detach()
        # A native sum that happens to be exact leaves room for one rounding.
        rounding = true.abs().max().item() * torch.finfo(dtype).eps / 2
        assert (got - true).abs().max() <= 2 * (want - true).abs().max() + rounding


def test_many_programs_repeat_bit_for_bit(device, op, monkeypatch):
    """Short stretches: the sum of partial sums, the same each time."""
    monkeypatch.setattr(reduce_triton, "CHUNK", 64)
    monkeypatch.setattr(reduce_triton, "block", lambda size, most, least=16: 16)
    args = drawn(device, 5, 67)
    first = op[0](*args)
    torch.testing.assert_close(first, op[1](*args), rtol=1e-13, atol=0)
    assert torch.equal(first, op[0](*args))
    rows = vmap(op[0])(*(a.detach() for a in args))
    torch.testing.assert_close(rows, vmap(op[1])(*(a.detach() for a in args)), rtol=1e-13, atol=0)


def test_gradcheck_and_gradgradcheck(device, op):
    args = drawn(device, 3, 2)
    for reduction in REDUCTIONS:
        fn = lambda *a, r=reduction: op[0](*a, reduction=r)
        assert gradcheck(fn, args)
        assert gradgradcheck(fn, args)


def test_second_order_under_a_plain_sum_with_weights(device):
    x, t = drawn(device, 4)
    w, p = torch.rand(2, 4, dtype=torch.float64, device=device)
    found = []
    for f in OPS["binary_cross_entropy_with_logits"]:
        first = torch.autograd.grad(f(x, t, w, reduction="sum", pos_weight=p), (x, t), create_graph=True)
        found.append([torch.autograd.grad(g.sum(), (x, t), retain_graph=True, materialize_grads=True) for g in first])
    torch.testing.assert_close(*found)


def test_orders_past_the_second(device):
    x, t = drawn(device, 3)
    y = lab.mse_loss(x**2, t)
    want = F.mse_loss(x**2, t)
    for _ in range(4):
        y, want = (torch.autograd.grad(v.sum(), x, create_graph=True)[0] for v in (y, want))
        torch.testing.assert_close(y, want)
    (g,) = torch.autograd.grad(lab.binary_cross_entropy_with_logits(x, t), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="binary_cross_entropy_with_logits: its third derivative"):
        torch.autograd.grad(h.sum(), x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_transforms(device, op, reduction):
    x, t = (a.detach() for a in drawn(device, 3, 4))
    pair = [lambda *a, f=f: f(*a, reduction=reduction) for f in op]
    for dims in ((0, 0), (1, 1)):
        torch.testing.assert_close(*(vmap(f, in_dims=dims)(x, t) for f in pair))
    torch.testing.assert_close(*(vmap(f, in_dims=(0, None))(x, t[0]) for f in pair))
    torch.testing.assert_close(*(vmap(vmap(f))(x[None], t[None]) for f in pair))
    scalars = [lambda *a, f=f: f(*a).cos().sum() for f in pair]
    torch.testing.assert_close(*(vmap(grad(f, argnums=(0, 1)))(x, t) for f in scalars))
    torch.testing.assert_close(*(jacrev(jacrev(f, argnums=0), argnums=1)(x[0], t[0]) for f in scalars))
    torch.testing.assert_close(*(vmap(jacrev(jacrev(f)))(x, t) for f in scalars))


@pytest.mark.parametrize("name", sorted({"aot_eager", backend()}))
def test_one_graph(device, op, name):
    torch.compiler.reset()
    args = drawn(device, 6, 5)
    compiled = torch.compile(lambda *a: op[0](*a) * 2, fullgraph=True, backend=name)
    got, want = compiled(*args), op[0](*args) * 2
    assert torch.equal(got, want)
    for one, other in zip(*(torch.autograd.grad(y, args) for y in (got, want)), strict=True):
        assert torch.equal(one, other)


def test_autocast_raises_to_float32(device, op):
    x, t = drawn(device, 4, 5, dtype=torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        y = op[0](x.bfloat16(), t)
    assert y.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y, (x, t)))


def test_modules_and_convert(device):
    x, t = drawn(device, 4, 5)
    p = torch.rand(5, dtype=torch.float64, device=device)
    cases = [
        ("MSELoss", {}),
        ("MSELoss", {"reduction": "sum"}),
        ("BCEWithLogitsLoss", {}),
        ("BCEWithLogitsLoss", {"pos_weight": p, "weight": p, "reduction": "none"}),
    ]
    for kind, options in cases:
        native = getattr(torch.nn, kind)(**options)
        want = native(x, t)
        modules = [getattr(lab, kind)(**options), lab.convert(getattr(torch.nn, kind)(**options)).model]
        modules[0].load_state_dict(native.state_dict())
        for module in modules:
            assert type(module) is getattr(lab, kind)
            torch.testing.assert_close(module(x, t), want)


BCE = lab.binary_cross_entropy_with_logits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: lab.mse_loss(x, x[0]), r"mse_loss: shape of target is \[3\], wanted \[2, 3\] like input"),
        (
            lambda x: lab.mse_loss(x, x, reduction="avg"),
            "mse_loss: reduction is 'avg', wanted one of 'none', 'mean', 'sum'",
        ),
        (lambda x: lab.mse_loss(x, x.double()), "mse_loss: dtype of target is float64, wanted float32 like input"),
        (lambda x: lab.mse_loss(x, 1.0), "mse_loss: target is a float, wanted a torch.Tensor"),
        (lambda x: BCE(x, x[:1]), r"binary_cross_entropy_with_logits: shape of target is \[1, 3\], wanted \[2, 3\]"),
        (
            lambda x: BCE(x, x, x[:, :2]),
            r"binary_cross_entropy_with_logits: shape of weight is \[2, 2\], wanted one that broadcasts to \[2, 3\]",
        ),
        (
            lambda x: BCE(x, x, pos_weight=x[None]),
            r"binary_cross_entropy_with_logits: shape of pos_weight is \[1, 2, 3\], wanted one that",
        ),
        (
            lambda x: BCE(x, x, x.clone().requires_grad_()),
            "binary_cross_entropy_with_logits: weight is a tensor that requires a gradient",
        ),
        (lambda x: BCE(x, x.long()), "binary_cross_entropy_with_logits: dtype of target is int64"),
        (lambda x: BCE(x, x, reduction=None), "binary_cross_entropy_with_logits: reduction is None, wanted one of"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as caught:
        call(torch.randn(2, 3))
    assert "\n" not in str(caught.value)
