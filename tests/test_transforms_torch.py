"""torch.func through every layer: vmap of each argument, jacrev, per-sample gradients, Hessians, as native layers."""

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch.func import functional_call, grad, jacrev, vmap

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import backend

Z = 3
GRID = {"stride": (2, 1), "padding": 1}


def entropy(reduction):
    return lambda x, t: lab.cross_entropy(x, t, reduction=reduction), lambda x, t: F.cross_entropy(
        x, t, reduction=reduction
    )


def everything(x, q):
    return lab.cross_entropy(x, q, label_smoothing=0.1, z_loss=0.2, softcap=1.5)


def everything_composed(x, q):
    h = 1.5 * torch.tanh(x / 1.5)
    return F.cross_entropy(h, q, label_smoothing=0.1) + 0.2 * torch.logsumexp(h, 1).square().mean()


# name: hand-written, native, the shapes of its floating arguments, the classes it takes besides.
OPS = {
    "relu": (lab.relu, F.relu, [(4, 5)], None),
    "linear": (lab.linear, F.linear, [(4, 5), (6, 5), (6,)], None),
    "linear, relu": (lambda x, w, b: lab.linear(x, w, b, activation="relu"), lambda x, w, b: F.relu(F.linear(x, w, b)), [(4, 5), (6, 5), (6,)], None),
    "linear of a row": (lab.linear, F.linear, [(5,), (6, 5), (6,)], None),
    "conv2d": (lambda x, w, b: lab.conv2d(x, w, b, **GRID), lambda x, w, b: F.conv2d(x, w, b, **GRID), [(2, 2, 5, 4), (3, 2, 3, 2), (3,)], None),
    "conv2d, groups, relu": (lambda x, w, b: lab.conv2d(x, w, b, groups=2, activation="relu", **GRID), lambda x, w, b: F.relu(F.conv2d(x, w, b, groups=2, **GRID)), [(1, 4, 4, 3), (4, 2, 2, 2), (4,)], None),
    "conv2d of an image": (lambda x, w: lab.conv2d(x, w), lambda x, w: F.conv2d(x, w), [(1, 4, 3), (2, 1, 2, 2)], None),
    "max_pool2d": (lambda x: lab.max_pool2d(x, (3, 2), 2, 1), lambda x: F.max_pool2d(x, (3, 2), 2, 1), [(2, 2, 5, 4)], None),
    "max_pool2d of an image, overlapping": (lambda x: lab.max_pool2d(x, 2, 1), lambda x: F.max_pool2d(x, 2, 1), [(2, 4, 3)], None),
    "cross_entropy": (*entropy("mean"), [(4, 5)], [0, 2, -100, 4]),
    "linear_cross_entropy": (lambda h, w, b, t: lab.linear_cross_entropy(h, w, t, b, label_smoothing=0.1), lambda h, w, b, t: F.cross_entropy(F.linear(h, w, b), t, label_smoothing=0.1), [(4, 3), (5, 3), (5,)], [0, 2, -100, 4]),
    "cross_entropy of one row": (*entropy("mean"), [(3,)], 1),
    "cross_entropy of pixels": (*entropy("sum"), [(2, 4, 3)], [[0, 3, 1], [-100, 2, 2]]),
    "cross_entropy, everything": (everything, everything_composed, [(4, 5), (4, 5)], None),
    "cross_entropy, sum": (*entropy("sum"), [(4, 5)], [0, 2, 1, 4]),
    "cross_entropy, none": (*entropy("none"), [(4, 5)], [0, 2, -100, 4]),
}  # fmt: skip


@pytest.fixture(params=OPS)
def op(request, device):
    """By hand, native, arguments."""
    hand, native, shapes, classes = OPS[request.param]
    generator = torch.Generator().manual_seed(0)
    args = [torch.randn(s, dtype=torch.float64, generator=generator).to(device) for s in shapes]
    extra = [] if classes is None else [torch.tensor(classes, device=device)]
    close = (lambda f: lambda *a: f(*a, *extra)) if extra else lambda f: f
    return close(hand), close(native), args


def scalar(fn):
    """A loss whose cotangents are not ones."""
    return lambda *args: fn(*args).sin().sum()


def mapped(args, dims):
    """The arguments, with an axis of Z different ones where `dims` names one."""
    rows = []
    for arg, dim in zip(args, dims, strict=True):
        scale = torch.linspace(0.5, 1.5, Z, dtype=arg.dtype, device=arg.device)
        rows.append(arg if dim is None else torch.stack([arg * s for s in scale], dim))
    return rows


def places(args):
    """Every choice of what is mapped, and where: in front, second, or not at all."""
    choices = [[None, 0] + ([1] if a.ndim > 1 else []) for a in args]
    return [dims for dims in itertools.product(*choices) if any(d is not None for d in dims)]


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_vmap_and_per_sample_gradients(op):
    hand, native, args = op
    every = tuple(range(len(args)))
    for dims in places(args):
        rows = mapped(args, dims)
        same(*(vmap(f, in_dims=dims)(*rows) for f in (hand, native)))
        same(*(vmap(grad(scalar(f), argnums=every), in_dims=dims)(*rows) for f in (hand, native)))


def test_vmap_of_vmap(op):
    hand, native, args = op
    first, rest = (0,) + (None,) * (len(args) - 1), (None,) + (0,) * (len(args) - 1)
    for inner, outer in {(first, rest), (rest, first), ((0,) * len(args),) * 2} - {((None,), (0,)), ((0,), (None,))}:
        rows = mapped(mapped(args, inner), outer)
        same(*(vmap(vmap(f, in_dims=inner), in_dims=outer)(*rows) for f in (hand, native)))


def test_jacobians(op):
    hand, native, args = op
    for k in range(len(args)):
        same(*(jacrev(f, k)(*args) for f in (hand, native)))


def test_hessians_reverse_over_reverse(op):
    hand, native, args = op
    for k, j in itertools.product(range(len(args)), repeat=2):
        same(*(jacrev(jacrev(scalar(f), k), j)(*args) for f in (hand, native)))


def test_result_in_front_of_another_axis(op):
    hand, native, args = op
    rows = mapped(args, (0,) * len(args))
    same(*(vmap(f, out_dims=-1)(*rows) for f in (hand, native)))


def test_empty_map(device):
    x, w = torch.randn(0, 4, 5, device=device), torch.randn(6, 5, device=device)
    assert vmap(lab.linear, in_dims=(0, None))(x, w).shape == (0, 4, 6)
    assert vmap(lab.relu)(x).shape == x.shape


def network(kind):
    layers = torch.nn if kind == "native" else lab
    torch.manual_seed(0)
    return torch.nn.Sequential(
        layers.Conv2d(1, 2, 3, padding=1), layers.ReLU(), torch.nn.Flatten(), layers.Linear(2 * 4 * 4, 3)
    ).double()


def test_per_sample_gradients_and_hessian_of_a_network(device):
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64, device=device)
    t = torch.arange(5, device=device) % 3
    found = []
    for kind, entropy in (("gradlab", lab.cross_entropy), ("native", F.cross_entropy)):
        model = network(kind).to(device)
        weights = dict(model.named_parameters())

        def loss(weights, x, t, model=model, entropy=entropy):
            return entropy(functional_call(model, weights, (x[None],)), t[None])

        def of_bias(bias, weights=weights, loss=loss):
            return loss({**weights, "3.bias": bias}, x[0], t[0])

        found.append(
            [
                vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, t),
                jacrev(jacrev(of_bias))(weights["3.bias"]),
                vmap(grad(lambda w, x, loss=loss: loss(w, x, t[0])), in_dims=(None, 0))(weights, x),
            ]
        )
    same(*found)


# A rule for vmap must not cost the layers their place in one graph.
@pytest.mark.parametrize("name", sorted({"aot_eager", backend()}))
def test_network_compiles_in_one_graph(device, name):
    torch.compiler.reset()
    model = network("gradlab").to(device)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, device=device)
    want, got = model(x), torch.compile(model, fullgraph=True, backend=name)(x)
    same(got, want)
    leaves = list(model.parameters())
    same(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (got, want)))


def test_forward_mode_is_refused_not_wrong(device):
    x = torch.randn(3, device=device)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lab.relu, (x,), (x,))
    # Nothing here requires a gradient, so that an eager call would be its forward alone: the tangent must be seen.
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        lab.relu(torch.autograd.forward_ad.make_dual(x, x))
