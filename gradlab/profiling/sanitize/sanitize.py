"""`gradlab.sanitize`: examine what Triton kernels on CPU tensors and Pallas kernels on CPU arrays do to memory."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gradlab.profiling.sanitize.imported import when_imported
from gradlab.profiling.sanitize.report import Report
from gradlab.profiling.sanitize.words import paragraph

_Error = Callable[[str, Report], BaseException]


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
    """Within it, every launch of a kernel on a CPU is examined, of this package and of any other.

    Triton kernels are those on torch's CPU tensors. Pallas kernels, on jax's arrays of a CPU, are lowered for CUDA and
    run as a GPU would run them, with its blocks. A lane that reads or writes outside of its tensor is masked off and
    noted, and the kernel goes on. Programs run one after another in one thread. No GPU is needed.

    Args:
        first: stop at the first launch with a fault: SanitizeError is raised where it is launched; on jax, where
            its results are waited for, or at the end.
        bounds: look for accesses out of bounds and failed assertions alone, not for races and memory that nobody has
            written.
        floats: look at every float that is stored, too: where it has stopped being finite.
        raises: at the end, raise SanitizeError if there is a fault; else only the report says so.

    Yields:
        The Report, which fills as launches end.

    Raises:
        SanitizeError: as `first` and `raises` say.
        ValueError: kernels on a CPU run in Triton's interpreter, which examines nothing.
        ModuleNotFoundError: neither torch nor jax is installed, or Triton is not, which compiles the kernels of both.
    """
    with examined(first=first, error=SanitizeError, bounds=bounds, floats=floats) as report:
        yield report
    if raises and report.faults:
        raise SanitizeError(str(report), report)


@contextmanager
def examined(first: bool, error: _Error, bounds: bool = False, floats: bool = False) -> Iterator[Report]:
    """As `sanitize`, which raises nothing at its end, and what `error` makes at a first fault."""
    here = [name for name in ("torch", "jax") if importlib.util.find_spec(name) is not None]
    if not here:
        raise ModuleNotFoundError("sanitize needs torch or jax: pip install 'gradlab[torch]' or 'gradlab[jax]'")
    for name in ("triton", "llvmlite"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"sanitize needs {name}, with which kernels of torch and of jax are compiled for a CPU: "
                "pip install triton llvmlite"
            )
    report, late = Report(), False

    def note(faults: list[Any]) -> None:
        report.add(faults)
        if first and faults:
            raise error(paragraph(report.faults[0]), report)

    def note_late(faults: list[Any]) -> None:
        nonlocal late
        # XLA makes an error of its own of one within a launch, for whoever waits for the results.
        late = late or (first and bool(faults))
        note(faults)

    with ExitStack() as stack:
        if "torch" in here:
            stack.enter_context(_triton(report, note, bounds, floats))
        if "jax" in here:
            stack.enter_context(_pallas(report, note_late, bounds, floats))
        try:
            yield report
        except Exception as raised:
            if late and type(raised).__name__ == "JaxRuntimeError":
                raise error(paragraph(report.faults[0]), report) from None
            raise
    if late:
        raise error(paragraph(report.faults[0]), report)


@contextmanager
def _triton(report: Report, note: Callable[[list[Any]], None], bounds: bool, floats: bool) -> Iterator[None]:
    """Within it launches on torch's tensors are examined."""
    from gradlab.kernels.cpu import sanitize_torch
    from gradlab.kernels.runtime import launch_triton

    if launch_triton.interpreting_now():
        raise ValueError("sanitize: kernels on a CPU are interpreted, wanted GRADLAB_CPU=compile, which examines them")

    def counted(faults: list[Any]) -> None:
        report.triton = session.launches
        note(faults)

    session = sanitize_torch.Session(counted, bounds, floats)
    try:
        with sanitize_torch.opened(session):
            yield
    finally:
        report.triton = session.launches


@contextmanager
def _pallas(report: Report, note: Callable[[list[Any]], None], bounds: bool, floats: bool) -> Iterator[None]:
    """Within it launches on jax's arrays are examined, from the import of Pallas on."""
    with ExitStack() as stack:

        def counted(faults: list[Any]) -> None:
            report.pallas += 1
            note(faults)

        def examine() -> None:
            from gradlab.profiling.pallas_cpu.run import cuda_on_cpu

            seen = stack.enter_context(cuda_on_cpu(True, bounds=bounds, floats=floats, note=counted))
            report.left = seen.left

        with when_imported("jax.experimental.pallas", examine):
            yield
