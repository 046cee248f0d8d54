"""cross_entropy on torch: values, both derivatives, ignored rows, extreme logits, bad input."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gradlab.torch as lab
from gradlab.kernels import cross_entropy_triton as kernels

REDUCTION = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
IGNORE = pytest.mark.parametrize("ignore", [-100, -1, 2, None])


def drawn(M, V, device, dtype=torch.float64, ignore=None, spread=3.0):
    x = (spread * torch.randn(M, V, dtype=torch.float64, device=device)).to(dtype).requires_grad_()
    t = torch.randint(0, V, (M,), device=device)
    if ignore is not None:
        t[::3] = ignore
    return x, t


def close(got, wanted, terms, eps=2.0**-53):
    scale = max(wanted.abs().max().item() if wanted.numel() else 0.0, 1.0)
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2 * (8 + terms) * eps * scale)


@REDUCTION
@IGNORE
def test_values_and_gradients(device, reduction, ignore):
    x, t = drawn(7, 5, device, ignore=ignore)
    options = {"reduction": reduction} | ({} if ignore is None else {"ignore_index": ignore})
    y, wanted = lab.cross_entropy(x, t, **options), F.cross_entropy(x, t, **options)
    close(y, wanted, 12)
    # A cotangent other than 1, and a different one for each row.
    dy = torch.randn_like(y)
    close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(wanted, x, dy)[0], 12)


@REDUCTION
@IGNORE
def test_gradcheck_and_gradgradcheck(device, reduction, ignore):
    x, t = drawn(4, 3, device, ignore=ignore)

    def fn(x):
        return lab.cross_entropy(x, t, reduction=reduction, ignore_index=-100 if ignore is None else ignore)

    assert gradcheck(fn, (x,))
    assert gradgradcheck(fn, (x,))


@REDUCTION
def test_hessian_is_the_natives(device, reduction):
    x, t = drawn(4, 3, device, ignore=-100)
    weight = torch.randn(4, dtype=torch.float64, device=device) if reduction == "none" else 2.5

    def hessian(layer):
        return torch.autograd.functional.hessian(lambda x: (weight * layer(x, t, reduction=reduction)).sum(), x)

    wanted = hessian(F.cross_entropy)
    assert wanted.abs().max() > 0
    close(hessian(lab.cross_entropy), wanted, 12)


def test_third_derivative_is_refused_not_lost(device):
    x, t = drawn(2, 3, device)
    (g,) = torch.autograd.grad(lab.cross_entropy(x, t), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_entropy: its third derivative is not implemented"):
        h.sum().backward()


@pytest.mark.parametrize("shift", [1e4, -1e4, 200.0, -200.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shifted_logits(device, shift, dtype):
    """A maximum that starts at 0 and not at -inf gives inf here; a log-sum-exp kept whole loses digits."""
    eps = torch.finfo(dtype).eps / 2
    x, t = drawn(5, 6, device, dtype)
    x = (x.detach() + shift).requires_grad_()
    y, wanted = lab.cross_entropy(x, t, reduction="none"), F.cross_entropy(x.double(), t, reduction="none")
    close(y, wanted, 6, eps)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0], 6, eps)


def test_rows_of_minus_infinity(device):
    x = torch.full((3, 5), -float("inf"), device=device, dtype=torch.float64)
    x[0, 1], x[1, 0], x[1, 3] = 0.3, 1.0, 2.0
    x[2] = 1.0
    t = torch.tensor([1, 3, 0], device=device)
    x.requires_grad_()
    y, wanted = lab.cross_entropy(x, t, reduction="none"), F.cross_entropy(x, t, reduction="none")
    close(y, wanted, 5)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0], 5)


@REDUCTION
def test_every_row_ignored(device, reduction):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    t = torch.full((3,), -100, device=device)
    y, wanted = lab.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, reduction=reduction)
    torch.testing.assert_close(y, wanted, equal_nan=True)
    got = torch.autograd.grad(y.sum(), x)[0]
    assert torch.equal(got, torch.zeros_like(x))


@REDUCTION
def test_no_rows(device, reduction):
    x, t = torch.zeros(0, 4, device=device, requires_grad=True), torch.zeros(0, dtype=torch.long, device=device)
    y, wanted = lab.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, reduction=reduction)
    torch.testing.assert_close(y, wanted, equal_nan=True)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 4)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(device, layout):
    x, t = drawn(6, 6, device)
    x = {
        "transposed": lambda: x.detach().t(),
        "sliced": lambda: x.detach()[::2].repeat(2, 1)[:, ::2],
        "expanded": lambda: x.detach()[:1].expand(6, 6),
    }[layout]().requires_grad_()
    t = (t % x.shape[1]).repeat(2)[::2]
    u = torch.randn(x.shape[1], x.shape[0], dtype=torch.float64, device=device).t()

    def both(layer):
        y = layer(x, t, reduction="none")
        (g,) = torch.autograd.grad(y, x, torch.ones((), device=device, dtype=y.dtype).expand_as(y), create_graph=True)
        return y, g, torch.autograd.grad(g, x, u)[0]

    for got, want in zip(both(lab.cross_entropy), both(F.cross_entropy), strict=True):
        close(got, want, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_programs_and_partial_tiles(device, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "_tile", lambda x, M, V: (2, 16))
    monkeypatch.setattr(kernels, "block", lambda size, most, least=16: 4)
    x, t = drawn(7, 41, device, dtype, ignore=-100)
    y = lab.cross_entropy(x, t)
    wide = x.detach().double().requires_grad_()
    wanted = F.cross_entropy(wide, t)
    eps = 2.0**-24 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(y.double(), wanted, rtol=60 * 2.0**-24 + eps, atol=0)
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (wanted_g,) = torch.autograd.grad(wanted, wide, create_graph=True)
    u = torch.randn_like(x)
    for got, want in (
        (g, wanted_g),
        *[(torch.autograd.grad(a, b, u.to(b.dtype))[0] for a, b in ((g, x), (wanted_g, wide)))],
    ):
        assert (got.double() - want).abs().max() <= (60 * 2.0**-24 + eps) * max(want.abs().max().item(), 0.25)


def test_same_bits_and_nothing_changed(device):
    x, t = drawn(9, 5, device, torch.float32)
    before = x.detach().clone(), t.clone()
    y = lab.cross_entropy(x, t)
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    second = torch.autograd.grad(y, x)[0]
    assert torch.equal(first, second)
    assert torch.equal(first, torch.autograd.grad(lab.cross_entropy(x, t), x)[0])
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(t, before[1])


@given(st.integers(1, 20), st.integers(1, 70), st.sampled_from(["none", "mean", "sum"]), st.booleans())
def test_shapes_at_random(M, V, reduction, ignored):
    x, t = drawn(M, V, "cpu", ignore=-100 if ignored and M > 1 else None)
    y, wanted = lab.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, reduction=reduction)
    if torch.isnan(wanted).any():
        assert torch.isnan(y).all()
        return
    close(y, wanted, M + V)
    dy = torch.randn_like(y)
    close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(wanted, x, dy)[0], M + V)


@pytest.mark.parametrize(("row", "value"), [(1, 5), (2, -1), (0, 10**9)])
def test_class_out_of_range(device, row, value):
    x, t = drawn(3, 5, device)
    t[row] = value
    if device.type == "cpu":
        with pytest.raises(IndexError, match=rf"cross_entropy: target\[{row}\] is {value}, wanted a class in \[0, 5\)"):
            lab.cross_entropy(x, t)
        return
    y = lab.cross_entropy(x, t, reduction="none")
    assert y.isnan().nonzero().flatten().tolist() == [row]
    assert torch.autograd.grad(y.sum(), x)[0].isnan().any(1).nonzero().flatten().tolist() == [row]


def test_compiled_path_poisons_a_class_out_of_range():
    """What a GPU would compute where nothing may look: the host check is passed by, the kernel answers NaN."""
    x, t = drawn(3, 5, "cpu")
    s = torch.stack([x.detach().max(1).values, torch.zeros(3, dtype=torch.float64)])
    t[1] = 7
    dx = kernels.pullback(torch.ones(3, dtype=torch.float64), x.detach(), s, t, -100)
    assert dx.isnan().all(1).tolist() == [False, True, False]


X, I = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
BAD = {
    "rank": (lambda: lab.cross_entropy(X[0], I[0]), ValueError, r"input of shape \[3\] is 1-dimensional, wanted \[M V\]"),
    "rows": (lambda: lab.cross_entropy(X, I[:1]), ValueError, r"target of shape \[1\] is M = 1, wanted M = 2 like input's"),
    "no classes": (lambda: lab.cross_entropy(X[:, :0], I), ValueError, r"input of shape \[2, 0\] is V = 0, wanted at least"),
    "float target": (lambda: lab.cross_entropy(X, I.float()), TypeError, "dtype of target is float32, wanted int64 or int32"),
    "integer logits": (lambda: lab.cross_entropy(X.int(), I), TypeError, "dtype of input is int32, wanted one of float64"),
    "reduction": (lambda: lab.cross_entropy(X, I, reduction="avg"), ValueError, "reduction is 'avg', wanted one of 'none'"),
    "ignore_index": (lambda: lab.cross_entropy(X, I, ignore_index=1.5), TypeError, "ignore_index is 1.5, wanted an int"),
    "device": (lambda: lab.cross_entropy(X, I.to("meta")), ValueError, "device of target is meta, wanted cpu or cuda"),
    "no tensor": (lambda: lab.cross_entropy(X, [0, 1]), TypeError, "target is a list, wanted a torch.Tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match="cross_entropy: " + message) as caught:
        call()
    assert "\n" not in str(caught.value)
