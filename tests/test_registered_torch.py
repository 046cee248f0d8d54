"""The kernels as custom ops: opcheck, torch.compile without a graph break, and what the dispatcher sees."""

import pytest

torch = pytest.importorskip("torch")

from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import backend
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.window import Geometry

SCALARS = [0.9, 0.999, 1e-8, 0.0, 0.01, 0.5, 1.0, 0.1]


def adam_samples(r):
    """Plain; and all that is on the device: masters, rounded at random, scaled, clipped."""
    some = lambda: [r(3), r(2, 2)]
    one = torch.ones((), dtype=torch.float32, device=r(1).device)
    half = lambda: [t.bfloat16() for t in some()]
    plain = (some(), some(), some(), [t.abs() for t in some()], [], [], SCALARS * 2, [], [], [], None, None, None)
    late = [one.double()] * 2, [one.clone(), one.clone()], [3, 4], one * 4, one * 0, r(2).abs()
    full = (half(), half(), half(), half(), half(), [t.float() for t in half()], SCALARS * 2, *late)
    return [plain, full]


def samples(device):
    """Arguments for every op in the `gradlab` namespace."""
    r = lambda *s: torch.randn(*s, dtype=torch.float64, device=device)
    one = lambda value: torch.tensor(value, device=device)
    x, w, b = r(5, 4), r(3, 4).t(), r(3)
    image, window = r(2, 4, 6, 5), r(3, 4, 3, 2)
    geometry = Geometry((2, 2), (1, 1), ((1, 0), (0, 0)), 1, (6, 5), (3, 2)).flat()
    pooled = Geometry((2, 2), (1, 1), ((1, 0), (1, 1)), 1, (6, 5), (3, 3)).flat()
    taps = torch.randint(0, 4, (2, 4, 3, 3), dtype=torch.int32, device=device)
    t = torch.tensor([0, 2, -100, 1, 1], device=device)
    logits, soft = r(5, 3, 1), r(5, 3, 1)
    plain, every = ClassLoss(-100, 0.0, 0.0).flat(), ClassLoss(-100, 0.1, 2.0).flat()
    ones = torch.ones(5, dtype=torch.float64, device=device)
    s = torch.stack([logits.flatten(1).max(1).values, ones, ones])
    # The second of three parts of three classes.
    part = [3, 9]
    lce = (r(1, 5, 4), r(1, 3, 4).mT, t.unsqueeze(0), r(1, 3), r(1, 3).abs())
    return {
        "matmul": [(x, w, b, None, "", True, False), (x, w, None, r(5, 3), "y", False, True), (x, w, None, x, "a", False, False), (r(2, 5, 4), w.expand(2, 4, 3), r(2, 3), None, "", True, True)],
        "rows_product": [(r(2, 5, 4), w, b, None, "", True), (x, w, None, w, "b", False), (r(2, 5, 4), w, None, r(2, 5, 4), "a", False)],
        "rows_gram": [(r(2, 5, 4), r(2, 5, 3), r(2, 5, 4), "a", True), (x, r(5, 3), r(4, 3), "y", False), (x, r(5, 3), r(5, 3), "b", False)],
        "rows_sum": [(r(2, 5, 4), r(2, 5, 4)), (x, None)],
        "column_sum": [(x, None), (x, r(5, 4)), (r(2, 5, 4), None)],
        "relu_mask": [(x, x), (r(()).expand(5, 4), r(4, 5).t())],
        "conv2d": [(image, window, b, None, geometry, True, False), (image, window, None, r(2, 3, 3, 2), geometry, False, True)],
        "conv2d_dgrad": [(r(2, 3, 3, 2), window, None, geometry, True), (r(2, 3, 3, 2), window, r(2, 3, 3, 2), geometry, False)],
        "conv2d_wgrad": [(r(2, 3, 3, 2), image, r(2, 3, 3, 2), geometry, False)],
        "channels_last": [(image, None), (r(()).expand(2, 3, 3, 2), r(2, 3, 3, 2))],
        "conv2d_bias_sum": [(r(2, 3, 3, 2), None), (r(()).expand(2, 3, 3, 2), r(2, 3, 3, 2))],
        "max_pool2d": [(image, pooled, False), (image.contiguous(memory_format=torch.channels_last), pooled, True)],
        "max_pool2d_scatter": [(r(()).expand(2, 4, 3, 3), taps, pooled, False), (r(2, 4, 3, 3), taps, pooled, True)],
        "max_pool2d_gather": [(image, taps, pooled, False)],
        "sigmoid": [(x,), (r(4, 5).t(),)],
        "sigmoid_slope": [(r(()).expand(5, 4), x, k) for k in range(3)],
        "tanh": [(x,)],
        "tanh_slope": [(r(4, 5).t(), x, k) for k in range(3)],
        "squares": [(x, r(()).expand(5, 4), 0, 20), (r(2, 3, 3), r(2, 3, 3), 1, 1)],
        "differences": [(r(()).expand(5, 4), None, x, r(4, 5).t(), 2, 20), (x, x, r(4, 5).t(), None, -1, 1)],
        "binary_cross_entropy": [(x, r(4, 5).t(), r(5, 1).expand(5, 4), None, 0, 20), (r(2, 3), r(2, 3), None, r(2, 3), 1, 1)],
        "binary_cross_entropy_derivative": [(None, x, x, x, x, 0, 0, 1), (r(()).expand(5, 4), x, r(4, 5).t(), None, None, 1, 0, 20)],
        "times": [(x, r(4, 5).t()), (r(()).expand(5, 4), x)],
        "cross_entropy_loss": [(logits, t, None, None, plain), (r(2, 3, 4).mT, None, r(2, 4, 3), r(4), every), (logits, t, None, None, every, part)],
        "cross_entropy_backward": [(r(()).expand(5), None, logits, t, None, None, s, plain), (r(5), r(5), logits, None, soft, r(3), s, every), (r(5), r(5), logits, t, None, r(3), s, every, part)],
        "cross_entropy_backward_": [(r(5), None, logits, t, None, None, s, plain), (r(5), None, logits, t, None, None, s, plain, part)],
        "cross_entropy_target_backward": [(r(5), logits, r(3), s, every), (r(()).expand(5), logits, None, s, plain)],
        "cross_entropy_second_backward": [(soft, r(5), None, logits, t, None, None, s, plain), (soft, r(5), r(5), logits, None, soft, None, s, every), *((soft, r(5), r(5), logits, t, None, None, s, every, part, sums) for sums in (None, r(5)))],
        "merge_parts": [(r(3, 1, 4, 5).abs(), t.unsqueeze(0), plain, 9), (r(2, 2, 4, 5).abs(), None, every, 9)],
        "cross_entropy_loss_with_gradient_": [(logits, t, None, None, r(2), 0.0, plain), (logits, None, soft, None, None, 0.1, every)],
        "cross_entropy_scale_": [(soft, r(()))],
        "mean_divisors": [(t, None, 3, -100, True), (t.expand(2, 5), r(3), 3, -100, False), (t, r(3), 3, -100, True, 1)],
        "sum_rows": [(r(5),), (r(2, 5),)],
        "linear_cross_entropy_loss": [(*lce[:3], None, None, plain), (*lce, every), (*lce, every, part), (*lce, every, None, 3)],
        "linear_cross_entropy_backward": [(r(1, 5), dn, *lce, r(1, 3, 5), every, *needs, by) for dn, needs, by in ((r(1, 5), (True, True, True), True), (None, (False, True, False), False))]
        + [(r(1, 5), None, *lce, r(1, 3, 5), every, True, True, True, False, part, x) for x in (None, r(1, 5, 4)[..., 1:])],
        "linear_cross_entropy_second_backward": [(r(1, 5, 4), r(1, 4, 3), r(1, 3), r(1, 5), r(1, 5), *lce, r(1, 3, 5), every, True, True, True, True), (r(1, 5, 4), None, None, r(1, 5), None, *lce, r(1, 3, 5), every, True, False, False, False)]
        + [(r(1, 5, 4), None, None, r(1, 5), r(1, 5), *lce, r(1, 3, 5), every, True, True, True, False, part, sums) for sums in (None, r(1, 5))],
        "adam_": adam_samples(r),
        "global_norm": [([x, r(2, 3, 4), r(3).half()], 1.0, None), ([r(2, 3)[:, ::2]], 0.5, one(4.0))],
        "clip_factor": [(r(3).abs(), 1.0)],
        "scale_": [([r(3), r(2, 2)], r(2))],
        "sgd_": [([r(3), r(2, 2)], [r(3), r(2, 2)], [r(3), r(0)], [0.1, 1.0, 0.2, 0.9, 0.5, 1.0, 0.9, 0.1, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), ([r(3)], [r(3)], [r(3)], [0.1, 1.0, 0.2, 0.9, 0.5, 1.0, 0.9], r(2).abs())],
        "sgd_pullback": [(r(3), r(()).expand(3), [0.1, 1.0, 0.2, 0.9, 0.5, 1.0, 0.9]), (r(3), None, [0.1, -1.0, 0.2, 0.0, 0.0, 1.0, 0.0])],
        "adam_pullback": [
            (r(3), r(3), r(3), r(3).abs(), None, None, r(3), r(3), r(3), None, SCALARS),
            (r(2, 3), r(2, 3), r(2, 3), r(2, 3).abs(), r(2, 3).abs(), r(2), r(()).expand(2, 3), r(2, 3), r(2, 3), r(2, 3), SCALARS),
        ],
    }  # fmt: skip


def registered():
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("gradlab::")}
    return sorted(names)


def test_every_registered_op_has_a_sample():
    assert registered() == sorted(samples("cpu"))


@pytest.mark.parametrize("name", registered())
def test_opcheck(device, name):
    for args in samples(device)[name]:
        opcheck(getattr(torch.ops.gradlab, name).default, args)


def network(x, t, w1, b1, w2, b2):
    return lab.cross_entropy(lab.linear(lab.linear(x, w1, b1, activation="relu"), w2, b2), t)


def inputs(device, rows=6):
    r = lambda *s: torch.randn(*s, dtype=torch.float64, device=device, requires_grad=True)
    return (r(rows, 5), torch.arange(rows, device=device) % 3, r(4, 5), r(4), r(3, 4), r(3))


# The default backend needs a C++ compiler; both must take the whole function as one graph.
@pytest.mark.parametrize("name", sorted({"aot_eager", backend()}))
def test_compile_fullgraph_equals_eager(device, name):
    torch.compiler.reset()
    args = inputs(device)
    leaves = [a for a in args if a.requires_grad]
    compiled = torch.compile(network, fullgraph=True, backend=name)
    got, want = compiled(*args), network(*args)
    assert torch.equal(got, want)
    for one, other in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted({"aot_eager", backend()}))
def test_compile_sgd_step(device, name):
    torch.compiler.reset()
    p, g, b = (torch.rand(6, dtype=torch.float64, device=device, requires_grad=True) for _ in range(3))

    def fn(p, g, b):
        p, first = lab.sgd_step(p, g, momentum=0.9, lr=0.1)
        p, b = lab.sgd_step(p, first, b, momentum=0.9, nesterov=True, lr=0.1)
        return lab.sgd_step(p, g, lr=0.1, weight_decay=0.1, maximize=True)[0], b

    compiled = torch.compile(fn, fullgraph=True, backend=name)
    dy = [torch.rand_like(p) for _ in range(2)]
    for one, other in zip(
        torch.autograd.grad(compiled(p, g, b), (p, g, b), dy),
        torch.autograd.grad(fn(p, g, b), (p, g, b), dy),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_compile_relu_and_adam_step(device):
    torch.compiler.reset()
    p, g, m, v = (torch.rand(6, dtype=torch.float64, device=device, requires_grad=True) for _ in range(4))

    def fn(p, g, m, v):
        return lab.adam_step(lab.relu(p - 0.5), g, m, v, step=3)

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    dy = [torch.rand_like(p) for _ in range(3)]
    for one, other in zip(
        torch.autograd.grad(compiled(p, g, m, v), (p, g, m, v), dy),
        torch.autograd.grad(fn(p, g, m, v), (p, g, m, v), dy),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_eager_goes_past_the_dispatcher_and_a_mode_does_not(device):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 4, device=device)
    with Watch():
        lab.linear(x, x)
    assert any("gradlab.matmul" in name for name in seen)


def test_class_out_of_range_is_reported_under_compile_too(device):
    if device.type != "cpu":
        pytest.skip("on CUDA a class out of range gives NaN: looking would make the host wait")
    torch.compiler.reset()
    compiled = torch.compile(lambda x, t: lab.cross_entropy(x, t), fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"target\[1\] is 9"):
        compiled(torch.randn(2, 3), torch.tensor([0, 9]))
