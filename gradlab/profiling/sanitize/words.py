"""One fault of a kernel as a paragraph: what, where, on which tensor, in which program."""

import linecache
from pathlib import Path
from typing import Any


def paragraph(fault: Any) -> str:
    """Three or four lines: the fault, its line of source, the tensor, the program."""
    source = linecache.getline(fault.file, fault.line).strip()
    lines = [
        f"{shown(fault.file)}:{fault.line}: {headline(fault)}",
        f"    {fault.kernel}: {source}" if source else f"    {fault.kernel}",
        *(f"    called from {shown(file)}:{line}" for file, line in fault.callers),
        f"    {program(fault)}" if fault.text is not None else f"    {tensor(fault)}; {program(fault)}",
    ]
    return "\n".join(lines)


def headline(fault: Any) -> str:
    """What happened to which element, in one line."""
    if fault.text is not None:
        return f"{fault.kind}: {fault.text}"
    # Of offsets that wrap the vectors are counted, not the elements.
    counted = fault.count > 1 and fault.kind != "integer overflow"
    more = f" and {fault.count - 1:,} more" if counted else ""
    why = _REASONS.get(fault.kind, _outside)(fault)
    access = "" if fault.program is None else f"{fault.access} of "
    return f"{fault.kind}: {access}{element(fault)}{more}, {why}"


def element(fault: Any) -> str:
    """The element in the kernel's words: `x_ptr[1000]`, or `x_ref[3, 40]`."""
    if fault.place is not None:
        return f"{fault.argument}[{', '.join(map(str, fault.place))}]"
    if fault.argument is None:
        return f"address 0x{fault.address % 2**64:x}" + ("" if fault.index is None else f", element {fault.index}")
    return fault.argument if fault.index is None else f"{fault.argument}[{fault.index}]"


def _outside(fault: Any) -> str:
    if fault.role is not None:
        return f"outside of its array's {' x '.join(map(str, fault.shape)) or 'one'} element{'s' * bool(fault.shape)}"
    if fault.shape is None:
        return "which is in no tensor" if fault.argument is None else "which points to no tensor"
    if fault.index is not None and 0 <= fault.index < fault.span:
        return "which the view skips: its elements are not all of its memory"
    return f"outside of {fault.span:,} element{'s' * (fault.span != 1)}"


def _unwritten(fault: Any) -> str:
    if fault.role is not None:
        return "a result that no program has stored yet"
    if fault.stored is None:
        return "which nothing has written since torch.empty"
    launch, kernel, *_ = fault.stored
    return f"which nothing has written since torch.empty; launch {launch}, {kernel}, has stored other elements of it"


_REASONS = {
    "uninitialised load": _unwritten,
    "integer overflow": lambda fault: "whose offset of 32 bits has wrapped",
    "race with a store": lambda fault: f"which program {_ids(fault.other)} has stored",
    "race with a load": lambda fault: f"which program {_ids(fault.other)} has loaded",
    "result never written": lambda fault: (
        f"which {fault.reader} reads, as torch.empty made it" if fault.reader else "which no program has stored"
    ),
    "store to an operand": lambda fault: "an array of jax, which nothing may change: no result is written over it",
    "two values for one element": lambda fault: "which another lane of this store has given another value",
}


def tensor(fault: Any) -> str:
    """The tensor that the access is checked against."""
    if fault.shape is None:
        return "no tensor"
    if fault.role is not None:
        return f"{fault.role}, {fault.dtype}{list(fault.shape)}"
    return f"tensor {fault.dtype}{list(fault.shape)}, strides {list(fault.stride)}"


def program(fault: Any) -> str:
    """Who did it: programs, mask, launch."""
    if fault.program is None and fault.role is not None:
        return f"grid {_ids(fault.grid)}; launch {fault.launch}{_often(fault)}"
    if fault.program is None:
        return f"launch {fault.launch} has stored other elements of it"
    mask = ", under a mask that is true there" if fault.masked else ", without a mask" if fault.text is None else ""
    return f"program {_ids(fault.program)} of {_ids(fault.grid)}{mask}; launch {fault.launch}{_often(fault)}"


def _often(fault: Any) -> str:
    return "" if fault.launches == 1 else f", and in {fault.launches - 1:,} more"


def shown(file: str) -> str:
    """A path from the working directory on, where it lies below."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def _ids(place: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, place))})"
