"""`inspect_function`: the kernels that anybody's function launches, noted and not run, compiled and read."""

import io
import re

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl
from rich.console import Console
from triton.runtime.jit import JITFunction

from gradlab.profiling.machine_code import command, own_torch
from gradlab.profiling.machine_code.inspection import inspect_function


@triton.jit
def scale_kernel(x_ptr, BLOCK: tl.constexpr, y_ptr, n, factor, flag: tl.constexpr = 3):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) * factor + flag, mask=i < n)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        y = torch.full_like(x, 7)
        for warps in (4, 4, 8):
            scale_kernel[lambda given: (triton.cdiv(x.numel(), given["BLOCK"]),)](
                x, 64, y, x.numel(), factor, num_warps=warps
            )
        return y

    @staticmethod
    def backward(ctx, dy):
        dx = torch.empty_like(dy)
        scale_kernel[(2,)](dy, 128, dx, dy.numel(), ctx.factor, flag=0)
        return dx, None


def scale(x, factor=2.0):
    return Scale.apply(x, factor)


def test_launches_are_noted_once_each_and_do_not_run():
    x = torch.randn(1000, requires_grad=True)
    before = JITFunction.run
    found = own_torch.find(scale, (x,))
    assert JITFunction.run is before
    assert [(f.kernel, f.variant, f.direction, f.grid, f.warps) for f in found] == [
        ("scale", 1, "forward", (16,), 4),
        ("scale", 2, "forward", (16,), 8),
        ("scale", 3, "backward", (2,), 4),
    ]
    assert found[0].options == {"BLOCK": "64", "flag": "3"}
    assert found[2].options == {"BLOCK": "128", "flag": "0"}
    assert found[0].file == __file__
    # The noted launches wrote nothing.
    with own_torch._noting([], "forward"):
        assert (scale(x) == 7).all()


def test_without_a_gradient_there_is_no_backward():
    assert [f.direction for f in own_torch.find(scale, (torch.randn(10),))] == ["forward", "forward"]


def test_a_function_that_raises_leaves_launches_as_they_were():
    before = JITFunction.run
    with pytest.raises(ZeroDivisionError):
        own_torch.find(lambda x: 1 / 0, (torch.randn(3),))
    assert JITFunction.run is before


def test_arguments_are_specialised_as_triton_does():
    (code, *_) = own_torch.find(scale, (torch.randn(1024, dtype=torch.bfloat16),))
    source = code.source
    assert source.signature == {
        "x_ptr": "*bf16", "BLOCK": "constexpr", "y_ptr": "*bf16", "n": "i32", "factor": "fp32", "flag": "constexpr"
    }  # fmt: skip
    assert source.attrs == {(i,): [["tt.divisibility", 16]] for i in (0, 2, 3)}
    (one, *_) = own_torch.find(scale, (torch.randn(1),))
    assert one.source.signature["n"] == "constexpr"


def test_kernels_are_compiled_and_read():
    codes = inspect_function(scale, torch.randn(1024, requires_grad=True), archs=["sm_90", "native"])
    assert [code.arch for code in codes] == ["sm_90"] * 3 + ["native"] * 3
    assert not [code.error for code in codes if code.error]
    assert all(code.registers > 0 and code.case == "given" and code.dtype == "float32" for code in codes)
    assert codes[0].waves > 0
    assert codes[0].floor is None
    assert codes[0].lines


OWN = """
import torch, triton
import triton.language as tl

@triton.jit
def shift_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1, mask=i < n)

def shift(x):
    y = torch.empty_like(x)
    shift_kernel[(4,)](x, y, x.numel(), BLOCK=256)
    return y

shift_args = (torch.zeros(1000, dtype=torch.float16),)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return f"{path}::shift"


def run(op, **given):
    out = io.StringIO()
    usual = {"sides": [], "archs": ["sm_90"], "dtypes": None, "case": None, "gpu": None, "lines": False}
    args = command.InspectArgs(op, **{**usual, "json": None, "check": False, "shapes": None, **given})
    code = command.inspect(args, Console(file=out, width=100))
    return code, out.getvalue()


def test_the_command_takes_a_function_of_a_file(own):
    code, text = run(own, lines=True)
    assert code == 0
    assert "shift on torch, float16, sm_90; given" in text
    assert "def shift_kernel(" in text
    assert "shift on torch, bfloat16" in run(own, shapes="x[512]", dtypes=["bfloat16"])[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"check": True}, "inspect: FILE.py::function came with --check"),
        ({"case": "large"}, "inspect: FILE.py::function came with"),
        ({"sides": ["jax"]}, "inspect: FILE.py::function came with"),
        ({"shapes": "x[512"}, "inspect: shapes are 'x"),
        ({"shapes": "x[512]", "dtypes": ["int8"]}, "inspect: dtype is 'int8', wanted"),
    ],
)
def test_what_a_function_does_not_take_is_one_line(own, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(own, **given)


def test_a_function_that_is_not_there_is_one_line(own):
    with pytest.raises(ValueError, match=r"inspect: function is 'shaft', wanted one of .*own\.py: shift"):
        run(own.replace("::shift", "::shaft"))
    with pytest.raises(ValueError, match="inspect: --shapes came with an op"):
        run("relu", shapes="x[3]")
