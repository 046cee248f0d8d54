"""The checker: right functions pass, planted faults are named with their element, and kinks are not passed off as ok."""

import numpy as np
import pytest

import gradlab
from gradlab.autodiff import check_differences as differences
from gradlab.autodiff.check import check
from gradlab.autodiff.side import installed
from gradlab.kernels.spec import specs

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("op", specs())
def test_every_op_on_every_side(op):
    report = check(op)
    assert report
    sides = {f.side for f in report.findings}
    assert set(installed()) <= sides
    if len(installed()) == 2:
        assert "torch and jax" in sides


class Square(torch.autograd.Function):
    """y = x^2 with a fault planted by name."""

    fault = ""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * (1.001 if Square.fault == "forward" else 1)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        if Square.fault == "lost":
            x = x.detach()
        dx = 2 * x * dy
        if Square.fault == "sign":
            dx = -dx
        if Square.fault == "scale":
            dx = dx * 1.0005
        if Square.fault == "zero":
            dx = dx * 0
        if Square.fault == "element":
            dx = dx.clone()
            dx[1, 2] += 0.5
        return dx


def square(x):
    return Square.apply(x)


def run(fault, **options):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    Square.fault = fault
    try:
        return check(square, x, reference=lambda x: x * x, raises=False, **options)
    finally:
        Square.fault = ""


def test_right_function_passes():
    report = run("")
    assert report
    assert {f.check for f in report.findings} >= {
        "value ~ NumPy",
        "grad ~ FD of NumPy",
        "grad ~ FD of itself",
        "2nd ~ FD of grad",
    }


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("forward", "value ~ NumPy"), ("sign", "grad ~ FD of itself"), ("scale", "grad ~ FD of itself"),
        ("zero", "grad ~ FD of NumPy"), ("element", "grad ~ FD of NumPy"), ("lost", "2nd ~ FD of grad"),
    ],
)  # fmt: skip
def test_planted_fault_is_found(fault, where):
    report = run(fault)
    assert not report
    assert where in {f.check for f in report.wrong()}
    assert all(f.verdict == "wrong" for f in report.wrong())


def test_the_element_and_its_numbers_are_named():
    (found,) = [f for f in run("element", order=1).wrong() if f.check == "grad ~ FD of NumPy"]
    assert found.where == (1, 2)
    assert found.got - found.wanted == pytest.approx(0.5, abs=1e-6)
    assert "argument 0[1, 2] is" in found.message
    assert "\n" not in found.message


def test_raises_with_the_first_finding():
    Square.fault = "sign"
    try:
        with pytest.raises(gradlab.GradientError, match="square on torch, case 'given'"):
            gradlab.check(square, torch.ones(2, 2, dtype=torch.float64))
    finally:
        Square.fault = ""


def test_a_kink_is_inconclusive_not_ok():
    report = check(torch.relu, torch.tensor([0.0, 1.0], dtype=torch.float64), raises=False)
    assert not report
    assert {f.verdict for f in report.wrong()} == {"inconclusive"}


def test_integer_arguments_are_constants_and_tuples_are_fine():
    def fn(x, i):
        return x[i].sin(), x.sum()

    assert check(fn, torch.randn(4, dtype=torch.float64), torch.tensor([2, 0]))


def test_jax_function():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        x = jax.numpy.linspace(0.1, 1, 5)

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (cube(x), x), lambda x, dy: (3 * x**2 * dy,))
    assert check(cube, x, reference=lambda x: x**3)
    cube.defvjp(lambda x: (cube(x), x), lambda x, dy: (3 * x * dy,))
    report = check(cube, x, raises=False)
    assert not report
    assert "grad ~ FD of itself" in {f.check for f in report.wrong()}


def test_report_prints_as_a_table():
    text = str(run("element"))
    assert "grad ~ FD of NumPy" in text
    assert "wrong" in text
    assert "square on torch" in text


BAD = {
    "float32": (lambda: check(torch.sin, torch.ones(2)), ValueError, "arguments are of torch.float32, wanted at least one of float64"),
    "numpy": (lambda: check(np.sin, np.ones(2)), TypeError, "arguments are of numpy, wanted torch tensors or jax arrays"),
    "nothing": (lambda: check(torch.sin), TypeError, "arguments are of nothing"),
    "op": (lambda: check("conv9d"), ValueError, "unknown op 'conv9d'"),
    "side": (lambda: check("relu", side="numpy"), ValueError, "unknown side 'numpy'; the lab has torch, jax"),
    "order": (lambda: check("relu", order=3), ValueError, "check: order is 3, wanted 1 or 2"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_differences_bound_their_own_error():
    x = np.linspace(-2, 2, 9)
    for f, derivative in ((np.sin, np.cos), (np.exp, np.exp), (lambda x: x**5, lambda x: 5 * x**4)):
        value, error = differences.along(lambda t, f=f: f(x + t))
        assert (np.abs(value - derivative(x)) <= error).all()
        assert error.max() < 1e-9 * np.abs(derivative(x)).max()
    for near in (0.0, 1e-3, 1e-6):
        _, error = differences.along(lambda t, near=near: np.abs(np.array([near]) + t))
        assert error[0] > 1e-2, "a kink within the step is not to look settled"
