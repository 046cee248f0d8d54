"""The check of complex functions: of real and imaginary parts, whichever gradient a framework calls the complex one."""

from contextlib import nullcontext

import numpy as np
import pytest

import gradlab
from gradlab.autodiff.frameworks.side import installed
from gradlab.autodiff.frameworks.side import side as side_of
from tests.mutants.corpus import load

SIDES = installed()


def numbers(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def checked(name, fn, *arrays, x64=True, **options):
    """A report on one side; floats in float64, complex arrays as they are."""
    side = side_of(name)
    with side.double() if x64 else nullcontext():
        args = [side.put(a, "float64") for a in arrays]
        return gradlab.check(fn, *args, raises=False, **options)


@pytest.mark.parametrize("name", SIDES)
def test_real_and_imaginary_parts_are_inputs_and_results_of_their_own(name):
    def fn(z, x):
        return z * z * x, (z * x).real

    # On jax the contract is a dozen programs, of which none knows a complex number.
    parts = ("derivative",) if name == "jax" else ("derivative", "contract", "second")
    report = checked(name, fn, numbers(3), np.linspace(0.5, 1.5, 3), parts=parts)
    assert report, report
    named = {f.input for f in report.findings if f.check == "derivative vs finite differences"}
    assert named == {"z.real", "z.imag", "x"}
    if name == "torch":
        values = {f.input for f in report.findings if f.check == "negative bit"}
        assert {"result 0.real", "result 0.imag", "result 1"} <= values


@pytest.mark.parametrize("name", SIDES)
def test_holomorphic_or_not_does_not_matter(name):
    for fn in (lambda z: z.real**2 + 2 * z.imag**2, lambda z: z * z.conj(), lambda z: (z - 2) * (z + 1j)):
        report = checked(name, fn, numbers(4), order=1, parts=("derivative",))
        assert report, report


@pytest.mark.parametrize("name", SIDES)
def test_the_other_framework_s_convention_is_wrong(name):
    """Of torch's gradient of a real loss, jax has the conjugate."""
    (subject,) = [s for s in load(name) if s.name.removesuffix("-jax") == "complex-energy-conjugate"]
    report = checked(name, subject.fn, numbers(4), order=1, parts=("derivative",))
    assert [f.input for f in report.wrong()] == ["z.imag"]
    assert "the sign is flipped" in report.wrong()[0].message


@pytest.mark.parametrize("name", SIDES)
def test_complex64_is_checked_in_complex128_and_in_float32(name):
    def fn(z):
        return z * z.conj() * z

    report = checked(name, fn, numbers(4).astype(np.complex64), x64=False, order=1, parts=("derivative", "precision"))
    assert report, report
    found = {(f.check, f.input) for f in report.findings}
    assert ("float32 gradient", "z.imag") in found
    assert ("float32 value", "result.imag") in found


def test_a_reference_of_complex_numbers():
    pytest.importorskip("torch")
    for reference, verdict in ((lambda z: np.asarray(z) ** 2, "ok"), (lambda z: np.asarray(z).conj() ** 2, "wrong")):
        report = checked("torch", lambda z: z * z, numbers(3), order=1, parts=("reference",), reference=reference)
        assert report.verdict == verdict, report


def test_a_module_of_complex_weights():
    torch = pytest.importorskip("torch")
    report = gradlab.check(
        torch.nn.Linear(3, 2, dtype=torch.complex64), torch.ones(2, 3, dtype=torch.complex64), order=1
    )
    assert {"weight.real", "weight.imag", "bias.imag"} <= {f.input for f in report.findings}


def test_an_edge_of_a_complex_function_says_its_parts():
    torch = pytest.importorskip("torch")

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx, dy):
            (z,) = ctx.saved_tensors
            return 2 * dy * z.conj() + (z == 0).all() * dy

    report = checked("torch", lambda z: Rule.apply(z), numbers(2), order=1, parts=("derivative", "edges"))
    assert {f.input for f in report.wrong()} == {"z.real", "z.imag"}
    assert "z.real = torch.zeros((2,), dtype=torch.float64), z.imag = torch.zeros(" in report.wrong()[0].message
