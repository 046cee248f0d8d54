"""Adam and AdamW on torch against torch.optim's: options as a product, launches, state, what breaks a kernel."""

import collections
import copy
import functools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode

import gradlab.torch as lab
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.optimizers import adam_step_triton, multi_tensor_triton, norm_triton
from gradlab.kernels.runtime.launch_triton import recording
from tests.kernel_faults import plant

SHAPES = [(3, 4), (7,), (), (2, 3, 4), (0, 5)]


def parameters(device, dtype=torch.float64):
    return [torch.nn.Parameter(torch.randn(s, device=device, dtype=torch.float64).to(dtype)) for s in SHAPES]


def pair(device, dtype=torch.float64, kinds=(lab.Adam, torch.optim.Adam), ours_alone=None, **options):
    """Our optimizer and torch's, over equal parameters."""
    ours = parameters(device, dtype)
    theirs = copy.deepcopy(ours)
    return (ours, kinds[0](ours, **options, **(ours_alone or {}))), (theirs, kinds[1](theirs, **options))


def walk(first, second, steps=5, clip=None):
    """Step both on the same random gradients, torch's clipped first where asked."""
    for _ in range(steps):
        for p, q in zip(first[0], second[0], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(second[0], clip)
        first[1].step()
        second[1].step()


def assert_equal(first, second, steps, start):
    """Equal within the rounding of the steps: far below the size of one, so that no missing step passes.

    Moments have their own rounding: none is more than a few gradients.
    """
    for p, q, was in zip(first[0], second[0], start, strict=True):
        eps = torch.finfo(p.dtype).eps
        atol = 8 * steps * eps * max(1.0, was.abs().max().item() if was.numel() else 0.0)
        torch.testing.assert_close(p, q, rtol=0, atol=atol)
        for key, theirs in second[1].state[q].items():
            mine = first[1].state[p][key]
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=8 * steps * eps, atol=8 * eps)
        if p.numel():
            assert (p - was).abs().max() > 10 * atol, "the parameters hardly moved"


def assert_equal_runs(first, second, steps=5, clip=None):
    start = [p.detach().clone() for p in first[0]]
    walk(first, second, steps, clip)
    assert_equal(first, second, steps, start)


def scaled(device, ours_alone=None, clip=None):
    """Steps through a real GradScaler whose second gradient is infinite: left out on the device, not looked at."""
    ours, theirs = pair(device, torch.float32, lr=0.1, ours_alone=ours_alone)
    start = [p.detach().clone() for p in ours[0]]
    scalers = [torch.amp.GradScaler(device.type, init_scale=8.0) for _ in range(2)]
    for step in range(4):
        for (ps, optimizer), scaler in zip((ours, theirs), scalers, strict=True):
            torch.manual_seed(step)
            before = [p.detach().clone() for p in ps]
            optimizer.zero_grad()
            scaler.scale(sum((p * torch.randn_like(p)).sum() for p in ps)).backward()
            if step == 1:
                ps[0].grad[0, 0] = torch.inf
            if clip is not None and optimizer is theirs[1]:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(ps, clip)
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(ps, before, strict=True)) == (step == 1)
            assert not hasattr(optimizer, "found_inf")
    assert scalers[0].get_scale() == scalers[1].get_scale() == 4.0
    assert {s["step"].item() for s in ours[1].state.values()} == {3}
    assert_equal(ours, theirs, 4, start)


def layouts(device):
    """Transposed, channels_last and sliced parameters; a gradient laid out otherwise, and an expanded one."""
    base = torch.randn(4, 6, dtype=torch.float64, device=device)
    given = [
        base.t(),
        torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device).to(memory_format=torch.channels_last),
        torch.randn(6, 6, dtype=torch.float64, device=device)[::2, 1:4],
    ]
    ours = [torch.nn.Parameter(t) for t in given]
    theirs = [torch.nn.Parameter(t.detach().clone()) for t in given]
    start = [p.detach().clone() for p in ours]
    a, b = lab.Adam(ours, lr=0.1, amsgrad=True), torch.optim.Adam(theirs, lr=0.1, amsgrad=True)
    for expanded in (False, True):
        for p, q in zip(ours, theirs, strict=True):
            g = torch.randn(p.shape, dtype=p.dtype, device=device)
            p.grad = g[:1].expand(p.shape) if expanded else g
            q.grad = p.grad.clone()
        a.step()
        b.step()
    assert_equal((ours, a), (theirs, b), 2, start)


def partial(device, kind=(lab.Adam, torch.optim.Adam)):
    """Groups with their own options, amsgrad in one alone, and parameters that take part in different steps."""
    ours = parameters(device)
    theirs = copy.deepcopy(ours)
    start = [p.detach().clone() for p in ours]
    lr = torch.tensor(0.1, dtype=torch.float64, device=device)

    def build(kind, ps):
        return kind(
            [
                {"params": ps[:2], "lr": lr, "amsgrad": True},
                {"params": ps[2:], "betas": (0.5, 0.6), "weight_decay": 0.2},
            ],
            lr=0.01,
            foreach=False,
        )

    a, b = (build(k, ps) for k, ps in zip(kind, (ours, theirs), strict=True))
    for step in range(4):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = None if (i + step) % 3 == 0 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        b.step()
    assert_equal((ours, a), (theirs, b), 4, start)
    assert [a.state[p]["step"].item() for p in ours] == [2, 3, 3, 2, 3]


def chunked(device):
    """Chunks of 16: several programs a tensor, the last one masked; stretches of 32 of the norm, in tiles of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "launch_many", functools.partial(multi_tensor_triton.launch_many, chunk=16))
        patch.setattr(norm_triton, "CHUNK", 32)
        patch.setattr(norm_triton, "TILE", 16)
        ours = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64, device=device)) for n in (5, 16, 37, 64, 1)]
        theirs = copy.deepcopy(ours)
        options = {"lr": 0.1, "amsgrad": True}
        first, second = (ours, lab.Adam(ours, **options, max_norm=2.0)), (theirs, torch.optim.Adam(theirs, **options))
        assert_equal_runs(first, second, 3, clip=2.0)


# Every comparison that the tests below rest on; each must pass, and none with a broken kernel.
COMPARISONS = {
    "float64": lambda device: assert_equal_runs(*pair(device, lr=0.01)),
    "float32": lambda device: assert_equal_runs(*pair(device, torch.float32, lr=0.01)),
    "amsgrad": lambda device: assert_equal_runs(*pair(device, lr=0.01, amsgrad=True, betas=(0.8, 0.5))),
    "AdamW": lambda device: assert_equal_runs(*pair(device, kinds=(lab.AdamW, torch.optim.AdamW), lr=0.02)),
    "device step": lambda device: assert_equal_runs(*pair(device, lr=0.01, fused=True)),
    "clipped": lambda device: assert_equal_runs(*pair(device, lr=0.01, ours_alone={"max_norm": 0.3}), clip=0.3),
    "scaled": scaled,
    "scaled and clipped": lambda device: scaled(device, {"max_norm": 0.7}, 0.7),
    "layouts": layouts,
    "groups": partial,
    "chunks": chunked,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_equals_torch(device, name):
    COMPARISONS[name](device)


@pytest.mark.parametrize("name", ["amsgrad", "device step", "clipped"])
def test_host_and_kernel_read_one_layout(device, monkeypatch, tmp_path, name):
    """Words of the table in another order: nothing on either side counts on a column's number."""
    fields = kernels.Scalars._fields[::-1]
    row = multi_tensor_triton.RowLayout(("p", "g", "w", "x", "v", "m"), fields, kernels.ROW.words[::-1])
    monkeypatch.setattr(kernels, "Scalars", collections.namedtuple("Scalars", fields))
    monkeypatch.setattr(kernels, "ROW", row)
    monkeypatch.setattr(lab.Adam, "_layout", row)
    monkeypatch.setattr(kernels, "column", row.columns())
    plant(monkeypatch, tmp_path, adam_step_triton, "step", users=[kernels])
    COMPARISONS[name](device)


BROKEN = {
    "does nothing": ("masked_store(p_ptr, e, E, p, FULL)", "E = E"),
    "stores zeros": ("masked_store(p_ptr, e, E, p, FULL)", "masked_store(p_ptr, e, E, p * 0, FULL)"),
    "flips the sign": ("h = sign * g", "h = -sign * g"),
}
MORE = {
    "flips the step": ("- step_size * m", "+ step_size * m"),
    "keeps no m": ("masked_store(m_ptr, e, E, m, FULL)", "E = E"),
    "keeps no v": ("masked_store(v_ptr, e, E, v, FULL)", "E = E"),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in COMPARISONS for fault in BROKEN] + [("float64", fault) for fault in MORE],
)
def test_a_broken_kernel_fails_every_comparison(device, monkeypatch, tmp_path, name, fault):
    plant(monkeypatch, tmp_path, adam_step_triton, "_step_chunk", {**BROKEN, **MORE}[fault], users=[kernels])
    with pytest.raises(AssertionError):
        COMPARISONS[name](device)


OPTION_BREAKS = {
    "amsgrad": (adam_step_triton, "_step_chunk", ("tl.where((x >= v) | (x != x), x, v)", "v")),
    "AdamW": (adam_step_triton, "_step_chunk", ("p = decay_factor * p", "p = p")),
    "device step": (adam_step_triton, "step", ("count * tl.log(beta1)", "tl.log(beta1)")),
    "clipped": (norm_triton, "_clip_kernel", ("max_norm / (norm", "max_norm / (0.5 * norm")),
    "scaled": (adam_step_triton, "step", ("tl.where(tl.load(found_ptr) == 0, E, 0)", "E")),
    "scaled and clipped": (norm_triton, "_squares", ("factor / tl.load(scale_ptr).to(ACC)", "factor")),
    "groups": (adam_step_triton, "step", ("step_size = step_size * rate", "rate = rate")),
    "chunks": (adam_step_triton, "step", ("e = start + tl", "e = 0 * start + tl")),
}


@pytest.mark.parametrize("name", OPTION_BREAKS)
def test_a_broken_option_fails_its_comparison(device, monkeypatch, tmp_path, name):
    module, kernel, fault = OPTION_BREAKS[name]
    plant(monkeypatch, tmp_path, module, kernel, fault, users=[kernels] if module is adam_step_triton else [])
    with pytest.raises(AssertionError):
        COMPARISONS[name](device)


GROUPS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-3, 0.3]),
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.5, 0.0)]),
        "eps": st.sampled_from([1e-8, 1e-2]),
        "weight_decay": st.sampled_from([0.0, 0.3]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "decoupled_weight_decay": st.booleans(),
        "tensor": st.booleans(),
    }
)


@settings(max_examples=30)
@given(
    groups=st.lists(GROUPS, min_size=1, max_size=3),
    decoupled=st.booleans(),
    fused=st.booleans(),
    clip=st.sampled_from([None, 0.5, 1e3]),
    missing=st.sets(st.integers(0, 2), max_size=1),
    seed=st.integers(0, 2**31),
)
def test_any_product_of_options_is_torchs(groups, decoupled, fused, clip, missing, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    sides = []
    shapes = [(3, 2), (5,), ()]
    start = [torch.randn(s, dtype=torch.float64, device=device) for s in shapes]
    kinds = (lab.AdamW, torch.optim.AdamW) if decoupled else (lab.Adam, torch.optim.Adam)
    for kind in kinds:
        ps = [torch.nn.Parameter(t.clone()) for t in start]
        built = []
        for i, options in enumerate(groups):
            options = dict(options)
            if options.pop("tensor"):
                options["lr"] = torch.tensor(options["lr"], dtype=torch.float64, device=device)
            built.append({"params": ps[i :: len(groups)], **options})
        own = {"max_norm": clip, "fused": fused} if kind is kinds[0] else {"foreach": False}
        sides.append((ps, kind(built, **own)))
    for step in range(3):
        for i, (p, q) in enumerate(zip(sides[0][0], sides[1][0], strict=True)):
            gone = i in missing and step != 1
            p.grad = None if gone else torch.randn_like(p)
            q.grad = None if gone else p.grad.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(sides[1][0], clip)
        for _, optimizer in sides:
            optimizer.step()
    for p, q, was in zip(*(s[0] for s in sides), start, strict=True):
        # A step is up to lr / sqrt(1 - beta2) long, and a few of them cancel.
        torch.testing.assert_close(p, q, rtol=1e-13, atol=2e-14)
        assert (p - was).abs().max() > 1e-5


class NoLook(TorchDispatchMode):
    """Raises where a value of one of these tensors is asked for on the host."""

    def __init__(self, *tensors):
        super().__init__()
        self.places = {t.data_ptr() for t in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            assert args[0].data_ptr() not in self.places, "the host looks at a value on the device"
        return func(*args, **(kwargs or {}))


def test_nothing_on_the_device_is_looked_at(device):
    """lr, what the scaler hands, and the step once it is on the device; the control looks."""
    ps = parameters(device)
    lr, scale, found = (
        torch.tensor(0.1, device=device),
        torch.tensor(2.0, device=device),
        torch.zeros((), device=device),
    )
    optimizer = lab.Adam(ps, lr=lr, fused=True, max_norm=1.0)
    optimizer.grad_scale, optimizer.found_inf = scale, found
    for p in ps:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in ps]
    with NoLook(lr, scale, found, *(s["step"] for s in optimizer.state.values())):
        optimizer.step()
    assert all(s["step"] == 2 for s in optimizer.state.values())
    assert not torch.equal(ps[0], before[0])
    with NoLook(lr), pytest.raises(AssertionError, match="looks"):
        lr.item()


def test_found_inf_as_torch_hangs_it(device):
    """Whatever is found, and whenever: moments, masters, step stay; a scaler of several devices finds more than 1."""
    p = torch.nn.Parameter(torch.randn(4, device=device).bfloat16())
    optimizer = lab.Adam([p], lr=0.1, amsgrad=True, master_weights=True, state_dtype=torch.bfloat16)
    p.grad = torch.full_like(p, torch.nan)
    optimizer.found_inf = torch.tensor(2.0, device=device)
    start = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, start)
    state = optimizer.state[p]
    assert state["step"] == 0
    assert torch.equal(state["master"], start.float())
    assert not any(state[name].any() for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    p.grad = torch.ones_like(p)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    assert state["step"] == 1
    torch.testing.assert_close(state["master"], start.float() - 0.1, rtol=1e-5, atol=0)
    # Without any gradient torch's sum over devices is a plain 0.
    p.grad, optimizer.found_inf = None, 0
    optimizer.step()


def test_missing_gradients_and_nothing_at_all(device):
    p = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = lab.Adam([p], max_norm=1.0)
    optimizer.step()
    assert not optimizer.state
    assert optimizer.grad_norm is None


def launches_of(monkeypatch):
    launched = []
    launch = multi_tensor_triton.launch
    monkeypatch.setattr(
        multi_tensor_triton, "launch", lambda *a, **k: (launched.append(a[0].fn.__name__), launch(*a, **k))
    )
    return launched


def test_one_launch_for_each_pair_of_dtypes(device, monkeypatch):
    """Parameters in float32 and bfloat16, with and without masters, in three groups: a launch each, and one norm."""
    launched = launches_of(monkeypatch)
    ps = parameters(device, torch.float32) + parameters(device, torch.bfloat16)
    groups = [
        {"params": ps[:2], "amsgrad": True},
        {"params": ps[2:6], "lr": torch.tensor(0.5, device=device)},
        {"params": ps[6:]},
    ]
    for options, steps, norms in (({}, 2, 0), ({"max_norm": 1.0}, 2, 2), ({"master_weights": True}, 2, 0)):
        optimizer = lab.Adam(copy.deepcopy(groups), **options)
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.ones_like(p)
        launched.clear()
        optimizer.step()
        assert launched == ["_squares_many_kernel"] * norms + ["_adam_many_kernel"] * steps


def test_one_norm_across_dtypes(device):
    ours = [
        torch.nn.Parameter(torch.zeros(3, device=device, dtype=d))
        for d in (torch.float64, torch.float32, torch.float16)
    ]
    optimizer = lab.Adam(ours, max_norm=1.0)
    for p, value in zip(ours, (2.0, 3.0, 6.0), strict=True):
        p.grad = torch.zeros_like(p)
        p.grad[1] = value
    optimizer.step()
    assert optimizer.grad_norm.item() == 7.0
    for p, value in zip(ours, (2.0, 3.0, 6.0), strict=True):
        moment = torch.tensor(0.1 * value / (7 + 1e-6), dtype=torch.float64)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"][1].cpu(), moment.to(p.dtype), rtol=1e-6, atol=0)
        assert p.grad[1] == value


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_norm_that_is_not_finite_does_as_torchs(device, value):
    first, second = pair(device, lr=0.1, ours_alone={"max_norm": 1.0})
    for p, q in zip(first[0], second[0], strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    first[0][0].grad[1, 1] = second[0][0].grad[1, 1] = value
    torch.nn.utils.clip_grad_norm_(second[0], 1.0)
    first[1].step()
    second[1].step()
    for p, q in zip(first[0], second[0], strict=True):
        torch.testing.assert_close(p, q, equal_nan=True, rtol=1e-12, atol=0)


def test_state_dict_goes_both_ways(device):
    """With amsgrad, a tensor lr, and the step on the device or not."""
    for fused in (False, True):
        lr = torch.tensor(0.01, dtype=torch.float64, device=device)
        options = {"lr": lr, "weight_decay": 0.1, "amsgrad": True, "fused": fused}
        ours, theirs = pair(device, **options)
        walk(ours, theirs, 3)
        state_ours, state_theirs = copy.deepcopy(ours[1].state_dict()), copy.deepcopy(theirs[1].state_dict())
        assert state_ours.keys() == state_theirs.keys()
        assert state_ours["param_groups"][0].keys() == state_theirs["param_groups"][0].keys()
        for i, state in state_theirs["state"].items():
            assert state.keys() == state_ours["state"][i].keys()
            assert state["step"] == state_ours["state"][i]["step"]
        fresh = lab.Adam(ours[0]), torch.optim.Adam(theirs[0])
        fresh[0].load_state_dict(state_theirs)
        fresh[1].load_state_dict(state_ours)
        assert torch.is_tensor(fresh[0].param_groups[0]["lr"])
        assert_equal_runs((ours[0], fresh[0]), (theirs[0], fresh[1]), 3)


def test_adamw_stays_one(device):
    """An Adam's state does not turn it into one."""
    ps = parameters(device)
    optimizer = lab.AdamW(ps, lr=0.02)
    optimizer.load_state_dict(lab.Adam(copy.deepcopy(ps)).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"]


def test_copies_and_pickles_keep_our_options(device):
    options = {"max_norm": 2.0, "master_weights": True, "state_dtype": torch.bfloat16, "seed": 7}
    optimizer = lab.Adam(parameters(device, torch.bfloat16), **options)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert {name: getattr(other, name) for name in options} == options
    sgd = lab.SGD(parameters(device), max_norm=2.0)
    assert copy.deepcopy(sgd).max_norm == 2.0


def test_scheduler_closure_and_hooks(device):
    ours, theirs = pair(device, lr=torch.tensor(0.1, dtype=torch.float64, device=device))
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


def test_unaligned_addresses(device):
    """A parameter that starts 8 bytes off a 16-byte boundary, as a slice of a buffer does."""
    buffer = torch.randn(41, dtype=torch.float32, device=device)
    ours = [torch.nn.Parameter(buffer[2:])]
    assert ours[0].data_ptr() % 16
    theirs = copy.deepcopy(ours)
    assert_equal_runs((ours, lab.Adam(ours, lr=0.1)), (theirs, torch.optim.Adam(theirs, lr=0.1)))


def test_a_step_changes_no_constant(device):
    """What would be compiled anew: the constants and argument types are the same at another step, lr and max_norm."""
    p = torch.nn.Parameter(torch.zeros(100, device=device))
    p.grad = torch.ones_like(p)
    optimizer = lab.Adam([p], max_norm=1.0)
    with recording() as launches:
        for lr, max_norm in ((0.1, 1.0), (0.2, 0.5), (0.3, 2.0)):
            optimizer.param_groups[0]["lr"], optimizer.max_norm = lr, max_norm
            optimizer.step()
    for first, *others in (launches[i::3] for i in range(3)):
        for other in others:
            assert other.jit is first.jit
            assert other.constants == first.constants
            plain = [[a if isinstance(a, int) else type(a) for a in launch.args] for launch in (first, other)]
            assert plain[0] == plain[1]


def parameter_with(grad, dtype=torch.float32):
    p = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    p.grad = grad
    return p


def stepped(**changed):
    """A step with attributes that were set since the optimizer was made."""
    optimizer = lab.Adam([parameter_with(torch.ones(3))])
    for name, value in changed.items():
        setattr(optimizer, name, value)
    return optimizer.step()


Z = torch.zeros(3)
ONES = torch.ones(3)
WANTED = "wanted False or None"
BAD = {
    "foreach": (lambda: lab.Adam([Z], foreach=True), ValueError, f"Adam: foreach is True, {WANTED}"),
    "capturable": (lambda: lab.AdamW([Z], capturable=True), ValueError, f"AdamW: capturable is True, {WANTED}"),
    "differentiable": (lambda: lab.Adam([Z], differentiable=True), ValueError, f"Adam: differentiable is True, {WANTED}"),
    "lr": (lambda: lab.Adam([Z], lr=-1.0), ValueError, "Invalid learning rate"),
    "two rates": (lambda: lab.Adam([Z], lr=torch.ones(2)), ValueError, "Tensor lr must be 1-element"),
    "rate elsewhere": (
        lambda: stepped_at(torch.empty((), device="meta")),
        ValueError, "Adam: device of lr is meta, wanted cpu like a parameter, or the CPU",
    ),
    "max_norm": (lambda: lab.Adam([Z], max_norm=-1.0), ValueError, "Adam: max_norm is -1.0, wanted a number from 0, or None"),
    "no norm": (lambda: stepped(max_norm=float("nan")), ValueError, "Adam: max_norm is nan, wanted a number from 0, or None"),
    "masters": (lambda: lab.Adam([Z], master_weights=1), TypeError, "Adam: master_weights is 1, wanted True or False"),
    "state": (lambda: lab.Adam([Z], state_dtype=torch.float16), ValueError, "Adam: state_dtype is torch.float16, wanted one of None, torch.float32, torch.bfloat16"),
    "seed": (lambda: lab.Adam([Z], seed=0.5), TypeError, "Adam: seed is 0.5, wanted an integer"),
    "sparse": (lambda: lab.Adam([parameter_with(Z.to_sparse())]).step(), TypeError, "Adam: layout of a gradient is torch.sparse_coo, wanted torch.strided"),
    "complex": (lambda: lab.Adam([parameter_with(ONES * 1j, torch.complex64)]).step(), TypeError, "Adam: dtype of a parameter is complex64, wanted one of float64"),
}  # fmt: skip


def stepped_at(lr):
    optimizer = lab.Adam([parameter_with(ONES)])
    optimizer.param_groups[0]["lr"] = lr
    return optimizer.step()


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


def test_a_step_is_not_captured(monkeypatch):
    p = parameter_with(torch.ones(3))
    optimizer = lab.Adam([p])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="Adam: step is captured into a CUDA graph, wanted to be called"):
        optimizer.step()
    assert not p.detach().any()


@pytest.mark.parametrize("bad", [torch.ones(3).to_sparse(), torch.ones(3) * 1j])
def test_an_error_leaves_no_half_made_step(bad):
    good, other = parameter_with(torch.ones(3)), parameter_with(None, bad.dtype)
    other.grad = bad
    optimizer = lab.Adam([good, other], fused=True, max_norm=1.0)
    with pytest.raises(TypeError):
        optimizer.step()
    assert torch.equal(good.detach(), torch.zeros(3))
    assert not optimizer.state


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"amsgrad": True}]
)
def test_what_is_not_finite_goes_where_torch_lets_it(device, options):
    """A factor of 0 is no factor: an infinite parameter without decay. Then two steps on zeros."""
    values = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan])
    grid = torch.cartesian_prod(values, values).to(device)
    ps = [torch.nn.Parameter(grid[:, 0].clone()) for _ in range(2)]
    ours, theirs = lab.Adam(ps[:1], lr=0.1, **options), torch.optim.Adam(ps[1:], lr=0.1, **options)
    for g in (grid[:, 1], torch.zeros_like(ps[0]), torch.zeros_like(ps[0])):
        ps[0].grad, ps[1].grad = g.clone(), g.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(*ps, equal_nan=True, rtol=1e-6, atol=0)
        for name, theirs_ in theirs.state[ps[1]].items():
            torch.testing.assert_close(ours.state[ps[0]][name], theirs_, equal_nan=True, rtol=1e-6, atol=0)
