"""The check on jax as a user runs it: x64 off, several dtypes, weak types; per-sample gradients, forward mode."""

import pytest

import gradlab

jax = pytest.importorskip("jax")
import jax.numpy as jnp
from jax.custom_derivatives import linear_call

from tests.mutants import training_jax as wave


def checked(fn, *args, parts=("contract",), **options):
    return gradlab.check(fn, *args, order=1, raises=False, parts=parts, **options)


def x(dtype="float32"):
    return jnp.linspace(-1.5, 2.0, 12, dtype=dtype).reshape(3, 4)


def verdicts(report, check):
    return {f.input: f.verdict for f in report.findings if f.check == check}


def test_forward_mode_equals_the_pullback_and_samples_equal_a_loop():
    report = checked(lambda a, w: jnp.tanh(a @ w.T), x(), x())
    assert report, report
    assert verdicts(report, "forward mode") == {"": "ok"}
    assert verdicts(report, "per-sample gradients") == {"a": "ok", "w": "ok"}


def test_a_custom_vjp_has_no_forward_mode_and_no_finding():
    report = checked(wave.build_wave(None), x(), x())
    assert report, report
    assert not verdicts(report, "forward mode")
    assert not report.notes


def test_float32_is_worked_out_without_x64():
    """As jax is run by default: a rule that asks for the widest float gets float32."""
    widest = []

    @jax.custom_vjp
    def f(a):
        return jnp.sin(a)

    def backward(a, dy):
        widest.append(str(jnp.asarray(1.0).dtype))
        return (dy * jnp.cos(a),)

    f.defvjp(lambda a: (f(a), a), backward)
    report = checked(lambda a: f(a), x(), parts=("derivative", "precision"))
    assert report, report
    assert set(widest) == {"float64", "float32"}
    widest.clear()
    with jax.enable_x64(True):
        checked(lambda a: f(a), x("float64"), parts=("derivative", "precision"), dtypes=("float32",))
    assert set(widest) == {"float64"}, "who gives float64 has it"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (lambda: (x("bfloat16"), x()), "a bfloat16, w float32"),
        (lambda: (jnp.asarray(2.0), x()), "a weakly typed"),
        (lambda: (x().astype("complex64"), x("bfloat16")), "a complex64, w bfloat16"),
    ],
    ids=["mixed", "weak", "complex"],
)
def test_right_functions_are_right_at_the_arrays_as_they_were_given(args, said):
    report = checked(lambda a, w: jnp.sin(a) * w, *args())
    assert report, report
    found = [f for f in report.findings if f.check == "as they were given"]
    assert {f.detail for f in found} == {f"with {said}, as given"}
    assert {f.verdict for f in found} == {"ok"}


def sine(factor):
    """sin with a rule of its own, whose second derivative is off by a factor in forward mode alone."""

    @jax.custom_jvp
    def cosine(a):
        return jnp.cos(a)

    @cosine.defjvp
    def _(primals, tangents):
        (a,), (t,) = primals, tangents
        return jnp.cos(a), linear_call(lambda a, t: -factor * t * jnp.sin(a), lambda a, dy: -dy * jnp.sin(a), a, t)

    @jax.custom_vjp
    def f(a):
        return jnp.sin(a)

    f.defvjp(lambda a: (f(a), a), lambda a, dy: (dy * cosine(a),))
    return lambda a: f(a)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "ok"), (1.01, "wrong")])
def test_forward_over_reverse_is_checked_too(factor, verdict):
    """As jax.hessian takes it, also where forward mode alone is not to be had."""
    report = gradlab.check(sine(factor), x()[0], raises=False, parts=("second",))
    found = [f for f in report.findings if "by jax.jvp of the gradient" in f.detail]
    assert [f.verdict for f in found] == [verdict], report
    assert report.verdict == verdict
