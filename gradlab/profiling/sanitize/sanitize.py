"""`gradlab.sanitize`: examine what Triton kernels on CPU tensors do to memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gradlab.profiling.sanitize.report import Report
from gradlab.profiling.sanitize.words import paragraph


class SanitizeError(AssertionError):
    """A kernel did what it must not; the message is a paragraph for each fault.

    Attributes:
        report: the whole Report.
    """

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report


@contextmanager
def sanitize(
    *, first: bool = False, bounds: bool = False, floats: bool = False, raises: bool = True
) -> Iterator[Report]:
    """Within it, every launch of a Triton kernel on CPU tensors is examined, of this package and of any other.

    A lane that reads or writes outside of its tensor is masked off and noted, and the kernel goes on. Programs run one
    after another in one thread. No GPU is needed.

    Args:
        first: stop at the first launch with a fault: SanitizeError is raised where it is launched.
        bounds: look for accesses out of bounds and failed assertions alone, not for races and memory that nobody has
            written.
        floats: look at every float that is stored, too: where it has stopped being finite.
        raises: at the end, raise SanitizeError if there is a fault; else only the report says so.

    Yields:
        The Report, which fills as launches end.

    Raises:
        SanitizeError: as `first` and `raises` say.
        ValueError: kernels on a CPU run in Triton's interpreter, which examines nothing.
    """
    with examined(first=first, error=SanitizeError, bounds=bounds, floats=floats) as report:
        yield report
    if raises and report.faults:
        raise SanitizeError(str(report), report)


@contextmanager
def examined(
    first: bool, error: Callable[[str, Report], BaseException], bounds: bool = False, floats: bool = False
) -> Iterator[Report]:
    """As `sanitize`, which raises nothing at its end, and what `error` makes at a first fault."""
    import_triton()
    from gradlab.kernels.cpu import sanitize_torch
    from gradlab.kernels.runtime import launch_triton

    if launch_triton.interpreting_now():
        raise ValueError("sanitize: kernels on a CPU are interpreted, wanted GRADLAB_CPU=compile, which examines them")
    report = Report()

    def note(faults: list[Any]) -> None:
        report.launches = session.launches
        report.add(faults)
        if first and faults:
            raise error(paragraph(report.faults[0]), report)

    session = sanitize_torch.Session(note, bounds, floats)
    try:
        with sanitize_torch.opened(session):
            yield report
    finally:
        report.launches = session.launches


def import_triton() -> None:
    """Refuse where Triton is not installed."""
    from gradlab.autodiff.frameworks.side import side

    side("torch")
