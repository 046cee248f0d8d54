"""sgd_step on torch: the step as a function, its derivatives of any order, torch.func's transforms, bad input."""

import functools

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck

import gradlab.torch as lab
from gradlab.kernels import sgd_triton as kernels

OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.9},
    {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 1.0},
    {"momentum": 0.7, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True},
    {"maximize": True},
]


def tensors(device, shape=(6,), count=3):
    return tuple(torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for _ in range(count))


def stepping(options):
    """The step of two tensors, its first, or of three; results that there are."""
    return lambda *a: tuple(t for t in lab.sgd_step(*a, lr=0.3, **options) if t is not None)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_of_the_step(device, options, count):
    given = tensors(device, count=count)
    assert gradcheck(stepping(options), given)
    assert gradgradcheck(stepping(options), given)


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_are_those_of_torch_operations(device, options):
    """Through three steps on a gradient that depends on the parameter, up to three times: as for meta-learning."""
    momentum, decay = options.get("momentum", 0.0), options.get("weight_decay", 0.0)
    sign = -1 if options.get("maximize") else 1

    def native(p, g, b):
        h = sign * g + decay * p
        if not momentum:
            return p - 0.3 * h, None
        b = h if b is None else momentum * b + (1 - options.get("dampening", 0.0)) * h
        return p - 0.3 * (h + momentum * b if options.get("nesterov") else b), b

    def trained(step, p):
        b = None
        for _ in range(3):
            p, b = step(p, p.sin(), b)
        return (p**2).sum() + (0 if b is None else b.cos().sum())

    p = torch.randn(3, dtype=torch.float64, device=device)
    hand = functools.partial(trained, lambda *a: lab.sgd_step(*a, lr=0.3, **options))
    by_torch = functools.partial(trained, native)
    for _ in range(3):
        hand, by_torch = torch.func.jacrev(hand), torch.func.jacrev(by_torch)
        torch.testing.assert_close(hand(p), by_torch(p), rtol=1e-12, atol=1e-12)


def test_expanded_and_transposed_cotangents_and_inputs(device):
    base = torch.randn(4, 3, dtype=torch.float64, device=device)
    p, g, b = base.t().requires_grad_(), base[0, 0].expand(3, 4), base[:, :1].t().expand(3, 4)
    dense = [t.detach().contiguous().requires_grad_() for t in (p, g, b)]
    given = [p, g.detach().requires_grad_(), b.detach().requires_grad_()]
    for dp in (torch.ones((), dtype=torch.float64, device=device).expand(3, 4), base.t(), base.t().contiguous()):
        results = []
        for row, cotangent in ((given, dp), (dense, dp.contiguous())):
            new = lab.sgd_step(*row, lr=0.1, momentum=0.9, weight_decay=0.2)
            results.append((*new, *torch.autograd.grad(new, row, (cotangent, cotangent))))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


MAPPED = [(0, 0, 0), (1, None, 0), (None, -1, None)]


@pytest.mark.parametrize("in_dims", MAPPED)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.2}])
@pytest.mark.parametrize("count", [2, 3])
def test_mapped_steps_and_their_gradients(device, in_dims, options, count):
    """vmap of the step and of its gradients is the loop over both; nested too."""
    in_dims = in_dims[:count]
    whole = [t.detach() for t in tensors(device, (3, 3), count)]
    given = [t[0] if d is None else t for t, d in zip(whole, in_dims, strict=True)]
    step = stepping(options)
    gradients = torch.func.grad(lambda *a: sum(t.sin().sum() for t in step(*a)), tuple(range(count)))
    for fn in (step, gradients):
        rows = [[t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)] for i in range(3)]
        want = [torch.stack(column) for column in zip(*(fn(*row) for row in rows), strict=True)]
        torch.testing.assert_close(torch.func.vmap(fn, in_dims)(*given), tuple(want), rtol=1e-14, atol=0)
        nested = torch.func.vmap(torch.func.vmap(fn))
        torch.testing.assert_close(nested(*whole), fn(*whole), rtol=1e-14, atol=0)


def test_jacobian_of_the_step(device):
    given = [t.detach() for t in tensors(device, (4,))]
    step = stepping({"momentum": 0.9, "nesterov": True, "weight_decay": 0.2})
    found = torch.func.jacrev(step, (0, 1, 2))(*given)
    for row, want in zip(found, torch.autograd.functional.jacobian(step, tuple(given)), strict=True):
        torch.testing.assert_close(row, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_step_is_the_optimizer_and_changes_nothing(device, options):
    p = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
    given, b = p.detach().clone(), None
    optimizer = lab.SGD([p], lr=0.1, **options)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        before = [t if t is None else t.clone() for t in (given, b)]
        new, after = lab.sgd_step(given, p.grad, b, lr=0.1, **options)
        for t, was in zip((given, b), before, strict=True):
            assert (t is was is None) or torch.equal(t, was)
        given, b = new, after
        optimizer.step()
        assert torch.equal(given, p.detach())
        assert (b is None) == ("momentum" not in options)
        assert b is None or torch.equal(b, optimizer.state[p]["momentum_buffer"])


def test_empty_and_scalar(device):
    for shape in ((0, 3), ()):
        given = tensors(device, shape)
        new = lab.sgd_step(*given, lr=0.1, momentum=0.9)
        gradients = torch.autograd.grad(new, given, [torch.ones_like(t) for t in new])
        assert {t.shape for t in (*new, *gradients)} == {torch.Size(shape)}


def test_the_first_step_does_not_read_the_buffer(device):
    p, g, b = (torch.randn(37, device=device) for _ in range(3))
    kernels.sgd_([p], [g], [b.fill_(torch.nan)], kernels.scalars(lr=0.1, momentum=0.9, dampening=0.5, first=True))
    assert torch.equal(b, g)


def test_pullback_of_many_blocks(device, monkeypatch):
    r = functools.partial(torch.randn, 37, dtype=torch.float64, device=device)
    cp, cb, scalars = r(), r(), kernels.scalars(lr=0.1, momentum=0.9, weight_decay=0.3)
    want = kernels.sgd_pullback(cp, cb, scalars)
    monkeypatch.setattr(kernels, "block", lambda size, most, least=16: 16)
    assert all(torch.equal(*t) for t in zip(kernels.sgd_pullback(cp, cb, scalars), want, strict=True))


Z = torch.zeros(3)
BAD = {
    "complex": (lambda: lab.sgd_step(Z * 1j, Z, Z), TypeError, "sgd_step: dtype of param is complex64"),
    "shapes": (lambda: lab.sgd_step(Z, Z[:2]), ValueError, r"sgd_step: shape of grad is \[2\], wanted \[3\] like"),
    "buffer": (
        lambda: lab.sgd_step(Z, Z, Z[:1], momentum=0.9),
        ValueError,
        r"sgd_step: shape of momentum_buffer is \[1\], wanted",
    ),
    "mixed": (lambda: lab.sgd_step(Z, Z.double()), TypeError, "sgd_step: dtype of grad is float64, wanted float32"),
    "not a tensor": (lambda: lab.sgd_step(Z, [0.0]), TypeError, "sgd_step: grad is a list, wanted a torch.Tensor"),
    "a step of nesterov": (
        lambda: lab.sgd_step(Z, Z, nesterov=True),
        ValueError,
        "sgd_step: nesterov is True with momentum 0.0 and dampening 0.0, wanted a momentum",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
