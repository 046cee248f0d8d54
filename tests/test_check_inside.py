"""Functions that work in a low precision inside of them: right ones are not called wrong, wrong ones are."""

import pytest

import gradlab

torch = pytest.importorskip("torch")

F, HALF = torch.nn.functional, torch.bfloat16


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def normalised(x, w):
    """As language models have it: a root mean square in float32 between bfloat16 numbers."""
    return F.rms_norm(x.float(), (8,)).to(HALF) * w


def in_eighths(x):
    return x.to(torch.float8_e4m3fn).to(torch.float32) * 2


def cast_by_torch(x, w):
    with torch.autocast("cpu", dtype=HALF):
        return F.linear(x, w).tanh().sum(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (normalised, (normal(4, 8, dtype=HALF), normal(8, dtype=HALF))),
        (in_eighths, (normal(4, 8),)),
        (cast_by_torch, (normal(4, 8), normal(5, 8))),
    ],
)
def test_a_low_precision_inside_is_no_fault(fn, args, seed):
    report = gradlab.check(fn, *args, order=1, raises=False, seed=seed)
    assert report.verdict != "wrong", report


def test_a_function_of_lower_precision_inside_is_not_checked_in_float32():
    report = gradlab.check(cast_by_torch, normal(4, 8), normal(5, 8), order=1, raises=False, parts=("precision",))
    assert any("in float32 it computes in a lower precision internally" in note for note in report.notes)


class Scaled(torch.autograd.Function):
    """2 x by way of bfloat16; the backward takes dy for contiguous."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.to(HALF).to(x.dtype) * 2

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * torch.as_strided(dy, x.shape, x.stride())


def test_a_wrong_backward_shows_through_a_low_precision():
    report = gradlab.check(lambda x: Scaled.apply(x), normal(4, 8), order=1, raises=False, parts=("contract",))
    assert {f.check for f in report.findings if f.verdict == "wrong"} == {"strided dy"}


def test_on_jax_a_low_precision_inside_is_no_fault():
    jax = pytest.importorskip("jax")

    def fn(x, w):
        return jax.nn.standardize(x.astype("bfloat16")).astype("float32") * w

    x = jax.random.normal(jax.random.key(0), (4, 8))
    report = gradlab.check(fn, x, x[0], order=1, raises=False, parts=("derivative", "facts", "contract", "precision"))
    assert report.verdict != "wrong", report


def test_on_jax_other_random_numbers_are_no_fault():
    """Without 64 bits jax draws other ones from the same key."""
    jax = pytest.importorskip("jax")

    def fn(x, key):
        return x * jax.random.bernoulli(key, 0.5, x.shape)

    report = gradlab.check(fn, jax.numpy.ones(8), jax.random.key(0), order=1, raises=False, parts=("precision",))
    assert report.verdict == "ok", report
