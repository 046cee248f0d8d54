"""Which tensors the arguments of a sanitized launch are: their elements, and the faults in words of tensors.

While a `Session` is open, every launch on tensors of a CPU runs a sanitized kernel, the lab's own and anybody's.
"""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.compiler import SANITIZE
from gradlab.kernels.cpu.launching import Grid, Kernel
from gradlab.kernels.cpu.sanitize_run import ANYTHING, NOTHING, Clock, Examined, Extent, Noted

# Elements of a view with gaps for which it is noted which are its own.
_NOTED = 2**28


@dataclass(frozen=True)
class Fault:
    """One place of a kernel that did what it must not, in one launch.

    Attributes:
        kind: one of `sanitize_layout.KINDS`.
        access: "load", "store" or "atomic".
        kernel: the kernel's name.
        file, line: where the access stands.
        callers: file and line of the calls that led there, inner to outer.
        argument: the kernel's parameter; None for an address out of memory.
        index: of the element, from the first of the tensor on, in elements of its memory.
        address: of the element.
        shape, stride, dtype: of the tensor; None where none is known.
        program: place in the grid of the first program that did it.
        grid: programs along the axes.
        other: place of the other program of a race.
        masked: whether the access has a mask; if so, the element's is true.
        count: elements that it was done to.
        launch: number of the launch, from 1 on.
        span: elements of memory from the tensor's first to its last.
        launches: how many launches did it.
    """

    kind: str
    access: str
    kernel: str
    file: str
    line: int
    callers: tuple[tuple[str, int], ...]
    argument: str | None
    index: int | None
    address: int
    shape: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    dtype: str | None
    program: Grid
    grid: Grid
    other: Grid | None
    masked: bool
    count: int
    launch: int
    span: int = 0
    launches: int = 1


class Session:
    """What examines launches while it is open.

    Args:
        note: called with the faults of a launch that has some, when it is over.

    Attributes:
        launches: how many launches were examined.
    """

    def __init__(self, note: Callable[[list[Fault]], None]) -> None:
        self._note = note
        self._clock = Clock()
        self._lock = threading.RLock()
        self.launches = 0

    def launch(self, kernel: Examined, grid: Grid, values: Sequence[Any], given: Sequence[Any]) -> None:
        """Run a launch and note its faults.

        Args:
            values: addresses and numbers, in the order of the kernel's arguments.
            given: the same with tensors in place of their addresses.
        """
        with self._lock:
            self.launches += 1
            memory = _Memory()
            extents = [memory.extent(_tensor(value), number) for value, number in zip(given, values, strict=True)]
            noted = kernel.examine(grid, values, extents, memory.find, self._clock)
            if noted:
                self._note([_fault(kernel, grid, given, memory, one, self.launches) for one in noted])


active: Session | None = None


@contextmanager
def opened(session: Session) -> Iterator[None]:
    """Within it, kernels are sanitized, and the session runs them."""
    global active
    before, active = active, session
    mode, knobs.compilation.instrumentation_mode = knobs.compilation.instrumentation_mode, SANITIZE
    try:
        yield
    finally:
        active, knobs.compilation.instrumentation_mode = before, mode


def launch(kernel: Kernel, grid: Grid, values: Sequence[Any], given: Sequence[Any]) -> None:
    """Run a kernel, sanitized or without an access; where no session is open, nobody hears of its faults."""
    if isinstance(kernel, Examined):
        (active or Session(lambda faults: None)).launch(kernel, grid, values, given)
    else:
        kernel(grid, values)


class _Memory:
    """The extents of one launch, and what keeps them alive."""

    def __init__(self) -> None:
        self._held: list[torch.Tensor] = []
        self._known: list[torch.Tensor] | None = None
        # The tensor of each extent that an address was found in.
        self.found: dict[int, torch.Tensor] = {}

    def extent(self, tensor: torch.Tensor | None, value: Any) -> Extent:
        """What an argument points to."""
        if tensor is None:
            return ANYTHING if value else NOTHING
        return self._of(tensor)

    def find(self, address: int) -> Extent:
        """What an address out of memory belongs to: the largest tensor that begins there, or else lies around it."""
        if self._known is None:
            self._known = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and _plain(t)]
        if not address:
            return NOTHING
        around = [t for t in self._known if t.data_ptr() <= address < t.data_ptr() + span(t) * t.itemsize]
        begin = [t for t in around if t.data_ptr() == address]
        if not around:
            return NOTHING
        tensor = max(begin or around, key=span)
        extent = self._of(tensor)
        self.found[extent.low] = tensor
        return extent

    def _of(self, tensor: torch.Tensor) -> Extent:
        size = span(tensor)
        shift = tensor.itemsize.bit_length() - 1
        inside = 0
        if (tensor.numel() != size or _overlaps(tensor)) and size <= _NOTED:
            own = torch.zeros(size, dtype=torch.uint8)
            own.as_strided(tensor.shape, tensor.stride()).fill_(1)
            if not bool(own.all()):
                self._held.append(own)
                inside = own.data_ptr()
        return Extent(tensor.data_ptr(), size * tensor.itemsize, shift, inside)


def span(tensor: torch.Tensor) -> int:
    """Elements of memory from a tensor's first to its last."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether several indices may mean one element."""
    return any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _plain(tensor: torch.Tensor) -> bool:
    """Whether it has memory of a CPU that can be asked for."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False


def _tensor(value: Any) -> torch.Tensor | None:
    """The tensor of an argument, which triton.reinterpret wraps."""
    found = value if isinstance(value, torch.Tensor) else getattr(value, "base", None)
    return found if isinstance(found, torch.Tensor) else None


def _fault(kernel: Examined, grid: Grid, given: Sequence[Any], memory: _Memory, noted: Noted, launch: int) -> Fault:
    access, file, line, callers, number, _, masked = kernel.binary.sites[noted.site]
    tensor = _tensor(given[number]) if number >= 0 else memory.found.get(noted.low)
    index = None
    if tensor is not None:
        index = (noted.at - tensor.data_ptr()) // tensor.itemsize
    return Fault(
        kind=layout.KINDS[noted.kind],
        access=layout.ACCESSES[access],
        kernel=kernel.binary.name,
        file=file or kernel.file,
        line=line,
        callers=tuple((name or kernel.file, number) for name, number in callers),
        argument=kernel.binary.arguments[number][0] if number >= 0 else None,
        index=index,
        address=noted.at,
        shape=None if tensor is None else tuple(tensor.shape),
        stride=None if tensor is None else tensor.stride(),
        dtype=None if tensor is None else str(tensor.dtype).removeprefix("torch."),
        program=_place(noted.program, grid),
        grid=grid,
        other=None if noted.other < 0 else _place(noted.other, grid),
        masked=masked,
        count=noted.elements,
        launch=launch,
        span=0 if tensor is None else span(tensor),
    )


def _place(program: int, grid: Grid) -> Grid:
    x, y, _ = grid
    return program % x, program // x % y, program // (x * y)
