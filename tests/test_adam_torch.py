"""adam_step on torch: the step as a function, its derivative, torch.func's transforms, bad input."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck

import gradlab.torch as lab
from gradlab.kernels import adam_triton as kernels


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


def test_zero_gradient_and_zero_moments(device):
    z = torch.zeros(5, dtype=torch.float64, device=device)
    p = torch.randn(5, dtype=torch.float64, device=device)
    tensors = [p.requires_grad_(), *(z.clone().requires_grad_() for _ in range(3))]
    new = lab.adam_step(*tensors, step=1)
    assert torch.equal(new[0], p)
    for g in torch.autograd.grad(new, tensors, [torch.ones_like(p)] * 3):
        assert g.isfinite().all()


def test_no_gradient_flows_through_a_square_root_at_zero(device):
    """v = g = 0 with a moving average: the root has no derivative, so v gets beta2 times its own cotangent alone."""
    p, m = torch.ones(3, dtype=torch.float64, device=device), torch.full((3,), 0.5, dtype=torch.float64, device=device)
    zero = torch.zeros_like(p)
    v = zero.clone().requires_grad_()
    new = lab.adam_step(p, zero, m, v, step=2, eps=1e-3)
    (dv,) = torch.autograd.grad(new, v, [torch.ones_like(p)] * 3)
    torch.testing.assert_close(dv, torch.full_like(p, 0.999), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1, "lr": 1.0, "eps": 1e-3},
        {"step": 9, "weight_decay": 0.3, "maximize": True},
        {"step": 2, "lr": 0.2, "weight_decay": 0.6, "decoupled": True},
    ],
)
def test_gradcheck_of_the_step(device, options):
    p, g, m = (torch.randn(6, dtype=torch.float64, device=device, requires_grad=True) for _ in range(3))
    v = (torch.rand(6, dtype=torch.float64, device=device) + 0.1).requires_grad_()
    assert gradcheck(lambda *a: lab.adam_step(*a, **options), (p, g, m, v))


def test_step_is_the_optimizer_and_changes_nothing(device):
    p = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
    p.grad = torch.randn_like(p)
    before = p.detach().clone()
    zeros = torch.zeros_like(before)
    new, m, v = lab.adam_step(before, p.grad, zeros, zeros, step=1, lr=0.1)
    assert torch.equal(before, p.detach())
    assert torch.equal(zeros, torch.zeros_like(zeros))
    optimizer = lab.Adam([p], lr=0.1)
    optimizer.step()
    assert torch.equal(new, p.detach())
    assert torch.equal(m, optimizer.state[p]["exp_avg"])
    assert torch.equal(v, optimizer.state[p]["exp_avg_sq"])


def test_second_derivative_is_refused_not_lost(device):
    p, g, m, v = (torch.rand(3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(4))
    (d,) = torch.autograd.grad(lab.adam_step(p, g, m, v, step=2)[0].sum(), g, create_graph=True)
    with pytest.raises(NotImplementedError, match="adam_step: its second derivative is not implemented"):
        d.sum().backward()


MAPPED = [(0, 0, 0, 0), (1, None, 0, None), (None, 0, None, -1)]


@pytest.mark.parametrize("in_dims", MAPPED)
def test_mapped_steps_and_their_gradients(device, in_dims):
    """vmap of the step and of its gradient are the loop over both; nested too."""
    tensors = [torch.rand(3, 3, dtype=torch.float64, device=device) + 0.1 for _ in range(4)]

    def step(*a):
        return lab.adam_step(*a, step=2, lr=0.3, weight_decay=0.2)

    def gradients(*a):
        return torch.func.grad(lambda *a: sum(t.sin().sum() for t in step(*a)), (0, 1, 2, 3))(*a)

    given = [t[0] if d is None else t for t, d in zip(tensors, in_dims, strict=True)]
    for fn in (step, gradients):
        rows = [[t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)] for i in range(3)]
        want = [torch.stack(column) for column in zip(*(fn(*row) for row in rows), strict=True)]
        torch.testing.assert_close(torch.func.vmap(fn, in_dims)(*given), tuple(want), rtol=1e-14, atol=0)
        nested = torch.func.vmap(torch.func.vmap(fn))
        torch.testing.assert_close(nested(*tensors), fn(*tensors), rtol=1e-14, atol=0)


def test_jacobian_of_the_step(device):
    tensors = [torch.rand(4, dtype=torch.float64, device=device) + 0.1 for _ in range(4)]

    def step(*a):
        return lab.adam_step(*a, step=2, lr=0.3)

    found = torch.func.jacrev(step, (0, 1, 2, 3))(*tensors)
    for row, want in zip(found, torch.autograd.functional.jacobian(step, tuple(tensors)), strict=True):
        torch.testing.assert_close(row, want, rtol=1e-14, atol=0)


Z = torch.zeros(3)
BAD = {
    "complex": (lambda: lab.adam_step(Z * 1j, Z, Z, Z, step=1), TypeError, "adam_step: dtype of param is complex64"),
    "shapes": (lambda: lab.adam_step(Z, Z[:2], Z, Z, step=1), ValueError, r"adam_step: shape of grad is \[2\], wanted \[3\] like"),
    "mixed": (lambda: lab.adam_step(Z, Z.double(), Z, Z, step=1), TypeError, "adam_step: dtype of grad is float64, wanted float32"),
    "step": (lambda: lab.adam_step(Z, Z, Z, Z, step=0), ValueError, "adam_step: step is 0, wanted a number from 1"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
