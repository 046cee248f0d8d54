"""The check's own score: wrong backwards are called wrong, with the right input named, and right ones are not."""

import pytest

from gradlab.autodiff.frameworks.side import installed
from tests.mutants.corpus import CONTROLS, KINDS, load
from tests.mutants.score import TOOLS, ours, says_wrong

SUBJECTS = [s for side in installed() for s in load(side)]
# On jax every function is compiled some thirty times: every sixth stands for the others here,
# `python -m tests.mutants.score` runs all.
CHOSEN = [s for n, s in enumerate(SUBJECTS) if s.side == "torch" or n % 6 == 0]
MUTANTS = [s for s in CHOSEN if s.kind in KINDS]
DIRECT = "derivative vs finite differences"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", MUTANTS, ids=lambda s: s.name)
def test_a_wrong_backward_is_called_wrong(subject):
    # The other parts say the same again at thirty other inputs, and on jax compile a program for each: what these two
    # find needs no more.
    report = ours(subject, 0, parts=("derivative", "reference"))
    if not says_wrong(report):
        report = ours(subject, 0)
    assert says_wrong(report), report
    # Of a complex input its parts are named.
    named = {f.input.split(".")[0] for f in report.findings if f.verdict == "wrong" and f.check == DIRECT}
    if subject.blames and subject.kind not in ("order-2", "contract", "nondeterministic"):
        assert named <= set(subject.blames)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", [s for s in CHOSEN if s.kind == "right"], ids=lambda s: s.name)
def test_a_right_backward_is_ok(subject):
    assert ours(subject, 1), "false alarm"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", [s for s in CHOSEN if s.kind == "awkward"], ids=lambda s: s.name)
@pytest.mark.parametrize("size", [8, 31])
def test_an_awkward_one_is_not_called_wrong(subject, size):
    report = ours(subject, 2, size)
    assert not says_wrong(report), report


def test_the_corpus_is_large_enough():
    mutants = [s for s in SUBJECTS if s.kind in KINDS]
    assert len(mutants) >= 60 * len(installed())
    assert {s.kind for s in SUBJECTS} == {*KINDS, *CONTROLS}


@pytest.mark.parametrize("side", installed())
def test_the_other_tools_are_run_as_their_authors_mean_them(side):
    """A plain sign error is seen by all, a right rule by none."""
    wrong = next(s for s in SUBJECTS if s.side == side and s.name.startswith("linear-dw-sign"))
    right = next(s for s in SUBJECTS if s.side == side and s.name.startswith("linear-by-hand"))
    for tool, says in TOOLS[side].items():
        assert says(wrong, 0), tool
        assert not says(right, 0), tool
