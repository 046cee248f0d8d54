"""The pytest plugin of the check and the sanitizer: the fixture `check_gradients` with its marker,
`--gradlab-sanitize`.

Nothing is imported until it is used.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradlab.autodiff.checker.report import Report

_KEY = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gradlab-plots DIR`: where failures draw their gradient; the test's own temporary folder otherwise.

    `--gradlab-sanitize`: `gradlab.sanitize` around every test.
    """
    group = parser.getgroup("gradlab")
    group.addoption("--gradlab-plots", type=Path, metavar="DIR", help="folder for plots of wrong gradients")
    group.addoption(
        "--gradlab-sanitize",
        action="store_true",
        help="examine what Triton and Pallas kernels on a CPU do to memory; a test with a fault fails",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "check_gradients(**options): options of gradlab.check for the fixture check_gradients, e.g. order=1"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test whose kernels do what they must not fails, with a paragraph for each fault."""
    if not item.config.getoption("--gradlab-sanitize"):
        return (yield)
    import gradlab

    with gradlab.sanitize(raises=False) as report:
        result = yield
    if report.faults:
        text = str(report)
        item.stash[_KEY] = [text]
        raise SanitizerFaults(text)
    return result


class SanitizerFaults(AssertionError):
    """A failure whose text is the sanitizer's report."""


class WrongGradients(AssertionError):
    """A failure whose text is the report's table."""


@pytest.fixture
def check_gradients(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., "Report"]:
    """gradlab.check with the marker's options; fails with the whole table and the path of the plot.

    Takes what gradlab.check takes and returns its Report; options given in the call win over the marker's, the
    marker on the function over one on its class or module. `sanitize=True` examines the calls' kernels too
    (`gradlab.sanitize`), and fails with its report.
    """
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("check_gradients"))):
        options.update(marker.kwargs)
    count = 0

    def check(fn: Callable[..., Any] | str, *args: Any, **given: Any) -> "Report":
        __tracebackhide__ = True
        nonlocal count
        import gradlab

        chosen = {**options, **given}
        raises, strict = chosen.pop("raises", True), chosen.pop("strict", False)
        with gradlab.sanitize() if chosen.pop("sanitize", False) else contextlib.nullcontext():
            report = gradlab.check(fn, *args, **chosen, raises=False)
        if not raises or report.verdict == "ok" or (report.verdict == "inconclusive" and not strict):
            return report
        count += 1
        text = f"{report.wrong()[0].message}\n\n{report}\n{_drawn(report, request, tmp_path, count)}"
        request.node.stash.setdefault(_KEY, []).append(text)
        raise WrongGradients(text)

    return check


def _drawn(report: "Report", request: pytest.FixtureRequest, tmp_path: Path, count: int) -> str:
    """The plot's path in words, or why there is none."""
    folder = request.config.getoption("--gradlab-plots") or tmp_path
    name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return f"plot: {report.plot(folder / f'{name}-{count}.png')}"
    except (ModuleNotFoundError, ValueError, OSError) as error:
        return f"no plot: {error}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed check shows its table, a fault its paragraph, not the lines of the fixture."""
    outcome: Any = yield
    report = outcome.get_result()
    texts = item.stash.get(_KEY, None)
    named = str(report.longrepr)
    if report.when == "call" and report.failed and texts and ("WrongGradients" in named or "SanitizerFaults" in named):
        report.longrepr = f"{item.location[0]}:{(item.location[1] or 0) + 1}: {texts[-1]}"
