"""Every shape that the docstrings name, for every op: leading axes none, empty and many, forward, backward, vmap."""

import functools
import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.profiling.native.native_torch import NATIVE

ANY = [(), (0,), (3,), (2, 0, 3), (2, 3, 2)]
LEADING = [(), (0,), (3,), (2, 0), (2, 3)]


def cases():
    """(name, ours, native, the inputs' shapes)."""
    same = lambda name, one, shapes, **options: [
        (
            f"{name} {shape} {options or ''}",
            functools.partial(getattr(lab, name), **options),
            functools.partial(one, **options),
            shape,
        )
        for shape in shapes
    ]
    yield from same("relu", F.relu, [(s,) for s in ANY])
    yield from same("sigmoid", torch.sigmoid, [(s,) for s in ANY])
    yield from same("tanh", torch.tanh, [(s,) for s in ANY])
    for reduction in ("none", "mean", "sum"):
        yield from same("mse_loss", F.mse_loss, [(s, s) for s in ANY], reduction=reduction)
        bce = [(s, s) for s in ANY]
        yield from same(
            "binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, bce, reduction=reduction
        )
    # torch's own refuses a bias beside a weight [K] for some leading axes.
    added = lambda x, w, b: F.linear(x, w) + b
    for weight in ((4, 5), (5,)):
        yield from same("linear", F.linear, [((*s, 5), weight) for s in LEADING])
        yield from same("linear", added, [((*s, 5), weight, weight[:-1]) for s in LEADING])
    relu = lambda *args: F.relu(added(*args))
    for s in ((), (0,), (2, 3)):
        yield f"linear relu {s}", functools.partial(lab.linear, activation="relu"), relu, ((*s, 5), (5,), ())
    image = [(2, 4, 5), (0, 2, 4, 5), (1, 2, 4, 5), (3, 2, 4, 5)]
    yield from same("conv2d", F.conv2d, [(s, (4, 2, 3, 2)) for s in image])
    yield from same("conv2d", F.conv2d, [(s, (4, 1, 3, 2), (4,)) for s in image], groups=2, padding=1)
    yield from same("max_pool2d", F.max_pool2d, [(s,) for s in image], kernel_size=2)
    for rows in ((), (0,), (3,), (3, 2), (0, 2), (2, 3, 2), (2, 0, 3)):
        # [V], [N V], [N V D1 ...]
        logits = (5,) if not rows else (rows[0], 5, *rows[1:])
        t = torch.arange(math.prod(rows)).reshape(rows) % 5
        for reduction in ("none", "mean", "sum"):
            classes = lambda fn, t=t, r=reduction: lambda x: fn(x, t.to(x.device), reduction=r)
            name = f"cross_entropy {logits} {reduction}"
            yield name, classes(lab.cross_entropy), classes(F.cross_entropy), (logits,)
            both = lambda fn, r=reduction: lambda x, q: fn(x, q, reduction=r)
            yield f"{name} soft", both(lab.cross_entropy), both(F.cross_entropy), (logits, logits)
    for rows in LEADING:
        t = torch.arange(math.prod(rows)).reshape(rows) % 4
        ours = lambda *args, t=t: lab.linear_cross_entropy(*args[:2], t.to(args[0].device), *args[2:])
        native = lambda x, *args, t=t: (
            F.cross_entropy(F.linear(x.reshape(-1, 5), *args), t.reshape(-1).to(x.device), reduction="sum") / t.numel()
        )
        for shapes in (((*rows, 5), (4, 5)), ((*rows, 5), (4, 5), (4,))):
            yield f"linear_cross_entropy {shapes}", ours, native, shapes
    steps = {"adam": {"step": 3, "lr": 0.1}, "sgd": {"momentum": 0.9}}
    for name, options in steps.items():
        for shape in ((), (0,), (2, 3)):
            # The new parameter of (p, g, m) or (p, g, b), Adam's second moment that of ones.
            one = lambda fn, o=options, adam=name == "adam": (
                lambda *args: fn(*args, *([torch.ones_like(args[0])] if adam else []), **o)[0]
            )
            yield f"{name} {shape}", one(SIDE.op(name)), one(NATIVE[name].fn), (shape,) * 3


CASES = {case[0]: case[1:] for case in cases()}


def close(got, want, inputs):
    assert got.shape == want.shape
    scale = max([1.0, *(t.detach().abs().max().item() for t in (want, *inputs) if t.numel())])
    torch.testing.assert_close(got, want, rtol=0, atol=128 * 2.0**-53 * scale**2, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_documented_shape(device, name):
    ours, native, shapes = CASES[name]
    given = [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]
    got, want = ours(*given), native(*given)
    close(got, want, given)
    dy = torch.randn_like(want)
    back = torch.autograd.grad(want, given, dy)
    for one, other in zip(torch.autograd.grad(got, given, dy), back, strict=True):
        close(one, other, given)


# A mean over nothing is NaN in any case; of the reductions one stands for all under vmap.
@pytest.mark.parametrize("name", [name for name in CASES if "mean" not in name and "sum" not in name])
def test_documented_shape_under_vmap(device, name):
    ours, native, shapes = CASES[name]
    stacks = [torch.randn(2, *s, dtype=torch.float64, device=device) for s in shapes]

    def back(fn):
        def run(*args):
            y, pullback = torch.func.vjp(fn, *args)
            return y, pullback(y.detach().cos())

        return run

    y, grads = torch.vmap(back(ours))(*stacks)
    want = [back(native)(*(s[i] for s in stacks)) for i in range(2)]
    close(y, torch.stack([w[0] for w in want]), stacks)
    for i, grad in enumerate(grads):
        close(grad, torch.stack([w[1][i] for w in want]), stacks)
