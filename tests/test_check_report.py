"""A report in a notebook, and what its pictures say."""

import base64
import re
import time

import numpy as np
import pytest

import gradlab

torch = pytest.importorskip("torch")


class Sine(torch.autograd.Function):
    """sin(x), whose backward takes dy as contiguous, and on request is wrong in one element."""

    wrong = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.as_strided(dy, x.shape, x.stride()) * x.cos()
        dx[0, 1] *= Sine.wrong
        return dx


def sine(x):
    return Sine.apply(x)


X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


def test_a_notebook_shows_the_table_and_both_pictures(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Sine, "wrong", 1.5)
    shown = gradlab.check(sine, X, parts=("derivative",), order=1, raises=False)._repr_html_()
    assert "derivative vs finite differences" in shown
    assert "x[0, 1] is" in shown
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_a_slow_function_is_not_drawn_in_a_notebook():
    pytest.importorskip("matplotlib")

    def slow(x):
        time.sleep(0.01)
        return x.sin()

    shown = gradlab.check(slow, X, parts=("derivative",), order=1)._repr_html_()
    assert "<img" not in shown
    assert re.search(r"report\.plot\(path\) draws error against step size in about \d+ s", shown)


def test_a_report_without_gradients_says_that_nothing_is_drawn():
    shown = gradlab.check(sine, X, parts=("facts",), order=1)._repr_html_()
    assert "plot: report holds no gradient compared with finite differences" in shown


def texts(report, tmp_path):
    """All the text of a plot."""
    return re.sub(
        r"\s+", " ", " ".join(re.findall(r"<!-- (.*?) -->", report.plot(tmp_path / "p.svg").read_text(), re.S))
    )


def test_the_picture_stands_under_the_worst_finding(tmp_path):
    """A gradient that is right for one dy and wrong for another is not drawn as ok."""
    pytest.importorskip("matplotlib")
    drawn = texts(gradlab.check(sine, X, parts=("derivative", "contract"), order=1, raises=False), tmp_path)
    assert "strided dy" in drawn
    assert "wrong" in drawn


def test_a_wrong_element_has_a_curve_of_its_own(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = texts(gradlab.check(sine, X, parts=("derivative",), order=1), tmp_path)
    assert "alone" not in drawn
    monkeypatch.setattr(Sine, "wrong", 1.5)
    drawn = texts(gradlab.check(sine, X, parts=("derivative",), order=1, raises=False), tmp_path)
    assert "x[0, 1] alone" in drawn
    assert "cross: the first that is wrong" in drawn


def test_a_wrong_scalar_is_drawn(tmp_path):
    """No axes to map, and no element to mark."""
    pytest.importorskip("matplotlib")

    def scalar(x):
        return Sine.apply(x.reshape(1, 1).expand(1, 2)).sum() + x.detach()

    report = gradlab.check(scalar, torch.tensor(0.5, dtype=torch.float64), parts=("derivative",), order=1, raises=False)
    assert not report
    assert report.plot(tmp_path / "p.png").stat().st_size > np.iinfo(np.int16).max // 4


def test_a_refusal_names_no_framework_where_there_is_none():
    (found,) = gradlab.check(sine, "x", raises=False).findings
    assert found.message.startswith(
        "sine, case 'given', arguments: TypeError: check: arguments of sine are of builtins"
    )
