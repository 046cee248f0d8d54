"""The check at the arguments as they were given: several dtypes, strides, shared memory; and in a low precision."""

import pytest

import gradlab

torch = pytest.importorskip("torch")
from tests.test_check_alarms import normal, ruled

CHECK = "as they were given"


def held(fn, *args):
    """The findings of this check."""
    report = gradlab.check(fn, *args, order=1, raises=False, parts=("contract",))
    return [f for f in report.findings if f.check == CHECK], report


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((normal(4).bfloat16(), normal(4).float()), "x bfloat16, w float32"),
        ((normal(1, 5).expand(4, 5), normal(4, 5)), "x of strides [0, 1]"),
        ((normal(9).unfold(0, 3, 2), normal(4, 3)), "x of strides [2, 1]"),
        ((normal(5, 4).T, normal(4, 5).float()), "x float64, w float32, x of strides [1, 4]"),
        ((torch.complex(normal(3), normal(3)).conj(), normal(3)), "x lazily conjugated"),
    ],
    ids=["mixed", "expanded", "overlapping", "transposed and mixed", "conjugated"],
)
def test_right_functions_are_right_at_the_given_tensors(args, said):
    found, report = held(lambda x, w: torch.tanh(x) * w, *args)
    assert found, report
    assert {f.verdict for f in found} == {"ok"}, report
    assert found[-1].detail == f"with {said}, as given"


def test_contiguous_arguments_of_one_dtype_are_what_the_rest_runs_on():
    assert not held(torch.mul, normal(4, 5), normal(4, 5))[0]


def test_what_the_user_holds_keeps_its_bits():
    """A backward that writes into its inputs gets a copy, whichever way these lie."""

    def writes(dy, x, w):
        x.detach()[0] = 7
        return dy * w, dy * x

    x = normal(5, 4).T
    kept = x.clone()
    gradlab.check(ruled(torch.mul, writes), x, normal(4, 5), order=1, raises=False, parts=("contract",))
    assert torch.equal(x, kept)


def test_arguments_that_share_memory_share_it_there_too():
    """y = x xᵀ, of which the second is a view of the first."""

    def lost_where_shared(dy, x, y):
        shared = x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
        return dy @ y.T, x.T @ dy * (not shared)

    x = normal(4, 4)
    found, _ = held(ruled(torch.matmul, lost_where_shared), x, x.T)
    assert {f.input: f.verdict for f in found} == {"result": "ok", "argument 0": "ok", "argument 1": "wrong"}


def test_a_backward_that_raises_there_is_wrong_and_a_forward_is_a_note():
    def one_dtype(dy, x, w):
        if x.dtype != w.dtype:
            raise TypeError("one dtype")
        return dy * w, dy * x

    args = normal(4).bfloat16(), normal(4).float()
    found, _ = held(ruled(torch.mul, one_dtype), *args)
    assert [f.verdict for f in found] == ["wrong"]
    assert "backward raises TypeError: one dtype, with argument 0 bfloat16" in found[0].detail
    found, report = held(lambda x, w: torch.mm(x, w), normal(4, 4).bfloat16(), normal(4, 4).float())
    assert not found
    assert any("does not run with x bfloat16, w float32, as given (RuntimeError" in note for note in report.notes)


def test_an_error_that_comes_and_goes_is_rounding_and_one_that_stays_is_none():
    """The gradient is off by a percent, which two units of bfloat16 explain and of float32 do not."""
    for low, verdict in ((torch.bfloat16, "ok"), (torch.float32, "wrong")):
        here = ruled(torch.mul, lambda dy, x, w, low=low: (dy * w * (1.01 if x.dtype == low else 1), dy * x))
        found, report = held(here, normal(4).to(low), normal(4))
        assert {f.verdict for f in found if f.input == "argument 0"} == {verdict}, report


def test_another_value_in_a_low_precision_is_another_function():
    """Its gradient is not float64's, and is no fault."""

    def steeper(x, w):
        return torch.tanh(x * (3 if x.dtype != w.dtype else 1)) * w

    found, report = held(steeper, normal(4).float(), normal(4))
    assert not found
    assert any("result differs with x float32, w float64, as given" in note for note in report.notes)


def test_a_function_of_fixed_float32_parts_is_judged_in_float32():
    """layer_norm takes no float64 beside what it casts itself."""

    def norm(x, w):
        return torch.nn.functional.layer_norm(x.float(), (8,), w)

    report = gradlab.check(norm, normal(4, 8).bfloat16(), normal(8).float(), order=1)
    assert report, report
    assert any("takes no float64: finite differences are taken in float32" in note for note in report.notes)
