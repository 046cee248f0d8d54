"""cross_entropy of classes in long rows on torch, which programs walk over, with a CPU's tiles and a GPU's."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.kernels import cross_entropy_triton as kernels
from gradlab.kernels.class_losses import in_place_triton
from gradlab.kernels.class_losses.parts_triton import merge_parts
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_triton import gpu_sizes

TILES = pytest.mark.parametrize("tiles", [contextlib.nullcontext, gpu_sizes], ids=["cpu", "gpu"])
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
EVERY = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.5}


def close(got, wanted, eps, terms=40):
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=terms * eps * max(wanted.abs().max().item(), 1e-3))


def composed(x, t, weight, label_smoothing=0.0, z_loss=0.0, softcap=None):
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    n = torch.logsumexp(z, 1) ** 2 * (t != -100)
    return F.cross_entropy(z, t, weight, label_smoothing=label_smoothing) + z_loss * n.sum() / (t != -100).sum()


@TILES
@pytest.mark.parametrize(
    ("dtype", "V", "skipped", "options"),
    [
        # Aligned and held, aligned and past a block, at an odd place of odd rows.
        (torch.bfloat16, 1024, 0, {}),
        (torch.bfloat16, 20000, 0, {}),
        (torch.bfloat16, 1031, 2, EVERY),
        (torch.float16, 1031, 1, EVERY),
        (torch.float32, 1030, 0, {"weight": True}),
        (torch.float32, 17001, 3, {"label_smoothing": 0.1}),
        (torch.float64, 1025, 0, {**EVERY, "z_loss": 0.0}),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_losses_and_gradients(dtype, V, skipped, options, inplace, tiles):
    """Rows begin at any place; one is ignored, and what it holds, NaN too, reaches nothing."""
    r = torch.Generator().manual_seed(0)
    # Far below what a lane past the row would hold if it were not masked.
    far = 0 if "softcap" in options else -50
    wide = (3 * torch.randn(4, V + skipped, generator=r, dtype=torch.float64) + far).to(dtype)
    leaf, t = wide.clone().requires_grad_(), torch.tensor([0, -100, V - 1, 7])
    options = dict(options)
    weight = (torch.rand(V, generator=r) + 0.5).to(dtype) if options.pop("weight", False) else None
    with torch.no_grad():
        leaf[1, 5:] = torch.nan
    with tiles():
        logits = leaf * 1
        y = lab.cross_entropy(logits[:, skipped:], t, weight, inplace=inplace, **options)
        (g,) = torch.autograd.grad(y, leaf, torch.tensor(0.75, dtype=dtype))
    exact = wide.double().requires_grad_()
    wanted = composed(exact[:, skipped:], t, None if weight is None else weight.double(), **options)
    close(y, wanted, EPS[dtype])
    assert (g[1] == 0).all()
    close(g, torch.autograd.grad(0.75 * wanted, exact)[0], EPS[dtype])


@TILES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
def test_logits_of_any_size_and_none(dtype, inplace, tiles):
    """Near the largest number, far below zero, -inf, inf and NaN, as torch has them."""
    V, large = 1030, torch.finfo(dtype).max
    x = torch.zeros(8, V, dtype=dtype)
    x[0, 3], x[0, 4] = large, -large
    x[1] = -large
    x[2, 9], x[2, 1] = 1e9, 1e9 - 640
    x[3] = 1e9 if dtype == torch.float32 else 1e17
    x[4, :1000] = -torch.inf
    x[5] = -torch.inf
    x[6, 1029] = torch.inf
    x[7, 1028] = torch.nan
    t = torch.tensor([3, 0, 9, 1, 1020, 0, 1, 2])
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    with tiles():
        # A reduction for which the gradient is written with the loss.
        y = [lab.cross_entropy(leaf[m : m + 1] * 1, t[m : m + 1], reduction="sum", inplace=inplace) for m in range(8)]
        (g,) = torch.autograd.grad(y, leaf, [torch.ones_like(one) for one in y])
    wanted = F.cross_entropy(other, t, reduction="none")
    torch.testing.assert_close(torch.stack(y), wanted, rtol=40 * EPS[dtype], atol=40 * EPS[dtype], equal_nan=True)
    (wanted_g,) = torch.autograd.grad(wanted.sum(), other)
    torch.testing.assert_close(g, wanted_g, rtol=0, atol=40 * EPS[dtype], equal_nan=True)


@TILES
@pytest.mark.parametrize("at", [0, 1029])
def test_smoothing_spreads_to_a_class_that_cannot_be(at, tiles):
    """Its loss is infinite, also where it is the first class, from which the others are counted."""
    x = torch.randn(1, 1030)
    x[0, at] = -torch.inf
    with tiles():
        assert lab.cross_entropy(x, torch.tensor([5]), label_smoothing=0.1) == torch.inf


@TILES
def test_rows_of_further_axes_whose_classes_are_neighbours(tiles):
    x = torch.randn(2, 3, 1027, dtype=torch.float64).transpose(1, 2).requires_grad_()
    t = torch.randint(0, 1027, (2, 3))
    with tiles():
        y = lab.cross_entropy(x, t, reduction="none")
        (g,) = torch.autograd.grad(y.sum(), x)
    wanted = F.cross_entropy(x, t, reduction="none")
    close(y, wanted, EPS[torch.float64])
    close(g, torch.autograd.grad(wanted.sum(), x)[0], EPS[torch.float64])


@TILES
def test_parts_of_rows_make_whole_rows(tiles):
    V, split = 2500, 1031
    x = torch.randn(5, V, 1, dtype=torch.float64)
    x[4, split:] = -torch.inf
    t, a = torch.tensor([0, 2499, -100, 1031, 1030]), torch.rand(V, dtype=torch.float64)
    dy, dn = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for flat, weight in ((ClassLoss(-100, 0.1, 2.0).flat(), None), (ClassLoss(-100, 0.0, 0.0).flat(), a)):
        with tiles():
            y, n, s = kernels.loss(x, t, None, weight, flat)
            d = kernels.backward(dy, dn, x, t, None, weight, s, flat)
            p = []
            for first, one in ((0, slice(split)), (split, slice(split, V))):
                given = None if weight is None else weight[one]
                p.append(kernels.loss(x[:, one], t, None, given, flat, [first, V])[2])
                # Laid out as nothing else: gradients have rows of their own length.
                got = kernels.backward(dy, dn, x[:, one], t, None, given, s, flat, [first, V])
                close(got, d[:, one], EPS[torch.float64])
            merged = merge_parts(torch.stack(p).unsqueeze(1), t.unsqueeze(0), flat, V)
        for got, wanted in zip(merged[:2], (y, n), strict=True):
            close(got[0], wanted, EPS[torch.float64])


def test_few_programs_scale_all_of_a_gradient(monkeypatch):
    g, c = torch.randn(3, 9000, 1), torch.tensor(2.5)
    wanted = 2.5 * g
    monkeypatch.setattr(in_place_triton, "SCALERS", 2)
    in_place_triton.scale_(g, c)
    torch.testing.assert_close(g, wanted, rtol=0, atol=0)
