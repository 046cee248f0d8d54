"""The corpus of wrong backwards: every mutant is wrong where it says, every control is right."""

import importlib
import importlib.util
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from tests.mutants.corpus import CONTROLS, KINDS, SHOWS, load

SIDES = [side for side in ("torch", "jax") if importlib.util.find_spec(side)]


SUBJECTS = {side: load(side) for side in SIDES}
EVERY = [subject for side in SIDES for subject in SUBJECTS[side]]


def chosen(kinds):
    return [pytest.param(s, id=f"{s.side}-{s.name}") for s in EVERY if s.kind in kinds]


def sizes(subject):
    """Both sizes; jax compiles anew for each, so there the larger is for faults that have a place."""
    large = subject.kind == "local" or (subject.side == "torch" and subject.shows != "second")
    return (8, 64) if large else (8,)


@pytest.fixture(autouse=True)
def _float64():
    """Jax makes float32 of everything unless told."""
    with pytest.importorskip("jax").enable_x64(True) if "jax" in SIDES else nullcontext():
        yield


@pytest.fixture(params=["torch", "jax"])
def side(request):
    pytest.importorskip(request.param)
    return request.param


def shown(subject):
    """The module that knows how to see a subject's fault."""
    return importlib.import_module(f"tests.mutants.shown_by_{subject.side}")


def arrays(subject, size, make=None):
    return (make or subject.make)(np.random.default_rng(size), size)


def blamed(subject, hit):
    """Whether a hit is what the subject says: its names, or anything where all may be hit."""
    return hit == set(subject.blames) if subject.blames else bool(hit)


def test_names_and_kinds(side):
    subjects = SUBJECTS[side]
    assert max(Counter(s.name for s in EVERY).values()) == 1
    assert {s.kind for s in subjects} == {*KINDS, *CONTROLS}
    assert all(s.side == side and s.shows in SHOWS for s in subjects)
    assert all(s.note for s in subjects if s.kind != "right")


def test_enough():
    if len(SIDES) == 2:
        assert sum(s.kind in KINDS for s in EVERY) >= 72


def runs_and_names_its_parameters(subject, made):
    see = shown(subject)
    assert set(subject.blames) <= set(see.names(subject)[: len(made)])
    return all(see.finite(out) for out in see.outputs(subject.fn, see.put(subject, made)))


@pytest.mark.parametrize("subject", chosen(KINDS))
def test_mutant_is_wrong_where_it_says(subject):
    """Nothing is wrong but what was planted: the first order of the others, and the second of what is not blamed."""
    see = shown(subject)
    make = subject.trigger if subject.shows in ("trigger", "empty") else subject.make
    for size in sizes(subject):
        assert runs_and_names_its_parameters(subject, arrays(subject, size)), size
        hit = see.wrong_names(subject, subject.shows, arrays(subject, size, make))
        assert blamed(subject, hit), (size, hit)
    made = arrays(subject, 8)
    differentiable = {n for n, a in zip(see.names(subject), made, strict=False) if a.dtype.kind in "fc"}
    if subject.shows in ("plain", "forward", "repeat", "stale", "unwritten"):
        spared = differentiable - set(subject.blames)
    else:
        spared = differentiable
        assert see.wrong_names(subject, "plain", made) == set()
    if (
        spared
        and subject.truth
        and subject.order == 2
        and subject.kind in ("gross", "local", "small", "input-dependent")
    ):
        assert not spared & see.wrong_names(subject, "second", made)


@pytest.mark.parametrize("subject", chosen(CONTROLS))
def test_control_is_right(subject):
    see = shown(subject)
    for size in sizes(subject):
        made = arrays(subject, size)
        assert runs_and_names_its_parameters(subject, made), size
        grads = see.pulled(subject.fn, see.put(subject, made))
        assert all(see.finite(g) for g in grads if g is not None), size
        if subject.truth:
            assert see.wrong_names(subject, "plain", made) == set(), size
            assert subject.order < 2 or size > 8 or see.wrong_names(subject, "second", made) == set()
