"""Every Triton kernel of the lab compiled for sm_90, as each dtype launches it, on a machine that needs no GPU."""

import importlib
import re

import pytest

torch = pytest.importorskip("torch")

from triton.runtime.jit import JITFunction

from gradlab.kernels import (
    adam_triton,
    conv2d_triton,
    cross_entropy_triton,
    elementwise_triton,
    linear_triton,
    max_pool2d_triton,
    mse_loss_triton,
    relu_triton,
    sgd_triton,
    sigmoid_triton,
    tanh_triton,
)
from gradlab.kernels import binary_cross_entropy_with_logits_triton as bce_triton
from gradlab.kernels.launch_triton import compile_for, recording
from gradlab.kernels.spec import specs
from gradlab.kernels.window import Geometry

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def convolutions(dtype, size):
    """Images and windows of many channels and of one, as torch lays them out and channels last."""
    for channels in (size // 2, 1):
        image, window = torch.zeros(4, channels, 8, 8, dtype=dtype), torch.zeros(size // 2, channels, 3, 3, dtype=dtype)
        yield image, window, False
        if channels > 1:
            yield *(t.contiguous(memory_format=torch.channels_last) for t in (image, window)), True


def launches(dtype, size=256):
    """Every kernel once and more, on aligned sizes, as a GPU would get them."""
    a, b, c = (torch.randn(s).to(dtype) for s in ((size, size), (size, 2 * size), (2 * size,)))
    t = torch.zeros(size, dtype=torch.long)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    s, y = torch.zeros(2, size, dtype=acc), torch.zeros(size, dtype=acc)
    with recording() as noted:
        linear_triton.product(a, b, c, None, "", True, False)
        linear_triton.product(b.t(), a, None, b.t(), "a", False, True)
        linear_triton.product(a, b, None, a, "a", False, False)
        linear_triton.product(a, b, None, b, "b", False, False)
        linear_triton.product(a, b, None, b, "y", False, False)
        linear_triton.column_sum(b, b)
        relu_triton.gate(a, a)
        elementwise_triton.times(a, a)
        mse_loss_triton.squares(a, a, 0, a.numel())
        mse_loss_triton.differences(a, None, a, a, 2, a.numel())
        bce_triton.losses(a, a, None, None, 0, a.numel())
        bce_triton.derivative(a, a, a, None, None, 1, 0, a.numel())
        bce_triton.derivative(a, a, a, a, a, 2, 0, a.numel())
        sigmoid_triton.slope(a, sigmoid_triton.sigmoid(a), 0)
        tanh_triton.slope(a, tanh_triton.tanh(a), 1)
        for image, window, lies in convolutions(dtype, size):
            geometry = Geometry((2, 2), (1, 1), ((1, 1), (1, 1)), 1, (8, 8), (3, 3)).flat()
            y = conv2d_triton.forward(image, window, c[: size // 2], None, geometry, True, lies)
            conv2d_triton.dgrad(y, window, y, geometry, lies)
            conv2d_triton.wgrad(y, image, y, geometry, lies)
            conv2d_triton.bias_sum(y, y)
            windows = Geometry((2, 2), (1, 1), ((0, 0), (0, 0)), 1, (8, 8), (2, 2)).flat()
            small, taps = max_pool2d_triton.forward(image, windows, lies)
            max_pool2d_triton.gather(max_pool2d_triton.scatter(small, taps, windows, lies), taps, windows, lies)
        y = torch.zeros(size, dtype=acc)
        cross_entropy_triton.loss(a, t, -100)
        cross_entropy_triton.total(y, t, -100, True)
        cross_entropy_triton.pullback(y, a, s, t, -100)
        cross_entropy_triton.second(a, y, a, s, t, -100)
        adam_triton.adam_([a, b], [a, b], [a, b], [a, b], [0.5] * 16)
        adam_triton.adam_pullback(a, a, a, a, a, a, a, [0.5] * 8)
        sgd_triton.sgd_([a, b], [a, b], [a, b], [0.5] * 14)
        sgd_triton.sgd_pullback(a, a, [0.5] * 7)
        sgd_triton.sgd_pullback(a, None, [0.5] * 7)
    return noted


def kernels_of_the_lab():
    modules = [importlib.import_module(f"gradlab.kernels.{name}_triton") for name in specs()]
    modules.append(elementwise_triton)
    return {k for m in modules for k, v in vars(m).items() if isinstance(v, JITFunction) and k.endswith("_kernel")}


def test_no_kernel_is_left_out():
    assert {noted.jit.fn.__name__ for noted in launches(torch.float32, 16)} == kernels_of_the_lab()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiles_for_sm_90(dtype):
    for noted in launches(dtype):
        code = compile_for(noted, 90)
        name = noted.jit.fn.__name__
        assert code.asm["cubin"], name
        # What fits: 227 KiB of shared memory to a block.
        assert code.metadata.shared <= 227 * 1024, name
        assert not re.search(r"\b(atom|red)\.", code.asm["ptx"]), f"{name} uses atomics"
        if name in ("_adam_kernel", "_sgd_kernel"):
            assert re.search(r"ld\.global\S*\.v[24]\.", code.asm["ptx"]), "the whole chunk is loaded 128 bits at a time"
        if name == "_product_kernel":
            ptx = code.asm["ptx"]
            assert ("wgmma" in ptx) == (dtype in (torch.float16, torch.bfloat16)), "half precision on tensor cores"
            assert "tf32" not in ptx


def test_odd_sizes_compile_too():
    for noted in launches(torch.bfloat16, 37):
        assert compile_for(noted, 90).asm["cubin"]
