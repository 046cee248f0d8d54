"""What gradcheck passes: special cotangents, several calls, one array twice, pairs of inputs, small elements; torch."""

import importlib

import numpy as np
import pytest

import gradlab
from gradlab.autodiff.checker.contract import common, special_cotangents
from tests.mutants.corpus import KINDS

torch = pytest.importorskip("torch")
from tests.mutants.score import gradcheck, ours

FILES = ("special_dy_torch", "calls_torch", "hidden_torch")
SUBJECTS = [s for name in FILES for s in importlib.import_module(f"tests.mutants.{name}").SUBJECTS]
WANTED = {
    "special-dy": "special dy",
    "composed": "f(f(x))",
    "results": "two calls at once",
    "same": "one array twice",
    "pair": "two inputs only",
    "hidden": "small elements",
}


def normal(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.kind in KINDS], ids=lambda s: s.name)
def test_the_part_that_is_meant_finds_it(subject):
    """Not the edges by chance; an offset is no small element's fault, and shows where dy is 0."""
    found = {f.check for f in ours(subject, 0, parts=("contract",)).findings if f.verdict == "wrong"}
    assert ("special dy" if subject.name == "graded-offset" else WANTED[subject.shows]) in found


@pytest.mark.filterwarnings("ignore")
def test_gradcheck_passes_most():
    mutants = [s for s in SUBJECTS if s.kind in KINDS]
    passed = [s.name for s in mutants if not gradcheck(fast=True)(s, 0)]
    assert len(passed) >= 0.75 * len(mutants), sorted({s.name for s in mutants} - set(passed))
    assert sum(not gradcheck(fast=False)(s, 0) for s in mutants) >= 0.6 * len(mutants)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 5), (4, 1), (2, 3, 4), (0, 3)])
def test_special_cotangents_add_up(shape):
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(shape), rng.standard_normal((2, 2))]
    parts = special_cotangents.split_cotangent(given, rng, exact=True)
    for k, c in enumerate(given):
        torch.testing.assert_close(sum(torch.from_numpy(p.dy[k].copy()) for p in parts), torch.from_numpy(c.copy()))
    assert sum(p.how.startswith("with a dy of one 1") for p in parts) == 1


def test_results_of_several_dtypes_and_shapes_make_no_alarm():
    def several(x, w):
        return (x * w).sum(), (x @ w.T).float(), x.exp()

    assert gradlab.check(several, normal(3, 4), normal(3, 4, seed=6), order=1, parts=("derivative", "contract"))


def test_the_caller_s_own_array_twice_is_kept_one():
    """The values are those of the given array, and other inputs of its shape stay what they are."""
    seen = []

    def fn(a, b, c):
        seen.append((a is b, b is c))
        return a * b + c

    x = normal(4)
    assert gradlab.check(fn, x, x, normal(4, seed=6), order=1, parts=("contract",))
    assert (True, False) in seen
    assert (True, True) not in seen


def test_a_generated_call_that_raises_is_no_error():
    def once(x):
        if (x < 0.9 * X[0]).any():
            raise ValueError("outside")
        return x.sin() + 2 * X[0]

    X.append(normal(4).abs() + 1)
    report = gradlab.check(once, X[0], order=1, parts=("contract",))
    assert report.verdict == "ok"


X: list = []


def test_parts_are_few():
    """What the parts add to a check of one input and one result, in pullbacks."""
    calls = []

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, dy):
            calls.append(1)
            return dy * ctx.saved_tensors[0].cos()

    def counted(parts):
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            if not parts:
                patch.setattr(common, "contract", lambda *given: None)
            assert gradlab.check(lambda x: Count.apply(x), normal(3, 4), order=1, parts=("contract",))
        return len(calls)

    assert counted(True) - counted(False) <= 18
