"""conv2d on torch: the product of its options, second derivatives, layouts, dtypes, bad input."""

import itertools
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gradlab.kernels import conv2d_triton as kernels
from gradlab.kernels.common import conv2d_depthwise_triton as depthwise
from gradlab.kernels.common import conv2d_last_triton as last
from gradlab.kernels.common.images_triton import lies_channels_last
from gradlab.kernels.common.tiles_triton import Tile
from gradlab.kernels.runtime import compiled_triton
from gradlab.kernels.runtime.launch_triton import gpu_sizes, noting
from gradlab.torch import conv2d

# torch says once a process that its own convolution copies the input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

EPS = 2.0**-53


def drawn(device="cpu", B=2, D=2, H=7, W=6, filters=4, R=3, S=2, groups=1, dtype=torch.float64):
    shapes = (B, D * groups, H, W), (filters, D, R, S), (filters,)
    return [torch.randn(s, dtype=torch.float64, device=device).to(dtype).requires_grad_() for s in shapes]


def native(x, w, b=None, *, activation=None, **options):
    y = F.conv2d(x, w, b, **options)
    return F.relu(y) if activation == "relu" else y


def close(got, wanted, terms, eps=EPS):
    scale = max(wanted.abs().max().item() if wanted.numel() else 0.0, 1.0)
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2 * (8 + terms) * eps * scale)


def assert_same(inputs, **options):
    """Values and every gradient are the native's, for a random cotangent."""
    y, wanted = conv2d(*inputs, **options), native(*inputs, **options)
    terms = inputs[1][0].numel()
    close(y, wanted, terms)
    dy = torch.randn_like(wanted)
    results = y.numel() // y.shape[-3] if y.numel() else 0
    for got, want in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        close(got, want, max(results, inputs[1].numel()))


WINDOWS = [(1, 1), (1, 3), (2, 2), (3, 3), (5, 3)]
STEPS = [(stride, padding) for stride in (1, 2, 3) for padding in (0, 1, 2)] + [(1, "same"), (1, "valid")]


# torch's own remark on how it pads an even window; ours pads in the kernel.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(("stride", "padding"), STEPS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kind", ["one group", "two groups", "depthwise"])
def test_product_of_options(device, stride, padding, dilation, kind):
    groups, D = {"one group": (1, 3), "two groups": (2, 2), "depthwise": (3, 1)}[kind]
    # Two windows each, walking through all five: with every kind, dilation and step each window comes up.
    at = STEPS.index((stride, padding)) + 2 * groups + dilation
    for R, S in (WINDOWS[at % 5], WINDOWS[(at + 2) % 5]):
        inputs = drawn(device, D=D, H=11, W=8, filters=2 * groups, R=R, S=S, groups=groups)
        assert_same(inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"stride": (3, 2), "dilation": (2, 4), "padding": (4, 3)},
        {"stride": (4, 1), "padding": (3, 3)},
        {"stride": (8, 9)},
        {"padding": "same", "dilation": (1, 3)},
    ],
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_rows_and_columns_apart(device, options, activation):
    assert_same(drawn(device, H=9, W=10), activation=activation, **options)


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, 1),
        ({"stride": 2, "padding": 1}, 1),
        ({"stride": (2, 1), "dilation": (1, 2), "padding": 1, "groups": 2}, 2),
    ],
)
def test_gradcheck_and_gradgradcheck(device, options, groups):
    inputs = drawn(device, B=1, D=1, H=3, W=4, filters=2, R=2, S=2, groups=groups)
    assert gradcheck(lambda *a: conv2d(*a, **options), inputs)
    assert gradgradcheck(lambda *a: conv2d(*a, **options), inputs)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_hessian_and_third_derivative_are_the_natives(device, activation):
    x, w, b = drawn(device, B=1, D=1, H=4, W=4, filters=2, R=2, S=2)
    options = {"stride": 2, "padding": 1, "activation": activation}

    def derivatives(layer):
        (g,) = torch.autograd.grad(layer(x, w, b, **options).pow(3).sum(), x, create_graph=True)
        h = torch.autograd.grad(g.square().sum(), (x, w, b), create_graph=True)
        return *h, *torch.autograd.grad(sum(t.square().sum() for t in h), (x, w, b))

    for got, want in zip(derivatives(conv2d), derivatives(native), strict=True):
        assert want.abs().max() > 0
        # Each derivative multiplies by values of the order of the last, so the error is asked relative to the result.
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11 * want.abs().max().item())


def test_channels_last_in_and_out(device):
    x, w, b = drawn(device)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y = conv2d(x, w, b, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_same((x, w, b), padding=1, stride=2)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert w.grad.is_contiguous()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(device, layout):
    x, w, b = drawn(device, H=6, W=6)
    x = {
        "transposed": lambda: x.detach().transpose(2, 3),
        "sliced": lambda: torch.randn(2, 2, 12, 13, dtype=torch.float64, device=device)[:, :, ::2, 1::2],
        "expanded": lambda: x.detach()[:1, :1].expand(2, 2, 6, 6),
    }[layout]().requires_grad_()
    w = w.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert_same((x, w, b), padding=1)
    y, wanted = (layer(x, w, b, activation="relu") for layer in (conv2d, native))
    one = torch.ones((), dtype=torch.float64, device=device)
    for dy in (one.expand_as(y), torch.randn(*y.shape[::-1], dtype=torch.float64, device=device).permute(3, 2, 1, 0)):
        for got, want in zip(
            *(torch.autograd.grad(z, (x, w, b), dy, retain_graph=True) for z in (y, wanted)), strict=True
        ):
            close(got, want, 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("groups", "D", "index"), [(1, 3, tl.int32), (2, 3, tl.int64), (1, 17, tl.int32), (2, 17, tl.int64)]
)
def test_several_programs_and_split_sums(device, dtype, groups, D, index, monkeypatch):
    """Small tiles and a GPU's splits: few channels share an axis with the taps, many are looped over.

    The weight's gradient is a sum of partial ones; offsets have 32 or 64 bits.
    """
    monkeypatch.setattr(kernels, "index", lambda *tensors: index)
    monkeypatch.setattr(kernels, "_tile", lambda *_: Tile(16, 16, 16))
    monkeypatch.setattr(kernels, "parts", lambda device, programs, size: 256 // programs + 1)
    grids, launch = {}, kernels.launch
    monkeypatch.setattr(
        kernels, "launch", lambda jit, grid, *a, **k: (grids.update({jit: grid}), launch(jit, grid, *a, **k))
    )
    x, w, b = drawn(device, B=13, D=D, H=9, W=7, filters=34, R=3, S=3, groups=groups, dtype=dtype)
    options = {"stride": 2, "padding": 1, "groups": groups}
    y = conv2d(x, w, b, activation="relu", **options)
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    wanted = native(*wide, **options)
    eps = 2.0**-24 if dtype == torch.float32 else 2.0**-9
    close(y, wanted.relu(), 9 * D, eps)
    dy = torch.randn_like(y)
    gated = torch.where(y > 0, dy, 0).double()
    for got, want in zip(torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(wanted, wide, gated), strict=True):
        close(got, want, 300 if dtype == torch.float32 else 1, eps)
    assert grids[kernels._wgrad_kernel][2] > 1, "a sum of partial sums"


# Sizes, options, and the kernels that compute forward and dgrad.
WAYS = {
    "one group, relu": ({"B": 3, "D": 32, "filters": 24}, {"padding": 1, "activation": "relu"}, "windows"),
    "groups, strides": ({"D": 17, "filters": 34, "groups": 2, "S": 2}, {"stride": (2, 1), "padding": 1, "groups": 2}, "windows"),
    "dilated": ({"D": 24, "filters": 40, "groups": 2, "R": 2}, {"stride": (2, 3), "dilation": (3, 2), "padding": 2, "groups": 2}, "windows"),
    "few channels": ({"D": 3, "filters": 16, "S": 3}, {"padding": 1}, "forward windows"),
    "few filters": ({"D": 16, "filters": 3, "S": 3}, {"padding": 1, "activation": "relu"}, "windows dgrad"),
    "one pixel": ({"H": 8, "D": 64, "filters": 32, "R": 1, "S": 1}, {"activation": "relu"}, "matmul"),
    "one pixel, strided": ({"D": 64, "filters": 32, "R": 1, "S": 1}, {"stride": 2}, "windows"),
    "depthwise": ({"D": 1, "filters": 16, "groups": 16}, {"padding": 1, "groups": 16, "activation": "relu"}, "depthwise"),
    "depthwise, two filters": ({"D": 1, "filters": 10, "groups": 5}, {"stride": (2, 1), "dilation": (1, 2), "padding": 2, "groups": 5}, "depthwise"),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("laid", ["first", "last", "sliced"])
def test_kernels_of_gpus(device, name, laid, monkeypatch):
    """Small tiles, so that there are several programs, and split sums; the second backward is computed too."""
    sizes, options, kinds = WAYS[name]
    x, w, b = drawn(device, **{"H": 9, "W": 10, "S": 3} | sizes, dtype=torch.bfloat16)
    if laid == "sliced":
        x = x.detach().repeat(1, 1, 2, 2)[:, :, ::2, 1:11].requires_grad_()
    if laid == "last":
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setattr(last, "tile", lambda *_: Tile(16, 16, 32))
    monkeypatch.setattr(last, "parts", lambda *_: 3)
    monkeypatch.setattr(depthwise, "parts", lambda *_: 3)
    monkeypatch.setattr(depthwise, "_owned", lambda *_: (4, 4, 8))
    # 64-bit offsets, which have their own divisions, on one path.
    monkeypatch.setattr(last, "index", lambda *tensors: tl.int64 if laid == "sliced" else tl.int32)
    launched = set()
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    plain = {key: value for key, value in options.items() if key != "activation"}
    with gpu_sizes(), noting(lambda jit: launched.add(jit.fn.__name__.strip("_").removesuffix("_kernel"))):
        y = conv2d(x, w, b, **options)
        dy = torch.randn_like(y).requires_grad_()
        first = torch.autograd.grad(y, (x, w, b), dy, create_graph=True)
        seconds = [torch.randn_like(g) for g in first]
        results = [y, *first, *torch.autograd.grad(first, (x, w, dy), seconds)]
    z = native(*wide, **plain) * ((y.detach() > 0) if "activation" in options else 1)
    dz = dy.detach().double().requires_grad_()
    wanted = torch.autograd.grad(z, wide, dz, create_graph=True)
    wanted = [z, *wanted, *torch.autograd.grad(wanted, (*wide[:2], dz), [t.double() for t in seconds])]
    for got, want in zip(results, wanted, strict=True):
        assert (got.double() - want).abs().max() <= 2.0**-7 * want.abs().max()
    assert lies_channels_last(y) == lies_channels_last(first[0]) == (laid == "last")
    assert launched.issuperset(kinds.split()) or (laid == "sliced" and "windows" in launched)


@pytest.mark.parametrize("H", [1, 5])
def test_filters_of_one_pixel_and_images_of_one_column(device, H):
    """Channels are contiguous and the column's stride is 1, which is no distance of pixels."""
    x = torch.randn(3, H, 32, dtype=torch.bfloat16, device=device).mT.unsqueeze(3)
    w = torch.randn(16, 32, 1, 1, dtype=torch.bfloat16, device=device, requires_grad=True)
    dy = torch.randn(3, 16, H, 1, dtype=torch.bfloat16, device=device)
    assert x.stride(3) == 1
    assert x.is_contiguous(memory_format=torch.channels_last)
    with gpu_sizes():
        (dw,) = torch.autograd.grad(conv2d(x, w), w, dy)
    want = torch.einsum("bfhw,bchw->fc", dy.double(), x.double())
    assert (dw[:, :, 0, 0].double() - want).abs().max() <= 2.0**-8 * want.abs().max()


@pytest.mark.parametrize("gpu", [False, True])
def test_the_bias_gradient_of_several_parts_in_both_layouts(device, gpu):
    """1380 pixels are two sums, whose last blocks of rows are not full."""
    dy, y = (torch.randn(3, 20, 20, 23, dtype=torch.float64, device=device) for _ in range(2))
    for layout, mask in itertools.product((torch.contiguous_format, torch.channels_last), (None, y)):
        with gpu_sizes() if gpu else nullcontext():
            got = kernels.bias_sum(dy.contiguous(memory_format=layout), mask)
        close(got, (dy if mask is None else torch.where(mask <= 0, 0, dy)).sum((0, 2, 3)), 1380)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much(device, dtype):
    x, w, b = drawn(device, B=4, D=8, H=9, W=9, filters=8, R=3, S=3, dtype=dtype)
    dy = torch.randn(4, 8, 9, 9, device=device).to(dtype)

    def results(layer, *inputs):
        y = layer(*inputs, padding=1, activation="relu")
        return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]

    truth = results(native, *(t.detach().double().requires_grad_() for t in (x, w, b)))
    for t, ours, theirs in zip(truth, results(conv2d, x, w, b), results(native, x, w, b), strict=True):
        assert ours.dtype == dtype
        error = [(t - z.double()).square().mean().sqrt().item() for z in (ours, theirs, t.to(dtype))]
        assert error[0] <= 2 * max(error[1:])


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_each_subset_of_gradients(device, needed):
    inputs = [t.detach().requires_grad_(i in needed) for i, t in enumerate(drawn(device))]
    conv2d(*inputs, activation="relu").sum().backward()
    assert [i for i, t in enumerate(inputs) if t.grad is not None] == list(needed)


def test_backward_twice_repeat_and_nothing_changed(device):
    x, w, b = drawn(device, dtype=torch.float32)
    before = [t.detach().clone() for t in (x, w, b)]
    y = conv2d(x, w, b, padding=1, activation="relu")
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
    second = torch.autograd.grad(y, (x, w, b), dy)
    third = torch.autograd.grad(conv2d(x, w, b, padding=1, activation="relu"), (x, w, b), dy)
    assert all(torch.equal(a, c) and torch.equal(a, d) for a, c, d in zip(first, second, third, strict=True))
    assert all(torch.equal(t.detach(), was) for t, was in zip((x, w, b), before, strict=True))


def test_unbatched_and_empty_batch(device):
    x, w, b = drawn(device)
    assert torch.equal(conv2d(x[0], w, b, padding=1), conv2d(x[:1], w, b, padding=1)[0])
    empty = x.detach()[:0].requires_grad_()
    y = conv2d(empty, w, b, padding=1)
    assert y.shape == F.conv2d(empty, w, b, padding=1).shape
    dx, dw, db = torch.autograd.grad(y.sum(), (empty, w, b))
    assert dx.shape == empty.shape
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(db, torch.zeros_like(b))


def test_compile_fullgraph(device):
    torch.compiler.reset()
    x, w, b = drawn(device)

    def fn(x, w, b):
        return conv2d(x, w, b, stride=2, padding=1, activation="relu").square().sum()

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(x, w, b), (x, w, b)) for f in (compiled, fn))
    assert all(torch.equal(a, c) for a, c in zip(got, want, strict=True))


@given(
    st.tuples(*[st.integers(1, n) for n in (3, 2, 9, 9, 2, 4, 4)]),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_geometry_at_random(sizes, steps, groups, padding):
    B, D, H, W, N, R, S = sizes
    sh, sw, dh, dw = steps
    if H + 2 * padding < dh * (R - 1) + 1 or W + 2 * padding < dw * (S - 1) + 1:
        with pytest.raises(ValueError, match="conv2d: the padded image is"):
            conv2d(
                *drawn(B=B, D=D, H=H, W=W, filters=N * groups, R=R, S=S, groups=groups),
                (sh, sw),
                padding,
                (dh, dw),
                groups,
            )
        return
    inputs = drawn(B=B, D=D, H=H, W=W, filters=N * groups, R=R, S=S, groups=groups)
    assert_same(inputs, stride=(sh, sw), padding=padding, dilation=(dh, dw), groups=groups)


def test_every_option_combined(device):
    for stride, dilation, relu in itertools.product((1, 2), (1, 2), (None, "relu")):
        inputs = drawn(device, D=1, filters=6, groups=2, H=9, W=9)
        assert_same(inputs, stride=stride, dilation=dilation, padding=(1, 2), groups=2, activation=relu)


X, K = torch.zeros(1, 4, 5, 5), torch.zeros(2, 4, 3, 3)
BAD = {
    "rank": (lambda: conv2d(X[0, 0], K), ValueError, r"input of shape \[5, 5\] is 2-dimensional, wanted \[B C H W\] or \[C H W\]"),
    "weight rank": (lambda: conv2d(X, K[0]), ValueError, r"weight of shape \[4, 3, 3\] is 3-dimensional, wanted \[F D R S\]"),
    "channels": (lambda: conv2d(X, K[:, :3]), ValueError, r"input of shape \[1, 4, 5, 5\] is C = 4, wanted C = 3, groups x"),
    "groups": (lambda: conv2d(X, torch.zeros(3, 2, 3, 3), groups=2), ValueError, "F = 3, wanted a multiple of groups = 2"),
    "groups 0": (lambda: conv2d(X, K, groups=0), ValueError, "groups is 0, wanted a positive int"),
    "stride 0": (lambda: conv2d(X, K, stride=0), ValueError, "stride is 0, wanted an int from 1 or a pair of them"),
    "stride of three": (lambda: conv2d(X, K, stride=(1, 1, 1)), ValueError, r"stride is \(1, 1, 1\), wanted an int"),
    "dilation": (lambda: conv2d(X, K, dilation=(1, 0)), ValueError, r"dilation is \(1, 0\), wanted an int from 1"),
    "padding": (lambda: conv2d(X, K, padding=-1), ValueError, "padding is -1, wanted an int from 0"),
    "padding 1.5": (lambda: conv2d(X, K, padding=1.5), ValueError, "padding is 1.5, wanted an int from 0"),
    "padding word": (lambda: conv2d(X, K, padding="full"), ValueError, "padding is 'full', wanted one of 'same', 'valid'"),
    "same strided": (lambda: conv2d(X, K, padding="same", stride=2), ValueError, r"stride is \(2, 2\), wanted \(1, 1\) beside"),
    "too large": (lambda: conv2d(X, K, dilation=3), ValueError, r"the padded image is \[5, 5\], wanted at least the window's \[7, 7\]"),
    "bias": (lambda: conv2d(X, K, torch.zeros(3)), ValueError, r"bias of shape \[3\] is F = 3, wanted F = 2 like weight's"),
    "mixed": (lambda: conv2d(X, K.double()), TypeError, "dtype of weight is float64, wanted float32 like input"),
    "integers": (lambda: conv2d(X.int(), K), TypeError, "dtype of input is int32"),
    "empty weight": (lambda: conv2d(X, K[:0]), ValueError, "is empty, wanted at least one filter"),
    "activation": (lambda: conv2d(X, K, activation="gelu"), ValueError, "activation is 'gelu'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match="conv2d: .*" + message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_cpu_compiles_one_kernel_for_all_geometries_and_sizes(monkeypatch):
    made, compiled = [], compiled_triton.compiled
    monkeypatch.setattr(compiled_triton, "_prepared", {})
    monkeypatch.setattr(compiled_triton, "_kernels", {})
    monkeypatch.setattr(compiled_triton, "compiled", lambda jit, *rest: made.append(jit) or compiled(jit, *rest))
    w = torch.randn(4, 3, 3, 2, dtype=torch.float64)
    for images, padding, stride, dilation in ((2, 0, 1, 1), (1, 1, 1, 1), (2, (2, 1), 1, (1, 3))):
        x = torch.randn(images, 3, 9, 8, dtype=torch.float64)
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        close(conv2d(x, w, None, **options), F.conv2d(x, w, None, **options), 18)
    assert len(made) == 1
