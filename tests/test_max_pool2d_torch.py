"""max_pool2d on torch: the product of its options against torch's, layouts, ties, NaN, derivatives, bad input."""

import itertools

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import torch.nn.functional as F
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vjp, vmap

import gradlab.torch as lab
from gradlab.autodiff.max_pool2d_torch import MaxPool2d
from gradlab.kernels import max_pool2d_triton as kernels
from gradlab.kernels.common.images_triton import index


def drawn(*shape, device="cpu", dtype=torch.float64):
    """Values all different, so that a tap that is off by one shows."""
    size = torch.Size(shape).numel()
    return (torch.randperm(size).double().sub(size / 2) / 8).reshape(shape).to(device, dtype).requires_grad_()


def assert_same(x, *args, **options):
    """The same bits, there, back and for the indices: nothing is rounded where windows do not overlap."""
    got, want = (pool(x, *args, return_indices=True, **options) for pool in (lab.max_pool2d, F.max_pool2d))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert got[0].stride() == want[0].stride()
    gradients = [torch.autograd.grad(y[0].sum(), x, retain_graph=True)[0].stride() for y in (got, want)]
    assert gradients[0] == gradients[1]
    dy = torch.randn(got[0].shape, dtype=torch.float64, device=x.device).to(x.dtype)
    one = torch.ones((), dtype=x.dtype, device=x.device)
    turned = dy.transpose(-1, -2).contiguous().transpose(-1, -2)
    for cotangent in (dy, dy[:1].expand_as(dy), turned, one.expand_as(dy)):
        one, other = (torch.autograd.grad(y[0], x, cotangent, retain_graph=True)[0] for y in (got, want))
        # A pixel's sum has at most as many terms as a window has taps; the order differs.
        limit = 32 * torch.finfo(x.dtype).eps * (float(other.abs().max()) if other.numel() else 0)
        torch.testing.assert_close(one, other, rtol=0, atol=limit)


OPTIONS = [
    (k, s, p, d, c)
    for k, s, p, d, c in itertools.product([1, 2, (3, 2)], [None, 1, (2, 3)], [0, 1], [1, 2], [False, True])
    if p <= (min(k) if isinstance(k, tuple) else k) // 2
]


@pytest.mark.parametrize(("k", "s", "p", "d", "c"), OPTIONS)
def test_every_option_is_torchs(device, k, s, p, d, c):
    assert_same(drawn(2, 3, 7, 6, device=device), k, s, p, d, c)


@given(st.data())
def test_any_shape_and_window(data):
    window = data.draw(st.tuples(*[st.integers(1, 4)] * 2))
    dilation = data.draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    reach = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    image = tuple(data.draw(st.integers(n, n + 6)) for n in reach)
    stride = data.draw(st.tuples(*[st.integers(1, 4)] * 2))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), *image)
    assert_same(drawn(*shape), window, stride, padding, dilation, data.draw(st.booleans()))


LAYOUTS = [
    "channels last",
    "transposed",
    "sliced",
    "expanded",
    "unbatched",
    "no images",
    "one channel",
    "sliced, channels last",
    "one channel, channels last",
    "one image, channels last",
    "unbatched, channels last",
    "expanded, channels last",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout):
    x = drawn(2, 3, 8, 6, device=device).detach()
    last = x.contiguous(memory_format=torch.channels_last)
    x = {
        "channels last": lambda: last,
        "sliced, channels last": lambda: last[:, :2, ::2],
        "one channel, channels last": lambda: x[:, :1].contiguous().to(memory_format=torch.channels_last),
        "one image, channels last": lambda: last[:1],
        "unbatched, channels last": lambda: last[0],
        "expanded, channels last": lambda: last[:, :1].expand(2, 3, 8, 6),
        "transposed": lambda: x.transpose(2, 3),
        "sliced": lambda: x[:, ::2, 1:7, ::2],
        "expanded": lambda: x[:1].expand(2, 3, 8, 6),
        "unbatched": lambda: x[0],
        "no images": lambda: x[:0],
        "one channel": lambda: x[:, :1],
    }[layout]().requires_grad_()
    assert_same(x, 2)
    assert_same(x, 3, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_exact_and_sums_are_carried_wider(device, dtype):
    assert_same(drawn(2, 3, 8, 6, device=device, dtype=dtype), 2)
    # Small windows in steps of one: a maximum of many has that many positive terms to add, rounded once at the end.
    x = drawn(1, 2, 20, 20, device=device, dtype=torch.float64).detach().to(dtype).requires_grad_()
    y, indices = lab.max_pool2d(x, 5, 1, return_indices=True)
    dy = (torch.rand(y.shape, device=device) + 0.5).to(dtype)
    (got,) = torch.autograd.grad(y, x, dy)
    sums = torch.zeros(1, 2, 400, dtype=torch.float64, device=device)
    want = sums.scatter_add(2, indices.flatten(2), dy.double().flatten(2)).reshape(x.shape)
    limit = torch.finfo(dtype).eps / 2 + 25 * 2.0**-24
    assert ((got.double() - want).abs() <= limit * want).all()


def test_ties_nan_and_infinities_are_torchs(device):
    nan, inf = float("nan"), float("inf")
    rows = [[1, 1, 1, 1], [1, 1, nan, 0], [-inf, -inf, inf, nan], [-inf, -inf, nan, nan]]
    rows += [[0.0, -0.0, -inf, 1], [-0.0, 0.0, 1, -inf]]
    x = torch.tensor(rows, dtype=torch.float64, device=device)[None, None].requires_grad_()
    for args in ((2,), (2, 1), (3, 1, 1)):
        got, want = (pool(x, *args, return_indices=True) for pool in (lab.max_pool2d, F.max_pool2d))
        assert torch.equal(got[0].isnan(), want[0].isnan())
        assert torch.equal(got[0].nan_to_num(), want[0].nan_to_num())
        assert torch.equal(got[1], want[1])
        one, other = (torch.autograd.grad(y[0], x, torch.ones_like(y[0]))[0] for y in (got, want))
        assert torch.equal(one, other)


def test_one_pixel_an_image_is_channels_last_or_not(device):
    cases = [
        (3, (3, 1, 1, 1)),
        (3, (3, 1, 3, 3)),
        (3, (1, 1, 1, 1)),
        (1, (1, 1, 1, 1)),
        (1, (2, 2, 2, 2)),
        (1, (4, 1, 2, 2)),
    ]
    for C, strides in cases:
        x = torch.randn(6, device=device).as_strided((2, C, 1, 1), strides)
        for args in ((1,), (2, 1, 1)):
            assert lab.max_pool2d(x, *args).stride() == F.max_pool2d(x, *args).stride()


@pytest.mark.parametrize("window", [(12, 11), (8, 16), (3, 129)])
def test_windows_of_more_taps_than_a_byte_counts_or_a_loop_unrolls(device, window):
    x = drawn(1, 2, 2 * window[0] + 1, window[1] + 4, device=device)
    assert_same(x, window, (5, 1), (window[0] // 2, 0))
    assert_same(x, (3, 2), 1, 0, (window[0] // 2, window[1] - 1))


def test_offsets_of_64_bits(device, monkeypatch):
    monkeypatch.setattr(kernels, "index", lambda *tensors: tl.int64)
    assert_same(drawn(2, 3, 8, 6, device=device), 3, 2, 1)


def test_offsets_have_64_bits_where_they_are_needed():
    small, large = torch.empty(2, 3), torch.empty(2, 2**30, device="meta")
    assert index(small, None) == index(small.expand(2**30, 2, 3)) == tl.int32
    assert index(small, large) == index(large.t(), None) == tl.int64


def test_a_window_without_a_pixel_has_no_maximum_and_no_gradient(device):
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    y, indices = lab.max_pool2d(x, 2, padding=1, dilation=3, return_indices=True)
    assert y.tolist() == [[[[-float("inf")]]]]
    if device.type == "cpu":
        assert torch.equal(indices, F.max_pool2d(x, 2, padding=1, dilation=3, return_indices=True)[1])
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[[[0, 0], [0, 0]]]]


def test_small_tiles(device, monkeypatch):
    """Many programs, each with some of the elements."""
    monkeypatch.setattr(kernels, "block", lambda size, most, least=16: 32)
    assert_same(drawn(2, 3, 8, 6, device=device), 3, 2, 1)
    x = drawn(2, 3, 8, 6, device=device).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_same(x, 2)


def test_gradcheck_and_gradgradcheck(device):
    x = drawn(1, 2, 5, 4, device=device)
    for args in ((2,), (3, 1, 1), (2, 2, 1, 2)):
        assert gradcheck(lambda x, args=args: lab.max_pool2d(x, *args), (x,), eps=1e-3)
        assert gradgradcheck(lambda x, args=args: lab.max_pool2d(x, *args) ** 2, (x,), eps=1e-3)


def test_second_order_under_a_plain_sum(device):
    x = drawn(1, 1, 4, 4, device=device)
    found = []
    for pool in (lab.max_pool2d, F.max_pool2d):
        (dx,) = torch.autograd.grad((pool(x, 2, 1) ** 3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.sum(), x)[0])
    torch.testing.assert_close(*found)


def test_mapped_indices_and_cotangents(device):
    """The rest of torch.func is in test_transforms_torch.py."""
    x = drawn(3, 2, 2, 4, 4, device=device).detach()
    for dims in range(3):
        pair = (
            vmap(lambda x, f=f: f(x, 2, 1, return_indices=True), in_dims=dims)(x)
            for f in (lab.max_pool2d, F.max_pool2d)
        )
        torch.testing.assert_close(*pair)
    y, pullback = vjp(lambda x: lab.max_pool2d(x, 2, 1), x[0])
    _, native = vjp(lambda x: F.max_pool2d(x, 2, 1), x[0])
    dy = torch.randn(4, *y.shape, dtype=torch.float64, device=device)
    torch.testing.assert_close(vmap(pullback)(dy), vmap(native)(dy))


@pytest.mark.parametrize("name", ["aot_eager", "inductor"])
def test_one_graph(device, name):
    from gradlab.autodiff.frameworks.side_torch import backend

    torch.compiler.reset()
    x = drawn(2, 2, 6, 6, device=device)
    name = name if backend() == "inductor" else "aot_eager"
    compiled = torch.compile(lambda x: lab.max_pool2d(x, 2) ** 2, fullgraph=True, backend=name)
    assert torch.equal(compiled(x), lab.max_pool2d(x, 2) ** 2)
    one, other = (torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, lambda x: F.max_pool2d(x, 2) ** 2))
    torch.testing.assert_close(one, other)


def test_numbers_of_numpy_and_an_empty_stride(device):
    x = drawn(1, 1, 4, 5, device=device)
    for stride in (None, (), [], np.int64(2), (2,)):
        assert torch.equal(lab.max_pool2d(x, np.int64(2), stride), F.max_pool2d(x, 2))


def test_maps_of_nothing_and_of_no_images(device):
    for shape in ((0, 2, 3, 4, 4), (3, 0, 2, 4, 4)):
        x = torch.randn(shape, device=device)
        for f in (lambda x: lab.max_pool2d(x, 2), grad(lambda x: lab.max_pool2d(x, 2).sum())):
            assert vmap(f)(x).shape[:3] == shape[:3]


def test_backward_is_handed_no_zeros_for_the_taps(device, monkeypatch):
    seen, real = [], MaxPool2d.backward
    monkeypatch.setattr(
        MaxPool2d, "backward", staticmethod(lambda ctx, *given: seen.extend(given) or real(ctx, *given))
    )
    lab.max_pool2d(drawn(1, 1, 4, 4, device=device), 2).sum().backward()
    assert [t is None for t in seen] == [False, True]


def test_module_and_convert(device):
    x = drawn(2, 3, 8, 6, device=device)
    indexed, ceiled = {"padding": 1, "return_indices": True}, {"ceil_mode": True, "dilation": 2}
    for args, options in (((2,), {}), ((3, 2), indexed), ((2,), ceiled)):
        native = torch.nn.MaxPool2d(*args, **options)
        want = native(x)
        for module in (lab.MaxPool2d(*args, **options), lab.convert(torch.nn.MaxPool2d(*args, **options)).model):
            assert type(module) is lab.MaxPool2d
            got = module(x)
            assert all(map(torch.equal, got, want)) if options.get("return_indices") else torch.equal(got, want)


BAD = [
    (lambda x: lab.max_pool2d(x, 0), "kernel_size is 0, wanted an int from 1 or a pair of them"),
    (lambda x: lab.max_pool2d(x, (2, 2, 2)), r"kernel_size is \(2, 2, 2\), wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2.0), "kernel_size is 2.0, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2, 0), "stride is 0, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2, padding=-1), "padding is -1, wanted an int from 0"),
    (lambda x: lab.max_pool2d(x, 2, padding=2), r"padding is 2, wanted at most half of kernel_size \(2, 2\)"),
    (lambda x: lab.max_pool2d(x, 2, dilation=0), "dilation is 0, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2, -1), "stride is -1, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, True), "kernel_size is True, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, None), "kernel_size is None, wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2, (1, 1, 1)), r"stride is \(1, 1, 1\), wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 2, 1, (1, 1, 1)), r"padding is \(1, 1, 1\), wanted an int from 0"),
    (lambda x: lab.max_pool2d(x, 2, 1, "same"), "padding is 'same', wanted an int from 0"),
    (lambda x: lab.max_pool2d(x, 2, 1, 0, (1, 1, 1)), r"dilation is \(1, 1, 1\), wanted an int from 1"),
    (lambda x: lab.max_pool2d(x, 3, 1, 2, 2), r"padding is 2, wanted at most half of kernel_size \(3, 3\)"),
    (lambda x: lab.max_pool2d(x, 2, ceil_mode=1), "ceil_mode is 1, wanted True or False"),
    (lambda x: lab.max_pool2d(x, 14, 9, ceil_mode=True), r"the padded image is \[4, 4\], wanted at least"),
    (lambda x: lab.max_pool2d(x[None], 2), r"input of shape \[1, 1, 1, 4, 4\] is 5-dimensional, wanted"),
    (lambda x: lab.max_pool2d(x[:, :, :0], 2), r"input of shape \[1, 1, 0, 4\] is empty, wanted at least one"),
    (lambda x: lab.max_pool2d(x.to_sparse(), 2), r"layout of input is torch\.sparse_coo, wanted torch\.strided"),
    (lambda x: lab.max_pool2d(x, 9), r"the padded image is \[4, 4\], wanted at least the window's \[9, 9\]"),
    (
        lambda x: lab.max_pool2d(x[0, 0], 2),
        r"input of shape \[4, 4\] is 2-dimensional, wanted \[B C H W\] or \[C H W\]",
    ),
    (lambda x: lab.max_pool2d(x[:, :0], 2), r"input of shape \[1, 0, 4, 4\] is empty, wanted at least one"),
    (lambda x: lab.max_pool2d(x.long(), 2), "dtype of input is int64, wanted one of"),
    (lambda x: lab.max_pool2d(x.tolist(), 2), "input is a list, wanted a torch.Tensor"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=f"^max_pool2d: {message}"):
        call(torch.randn(1, 1, 4, 4))
