"""The check of what a training loop does around a backward on torch: samples, autocast, .grad, forward mode."""

import pytest

import gradlab

torch = pytest.importorskip("torch")
from tests.mutants import training_torch as wave
from tests.test_check_alarms import normal, ruled

CHECKS = {"per-sample gradients", "autocast", ".grad adds up", "forward mode"}


def contract(fn, *args):
    return gradlab.check(fn, *args, order=1, raises=False, parts=("contract",))


def pair():
    return normal(4, 3), normal(4, 3, seed=6)


def test_right_functions_are_right_in_all_of_it():
    # torch's own rules are mapped by torch's own: there is no per-sample rule to look at.
    native = (lambda x, w: torch.relu(x @ w.T)), CHECKS - {"per-sample gradients"}
    for fn, checks in ((wave.build(wave.Parts()), CHECKS), native):
        report = contract(fn, *pair())
        assert report, report
        assert CHECKS & {f.check for f in report.findings} == checks


@pytest.mark.parametrize(
    ("parts", "check", "said"),
    [
        (
            wave.FirstSample,
            "per-sample gradients",
            "under torch.func.vmap of the gradient, all inputs mapped, sample 1",
        ),
        (wave.SummedForShared, "per-sample gradients", "x alone mapped, sample 0"),
        (wave.HalfUnderAutocast, "autocast", "under bfloat16 autocast; 11 of 12 elements"),
        (wave.AddsItself, ".grad adds up", "as .grad that was there, after 1 backward"),
        (wave.AddsAsContiguous, ".grad adds up", "as .grad of reversed axes that was there, after 1 backward"),
        (wave.ForwardTerm, "forward mode", "and finite differences"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_an_error_shows_only_in_its_own_comparison(parts, check, said):
    report = contract(wave.build(parts()), *pair())
    assert {f.check for f in report.wrong()} == {check}, report
    assert said in report.wrong()[0].message


def test_a_jvp_that_raises_is_a_note_and_one_that_is_not_there_is_none():
    class Raising(wave.Parts):
        def forward_mode(self, tx, tw, x, w):
            raise RuntimeError("not today")

    report = contract(wave.build(Raising()), *pair())
    assert report, report
    assert [n for n in report.notes if "its jvp raises (RuntimeError: not today" in n]
    report = contract(ruled(torch.mul, lambda dy, x, w: (dy * w, dy * x)), *pair())
    assert not [n for n in report.notes if "jvp" in n]
    assert "forward mode" not in {f.check for f in report.findings}


def test_what_float32_alone_makes_another_is_no_fault_of_autocast():
    other = ruled(torch.mul, lambda dy, x, w: (dy * w * (1 if x.dtype == torch.float64 else 2), dy * x))
    report = contract(other, *pair())
    assert report, report
    assert any("in float32 differs from float64 without autocast too" in n for n in report.notes)


def test_a_tangent_that_is_lost_on_the_way_is_no_forward_mode():
    report = contract(lambda x, src: x.scatter_reduce(0, torch.tensor([0, 0, 1]), src, "prod"), normal(4), normal(3))
    assert report, report
    assert "forward mode" not in {f.check for f in report.findings}


def test_at_a_kink_forward_mode_and_pullback_may_differ():
    """relu at 0: the one takes the slope from the right, the other from the left, and both may."""

    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, dy):
            return dy * (ctx.saved_tensors[0] > 0)

        @staticmethod
        def jvp(ctx, tx):
            return tx * (ctx.saved_tensors[0] >= 0)

    report = contract(lambda x: Relu.apply(x), torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert report, report
    assert any(
        "differs from the pullback, and finite differences cannot tell which is wrong" in n for n in report.notes
    )


def test_a_backward_that_does_not_run_under_autocast_is_a_note():
    wrong = ruled(lambda x, w: x @ w.T, lambda dy, x, w: (dy @ w, dy.T @ x))
    report = contract(wrong, *pair())
    assert report, report
    assert any("autocast is not checked (RuntimeError" in n for n in report.notes)
