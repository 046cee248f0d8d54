"""Adam on torch: torch.optim.Adam's semantics, one launch, the step's derivative, bad input."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck

import gradlab.torch as lab
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels import many_triton

OPTIONS = [
    {},
    {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3},
    {"lr": 0.02, "weight_decay": 0.3},
    {"lr": 0.02, "weight_decay": 0.1, "maximize": True},
    {"lr": 0.02, "weight_decay": 0.4, "decoupled_weight_decay": True},
]


def parameters(device, dtype=torch.float64):
    shapes = [(3, 4), (7,), (), (2, 3, 4), (0, 5)]
    return [torch.nn.Parameter(torch.randn(s, device=device, dtype=torch.float64).to(dtype)) for s in shapes]


def pair(device, dtype=torch.float64, **options):
    """Our optimizer and torch's, over equal parameters."""
    ours = parameters(device, dtype)
    theirs = copy.deepcopy(ours)
    return (ours, lab.Adam(ours, **options)), (theirs, torch.optim.Adam(theirs, **options))


def walk(first, second, steps=5):
    """Step both on the same random gradients."""
    for _ in range(steps):
        for p, q in zip(first[0], second[0], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        first[1].step()
        second[1].step()


def assert_equal_runs(first, second, steps=5):
    """Equal within the rounding of the step: far below the size of one step, so that no missing step passes."""
    start = [p.detach().clone() for p in first[0]]
    walk(first, second, steps)
    for p, q, was in zip(first[0], second[0], start, strict=True):
        eps = torch.finfo(p.dtype).eps
        atol = 8 * steps * eps * max(1.0, was.abs().max().item() if was.numel() else 0.0)
        torch.testing.assert_close(p, q, rtol=0, atol=atol)
        if p.numel():
            assert (p - was).abs().max() > 10 * atol, "the parameters hardly moved"


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch(device, options, dtype):
    assert_equal_runs(*pair(device, dtype, **{"lr": 0.01, **options}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_to_nearest(device, dtype):
    """Against float64 on the rounded state, each stored value is its nearest half: no more than half an ulp off."""
    p, g, m = (torch.randn(64, device=device).to(dtype) for _ in range(3))
    v = torch.rand(64, device=device).to(dtype)
    want = lab.adam_step(p.double(), g.double(), m.double(), v.double(), step=3, lr=0.1)
    kernels.adam_(
        [p], [g], [m], [v], kernels.scalars(lr=0.1, step=3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    )
    for got, exact in zip((p, m, v), want, strict=True):
        ulp = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
        # eps x value is at least one ulp, half of it is the rounding; float32 arithmetic adds the 1 %.
        assert ((got.double() - exact).abs() <= 0.51 * ulp).all()


@pytest.mark.parametrize("broken", ["nothing", "zeros", "sign"])
def test_a_broken_kernel_fails(device, broken, monkeypatch):
    """The comparison that the tests above rest on sees a kernel that does nothing, stores zeros or flips the step."""
    whole = kernels.adam_

    def wrong(params, grads, exp_avgs, exp_avg_sqs, scalars):
        if broken == "zeros":
            for t in params:
                t.zero_()
        if broken == "sign":
            whole(params, [-g for g in grads], exp_avgs, exp_avg_sqs, scalars)

    monkeypatch.setattr(kernels, "adam_", wrong)
    with pytest.raises(AssertionError):
        assert_equal_runs(*pair(device, lr=1e-3), steps=1)


def test_adamw_is_torchs(device):
    ours = parameters(device)
    theirs = copy.deepcopy(ours)
    first, second = (ours, lab.AdamW(ours, lr=0.02)), (theirs, torch.optim.AdamW(theirs, lr=0.02))
    assert_equal_runs(first, second)
    # An Adam's state does not turn it into one.
    first[1].load_state_dict(lab.Adam(copy.deepcopy(ours)).state_dict())
    assert first[1].param_groups[0]["decoupled_weight_decay"]
    second[1].load_state_dict(first[1].state_dict())


def test_state_dict_goes_both_ways(device):
    ours, theirs = pair(device, lr=0.01, weight_decay=0.1)
    walk(ours, theirs, 3)
    state_ours, state_theirs = copy.deepcopy(ours[1].state_dict()), copy.deepcopy(theirs[1].state_dict())
    assert state_ours.keys() == state_theirs.keys()
    assert state_ours["param_groups"][0].keys() == state_theirs["param_groups"][0].keys()
    for i, state in state_theirs["state"].items():
        assert state.keys() == state_ours["state"][i].keys()
        assert state["step"] == state_ours["state"][i]["step"]
    ours[1].load_state_dict(state_theirs)
    theirs[1].load_state_dict(state_ours)
    assert_equal_runs(ours, theirs, 3)


def test_groups_steps_and_missing_gradients(device):
    ours, theirs = parameters(device), None
    theirs = copy.deepcopy(ours)

    def build(kind, ps):
        return kind(
            [{"params": ps[:2], "lr": 0.1}, {"params": ps[2:], "betas": (0.5, 0.6), "weight_decay": 0.2}], lr=0.01
        )

    a, b = build(lab.Adam, ours), build(torch.optim.Adam, theirs)
    for step in range(4):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            # Parameters take part in different steps, so their bias corrections differ.
            p.grad = None if (i + step) % 3 == 0 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_scheduler_closure_and_hooks(device):
    ours, theirs = pair(device, lr=0.1)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for _, o in (ours, theirs)]
    seen = []
    ours[1].register_step_post_hook(lambda *a: seen.append(1))
    for _ in range(3):
        walk(ours, theirs, 1)
        for s in schedulers:
            s.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
    assert len(seen) == 3
    assert ours[1].step(lambda: torch.tensor(3.0)) == 3.0


def scaled(ours, theirs, device):
    """Steps through a GradScaler whose second gradient is infinite: it must be left out, the scale with it halved."""
    scalers = [torch.amp.GradScaler(device.type, init_scale=8.0) for _ in range(2)]
    for step in range(4):
        for (ps, optimizer), scaler in zip((ours, theirs), scalers, strict=True):
            torch.manual_seed(step)
            before = [p.detach().clone() for p in ps]
            optimizer.zero_grad()
            scaler.scale(sum((p * torch.randn_like(p)).sum() for p in ps)).backward()
            if step == 1:
                ps[0].grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(ps, before, strict=True)) == (step == 1)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 4.0
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_a_grad_scaler_leaves_out_what_overflowed(device):
    scaled(*pair(device, torch.float32, lr=0.1), device)


def test_layouts_of_parameters_and_gradients(device):
    """Transposed, channels_last and sliced parameters; a gradient laid out otherwise, and an expanded one."""
    base = torch.randn(4, 6, dtype=torch.float64, device=device)
    given = [base.t(), torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device).to(memory_format=torch.channels_last),
             torch.randn(6, 6, dtype=torch.float64, device=device)[::2, 1:4]]  # fmt: skip
    ours = [torch.nn.Parameter(t) for t in given]
    theirs = [torch.nn.Parameter(t.detach().clone()) for t in given]
    a, b = lab.Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for expanded in (False, True):
        for p, q in zip(ours, theirs, strict=True):
            g = torch.randn(p.shape, dtype=p.dtype, device=device)
            p.grad = g[:1].expand(p.shape) if expanded else g
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_one_launch_for_all_parameters_and_groups(device, monkeypatch):
    launched = []
    launch = many_triton.launch
    monkeypatch.setattr(many_triton, "launch", lambda *a, **k: (launched.append(a[0]), launch(*a, **k)))
    ps = parameters(device)
    optimizer = lab.Adam([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.5}])
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(launched) == 1


def test_many_chunks_whole_and_partial(device, monkeypatch):
    """Chunks of 16 make the interpreter run what a GPU runs: several programs a tensor, the last one masked."""
    monkeypatch.setattr(many_triton, "block", lambda size, most, least=16: 16)
    shapes = [(5,), (16,), (37,), (64,), (1,)]
    ours = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64, device=device)) for s in shapes]
    theirs = copy.deepcopy(ours)
    assert_equal_runs((ours, lab.Adam(ours, lr=0.1)), (theirs, torch.optim.Adam(theirs, lr=0.1)))


def test_unaligned_addresses(device):
    """A parameter that starts 8 bytes off a 16-byte boundary, as a slice of a buffer does."""
    buffer = torch.randn(41, dtype=torch.float32, device=device)
    ours = [torch.nn.Parameter(buffer[2:])]
    assert ours[0].data_ptr() % 16
    theirs = copy.deepcopy(ours)
    assert_equal_runs((ours, lab.Adam(ours, lr=0.1)), (theirs, torch.optim.Adam(theirs, lr=0.1)))


def test_a_step_changes_no_constant(device):
    """What would be compiled anew: the constants and argument types are the same at another step and lr."""
    from gradlab.kernels.launch_triton import recording

    p, g, m, v = (torch.zeros(100) for _ in range(4))
    with recording() as launches:
        for step, lr in ((1, 0.1), (2, 0.2), (1000, 0.3)):
            options = {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
            kernels.adam_([p], [g], [m], [v], kernels.scalars(step=step, **options))
    first, *others = launches
    for other in others:
        assert other.constants == first.constants
        assert other.args[1:] == first.args[1:]


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


def parameter_with(grad):
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = grad
    return p


Z = torch.zeros(3)
BAD = {
    "amsgrad": (lambda: lab.Adam([Z], amsgrad=True), ValueError, "Adam: amsgrad is True, wanted False or None"),
    "fused": (lambda: lab.Adam([Z], fused=True), (ValueError, RuntimeError), "Adam: fused is True, wanted False or None"),
    "foreach": (lambda: lab.Adam([Z], foreach=True), ValueError, "Adam: foreach is True, wanted False or None"),
    "lr": (lambda: lab.Adam([Z], lr=-1.0), ValueError, "Invalid learning rate"),
    "sparse": (lambda: lab.Adam([parameter_with(Z.to_sparse())]).step(), TypeError, "Adam: layout of a gradient is torch.sparse"),
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


def test_a_state_that_does_not_fit_is_refused():
    """The kernel goes by addresses: a shorter or narrower moment would be read past its end."""
    p = parameter_with(torch.ones(3))
    optimizer = lab.Adam([p])
    optimizer.step()
    for moment, error, message in (
        (torch.zeros(2), ValueError, r"Adam: shape of exp_avg is \[2\], wanted \[3\] like its parameter"),
        (torch.zeros(3).half(), TypeError, "Adam: dtype of exp_avg is float16, wanted float32 like its parameter"),
    ):
        optimizer.state[p]["exp_avg"] = moment
        with pytest.raises(error, match=message):
            optimizer.step()
        assert optimizer.state[p]["step"] == 1


def test_an_error_leaves_no_half_made_step():
    good, bad = parameter_with(torch.ones(3)), parameter_with(torch.ones(3).to_sparse())
    optimizer = lab.Adam([good, bad])
    with pytest.raises(TypeError):
        optimizer.step()
    assert torch.equal(good.detach(), torch.zeros(3))
    assert not optimizer.state
