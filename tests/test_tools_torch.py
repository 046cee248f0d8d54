"""The lab under torch's own tools: FLOP counter, meta tensors, compiled autograd, export, trace, a compiled step."""

import functools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.spec import specs
from gradlab.profiling.native.native_torch import NATIVE

OPS = pytest.mark.parametrize("name", specs())
# What a product's FLOPs are counted over, of the ops that are made of one.
SUMMED = {"linear": "K", "conv2d": "D", "linear_cross_entropy": "K"}


def case_of(name):
    """The op's largest case that is checked."""
    return max(specs()[name].select("check"), key=lambda case: sum(case.sizes.values()))


def call(name, case=None, device=None):
    """The op as a function of its case's inputs, and those."""
    op, case = specs()[name], case or case_of(name)
    arrays = op.at(case).make()
    given = [SIDE.put(arrays[a.name], "float64") for a in op.at(case).inputs]
    given = [t.to(device) for t in given] if device else given
    for a, t in zip(op.at(case).inputs, given, strict=True):
        t.requires_grad_(a.name in op.wrt)
    return op.at(case).bind(SIDE.op(name)), given


def total(results):
    return sum(t.sin().sum() for t in as_tuple(results) if t is not None and t.requires_grad)


def counted(fn, given):
    """FLOPs forward and backward, as torch's counter has them."""
    with FlopCounterMode(display=False) as forward:
        y = total(fn(*given))
    with FlopCounterMode(display=False) as backward:
        y.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_every_registered_op_has_a_flop_formula():
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("gradlab::")}
    assert names
    assert {n for n in names if getattr(torch.ops.gradlab, n) not in flop_registry} == set()


@OPS
def test_flops_are_those_of_the_specs_products(name):
    op = specs()[name]
    for case in op.select("check"):
        fn, given = call(name, case)
        flops = lambda sizes, case=case: op.flops(sizes, **case.static)
        # What grows with the axis that is summed over is the products'; the rest is elementwise, which no counter has.
        axis = SUMMED.get(name)
        without = case.sizes | ({axis: 0} if axis else {})
        want = [flops(case.sizes)[way] - flops(without)[way] if axis else 0 for way in ("forward", "backward")]
        assert list(counted(fn, given)) == want, case.name


@pytest.mark.parametrize("name", ["linear", "conv2d", "relu", "cross_entropy"])
def test_flops_are_the_natives(name):
    for case in specs()[name].select("check"):
        if case.static.get("groups", 1) != 1:
            # torch 2.13 counts wgrad as if every filter had all channels.
            continue
        fn, given = call(name, case)
        native = functools.partial(NATIVE[name].fn, **specs()[name].at(case).options)
        assert counted(fn, given) == counted(native, given), case.name


def test_flops_of_a_second_derivative():
    h, w = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4)))
    y = lab.linear_cross_entropy(h, w, torch.tensor([0, 1, 2]))
    grads = torch.autograd.grad(y, (h, w), create_graph=True)
    with FlopCounterMode(display=False) as second:
        sum(g.sum() for g in grads).backward()
    # Logits and both directions, then dgrad and wgrad of both.
    assert second.get_total_flops() == (3 + 4) * 2 * 3 * 4 * 5


@OPS
def test_meta_tensors_have_the_results_shapes(name):
    (fn, given), (_, hollow) = call(name), call(name, device="meta")
    want, got = as_tuple(fn(*given)), as_tuple(fn(*hollow))
    for real, meta in zip(want, got, strict=True):
        assert (meta.device.type, meta.shape, meta.dtype) == ("meta", real.shape, real.dtype)
        assert meta.stride() == real.stride()
    leaves = [(t, m) for t, m in zip(given, hollow, strict=True) if t.requires_grad]
    total(got).backward()
    assert [m.grad.shape for _, m in leaves] == [t.shape for t, _ in leaves]


# A backward compiled at once, by compiled autograd; the other ops' rules are of these three kinds.
@pytest.mark.parametrize("name", ["linear", "conv2d", "cross_entropy"])
def test_compiled_autograd_equals_eager(name):
    torch.compiler.reset()
    (fn, want), (_, got) = call(name), call(name)

    def step(*given):
        total(fn(*given)).backward()

    step(*want)
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")(*got)
    for one, other in zip(want, got, strict=True):
        assert not one.requires_grad or torch.equal(one.grad, other.grad)
    torch.compiler.reset()


class Net(torch.nn.Module):
    """Most layers, for images [B 1 4 4] and classes [B]: every size that is B's is to stay free."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = lab.Conv2d(1, 2, 3, padding=1), lab.Linear(8, 3)

    def forward(self, x, t):
        h = lab.max_pool2d(lab.relu(self.conv(x)), 2).flatten(1)
        y = lab.tanh(lab.sigmoid(self.last(h)))
        rows = lab.linear_cross_entropy(h, self.last.weight, t, reduction="none")
        bits = lab.binary_cross_entropy_with_logits(y, y.detach().abs())
        return y, lab.cross_entropy(y, t) + lab.mse_loss(y, y.detach() + 1) + bits, rows


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_takes_another_batch(strict):
    net = Net().double()
    batch = torch.export.Dim("B", min=2, max=64)
    draw = lambda B: (torch.randn(B, 1, 4, 4, dtype=torch.float64), torch.arange(B) % 3)
    program = torch.export.export(net, draw(3), dynamic_shapes=({0: batch}, {0: batch}), strict=strict).module()
    for B in (3, 7):
        given = draw(B)
        for got, want in zip(program(*given), net(*given), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_convolution_takes_other_images(strict):
    net = torch.nn.Sequential(lab.Conv2d(1, 2, 3, padding=1), lab.MaxPool2d(2)).double()
    draw = lambda n: torch.randn(n, 1, 2 * n + 4, 2 * n + 2, dtype=torch.float64)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(net, (draw(3),), dynamic_shapes=(free,), strict=strict).module()
    for n in (3, 5):
        x = draw(n)
        assert torch.equal(program(x), net(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@OPS
def test_trace_is_refused_in_a_line(name):
    fn, given = call(name)
    given = [t.detach() for t in given]
    wanted = "wanted torch.export.export or torch.compile, which follow sizes"
    public = {"adam": "adam_step", "sgd": "sgd_step"}.get(name, name)
    with pytest.raises(NotImplementedError, match=rf"^{public}: the call is recorded by torch.jit.trace, {wanted}$"):
        torch.jit.trace(lambda *given: fn(*given), tuple(given), check_trace=False)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_a_compiled_step_breaks_the_graph_once_and_compiles_nothing_anew(kind):
    torch.compiler.reset()
    counters.clear()
    options = {"momentum": 0.9} if kind == "SGD" else {}
    layers = [torch.nn.Linear(4, 3, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [getattr(lab, kind)(layer.parameters(), lr=0.1, max_norm=1.0, **options) for layer in layers]
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="eager")]
    frames = []
    for i in range(4):
        for layer, optimizer, step in zip(layers, optimizers, steps, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
            F.mse_loss(layer(torch.ones(2, 4, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.float64)).backward()
            step()
            optimizer.zero_grad()
        frames.append(counters["frames"]["total"])
    assert len(set(frames)) == 1
    (said,) = counters["graph_break"]
    assert "the optimizers of gradlab step in one launch" in said
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.equal(one, other)
    torch.compiler.reset()
