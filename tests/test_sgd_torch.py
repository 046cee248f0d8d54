"""SGD on torch: torch.optim.SGD's semantics, one launch, bad input."""

import collections
import copy
import functools

import pytest

torch = pytest.importorskip("torch")

import gradlab.torch as lab
from gradlab.kernels import sgd_triton as kernels
from gradlab.kernels.optimizers import multi_tensor_triton
from tests.kernel_faults import plant

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


def parameters(device, dtype=torch.float64):
    shapes = [(3, 4), (7,), (), (2, 3, 4), (0, 5)]
    return [torch.nn.Parameter(torch.randn(s, device=device, dtype=torch.float64).to(dtype)) for s in shapes]


def pair(device, dtype=torch.float64, **options):
    """Our optimizer and torch's, over equal parameters."""
    ours = parameters(device, dtype)
    theirs = copy.deepcopy(ours)
    return (ours, lab.SGD(ours, **options)), (theirs, torch.optim.SGD(theirs, **options))


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
        atol = 8 * steps * torch.finfo(p.dtype).eps * max(1.0, was.abs().max().item() if was.numel() else 0.0)
        torch.testing.assert_close(p, q, rtol=0, atol=atol)
        if p.numel():
            assert (p - was).abs().max() > 10 * atol, "the parameters hardly moved"
        for key, b in second[1].state.get(q, {}).items():
            torch.testing.assert_close(first[1].state[p][key], b, rtol=0, atol=100 * atol)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch(device, options, dtype):
    assert_equal_runs(*pair(device, dtype, **{"lr": 0.01, **options}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}])
def test_half_precision_rounds_to_nearest(device, dtype, options):
    """Against float64 on the rounded state, each stored value is its nearest half: no more than half an ulp off."""
    p, g, b = (torch.randn(64, device=device).to(dtype) for _ in range(3))
    want = lab.sgd_step(p.double(), g.double(), b.double(), lr=0.1, **options)
    kernels.sgd_([p], [g], [b if options else b.new_empty(0)], kernels.scalars(lr=0.1, **options))
    for got, exact in zip((p, b), want, strict=True):
        # eps x value is at least one ulp, half of it is the rounding; what cancels in float32 adds the rest.
        ulp = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
        assert ((got.double() - exact).abs() <= 0.51 * ulp + 4 * torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("broken", ["nothing", "zeros", "sign"])
def test_a_broken_kernel_fails(device, broken, monkeypatch):
    """The comparison that the tests above rest on sees a kernel that does nothing, stores zeros or flips the step."""
    whole = kernels.sgd_

    def wrong(params, grads, buffers, scalars, clip):
        if broken == "zeros":
            for t in params:
                t.zero_()
        if broken == "sign":
            whole(params, [-g for g in grads], buffers, scalars)

    monkeypatch.setattr(kernels, "sgd_", wrong)
    with pytest.raises(AssertionError):
        assert_equal_runs(*pair(device, lr=1e-3), steps=1)


def test_host_and_kernel_read_one_layout(device, monkeypatch, tmp_path):
    """Words of the table in another order: nothing on either side counts on a column's number."""
    fields = kernels.Scalars._fields[::-1]
    monkeypatch.setattr(kernels, "Scalars", collections.namedtuple("Scalars", fields))
    row = kernels.ROW._replace(scalars=fields)
    monkeypatch.setattr(kernels, "ROW", row)
    monkeypatch.setattr(lab.SGD, "_layout", row)
    monkeypatch.setattr(kernels, "column", row.columns())
    plant(monkeypatch, tmp_path, kernels, "_sgd_many_kernel")
    assert_equal_runs(*pair(device, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.2, maximize=True))


def test_without_momentum_no_buffer_is_kept(device):
    ps = parameters(device)
    optimizer = lab.SGD(ps, lr=0.1)
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not optimizer.state
    # A buffer from before, of a momentum set to 0 since, is neither read nor written.
    optimizer.state[ps[0]]["momentum_buffer"] = buffer = torch.full_like(ps[0], torch.nan).detach()
    optimizer.step()
    assert buffer.isnan().all()
    assert ps[0].isfinite().all()


def test_state_dict_goes_both_ways(device):
    ours, theirs = pair(device, lr=0.01, momentum=0.9, weight_decay=0.1)
    walk(ours, theirs, 3)
    state_ours, state_theirs = copy.deepcopy(ours[1].state_dict()), copy.deepcopy(theirs[1].state_dict())
    assert state_ours.keys() == state_theirs.keys()
    assert state_ours["param_groups"][0].keys() == state_theirs["param_groups"][0].keys()
    assert {i: s.keys() for i, s in state_ours["state"].items()} == {
        i: s.keys() for i, s in state_theirs["state"].items()
    }
    ours[1].load_state_dict(state_theirs)
    theirs[1].load_state_dict(state_ours)
    assert_equal_runs(ours, theirs, 3)


def test_groups_steps_and_missing_gradients(device):
    """Groups with and without momentum in one launch; parameters take their first step at different times."""
    ours = parameters(device)
    theirs = copy.deepcopy(ours)

    def build(kind, ps):
        groups = [
            {"params": ps[:2], "lr": 0.1},
            {"params": ps[2:3], "momentum": 0.5, "dampening": 0.2, "weight_decay": 0.2},
            {"params": ps[3:], "momentum": 0.9, "nesterov": True, "maximize": True},
        ]
        return kind(groups, lr=0.01)

    a, b = build(lab.SGD, ours), build(torch.optim.SGD, theirs)
    for step in range(4):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = None if (i + step) % 3 == 0 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_schedulers_closure_and_hooks(device):
    """OneCycleLR moves learning rate and momentum at every step."""
    ours, theirs = pair(device, lr=0.1, momentum=0.9)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=6) for _, o in (ours, theirs)]
    seen = []
    ours[1].register_step_post_hook(lambda *a: seen.append(1))
    for _ in range(5):
        walk(ours, theirs, 1)
        for s in schedulers:
            s.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-13)
    assert len(seen) == 5
    assert ours[1].step(lambda: torch.tensor(3.0)) == 3.0


def test_learning_rate_and_decay_as_tensors(device):
    assert_equal_runs(*pair(device, lr=torch.tensor(0.1, dtype=torch.float64), weight_decay=0.1, momentum=0.5))


def test_a_grad_scaler_leaves_out_what_overflowed(device):
    ours, theirs = pair(device, torch.float32, lr=0.1, momentum=0.9)
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


def test_layouts_of_parameters_and_gradients(device):
    """Transposed, channels_last and sliced parameters; a gradient laid out otherwise, and an expanded one."""
    base = torch.randn(4, 6, dtype=torch.float64, device=device)
    given = [
        base.t(),
        torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device).to(memory_format=torch.channels_last),
        torch.randn(6, 6, dtype=torch.float64, device=device)[::2, 1:4],
    ]
    ours = [torch.nn.Parameter(t) for t in given]
    theirs = [torch.nn.Parameter(t.detach().clone()) for t in given]
    a, b = (kind(ps, lr=0.1, momentum=0.9) for kind, ps in ((lab.SGD, ours), (torch.optim.SGD, theirs)))
    for expanded in (False, True, False):
        for p, q in zip(ours, theirs, strict=True):
            g = torch.randn(p.shape, dtype=p.dtype, device=device)
            p.grad = g[:1].expand(p.shape) if expanded else g
            q.grad = p.grad.clone()
        a.step()
        b.step()
    # A buffer that torch laid out as the gradient, over a parameter that lies otherwise.
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    for p, q in zip(ours, theirs, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    a.step()
    b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
        torch.testing.assert_close(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"], rtol=0, atol=1e-13)


def test_what_is_not_finite_goes_where_torch_lets_it(device):
    """A factor of 0 is no factor: an infinite parameter without decay, an infinite gradient without Nesterov's."""
    values = [1.0, torch.inf, -torch.inf, torch.nan]
    grid = torch.cartesian_prod(torch.tensor(values), torch.tensor(values)).to(device)
    for options in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5}):
        ps = [torch.nn.Parameter(grid[:, 0].clone()) for _ in range(2)]
        ours, theirs = lab.SGD(ps[:1], lr=0.1, **options), torch.optim.SGD(ps[1:], lr=0.1, **options)
        for g in (grid[:, 1], torch.zeros_like(ps[0])):
            ps[0].grad, ps[1].grad = g, g.clone()
            ours.step()
            theirs.step()
            torch.testing.assert_close(*ps, equal_nan=True, rtol=1e-6, atol=0)


def test_one_launch_for_all_parameters_and_groups(device, monkeypatch):
    launched = []
    launch = multi_tensor_triton.launch
    monkeypatch.setattr(multi_tensor_triton, "launch", lambda *a, **k: (launched.append(a[0]), launch(*a, **k)))
    ps = parameters(device)
    optimizer = lab.SGD([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.5, "momentum": 0.9}])
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert len(launched) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_many_chunks_whole_and_partial(device, monkeypatch, momentum):
    """Chunks of 16: several programs a tensor, the last one masked."""
    monkeypatch.setattr(kernels, "launch_many", functools.partial(multi_tensor_triton.launch_many, chunk=16))
    ours = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64, device=device)) for n in (5, 16, 37, 64, 1)]
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.1, "momentum": momentum}
    assert_equal_runs((ours, lab.SGD(ours, **options)), (theirs, torch.optim.SGD(theirs, **options)))


def test_unaligned_addresses(device):
    """A parameter that starts 8 bytes off a 16-byte boundary, as a slice of a buffer does."""
    ours = [torch.nn.Parameter(torch.randn(41, dtype=torch.float32, device=device)[2:])]
    assert ours[0].data_ptr() % 16
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.1, "momentum": 0.9}
    assert_equal_runs((ours, lab.SGD(ours, **options)), (theirs, torch.optim.SGD(theirs, **options)))


@pytest.mark.parametrize("T", [1, 2])
def test_a_step_changes_no_constant(device, T):
    """What would be compiled anew: the constants and argument types are the same at another step, lr and momentum."""
    from gradlab.kernels.runtime.launch_triton import recording

    p, g, b = (torch.zeros(100) for _ in range(3))
    with recording() as launches:
        for options in ({"first": True}, {}, {"lr": 0.3, "momentum": 0.5, "nesterov": True}, {"maximize": True}):
            kernels.sgd_([p] * T, [g] * T, [b] * T, kernels.scalars(**{"lr": 0.1, "momentum": 0.9, **options}) * T)
    first, *others = [
        (one.jit, one.constants, [(type(a), a.dtype) if isinstance(a, torch.Tensor) else type(a) for a in one.args])
        for one in launches
    ]
    # A float is never a constant, whatever its value.
    assert (int in first[2], float in first[2]) == (T == 1, T == 1)
    assert all(other == first for other in others)


def parameter_with(grad):
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = grad
    return p


def stepped_with(buffer):
    p = parameter_with(torch.ones(3))
    optimizer = lab.SGD([p], momentum=0.9)
    optimizer.state[p]["momentum_buffer"] = buffer
    return optimizer.step()


Z = torch.zeros(3)
NESTEROV = "Nesterov momentum requires a momentum and zero dampening"
BAD = {
    "differentiable": (lambda: lab.SGD([Z], differentiable=True), ValueError, "SGD: differentiable is True, wanted False or None"),
    "fused": (lambda: lab.SGD([Z], fused=True), (ValueError, RuntimeError), "SGD: fused is True, wanted False or None"),
    "foreach": (lambda: lab.SGD([Z], foreach=True), ValueError, "SGD: foreach is True, wanted False or None"),
    "lr": (lambda: lab.SGD([Z], lr=-1.0), ValueError, "Invalid learning rate"),
    "momentum": (lambda: lab.SGD([Z], momentum=-1.0), ValueError, "Invalid momentum value"),
    "decay": (lambda: lab.SGD([Z], weight_decay=-1.0), ValueError, "Invalid weight_decay value"),
    "two rates": (lambda: lab.SGD([Z], lr=torch.ones(2)), ValueError, "Tensor lr must be 1-element"),
    "nesterov": (lambda: lab.SGD([Z], nesterov=True), ValueError, NESTEROV),
    "nesterov, dampened": (lambda: lab.SGD([Z], nesterov=True, momentum=0.9, dampening=0.1), ValueError, NESTEROV),
    "sparse": (lambda: lab.SGD([parameter_with(Z.to_sparse())]).step(), TypeError, "SGD: layout of a gradient is torch.sparse"),
    "short buffer": (lambda: stepped_with(Z[:2]), ValueError, r"SGD: shape of momentum_buffer is \[2\], wanted \[3\] like its"),
    "half buffer": (lambda: stepped_with(Z.half()), TypeError, "SGD: dtype of momentum_buffer is float16, wanted float32 like"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_option_that_a_new_group_brings_is_refused():
    optimizer = lab.SGD([parameter_with(torch.ones(3))])
    optimizer.add_param_group({"params": [parameter_with(torch.ones(3))], "foreach": True})
    with pytest.raises(ValueError, match="SGD: foreach is True, wanted False or None"):
        optimizer.step()


def test_an_error_leaves_no_half_made_step():
    good, bad = parameter_with(torch.ones(3)), parameter_with(torch.ones(3).to_sparse())
    optimizer = lab.SGD([good, bad], momentum=0.9)
    with pytest.raises(TypeError):
        optimizer.step()
    assert torch.equal(good.detach(), torch.zeros(3))
    assert not optimizer.state
