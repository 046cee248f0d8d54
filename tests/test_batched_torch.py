"""Batched backwards of an eager forward: every op by either vmap of torch, over its Spec, as single backwards."""

import math
import warnings

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch._vmap_internals import _vmap
from torch.autograd.functional import hessian, jacobian

import gradlab.torch as lab
from gradlab.autodiff.checker.check import check
from gradlab.autodiff.frameworks import batched_torch
from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.spec import specs

B = 2
# Of every op the case of most options and arguments.
CASES = {
    name: max(
        op.select("check"), key=lambda case: (len(op.at(case).options) + len(op.at(case).inputs), *case.sizes.values())
    )
    for name, op in specs().items()
}


def drawn(name, case):
    """The op as a function of what has a gradient, with those arguments."""
    op = specs()[name]
    arrays = op.at(case).make()
    leaves = {a: SIDE.put(arrays[a], "float64").requires_grad_() for a in arrays if a in op.wrt}
    fixed = {a: SIDE.put(arrays[a], "float64") for a in arrays if a not in leaves}
    run = op.at(case).bind(SIDE.op(name))

    def fn(*moving):
        given = dict(zip(leaves, moving, strict=True)) | fixed
        return tuple(y for y in as_tuple(run(*(given[a] for a in arrays))) if y.requires_grad)

    return fn, tuple(leaves.values())


def batch_of(ys):
    return [torch.randn(B, *y.shape, dtype=y.dtype) for y in ys]


def same(got, want):
    """One reduction may be cut otherwise than another; each has at most some hundred terms of magnitude about 10."""
    for g, w in zip(got, want, strict=True):
        assert (g is None) is (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def backward(ys, leaves, cs, **options):
    return torch.autograd.grad(ys, leaves, cs, retain_graph=True, allow_unused=True, **options)


def stacked(rows):
    return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]


def by_either(ys, leaves, cs, **options):
    """The gradients for a batch of cotangents, by torch.autograd's vmap and by torch.func's."""
    yield backward(ys, leaves, cs, is_grads_batched=True, **options)
    there = [g is not None for g in backward(ys, leaves, [c[0] for c in cs])]
    one = lambda *c: tuple(g for g in backward(ys, leaves, c, **options) if g is not None)
    found = iter(torch.vmap(one)(*cs))
    yield tuple(next(found) if t else None for t in there)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_cotangents_is_a_loop_over_them(name):
    fn, leaves = drawn(name, CASES[name])
    ys = fn(*leaves)
    cs = batch_of(ys)
    wanted = stacked([backward(ys, leaves, [c[i] for c in cs]) for i in range(B)])
    for found in by_either(ys, leaves, cs):
        same(found, wanted)
    if specs()[name].order == 1:
        return
    # A batch through the second backward, and the second backward of a batch.
    first = [
        g for g in backward(ys, leaves, [c[0] for c in cs], create_graph=True) if g is not None and g.requires_grad
    ]
    us = batch_of(first)
    wanted = stacked([backward(first, leaves, [u[i] for u in us]) for i in range(B)]) if first else []
    for found in by_either(first, leaves, us) if first else ():
        same(found, wanted)
    one = [backward(ys, leaves, [c[i] for c in cs], create_graph=True) for i in range(B)]
    for found in by_either(ys, leaves, cs, create_graph=True):
        moving = [k for k, g in enumerate(found) if g is not None and g.requires_grad]
        assert moving == [k for k, g in enumerate(one[0]) if g is not None and g.requires_grad]
        if moving:
            us = batch_of([one[0][k] for k in moving])
            loop = [[one[i][k] for k in moving] for i in range(B)]
            again = [backward(loop[i], leaves, [u[i] for u in us]) for i in range(B)]
            wanted = [None if g[0] is None else sum(g) for g in zip(*again, strict=True)]
            same(backward([found[k] for k in moving], leaves, us), wanted)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_and_jacobian_of(name):
    smallest = min(specs()[name].select("check"), key=lambda case: math.prod(case.sizes.values()))
    fn, leaves = drawn(name, smallest)
    # Along random directions: finite differences of every element are the check's to take.
    assert torch.autograd.gradcheck(fn, leaves, check_batched_grad=True, fast_mode=True)
    inputs = tuple(x.detach() for x in leaves)
    for one, other in zip(jacobian(fn, inputs, vectorize=True), jacobian(fn, inputs), strict=True):
        same(as_tuple(one), as_tuple(other))


X = torch.linspace(-2, 3, 15, dtype=torch.float64).reshape(3, 5).sin()
W = torch.linspace(-1, 2, 10, dtype=torch.float64).reshape(2, 5).cos()
T = torch.tensor([0, 4, 2])
NATIVE = {
    "cross_entropy": (lambda l: lambda x: l.cross_entropy(x, T)),
    "cross_entropy, sum": (lambda l: lambda x: l.cross_entropy(x, T, reduction="sum", label_smoothing=0.1)),
    "cross_entropy, soft": (lambda l: lambda x: l.cross_entropy(x, x.softmax(1), reduction="none")),
    "linear": (lambda l: lambda x: l.linear(x, W)),
    "relu": (lambda l: l.relu),
    "mse_loss": (lambda l: lambda x: l.mse_loss(x, X.flip(0))),
    "max_pool2d": (lambda l: lambda x: l.max_pool2d(x[None], 2)),
    "conv2d": (lambda l: lambda x: l.conv2d(x[None], W[:, None, None, :3])),
    "network": (lambda l: lambda x: l.cross_entropy(l.linear(l.relu(l.linear(x, W)), W.T), T)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_vectorized_jacobians_and_hessians_are_the_native_ones(name):
    ours, native = (NATIVE[name](side) for side in (lab, F))
    same(*([jacobian(f, X, vectorize=True)] for f in (ours, native)))
    same(*([hessian(lambda x, f=f: f(x).sin().sum(), X, vectorize=True)] for f in (ours, native)))


def test_batches_within_batches():
    x = X.clone().requires_grad_()
    y = lab.cross_entropy(lab.linear(x, W), T % 2, reduction="none")
    wanted = jacobian(lambda x: F.cross_entropy(F.linear(x, W), T % 2, reduction="none"), X)
    pull = lambda c: torch.autograd.grad(y, x, c, retain_graph=True)[0]
    c = torch.randn(4, 1, 3, dtype=torch.float64, requires_grad=True)
    d = torch.randn(1, 2, 3, dtype=torch.float64)
    wanted = torch.einsum("ijm,mkl->ijkl", c * d, wanted)
    # Of one level within another, of either kind, and where a batch of one is still a batch.
    same([_vmap(lambda c: _vmap(lambda d: pull(c * d))(d[0]))(c[:, 0])], [wanted])
    same([_vmap(lambda c: _vmap(lambda d: pull(c * d))(d[0, :1]))(c[:1, 0])], [wanted[:1, :1]])
    with warnings.catch_warnings():
        # torch.vmap over the older one loops, and torch warns that it is slow.
        warnings.simplefilter("ignore")
        same([torch.vmap(lambda c: _vmap(lambda d: pull(c * d))(d[0]))(c[:, 0])], [wanted])
    assert _vmap(pull)(c[:0, 0]).shape == (0, 3, 5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_given_away_hold_one_gradient(reduction):
    x = X.clone().requires_grad_()
    y = lab.cross_entropy(x * 1, T, reduction=reduction, inplace=True)
    c = torch.ones(B, *y.shape, dtype=torch.float64)
    said = "cross_entropy: a batched backward pass came with inplace=True, wanted inplace=False"
    with pytest.raises(NotImplementedError, match=said):
        torch.autograd.grad(y, x, c, is_grads_batched=True, retain_graph=True)
    with pytest.raises(NotImplementedError, match=said):
        torch.vmap(lambda c: torch.autograd.grad(y, x, c, retain_graph=True)[0])(c)


def test_what_the_lab_takes_from_torchs_older_vmap_is_there():
    """Levels count from 1; a hidden axis is found at its level alone and put in front; one is added innermost."""
    found = []

    def outer(a):
        def inner(b):
            found.extend(batched_torch.hidden(t) for t in (X, a, b, a * b))
            assert torch._remove_batch_dim(a * b, 2, 4, 0).shape == (4, 5)
            assert batched_torch.is_batched(a)
            assert not batched_torch.is_batched(X)
            return torch._add_batch_dim(torch._remove_batch_dim(a * b, 2, 4, 0), 0, 2)

        return _vmap(inner)(X.new_ones(4, 5))

    same([_vmap(outer)(X)], [X[:, None].expand(3, 4, 5)])
    assert found == [{}, {1: 3}, {2: 4}, {1: 3, 2: 4}]


def test_the_checks_report_of_an_op_has_its_batched_backward():
    report = str(check("relu", side="torch", parts=["contract"]))
    assert "vmap of the backward" in report
    assert "no vmap" not in report
