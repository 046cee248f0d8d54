"""What a check costs, counted and not timed: calls of the function, and programs that jax compiles."""

import os
import subprocess
import sys
from collections import Counter

import pytest

import gradlab
from gradlab.autodiff.checker import function
from gradlab.autodiff.checker.inputs import isolated


@pytest.fixture
def here(monkeypatch):
    """Work that has a process of its own is done in this one, where its calls are counted."""

    def work_here(work, patience=0.0):
        sent = []
        work(sent.append)
        return sent, ""

    monkeypatch.setattr(isolated, "run_isolated", work_here)


def counted(fn):
    """The function, and how often it is called with a first argument of which size.

    A list of numbers would look like labels that other shapes do not fit.
    """
    calls = Counter()

    def of(*args):
        calls[args[0].numel()] += 1
        return fn(*args)

    return of, calls


# At most so many calls of y = x w [4 5] [5 3] by part: as many as there are, and one in ten.
CALLS = {"derivative": 15, "facts": 12, "contract": 49, "second": 13, "edges": 310}


@pytest.mark.parametrize("part", CALLS)
def test_a_part_calls_the_function_no_oftener(part, here):
    torch = pytest.importorskip("torch")
    fn, calls = counted(torch.mm)
    x, w = torch.randn(4, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert gradlab.check(fn, x, w, order=2, parts=(part,), replays=2)
    assert 0 < calls.total() <= CALLS[part]


def test_many_inputs_are_judged_at_once():
    """The calls that differences take do not grow with the number of inputs."""
    torch = pytest.importorskip("torch")
    needed = []
    for count in (1, 12):
        fn, calls = counted(lambda *xs: sum(x.sin() for x in xs))
        xs = [torch.randn(3, dtype=torch.float64) for _ in range(count)]
        report = gradlab.check(fn, *xs, order=1, parts=("derivative",))
        assert len(report.findings) >= count
        needed.append(calls.total())
    assert needed[1] <= needed[0]


def test_what_needs_no_size_is_looked_at_on_a_cut(here):
    torch = pytest.importorskip("torch")
    fn, calls = counted(torch.mm)
    x, w = torch.randn(300, 300, dtype=torch.float64), torch.randn(300, 4, dtype=torch.float64)
    assert gradlab.check(fn, x, w, order=1, replays=2)
    assert calls[x.numel()] <= 30
    assert calls.total() > 4 * calls[x.numel()]


def test_an_input_that_is_wrong_is_located_once(here):
    """Neither edges nor other shapes look for a fault that is known."""
    torch = pytest.importorskip("torch")

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            return dy @ w.T, 1.01 * x.T @ dy

    x, w = torch.randn(4, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    needed = []
    for parts in (("derivative",), ("derivative", "edges")):
        fn, calls = counted(Wrong.apply)
        assert not gradlab.check(fn, x, w, order=1, parts=parts, raises=False)
        needed.append(calls.total())
    located, edges = needed[0], needed[1] - needed[0]
    assert located > 100, "finding the place takes calls"
    assert edges <= CALLS["edges"]


def test_a_first_check_does_not_wait_for_torchs_compiler():
    """Its import takes longer than the check."""
    pytest.importorskip("torch")
    code = (
        "import sys, torch, gradlab; gradlab.check(torch.sin, torch.ones(2)); sys.exit('torch._dynamo' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


@pytest.fixture
def programs():
    """The names of what jax compiles, as it does."""
    jax = pytest.importorskip("jax")
    seen = []

    def heard(event, seconds, **what):
        if event.endswith("backend_compile_duration"):
            seen.append(what.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield seen
    jax.monitoring.unregister_event_duration_listener(heard)


def test_jax_compiles_a_program_for_each_shape_and_one_for_each_part(programs):
    jax = pytest.importorskip("jax")
    x = jax.numpy.linspace(0.1, 1.0, 11)
    programs.clear()
    assert gradlab.check(lambda x: jax.numpy.sin(x) * 1.5, x)
    # Values and pullback at the given shape and in float32, all transforms, the second derivative thrice, and the
    # first array that jax copies.
    assert len(programs) <= 8, programs


def test_jax_compiles_no_more_where_a_rule_is_written_by_hand(programs):
    jax = pytest.importorskip("jax")

    @jax.custom_vjp
    def sine(x):
        return jax.numpy.sin(x)

    sine.defvjp(lambda x: (jax.numpy.sin(x), x), lambda x, dy: (dy * jax.numpy.cos(x),))
    x = jax.numpy.linspace(0.1, 1.0, 13)
    programs.clear()
    assert gradlab.check(sine, x)
    # The same, five other shapes, and three operations without jit.
    assert len(programs) <= 16, programs


def test_jax_compiles_nothing_anew_at_edges_of_the_given_shape(programs):
    jax = pytest.importorskip("jax")
    x = jax.numpy.linspace(0.1, 1.0, 17)
    programs.clear()
    assert gradlab.check(jax.numpy.tanh, x, order=1, parts=("derivative", "edges"))
    assert len(programs) <= 2, programs


@pytest.mark.parametrize(
    ("seconds", "missing", "most"),
    [
        (0.05, set(), 560),
        (0.5, set(), 110),
        (5.0, {"second", "edges"}, 60),
        (50.0, {"contract", "second", "edges"}, 32),
    ],
)
def test_a_slow_function_leaves_out_expensive_parts_and_reports_them(seconds, missing, most, here, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(function, "call_seconds", lambda start, again: seconds)
    fn, calls = counted(torch.sin)
    x = torch.randn(4, 5, dtype=torch.float64)
    report = gradlab.check(fn, x, replays=2)
    assert report
    assert calls.total() <= most
    assert {"derivative", "facts", "contract", "second", "edges"} - set(report.seconds) == missing
    said = [note for note in report.notes if "the check leaves out" in note]
    assert bool(said) == (seconds > 0.1)
    assert all(part in said[0] for part in missing)
    report = gradlab.check(fn, x, parts=("second", "edges"), replays=2)
    assert {"second", "edges"} <= set(report.seconds)
