"""Tensors whose memory does not hold their elements as they are: read right or refused, never by a wrong address."""

import warnings

import pytest

torch = pytest.importorskip("torch")

from torch.testing._internal.two_tensor import TwoTensor

import gradlab.torch as lab
from gradlab.kernels import relu_triton, sgd_triton
from gradlab.kernels.optimizers import norm_triton
from gradlab.kernels.runtime import memory_triton as memory


def negated(t):
    """The same values in memory that holds the other sign."""
    return torch._neg_view(t.detach().neg())


WRAPPED = {
    "negative": lambda t: negated(t),
    "imaginary part": lambda t: torch.complex(t, t).conj().imag,
    "zeros": lambda t: torch._efficientzerotensor(t.shape),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "functional": torch._to_functional_tensor,
    "subclass": lambda t: TwoTensor(t, t),
    "own class": lambda t: t.as_subclass(type("Own", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_dispatch_keys_tell_a_tensor_that_is_not_plain(name):
    """What torch calls private may move: each kind has a key that plain tensors do not have."""
    t = torch.ones(3)
    for plain in (t, torch.nn.Parameter(t), t[::2], t.expand(2, 3), t.bfloat16(), torch.empty(0)):
        assert not memory.keys(plain)
    with torch.inference_mode():
        assert not memory.keys(torch.ones(3))
    assert memory.keys(WRAPPED[name](t))
    lazy = name in ("negative", "imaginary part", "zeros")
    assert memory.wrapped(memory.keys(WRAPPED[name](t))) == (not lazy)


def test_batched_and_differentiated_tensors_are_not_plain():
    found = []
    torch.vmap(lambda t: found.append(memory.keys(t)) or t)(torch.ones(3))
    torch.func.grad(lambda t: found.append(memory.keys(t)) or t.sum())(torch.ones(3))
    assert all(map(memory.wrapped, found))
    assert len(found) == 2


@pytest.mark.parametrize("where", ["input", "list"])
def test_a_lazy_tensor_is_read_as_it_is(device, where):
    x = torch.randn(4, 6, device=device)
    for t in (
        negated(x),
        negated(x.t()).t(),
        negated(x[:, ::2]),
        negated(x[:1].expand(4, 6)),
        torch.complex(x, x).conj().imag,
    ):
        if where == "input":
            assert torch.equal(relu_triton.relu_mask(t, t), t.resolve_neg().relu())
        else:
            want = t.resolve_neg().norm().double()
            torch.testing.assert_close(norm_triton.global_norm([t, t], 1.0, None)[0], 2**0.5 * want, rtol=1e-6, atol=0)
    zeros = torch._efficientzerotensor((4, 6), device=device)
    assert torch.equal(relu_triton.relu_mask(zeros, zeros), torch.zeros(4, 6, device=device))


def test_half_precision_with_the_negative_bit(device):
    x = torch.randn(5, 3, device=device).bfloat16()
    assert torch.equal(lab.relu(negated(x)), x.relu())


def test_logits_with_the_negative_bit_are_overwritten_in_place(device):
    x, t = torch.randn(4, 5, device=device), torch.tensor([0, 1, 2, 3], device=device)
    found = []
    for made in (lambda leaf: leaf * 1, lambda leaf: torch._neg_view(leaf * -1)):
        leaf = x.clone().requires_grad_()
        loss = lab.cross_entropy(made(leaf), t, inplace=True)
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"max_norm": 0.5}])
@pytest.mark.parametrize("kind", [lab.SGD, lab.AdamW])
def test_optimizers_step_what_has_the_negative_bit(device, kind, options):
    """Parameters, one gradient of two, and state; gradients stay as they are, parameters keep their bit."""
    if kind is lab.AdamW:
        options = {"amsgrad": True, **{k: v for k, v in options.items() if k != "momentum"}}
    start, runs = [torch.randn(3, 4, device=device), torch.randn(5, device=device)], []
    grads = [[torch.randn_like(t) for t in start] for _ in range(3)]
    for negative in (False, True):
        made = negated if negative else torch.clone
        ps = [torch.nn.Parameter(made(t)) for t in start]
        optimizer = kind(ps, lr=0.1, **options)
        for turn in grads:
            for p, g in zip(ps, turn, strict=True):
                p.grad = made(g) if p is ps[0] else g.clone()
            optimizer.step()
            for state in optimizer.state.values():
                state.update({k: made(v) for k, v in state.items() if k != "step"})
        assert all(torch.equal(p.grad, g) for p, g in zip(ps, turn, strict=True))
        assert all(p.is_neg() == negative for p in ps)
        runs.append(ps)
    for p, q, was in zip(*runs, start, strict=True):
        assert torch.equal(p, q)
        assert (p - was).abs().max() > 1e-3


def test_clipping_scales_a_gradient_with_the_negative_bit(device):
    g = torch.randn(7, device=device)
    p, q = (torch.nn.Parameter(torch.zeros(7, device=device)) for _ in range(2))
    p.grad, q.grad = negated(g), g.clone()
    assert torch.equal(lab.clip_grad_norm_(p, 0.5), lab.clip_grad_norm_(q, 0.5))
    assert p.grad.is_neg()
    assert torch.equal(p.grad, q.grad)


def test_a_tensor_without_memory_is_not_written(device):
    p, g = torch._efficientzerotensor((3,), device=device), torch.ones(3, device=device)
    with pytest.raises(TypeError, match=r"gradlab::sgd_: a tensor to write is a ZeroTensor, wanted one with memory"):
        sgd_triton.sgd_([p], [g], [p.new_empty(0)], sgd_triton.scalars(lr=0.5))


def test_wrapped_tensors_never_lend_an_address(device):
    """What torch's dispatcher opens is right, what it hands on unopened is one line; in lists too."""
    x = torch.randn(3, 4, device=device)
    assert torch.equal(torch.func.functionalize(lambda t: relu_triton.relu_mask(t, t))(x), x.relu())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.vmap(lambda t: relu_triton.relu_mask(t, t))(x), x.relu())
    assert relu_triton.relu_mask(x.to("meta"), x.to("meta")).shape == x.shape
    own = WRAPPED["own class"](x)
    assert torch.equal(relu_triton.relu_mask(own, own), x.relu())
    two = TwoTensor(x, -x)
    assert torch.equal(relu_triton.relu_mask(two, two).b, (-x).relu())
    torch.testing.assert_close(
        norm_triton.global_norm([two, two], 1.0, None).a[0], 2**0.5 * x.norm().double(), rtol=1e-6, atol=0
    )
    with pytest.raises(
        TypeError, match=r"^gradlab::global_norm: tensors is a sparse tensor, wanted a plain torch.Tensor$"
    ):
        norm_triton.global_norm([x, x.to_sparse()], 1.0, None)


def test_compiled_programs_read_the_negative_bit(device):
    x = torch.randn(3, 4, device=device)
    assert torch.equal(torch.compile(lab.relu, backend="aot_eager")(negated(x)), x.relu())
