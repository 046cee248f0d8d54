"""The pytest plugin in a session of its own: the fixture, the marker, the table and plot of a failure, xdist."""

import importlib.metadata
import importlib.util

import pytest

pytest.importorskip("torch")
pytest_plugins = ["pytester"]

SUITE = """
import pytest, torch

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x
    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2.01 * x * dy

X = torch.linspace(1, 2, 6, dtype=torch.float64).reshape(2, 3)

def test_right(check_gradients):
    assert check_gradients(torch.tanh, X)

def test_wrong(check_gradients):
    check_gradients(Square.apply, X)

@pytest.mark.check_gradients(order=1, parts=("derivative", "second"))
@pytest.mark.parametrize("seed", [1, 2])
def test_marked(check_gradients, seed):
    report = check_gradients(torch.tanh, X, seed=seed)
    assert {f.check for f in report.findings} == {"derivative vs finite differences"}

def test_not_raised(check_gradients):
    assert not check_gradients(Square.apply, X, raises=False)
"""


@pytest.fixture
def suite(pytester):
    pytester.makepyfile(SUITE)
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error")
    return pytester


def run(suite, *options):
    # Once by its entry point where the package is installed, else by name.
    entry = any(e.name == "gradlab" for e in importlib.metadata.entry_points(group="pytest11"))
    named = [] if entry else ["-p", "gradlab.pytest_plugin"]
    return suite.runpytest_subprocess(*named, "-p", "no:cacheprovider", *options)


def test_a_failure_shows_the_table_and_the_plot(suite, tmp_path):
    plots = tmp_path / "plots"
    result = run(suite, f"--gradlab-plots={plots}")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*test_wrong*", "*derivative vs finite differences*wrong*", "plot: *test_wrong-1.png"])
    result.stdout.no_fnmatch_line("*__tracebackhide__*")
    if importlib.util.find_spec("matplotlib"):
        assert (plots / "test_wrong-1.png").stat().st_size > 1000


def test_under_xdist(suite):
    pytest.importorskip("xdist")
    # One worker is a process of its own, whose reports travel, and starts torch once.
    result = run(suite, "-n", "1")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*derivative vs finite differences*wrong*", "plot: *test_wrong-1.png"])


def test_nothing_is_imported_until_it_is_used(pytester):
    pytester.makepyfile("""
        import sys

        def test_light():
            assert "gradlab.pytest_plugin" in sys.modules
            assert not {"torch", "jax", "gradlab.autodiff.checker.check"} & set(sys.modules)
    """)
    run(pytester).assert_outcomes(passed=1)
