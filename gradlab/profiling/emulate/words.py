"""One fault of executed GPU code as a paragraph: what, where, by which instruction, in which program."""

import contextlib
import linecache
from collections.abc import Sequence
from pathlib import Path

from gradlab.profiling.emulate.result import LaunchResult
from gradlab.profiling.ptx.faults import Fault
from gradlab.profiling.ptx.program import Place


def paragraphs(faults: Sequence[Fault], launch: LaunchResult) -> list[str]:
    """A paragraph for each kind of fault and line of source."""
    groups: dict[tuple[str, Place], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.place), []).append(fault)
    return [paragraph(group, launch) for group in groups.values()]


def paragraph(faults: Sequence[Fault], launch: LaunchResult) -> str:
    """Three to five lines of faults of one kind and line: the first, its source, its instruction, program and warp."""
    fault = faults[0]
    # Of what a library was inlined from, the line that the kernel's author wrote.
    places = [fault.place, *fault.place.callers]
    own = [p for p in places if p.line and Path(p.file).name == Path(launch.file).name]
    place = own[0] if own else fault.place
    file = launch.file if own else place.file
    source = linecache.getline(file, place.line).strip()
    lines = [f"{_where(file, place.line)}: {fault.kind}: {fault.text}"]
    lines.append(f"    {launch.kernel}: {source}" if source else f"    {launch.kernel}")
    if own and place != fault.place:
        lines.append(f"    in {_where(fault.place.file, fault.place.line)}")
    others = "" if len(faults) == 1 else f", one of {len(faults)} instructions of the line"
    return "\n".join([*lines, f"    {fault.instruction.rstrip(';')}{others}", f"    {_who(faults, launch)}"])


def in_a_line(error: BaseException) -> str:
    """`ValueError: what it says`: of several lines the first; of a kernel that does not compile, the reason."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "; error :" in line] or lines
    said = lines[-1 if type(error).__name__ == "CompilationError" else 0] if lines else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def shown(file: str) -> str:
    """A path from the working directory on, where it lies below."""
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(Path.cwd()))
    return file


def _where(file: str, line: int) -> str:
    return f"{shown(file)}:{line}" if file else "no line known"


def _who(faults: Sequence[Fault], launch: LaunchResult) -> str:
    fault = faults[0]
    if fault.program is None:
        return f"in a launch of {_ids(launch.grid)} programs"
    x, y, _ = launch.grid
    program = (fault.program % x, fault.program // x % y, fault.program // (x * y))
    warp = "" if fault.warp is None else f", warp {fault.warp}"
    return f"program {_ids(program)} of {_ids(launch.grid)}{warp}"


def _ids(numbers: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, numbers))})"
