"""One launch run and examined: its faults in words of the kernel's parameters and the arrays they stand for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.launching import Kernel
from gradlab.kernels.cpu.sanitize_fault import Fault
from gradlab.kernels.cpu.sanitize_run import Clock, Examined, Noted
from gradlab.profiling.pallas_cpu.launch import Launch, strides
from gradlab.profiling.pallas_cpu.memory import Memory

# Beyond this file's frames stands who launches a kernel, not what it calls.
_OUTSIDE = "triton_ir_jax.py"


def run(
    launch: Launch, kernel: Kernel, operands: Sequence[np.ndarray], number: int = 0, bounds: bool = False
) -> tuple[tuple[np.ndarray, ...], list[Fault]]:
    """A launch's results and its faults; none of a kernel that is not sanitized.

    Args:
        kernel: the launch's, compiled.
        number: of the launch.
        bounds: look at bounds alone.
    """
    x, y, z = (*launch.grid, 1, 1)[:3]
    stored = {place for access, *_, place, _, _ in kernel.binary.sites if access in (layout.STORE, layout.ATOMIC)}
    memory = Memory(launch, operands, stored)
    addresses = [a.ctypes.data for a in memory.arrays]
    if not isinstance(kernel, Examined):
        kernel((x, y, z), addresses)
        return memory.results(), []
    extents = memory.extents(stored, x * y * z > 1, bounds)
    noted = kernel.examine((x, y, z), addresses, extents, memory.find, Clock())
    # An offset that has wrapped is why an address is out of bounds.
    wrapped = {one.site for one in noted if one.kind == layout.OVERFLOW}
    faults = [
        _fault(launch, kernel, memory, one, number)
        for one in noted
        if one.kind != layout.OUTSIDE or one.site not in wrapped
    ]
    for kind, found in ((layout.NEVER_WRITTEN, memory.unwritten()), (layout.OPERAND_WRITTEN, memory.overwritten())):
        faults += [_after(launch, kernel, memory, kind, *one, number) for one in found]
    return memory.results(), faults


def _fault(launch: Launch, kernel: Examined, memory: Memory, noted: Noted, number: int) -> Fault:
    """A fault that a program noted."""
    access, file, line, callers, argument, text, masked = kernel.binary.sites[noted.site]
    place = None
    if argument >= 0 and noted.at:
        array = memory.arrays[argument]
        place = _place((noted.at - array.ctypes.data) // array.itemsize, array.shape)
    return Fault(
        kind=layout.KINDS[noted.kind],
        access=layout.ACCESSES[access],
        **_where(launch, file, line, callers),
        **_array(launch, memory, argument, place),
        address=noted.at,
        program=launch.place(noted.program),
        grid=launch.axes,
        other=None if noted.other < 0 else launch.place(noted.other),
        masked=masked,
        count=noted.elements,
        launch=number,
        text=text if access == layout.OPERATION else None,
    )


def _after(
    launch: Launch,
    kernel: Examined,
    memory: Memory,
    kind: str,
    argument: int,
    place: tuple[int, ...],
    count: int,
    number: int,
) -> Fault:
    """A fault that shows when all programs have run: at the last store to the argument, or at the kernel's own line."""
    sites = [s for s in kernel.binary.sites if s[0] != layout.LOAD and s[4] == argument]
    file, line, callers = sites[-1][1:4] if sites else ("", 0, [])
    described = _array(launch, memory, argument, place)
    return Fault(
        kind=kind,
        access="store",
        **_where(launch, file, line, callers),
        **described,
        address=memory.arrays[argument].ctypes.data + described["index"] * memory.arrays[argument].itemsize,
        program=None,
        grid=launch.axes,
        other=None,
        masked=False,
        count=count,
        launch=number,
    )


def _where(launch: Launch, file: str, line: int, callers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    known = line > 0
    inner = [(name or launch.file, number) for name, number in callers]
    end = next((i for i, (name, _) in enumerate(inner) if name.endswith(_OUTSIDE)), len(inner))
    return {
        "kernel": launch.name,
        "file": file or launch.file if known else launch.file,
        "line": line if known else launch.line,
        "callers": tuple(inner[:end]),
    }


def _array(launch: Launch, memory: Memory, argument: int, place: tuple[int, ...] | None) -> dict[str, Any]:
    """An argument and an element of it."""
    if argument < 0:
        return {"argument": None, "index": None, "shape": None, "stride": None, "dtype": None}
    shape = launch.shapes[argument]
    steps = strides(shape)
    first = launch.operands
    return {
        "argument": launch.names[argument],
        "role": f"operand {argument}" if argument < first else f"result {argument - first}",
        "index": None if place is None else sum(i * step for i, step in zip(place, steps, strict=False)),
        "place": place,
        "shape": shape,
        "stride": steps,
        "dtype": str(memory.arrays[argument].dtype),
        "span": int(np.prod(shape)),
    }


def _place(element: int, space: Sequence[int]) -> tuple[int, ...]:
    """Where an element of a space's memory stands along each axis: past the first one's end, or before it, too."""
    found = []
    for step in strides(space):
        i, element = divmod(element, step)
        found.append(i)
    return tuple(found)
