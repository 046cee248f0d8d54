"""What all optimizers on torch share with torch's: flags of its implementations, a parameter given twice, classes."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch.testing._internal.two_tensor import TwoTensor

import gradlab.torch as lab

PAIRS = {
    "SGD": (lab.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adam": (lab.Adam, torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    "AdamW": (lab.AdamW, torch.optim.AdamW, {"lr": 0.1}),
}
FLAGS = ("foreach", "fused", "capturable", "differentiable")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_of_any_of_torchs_implementations_is_stepped_on(device, name, flag):
    """Flags that choose how torch steps are dropped; what a checkpoint holds besides goes on, and loads back."""
    ours, theirs, options = PAIRS[name]
    if name == "SGD" and flag == "capturable":
        pytest.skip("torch's SGD has no such option")
    p = torch.nn.Parameter(torch.randn(5, device=device))
    native = theirs([p], **options)
    p.grad = torch.randn_like(p)
    native.step()
    saved = copy.deepcopy(native.state_dict())
    saved["param_groups"][0][flag] = True
    q = torch.nn.Parameter(p.detach().clone())
    optimizer = ours([q], **{**options, "lr": 1.0})
    had = optimizer.param_groups[0][flag]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0][flag] == had
    assert saved["param_groups"][0][flag] is True
    back = theirs([torch.nn.Parameter(p.detach().clone())], **options)
    back.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    r = back.param_groups[0]["params"][0]
    for _ in range(2):
        g = torch.randn_like(p)
        for t, o in ((p, native), (q, optimizer), (r, back)):
            t.grad = g.clone()
            o.step()
    torch.testing.assert_close(q, p, rtol=0, atol=1e-6)
    torch.testing.assert_close(r, p, rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_counted_on_the_device_stays_there(device, name):
    """Fused or capturable optimizers of torch count steps beside their parameters."""
    ours, theirs, options = PAIRS[name]
    p = torch.nn.Parameter(torch.randn(5, device=device))
    native = theirs([p], fused=True, **options)
    p.grad = torch.randn_like(p)
    native.step()
    q = torch.nn.Parameter(p.detach().clone())
    optimizer = ours([q], **options)
    optimizer.load_state_dict(copy.deepcopy(native.state_dict()))
    q.grad = p.grad.clone()
    native.step()
    optimizer.step()
    torch.testing.assert_close(q, p, rtol=0, atol=1e-6)
    if name != "SGD":
        assert optimizer.state[q]["step"].device == native.state[p]["step"].device
        assert optimizer.state[q]["step"] == 2


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True, "dampening": 0.5}])
@pytest.mark.parametrize("name", PAIRS)
def test_a_parameter_given_twice_is_stepped_twice(device, name, options):
    """One step behind the other, each counted, as torch's loop over parameters does it, and with torch's warning."""
    ours, theirs, own = PAIRS[name]
    if name != "SGD":
        options = {k: v for k, v in options.items() if k != "dampening"}
    runs = []
    for kind, more in ((ours, {}), (theirs, {"foreach": False})):
        torch.manual_seed(0)
        p, q = (torch.nn.Parameter(torch.randn(3, 4, device=device, dtype=torch.float64)) for _ in range(2))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = kind([p, q, p], **own, **options, **more)
        for _ in range(3):
            p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
            optimizer.step()
        runs.append((p, q, optimizer.state[p]))
    for mine, want in zip(runs[0][:2], runs[1][:2], strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-13)
    for key, want in runs[1][2].items():
        torch.testing.assert_close(runs[0][2][key], want, rtol=0, atol=1e-13, check_dtype=key != "step")


def test_steps_of_one_parameter_are_launches_of_their_own(device, monkeypatch):
    """In one launch they would write the same memory at once."""
    launched = []
    monkeypatch.setattr(lab.SGD, "_step_all", lambda self, tensors, *rest: launched.append(list(tensors["p"])))
    p, q = (torch.nn.Parameter(torch.zeros(2, device=device)) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = lab.SGD([p, q, p], lr=0.1)
    p.grad = q.grad = torch.ones(2, device=device)
    optimizer.step()
    assert [len(batch) for batch in launched] == [2, 1]


def test_a_gradient_given_twice_is_clipped_as_torch_does(device):
    runs = []
    for clip in (lab.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        p = torch.nn.Parameter(torch.zeros(2, device=device))
        p.grad = torch.tensor([3.0, 4.0], device=device)
        runs.append((clip([p, p], 1.0), p.grad))
    for got, want in zip(*runs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_they_are_of_torchs_classes():
    """Ours stand where code asks for torch's; none is what it is not."""
    ps = [torch.nn.Parameter(torch.zeros(1))]
    assert isinstance(lab.AdamW(ps), torch.optim.AdamW)
    assert isinstance(lab.AdamW(ps), lab.Adam)
    assert not isinstance(lab.Adam(ps), torch.optim.AdamW)
    assert isinstance(lab.Adam(ps), torch.optim.Adam)
    assert isinstance(lab.SGD(ps), torch.optim.SGD)
    assert lab.AdamW(ps).param_groups[0]["decoupled_weight_decay"]
    assert not lab.Adam(ps).param_groups[0]["decoupled_weight_decay"]


@pytest.mark.parametrize("where", ["a parameter", "a gradient"])
@pytest.mark.parametrize("name", [*PAIRS, "clip_grad_norm_"])
def test_a_subclass_that_is_not_known_is_one_line(name, where):
    """What a wrapper's address is nobody knows."""
    t = TwoTensor(torch.ones(3), torch.ones(3))
    p = torch.nn.Parameter(t if where == "a parameter" else torch.ones(3))
    if where == "a gradient":
        p = torch.ones(3).as_subclass(type("Wide", (torch.Tensor,), {"grad": t}))
    else:
        p.grad = t
    said = "a gradient" if name == "clip_grad_norm_" else where
    with pytest.raises(TypeError, match=f"^{name}: {said} is a TwoTensor, wanted a plain torch.Tensor or a DTensor$"):
        lab.clip_grad_norm_([p], 1.0) if name == "clip_grad_norm_" else PAIRS[name][0]([p]).step()


def _changes():
    """What a user may do between two steps, to both optimizers alike."""

    def state(optimizer):
        for s in optimizer.state.values():
            s.update({name: t.clone() for name, t in s.items() if isinstance(t, torch.Tensor)})

    def lying_otherwise(optimizer):
        p = optimizer.param_groups[0]["params"][0]
        p.grad = p.grad.t().contiguous().t()

    def left_out(optimizer):
        optimizer.param_groups[0]["params"][1].grad = None

    return {
        "nothing": lambda optimizer: None,
        "rate": lambda optimizer: optimizer.param_groups[0].update(lr=0.5),
        "decay": lambda optimizer: optimizer.param_groups[1].update(weight_decay=0.3),
        "state": state,
        "state forgotten": lambda optimizer: optimizer.state.clear(),
        "data": lambda optimizer: setattr(p := optimizer.param_groups[0]["params"][0], "data", p.data * 2),
        "lying otherwise": lying_otherwise,
        "left out": left_out,
        "group": lambda optimizer: optimizer.add_param_group({"params": [optimizer.more]}),
    }


@pytest.mark.parametrize("change", _changes())
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_step_like_the_last_sees_what_was_changed(name, change):
    options = {"lr": 1e-2, "weight_decay": 0.1} | ({"momentum": 0.9} if name == "SGD" else {"amsgrad": True})
    made = []
    for module in (lab, torch.optim):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((3, 4), (5,), (2, 3, 4), (7,))]
        optimizer = getattr(module, name)([{"params": params[:2]}, {"params": params[2:3]}], **options)
        optimizer.more = params[3]
        for turn in range(6):
            for p in params:
                p.grad = torch.randn_like(p)
            if turn == 3:
                assert module is torch.optim or optimizer._cached is not None
                _changes()[change](optimizer)
            optimizer.step()
        made.append(params)
    for ours, native in zip(*made, strict=True):
        torch.testing.assert_close(ours, native, atol=1e-6, rtol=1e-5)


def test_a_gradient_that_does_not_fit_is_refused_after_one_that_did():
    p = torch.nn.Parameter(torch.randn(4))
    optimizer = lab.Adam([p])
    for _ in range(3):
        p.grad = torch.randn(4)
        optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.zeros(3)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"shape of exp_avg is \[3\]"):
        optimizer.step()
    assert torch.equal(p, before)
