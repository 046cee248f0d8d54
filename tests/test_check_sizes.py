"""Axis lengths that the caller names: what is drawn there, what is found there, and what is refused in one line."""

import importlib

import numpy as np
import pytest

import gradlab
from gradlab.autodiff.checker.core.options import each_size, parsed_sizes
from gradlab.autodiff.checker.core.subject import subject
from gradlab.autodiff.checker.inputs.axis_lengths import resized
from tests.mutants.score import ours

torch = pytest.importorskip("torch")

SIZED = importlib.import_module("tests.mutants.sized_torch").SUBJECTS


def normal(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mutant", [s for s in SIZED if s.kind != "right"], ids=lambda s: s.name)
def test_a_fault_past_a_tile_is_found_there_and_nowhere_else(mutant):
    (found,) = ours(mutant, 0, parts=("derivative",)).wrong()
    assert found.input in mutant.blames
    assert "= 129" in found.case


def pooled(x, labels, w):
    """Rows with a number of their class, which is below w's length."""
    return x[torch.arange(len(x)), labels] * w[labels]


def test_arrays_are_drawn_like_those_that_were_given():
    x = normal(6, 5).abs() + 3
    whole = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    s = subject(pooled, (x, torch.tensor([4, 0, 3, 1, 2, 4]), whole), {})
    rng = np.random.default_rng(0)
    for lengths in (9, 1):
        (made,) = [resized(s, named, rng) for named in each_size(s, {("x", 0): lengths}).values()]
        assert made[0].shape == (lengths, 5)
        assert made[0].min() >= x.min().item() - 1e-12
        assert made[0].max() <= x.max().item()
        assert len(np.unique(made[0])) == made[0].size
    (shorter,) = [resized(s, named, rng) for named in each_size(s, {5: 2}).values()]
    assert [a.shape for a in shorter] == [(6, 2), (6,), (2,)]
    assert shorter[1].dtype == np.int64
    assert set(shorter[1]) <= {0, 1}
    assert set(shorter[2]) <= {0.0, 1.0}
    (grown,) = [resized(subject(torch.log, (normal(1).exp(),), {}), {(0, 0): 3}, rng)]
    assert (np.unique(grown[0]) > 0).sum() == 3


def test_what_a_function_refuses_is_noted():
    report = gradlab.check(
        torch.matmul, normal(2, 3), normal(3, 4), sizes={3: 7, 4: [1, 9]}, order=1, parts=("derivative",)
    )
    assert report
    assert sum(", axes of " in f.case for f in report.findings if f.check == "derivative vs finite differences") == 6
    report = gradlab.check(lambda x, w: x @ w, normal(2, 3), normal(3, 4), sizes={("x", -1): 7}, order=1, parts=())
    assert "does not take x[-1] = 7 (RuntimeError" in str(report)


def test_a_backward_that_raises_at_a_size_is_wrong():
    class Short(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, dy):
            if len(dy) > 128:
                raise RuntimeError("too long")
            return dy * ctx.saved_tensors[0].cos()

    report = gradlab.check(lambda x: Short.apply(x), normal(4), sizes={4: 129}, order=1, raises=False, parts=())
    assert "raises RuntimeError: too long, with axes of 4 = 129" in report.wrong()[0].message


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({7: 1}, "sizes name axes of 7, wanted one of the lengths 3, 4"),
        ({("y", 0): 1}, "sizes name 'y', wanted one of "),
        ({("argument 0", 2): 1}, "sizes name axis 2 of argument 0, wanted one of its 2 axes"),
        ({4: [5, 0]}, "sizes of axes of 4 hold 0, wanted whole numbers of at least 1"),
        ({"x": 1}, "sizes name 'x', wanted an axis length or (argument, axis)"),
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_bad_sizes_are_one_line(sizes, said, raises):
    """It is the caller's mistake and no finding about the function."""
    with pytest.raises(ValueError, match=r"^check: ") as caught:
        gradlab.check(torch.sin, normal(3, 4), sizes=sizes, parts=(), raises=raises)
    assert said.replace("argument 0", subject(torch.sin, (normal(3, 4),), {}).names[0]) in str(caught.value)


def test_sizes_of_the_command_line():
    assert parsed_sizes("128: 127 129, x[0]: 1 257,w[-1]:2") == {128: [127, 129], ("x", 0): [1, 257], ("w", -1): [2]}
    for text in ("", "x: 3", "3:", "3: 4;", "x[0]: a"):
        with pytest.raises(ValueError, match=r"^check: sizes are "):
            parsed_sizes(text)
    with pytest.raises(ValueError, match=r"^check: sizes: came with an op"):
        gradlab.check("relu", sizes={3: 4})
