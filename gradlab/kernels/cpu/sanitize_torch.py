"""Which tensors the arguments of a sanitized launch are: their elements, and the faults in words of tensors.

While a `Session` is open, every launch on tensors of a CPU runs a sanitized kernel, the lab's own and anybody's.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton import knobs

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.compiler import FLOATS, SANITIZE
from gradlab.kernels.cpu.launching import Grid, Kernel
from gradlab.kernels.cpu.sanitize_extents_torch import Extents, span
from gradlab.kernels.cpu.sanitize_fault import Fault, Stored
from gradlab.kernels.cpu.sanitize_reads_torch import Reads
from gradlab.kernels.cpu.sanitize_run import LAST_TICK, Clock, Examined, Noted
from gradlab.kernels.cpu.sanitize_shadow_torch import Shadows, noting
from gradlab.kernels.private.private_torch import without_function_modes


class Session:
    """What examines launches while it is open.

    Args:
        note: called with the faults of a launch, when it is over; most have none.
        bounds: look at bounds alone.
        floats: look for the birth of NaNs and infinities too.

    Attributes:
        mode: the instrumentation mode of the kernels.
        launches: how many launches were examined.
        holds: tensors that the next launch reaches by addresses out of memory, where it says so.
    """

    def __init__(self, note: Callable[[list[Fault]], None], bounds: bool = False, floats: bool = False) -> None:
        self.mode = FLOATS if floats else SANITIZE
        self._note = note
        self._clock = Clock()
        self._shadows = None if bounds else Shadows()
        self._seen: dict[int, weakref.ref[torch.Tensor]] = {}
        self._lock = threading.RLock()
        self._working = 0
        self.launches = 0
        self.holds: Sequence[torch.Tensor] = ()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, uninitialised memory is known, and who of torch reads it."""
        if self._shadows is None:
            yield
            return
        with noting(self.note_fresh), Reads(self.read, self.partial, self._shadows.partial):
            yield

    def note_fresh(self, tensor: torch.Tensor) -> None:
        """Nobody has written a tensor, which was made now."""
        if self._shadows is not None:
            with self._busy():
                self._shadows.note_fresh(tensor)

    def launch(self, kernel: Examined, grid: Grid, values: Sequence[Any], given: Sequence[Any]) -> None:
        """Run a launch and note its faults.

        Args:
            values: addresses and numbers, in the order of the kernel's arguments.
            given: the same with tensors in place of their addresses.
        """
        with self._busy():
            self.launches += 1
            if self._clock.now > LAST_TICK:
                self._clock.now = Clock().now
                if self._shadows is not None:
                    self._shadows.start_anew()
            tensors = [_tensor(value) for value in given]
            holds, self.holds = self.holds, ()
            extents = Extents(self._shadows, self._seen, kernel, tensors, holds, grid[0] * grid[1] * grid[2] > 1)
            given_extents = [extents.of(tensor, number) for tensor, number in zip(tensors, values, strict=True)]
            noted = kernel.examine(grid, values, given_extents, extents.find, self._clock)
            # An offset that has wrapped is why an address is out of bounds.
            wrapped = {one.site for one in noted if one.kind == layout.OVERFLOW}
            noted = [one for one in noted if one.kind != layout.OUTSIDE or one.site not in wrapped]
            found = [_fault(kernel, grid, tensors, extents, self._shadows, one, self.launches) for one in noted]
            self._remember(kernel, tensors)
            self._note(found)

    def _remember(self, kernel: Examined, tensors: Sequence[torch.Tensor | None]) -> None:
        """The launch is over: whose memory it stored to, where that was fresh."""
        if self._shadows is None:
            return
        for access, file, line, _, number, _, _ in kernel.binary.sites:
            tensor = tensors[number] if number >= 0 and access in (layout.STORE, layout.ATOMIC) else None
            shadow = None if tensor is None else self._shadows.find(tensor)
            if tensor is not None and shadow is not None:
                argument = kernel.binary.arguments[number][0]
                self._shadows.note_stored(shadow)
                shadow.stored = Stored(
                    self.launches, kernel.binary.name, argument, file or kernel.file, line, tensor.data_ptr()
                )

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Within it, what torch does is the session's own, not the user's."""
        with self._lock:
            self._working += 1
            try:
                with without_function_modes():
                    yield
            finally:
                self._working -= 1

    def partial(self, tensor: torch.Tensor) -> bool:
        """Whether a launch has stored some of a tensor's memory, and perhaps not all."""
        if self._shadows is None or self._working or type(tensor) not in _PLAIN or tensor.device.type != "cpu":
            return False
        shadow = self._shadows.find(tensor)
        return shadow is not None and shadow.fresh and shadow.stored is not None

    def read(self, tensor: torch.Tensor, reader: str) -> None:
        """Torch reads a tensor: note what of it nothing has written.

        Args:
            reader: the function and the place that it is called from.
        """
        if self._shadows is None:
            return
        with self._busy():
            at = self._shadows.unwritten(tensor)
            shadow = self._shadows.find(tensor)
        if at is None or shadow is None or shadow.stored is None:
            return
        stored, (address, count) = shadow.stored, at
        self._note([_left(tensor, stored, address, count, reader)])


_PLAIN = (torch.Tensor, torch.nn.Parameter)
active: Session | None = None


@contextmanager
def opened(session: Session) -> Iterator[None]:
    """Within it, kernels are sanitized, the session runs them, and uninitialised memory is known."""
    global active
    if not hasattr(knobs.compilation, "instrumentation_mode"):
        raise RuntimeError(f"sanitize: Triton {triton.__version__} has no instrumentation modes, wanted 3.6 or newer")
    before, active = active, session
    try:
        # Not set back but left: what is set in Python, even as it was, keeps launches on CUDA from their short way.
        with knobs.compilation.scope(), session.watching():
            knobs.compilation.instrumentation_mode = session.mode
            yield
    finally:
        active = before


def launch(kernel: Kernel, grid: Grid, values: Sequence[Any], given: Sequence[Any]) -> None:
    """Run a kernel, sanitized or without an access; where no session is open, nobody hears of its faults."""
    if isinstance(kernel, Examined):
        (active or Session(lambda faults: None)).launch(kernel, grid, values, given)
    else:
        kernel(grid, values)


def _left(tensor: torch.Tensor, stored: Stored, address: int, count: int, reader: str) -> Fault:
    return Fault(
        kind=layout.NEVER_WRITTEN,
        access="store",
        kernel=stored.kernel,
        file=stored.file,
        line=stored.line,
        callers=(),
        argument=stored.argument,
        index=(address - stored.address) // tensor.itemsize,
        address=address,
        shape=tuple(tensor.shape),
        stride=tensor.stride(),
        dtype=str(tensor.dtype).removeprefix("torch."),
        program=None,
        grid=None,
        other=None,
        masked=False,
        count=count,
        launch=stored.launch,
        span=span(tensor),
        stored=stored,
        reader=reader,
    )


def _tensor(value: Any) -> torch.Tensor | None:
    """The tensor of an argument, which triton.reinterpret wraps."""
    found = value if isinstance(value, torch.Tensor) else getattr(value, "base", None)
    return found if isinstance(found, torch.Tensor) else None


def _fault(
    kernel: Examined,
    grid: Grid,
    tensors: Sequence[torch.Tensor | None],
    extents: Extents,
    shadows: Shadows | None,
    noted: Noted,
    launch: int,
) -> Fault:
    access, file, line, callers, number, text, masked = kernel.binary.sites[noted.site]
    tensor = tensors[number] if number >= 0 else extents.found.get(noted.low)
    shadow = None if tensor is None or shadows is None else shadows.find(tensor)
    index = None
    if tensor is not None and noted.at:
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
        stored=None if shadow is None else shadow.stored,
        text=text if access == layout.OPERATION else None,
    )


def _place(program: int, grid: Grid) -> Grid:
    x, y, _ = grid
    return program % x, program // x % y, program // (x * y)
