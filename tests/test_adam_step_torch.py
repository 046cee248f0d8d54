"""adam_step on torch: the step as a function, its derivative and that of the learning rate, torch.func, bad input."""

import importlib.util
import itertools

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck
from torch.optim.adam import adam as adam_in_place

import gradlab.torch as lab
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.runtime.launch_triton import recording

OPTIONS = [
    {"step": 1, "eps": 1e-3},
    {"step": 9, "weight_decay": 0.3, "maximize": True, "betas": (0.5, 0.8)},
    {"step": 2, "weight_decay": 0.6, "decoupled": True},
]


def tensors(device, maximum=True, shape=(6,)):
    """p, g, m, v, and x on both sides of the v' to come; all require a gradient."""
    r = lambda *s: torch.randn(*s, dtype=torch.float64, device=device)
    given = [r(shape), r(shape), r(shape), torch.rand(shape, dtype=torch.float64, device=device) + 0.1]
    if maximum:
        sides = torch.tensor([0.05, 40.0], dtype=torch.float64, device=device)
        given.append(given[3] * sides.repeat(given[3].numel() // 2).view(shape))
    return [t.requires_grad_() for t in given]


def rate(device, value=0.2, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, device=device, requires_grad=True)


def by_torch(given, lr, *, step, betas=(0.9, 0.999), decoupled=False, **options):
    """The step of torch.optim, which differentiates itself."""
    p, g, m, v, *x = (t.clone() for t in given)
    adam_in_place(
        [p],
        [g],
        [m],
        [v],
        x,
        [torch.tensor(step - 1.0, dtype=torch.float64, device=p.device)],
        differentiable=True,
        amsgrad=bool(x),
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        decoupled_weight_decay=decoupled,
        **{"maximize": False, "weight_decay": 0.0, "eps": 1e-8} | options,
    )
    return p, m, v, *x


def compare(given, lr, options):
    """The hand-written results and derivatives are those of torch.optim's own step."""
    got, want = lab.adam_step(*given, lr=lr, **options), by_torch(given, lr, **options)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    cotangents = [torch.cos(1.0 + k + t.detach()) for k, t in enumerate(want)]
    found = [torch.autograd.grad(results, (*given, lr), cotangents) for results in (got, want)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("maximum", [False, True])
def test_derivatives_of_the_step(device, options, maximum):
    given, lr = tensors(device, maximum), rate(device)
    compare(given, lr, options)
    assert gradcheck(lambda lr, *a: lab.adam_step(*a, lr=lr, **options), (lr, *given))


@pytest.mark.parametrize("mistake", ["nothing", "zeros", "sign", "rate"])
def test_every_comparison_sees_a_wrong_pullback(device, mistake, monkeypatch):
    real = kernels.adam_pullback

    def wrong(p, g, m, v, x, lr, *rest):
        found = real(p, g, m, v, x, lr, *rest)
        return {
            "nothing": (p, g, m, v, x, lr),
            "zeros": tuple(torch.zeros_like(t) for t in found),
            "sign": tuple(-t for t in found),
            "rate": (*found[:-1], torch.zeros_like(lr)),
        }[mistake]

    monkeypatch.setattr(kernels, "adam_pullback", wrong)
    given, lr = tensors(device), rate(device)
    with pytest.raises(AssertionError):
        compare(given, lr, OPTIONS[0])
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(lambda lr, *a: lab.adam_step(*a, lr=lr, **OPTIONS[0]), (lr, *given))


@pytest.mark.parametrize("mistake", ["nothing", "zeros", "sign"])
def test_the_comparison_sees_a_wrong_step(device, mistake, monkeypatch):
    real = kernels.adam_

    def wrong(params, grads, *rest, **options):
        if mistake == "zeros":
            for t in params:
                t.zero_()
        if mistake == "sign":
            real(params, [-g for g in grads], *rest, **options)

    monkeypatch.setattr(kernels, "adam_", wrong)
    with pytest.raises(AssertionError):
        compare(tensors(device), rate(device), OPTIONS[0])


def test_a_rate_on_the_device_is_the_number(device):
    """Of any dtype, to the bit; and without a gradient for it none is made."""
    given = [t.detach() for t in tensors(device)]
    want = lab.adam_step(*given, step=3, lr=0.125, weight_decay=0.5, decoupled=True)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        lr = rate(device, 0.125, dtype)
        got = lab.adam_step(*given, step=3, lr=lr, weight_decay=0.5, decoupled=True)
        assert all(map(torch.equal, got, want))
        (dlr,) = torch.autograd.grad(got[0].sum(), lr)
        assert (dlr.dtype, dlr.shape, dlr.device) == (dtype, lr.shape, lr.device)
    assert not any(t.requires_grad for t in lab.adam_step(*given, step=3, lr=lr.detach()))


def test_the_rates_derivative_is_summed_in_two_passes_and_no_atomics(device, monkeypatch):
    """Many blocks give what one does, and the same bits each time."""
    given = [t.detach() for t in tensors(device, shape=(6, 7))]
    cotangents = [torch.randn(6, 7, dtype=torch.float64, device=device) for _ in range(4)]
    scalars = kernels.scalars(lr=1.0, step=3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decoupled=True)
    lr = torch.rand(2, dtype=torch.float64, device=device)
    pulled = lambda: kernels.adam_pullback(*given, lr, *cotangents, scalars)
    want = pulled()
    monkeypatch.setattr(kernels, "block", lambda size, most, least=16: 16)
    found, again = pulled(), pulled()
    assert all(map(torch.equal, found, again))
    torch.testing.assert_close(found, want, rtol=1e-14, atol=1e-15)
    # The kernels say so: the pullback's parts, then their sum, and nothing of torch's on the whole.
    with recording() as launches:
        kernels.adam_pullback(
            *(t.repeat(500, 1) for t in given), lr[:1], *(t.repeat(500, 1) for t in cotangents), scalars
        )
    first, *rest = [one.jit.fn.__name__ for one in launches]
    assert (first, set(rest)) == ("_adam_pullback_kernel", {"_column_sum_kernel"})


def test_the_rate_is_read_by_the_kernel_alone(device, monkeypatch):
    """No step reads it on the host, which on a GPU would wait."""
    given, lr = tensors(device), rate(device)

    def refuse(*args):
        raise AssertionError("read on the host")

    for name in ("item", "__float__", "__bool__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with recording():
        new = lab.adam_step(*given, step=3, lr=lr)
        torch.autograd.grad(new, (*given, lr), [torch.ones_like(t) for t in new])
        # The control.
        with pytest.raises(AssertionError, match="read on the host"):
            float(lr)


def test_a_tie_is_shared_in_halves(device):
    """Where x = v' each takes half, as torch.maximum has it."""
    p, g, m, v = tensors(device, maximum=False)
    lr = rate(device)
    tied = lab.adam_step(p, g, m, v, step=3, lr=lr)[2].detach()
    grads = []
    for x in (tied * (1 - 1e-12), tied, tied * (1 + 1e-12)):
        x.requires_grad_()
        new = lab.adam_step(p, g, m, v, x, step=3, lr=lr)
        grads.append(torch.autograd.grad(new, (p, g, m, v, x, lr), [torch.cos(t.detach()) for t in new]))
    for low, tie, high in zip(*grads, strict=True):
        torch.testing.assert_close(tie, (low + high) / 2, rtol=1e-10, atol=1e-10)
    assert (grads[0][4] - grads[2][4]).abs().max() > 0.1


@pytest.mark.parametrize("maximum", [False, True])
def test_nothing_flows_through_the_root_of_zero(device, maximum):
    """v = g = 0, with and without a moving average: v gets beta2 times its own cotangent alone, a tie half of x's."""
    zero = torch.zeros(3, dtype=torch.float64, device=device)
    for m in (zero, zero + 0.5):
        given = [t.clone().requires_grad_() for t in (zero + 1, zero, m, zero, *([zero] if maximum else []))]
        lr = rate(device)
        new = lab.adam_step(*given, step=2, lr=lr, eps=1e-3)
        found = torch.autograd.grad(new, (*given, lr), [torch.ones_like(t) for t in new])
        assert all(g.isfinite().all() for g in found)
        torch.testing.assert_close(found[3], zero + 0.999 * (1.5 if maximum else 1), rtol=1e-15, atol=0)
        if maximum:
            torch.testing.assert_close(found[4], zero + 0.5, rtol=0, atol=0)
        if m is zero:
            assert torch.equal(new[0], given[0])
            assert found[-1] == 0


def test_step_is_the_optimizer_and_changes_nothing(device):
    for maximum, lr in itertools.product((False, True), (0.1, rate(device, 0.1).detach())):
        p = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
        new, state = p.detach().clone(), [torch.zeros_like(p.detach()) for _ in range(3 if maximum else 2)]
        (twin,) = [torch.nn.Parameter(p.detach().clone())]
        optimizer = torch.optim.Adam([twin], lr=0.1, amsgrad=maximum)
        for step in range(1, 4):
            twin.grad = torch.randn_like(p) / step
            before = [t.clone() for t in (new, *state)]
            after = lab.adam_step(new, twin.grad, *state, step=step, lr=lr)
            assert all(map(torch.equal, (new, *state), before))
            new, *state = after
            optimizer.step()
        torch.testing.assert_close(new, twin.detach(), rtol=1e-14, atol=1e-15)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for name, t in zip(names, state, strict=False):
            torch.testing.assert_close(t, optimizer.state[twin][name], rtol=1e-14, atol=0)


def test_meta_learning(device):
    """Three steps on a loss of the lab's layers: what the last loss says of the rate and of where it began."""
    x, t = torch.randn(6, 4, dtype=torch.float64, device=device), torch.tensor([0, 2, 1, 1, 0, 2], device=device)
    shapes = [(5, 4), (5,), (3, 5), (3,)]
    start = [(torch.randn(s, dtype=torch.float64, device=device) / 2).requires_grad_() for s in shapes]

    def loss(w, b, u, c):
        return lab.cross_entropy(lab.linear(lab.tanh(lab.linear(x, w, b)), u, c), t)

    def learned(lr, *params):
        states = [[torch.zeros_like(p) for _ in range(3)] for p in params]
        for step in range(1, 4):
            grads = torch.autograd.grad(loss(*params), params, create_graph=True)
            new = [
                lab.adam_step(p, g, *s, step=step, lr=lr, eps=1e-3)
                for p, g, s in zip(params, grads, states, strict=True)
            ]
            params, states = [p for p, *_ in new], [s for _, *s in new]
        return loss(*params)

    lr = rate(device, 0.05)
    assert learned(lr, *start) < loss(*start)
    # Along one direction each: a whole Jacobian would be thousands of steps.
    assert gradcheck(learned, (lr, *start), eps=1e-6, atol=1e-6, fast_mode=True)


MAPPED = [(0, 0, 0, 0, 0, 0), (1, None, 0, None, 0, None), (None, 0, None, -1, None, 0), (None,) * 5 + (0,)]


@pytest.mark.parametrize("in_dims", MAPPED)
def test_mapped_steps_and_their_gradients(device, in_dims):
    """vmap of the step and of its gradient are the loop over both, each with its own rate; nested too."""
    whole = [torch.rand(3, 3, dtype=torch.float64, device=device) + 0.1 for _ in range(5)]
    rates = torch.rand(3, dtype=torch.float64, device=device)

    def step(*a):
        return lab.adam_step(*a[:5], step=2, lr=a[5], weight_decay=0.2)

    def gradients(*a):
        return torch.func.grad(lambda *a: torch.stack([t.sin().sum() for t in step(*a)]).sum(), tuple(range(6)))(*a)

    given = [t[0] if d is None else t for t, d in zip((*whole, rates), in_dims, strict=True)]
    for fn in (step, gradients):
        rows = [[t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)] for i in range(3)]
        want = [torch.stack(column) for column in zip(*(fn(*row) for row in rows), strict=True)]
        torch.testing.assert_close(torch.func.vmap(fn, in_dims)(*given), tuple(want), rtol=1e-13, atol=1e-15)
    inner = torch.func.vmap(step, (0,) * 5 + (None,))
    nested = torch.func.vmap(inner)(*whole, rates)
    want = torch.stack([inner(*(t[i] for t in whole), rates[i])[0] for i in range(3)])
    torch.testing.assert_close(nested[0], want, rtol=1e-14, atol=0)


def test_jacobian_of_the_step(device):
    given = [t.detach() for t in tensors(device)]
    lr = rate(device).detach()
    step = lambda lr, *a: lab.adam_step(*a, step=2, lr=lr)
    found = torch.func.jacrev(step, tuple(range(6)))(lr, *given)
    for row, want in zip(found, torch.autograd.functional.jacobian(step, (lr, *given)), strict=True):
        torch.testing.assert_close(row, want, rtol=1e-13, atol=1e-15)


def test_compiled_whole_it_is_the_same(device):
    torch.compiler.reset()
    given, lr = tensors(device), rate(device)
    step = lambda lr, *a: lab.adam_step(*a, step=3, lr=lr, weight_decay=0.1)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = []
    for fn in (compiled, step):
        new = fn(lr, *given)
        found.append([*new, *torch.autograd.grad(new, (*given, lr), [torch.cos(t.detach()) for t in new])])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_to_nearest(device, dtype):
    """Against float64 on the rounded state, each stored value is its nearest half: no more than half an ulp off."""
    p, g, m = (torch.randn(64, device=device).to(dtype) for _ in range(3))
    v = torch.rand(64, device=device).to(dtype)
    want = lab.adam_step(p.double(), g.double(), m.double(), v.double(), step=3, lr=0.1)
    kernels.adam_(
        [p], [g], [m], [v], [], kernels.scalars(lr=0.1, step=3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    )
    for got, exact in zip((p, m, v), want, strict=True):
        ulp = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
        # eps x value is at least one ulp, half of it is the rounding; float32 arithmetic adds the 1 %.
        assert ((got.double() - exact).abs() <= 0.51 * ulp).all()


def test_second_derivative_is_refused_not_lost(device):
    given, lr = tensors(device), rate(device)
    for wrt in (given[1], lr):
        (d,) = torch.autograd.grad(lab.adam_step(*given, step=2, lr=lr)[0].sum(), wrt, create_graph=True)
        with pytest.raises(NotImplementedError, match="adam_step: its second derivative is not implemented"):
            d.sum().backward()


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
@pytest.mark.parametrize("maximum", [False, True])
def test_the_other_side_walks_alike(device, maximum):
    """Four steps on the same gradients: jax's fused step, whose maximum is told to be torch's."""
    import jax
    import numpy as np

    from gradlab.jax import adam_init, adam_step

    options = {"weight_decay": 0.2, "maximize": True}
    p = torch.randn(9, dtype=torch.float64, device=device)
    state = [torch.zeros_like(p) for _ in range(3 if maximum else 2)]
    with jax.enable_x64(True):
        other = jax.numpy.asarray(p.cpu().numpy())
        theirs = adam_init(other, amsgrad=maximum)
        for step in range(1, 5):
            g = torch.randn(9, dtype=torch.float64, device=device) / step
            p, *state = lab.adam_step(p, g, *state, step=step, lr=0.05, **options)
            grads = jax.numpy.asarray(g.cpu().numpy())
            other, theirs = adam_step(other, grads, theirs, learning_rate=0.05, corrected_max=False, **options)
        for one, same in zip((p, *state), (other, *theirs[1:4]), strict=False):
            np.testing.assert_allclose(one.cpu().numpy(), same, rtol=1e-13, atol=1e-15)


Z = torch.zeros(3)
GRADED = torch.ones((), requires_grad=True)
NUMBER = "is a tensor that requires a gradient, wanted a number: only lr has one"
BAD = {
    "complex": (lambda: lab.adam_step(Z * 1j, Z, Z, Z, step=1), TypeError, "adam_step: dtype of param is complex64"),
    "shapes": (lambda: lab.adam_step(Z, Z[:2], Z, Z, step=1), ValueError, r"adam_step: shape of grad is \[2\], wanted \[3\] like"),
    "maximum": (lambda: lab.adam_step(Z, Z, Z, Z, Z[:2], step=1), ValueError, r"adam_step: shape of max_exp_avg_sq is \[2\], wanted \[3\]"),
    "mixed": (lambda: lab.adam_step(Z, Z.double(), Z, Z, step=1), TypeError, "adam_step: dtype of grad is float64, wanted float32"),
    "step": (lambda: lab.adam_step(Z, Z, Z, Z, step=0), ValueError, "adam_step: step is 0, wanted a number from 1"),
    "rates": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, lr=Z), ValueError, r"adam_step: shape of lr is \[3\], wanted \[\], one number"),
    "rate's dtype": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, lr=torch.tensor(1)), TypeError, "adam_step: dtype of lr is int64, wanted one of"),
    "rate's device": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, lr=torch.ones((), device="meta")), ValueError, "adam_step: device of lr is meta"),
    "beta": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, betas=(GRADED, 0.9)), TypeError, rf"adam_step: betas\[0\] {NUMBER}"),
    "eps": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, eps=GRADED), TypeError, f"adam_step: eps {NUMBER}"),
    "decay": (lambda: lab.adam_step(Z, Z, Z, Z, step=1, weight_decay=GRADED), TypeError, f"adam_step: weight_decay {NUMBER}"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
