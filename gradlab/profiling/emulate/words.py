"""One fault of executed GPU code as a paragraph: what, where, by which instruction, in which program."""

import contextlib
import linecache
from pathlib import Path

from gradlab.profiling.emulate.result import LaunchResult
from gradlab.profiling.ptx.faults import Fault


def paragraph(fault: Fault, launch: LaunchResult) -> str:
    """Three or four lines: the fault and its line of source, the instruction, the program and warp."""
    # Of what a library was inlined from, the line that the kernel's author wrote.
    places = [fault.place, *fault.place.callers]
    own = [p for p in places if p.line and Path(p.file).name == Path(launch.file).name]
    place = own[0] if own else fault.place
    source = linecache.getline(launch.file if own else place.file, place.line).strip()
    inside = [p for p in places if p != place and p.line]
    return "\n".join(
        [
            f"{_where(launch.file if own else place.file, place.line)}: {fault.kind}: {fault.text}",
            f"    {launch.kernel}: {source}" if source else f"    {launch.kernel}",
            *(f"    {'inlined from' if own else 'inlined at'} {_where(p.file, p.line)}" for p in inside[:1]),
            f"    {fault.instruction}",
            f"    {_who(fault, launch)}",
        ]
    )


def shown(file: str) -> str:
    """A path from the working directory on, where it lies below."""
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(Path.cwd()))
    return file


def _where(file: str, line: int) -> str:
    return f"{shown(file)}:{line}" if file else "no line known"


def _who(fault: Fault, launch: LaunchResult) -> str:
    more = f", and {fault.count - 1:,} more" if fault.count > 1 else ""
    if fault.program is None:
        return f"in a launch of {_ids(launch.grid)} programs{more}"
    x, y, _ = launch.grid
    program = (fault.program % x, fault.program // x % y, fault.program // (x * y))
    warp = "" if fault.warp is None else f", warp {fault.warp}"
    return f"program {_ids(program)} of {_ids(launch.grid)}{warp}{more}"


def _ids(numbers: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, numbers))})"
