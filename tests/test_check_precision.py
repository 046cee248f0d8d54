"""Low precision is judged against float64: half an ulp, what sums explain, and which way the rounding leans."""

import numpy as np
import pytest

import gradlab
from gradlab.autodiff.checker.precision.low_precision import _rounded, _ulp

torch = pytest.importorskip("torch")

PRECISION = ("precision",)


def layer(fault=lambda dx: dx, dtype=torch.bfloat16):
    """y = x w on torch with a pullback whose float32 dx goes through `fault` before it is rounded."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return _up(x).mm(_up(w)).to(x.dtype)

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            return fault(_up(dy) @ _up(w).T).to(x.dtype), (_up(x).T @ _up(dy)).to(w.dtype)

    def fn(x, w):
        return Layer.apply(x, w)

    return fn


def _up(t):
    return t if t.dtype == torch.float64 else t.float()


def truncated(dx):
    """The bits of a float32 cut off after bfloat16's, as a store without rounding does."""
    if dx.dtype == torch.float64:
        return dx
    return (dx.contiguous().view(torch.int32) & -65536).view(torch.float32)


def arrays(dtype, *shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 48])
def test_right_layers_pass(dtype, size):
    for seed in range(5):
        x, w = arrays(dtype, (size, size), (size, size), seed=seed)
        report = gradlab.check(layer(), x, w, parts=PRECISION, seed=seed)
        assert {f.check for f in report.findings if f.numbers} >= {f"{str(dtype)[6:]} gradient"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_percent_is_caught(dtype):
    x, w = arrays(dtype, (16, 24), (24, 16))
    report = gradlab.check(layer(lambda dx: dx * 1.005), x, w, raises=False, parts=PRECISION, seed=1)
    # In float64 the same factor is seen by differences; here they do not run.
    wrong = [f for f in report.wrong() if f.verdict == "wrong"]
    assert not wrong, "the truth has the factor too"

    def low_only(dx):
        return dx if dx.dtype == torch.float64 else dx * 1.005

    report = gradlab.check(layer(low_only), x, w, raises=False, parts=PRECISION, seed=1)
    assert [(f.input, f.verdict) for f in report.wrong()] == [("x", "wrong")]


def test_truncation_is_caught_and_called_so():
    x, w = arrays(torch.bfloat16, (16, 24), (24, 16))
    report = gradlab.check(layer(truncated), x, w, raises=False, parts=PRECISION)
    (found,) = report.wrong()
    assert (found.check, found.input, found.verdict) == ("bfloat16 gradient", "x", "wrong")
    assert "as truncation does" in found.detail


def test_overflow_in_float16_is_caught():
    def fn(x):
        return torch.logsumexp(x, 1)

    class Naive(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return fn(x)

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return dy[:, None] * x.exp() / x.exp().sum(1, keepdim=True)

    (x,) = arrays(torch.float16, (4, 16))
    # torch keeps the log-sum-exp in float16, a rounding on the way: no surer than that, and not wrong.
    report = gradlab.check(fn, x * 8, parts=PRECISION, raises=False)
    assert not any(f.verdict == "wrong" for f in report.findings)
    report = gradlab.check(lambda x: Naive.apply(x), x * 8, raises=False, parts=PRECISION)
    assert any(f.verdict == "wrong" and f.input == "x" for f in report.findings)


def test_jax_layers():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(np.random.default_rng(0).standard_normal((12, 16)), "bfloat16")
    assert gradlab.check(lambda x: jax.numpy.tanh(x.astype(_wide(x))).astype(x.dtype), x, parts=PRECISION)


def _wide(x):
    return "float64" if x.dtype == "float64" else "float32"


def test_ulp_and_nearest():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200) * 10.0 ** rng.integers(-6, 4, 200)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        want = torch.from_numpy(x).to(dtype).double().numpy()
        np.testing.assert_array_equal(_rounded(x, name), want)
        assert (np.abs(want - x) <= 0.5 * _ulp(x, name)).all()
