"""Who has written each element of memory, and which program has loaded it first: shadows of torch's storages.

Memory of `torch.empty` is filled with a pattern, and its shadow says that nothing has written it. What torch itself, or
NumPy, writes there afterwards is told by the pattern that is gone, in front of each launch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.sanitize_fault import Stored

# By bytes of an element: as floats they are NaN.
_PATTERN = {1: 0xA5 - 2**8, 2: 0xFFA5 - 2**16, 4: 0xFFF5A5A5 - 2**32, 8: 0xFFF5A5A5A5A5A5A5 - 2**64}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What makes uninitialised memory.
_MAKERS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)


@dataclass
class Shadow:
    """The shadow of one storage.

    Attributes:
        alive: tells whether the storage still is.
        base: address of its first byte.
        shift: log2 of the bytes that one entry is about.
        writers, readers: entries as `sanitize_layout` says; readers are kept where programs may race.
        fresh: whether there may be uninitialised memory.
        stored: the last launch that stored some of it.
    """

    alive: StorageWeakRef
    base: int
    shift: int
    writers: torch.Tensor
    readers: torch.Tensor | None = None
    fresh: bool = False
    stored: Stored | None = None

    def address(self, entries: torch.Tensor, at: int) -> int:
        """Where the entry of an address is."""
        return entries.data_ptr() + 4 * ((at - self.base) >> self.shift)

    def with_readers(self) -> torch.Tensor:
        """The readers, which are kept from now on."""
        if self.readers is None:
            self.readers = torch.zeros_like(self.writers)
        return self.readers


class Shadows:
    """The shadows of a session, by the address of the storage."""

    def __init__(self) -> None:
        self._kept: dict[int, Shadow] = {}
        self._spare: dict[int, torch.Tensor] = {}
        # Of the storages that a launch has stored some of, and perhaps not all.
        self.partial: set[int] = set()

    def note_fresh(self, tensor: torch.Tensor) -> None:
        """Nobody has written this tensor's storage, which was made now."""
        storage = tensor.untyped_storage()
        if not storage.nbytes() or tensor.itemsize not in _PATTERN:
            return
        shift = tensor.itemsize.bit_length() - 1
        _integers(tensor, shift).fill_(_PATTERN[1 << shift])
        shadow = self._made(storage, shift, 0)
        shadow.fresh = True

    def note_stored(self, shadow: Shadow) -> None:
        """A launch has stored some of a storage."""
        if shadow.fresh:
            self.partial.add(shadow.base)

    def find(self, tensor: torch.Tensor) -> Shadow | None:
        """The shadow of a tensor's storage, if there is one."""
        base = storage_address(tensor)
        found = None if base is None else self._kept.get(base)
        if base is not None and found is not None and found.alive.expired():
            # Other memory lies there now.
            self._drop(base)
            return None
        return found

    def of(self, tensor: torch.Tensor) -> Shadow:
        """The shadow of a tensor's storage, with entries of its elements or of smaller ones."""
        found = self.find(tensor)
        shift = tensor.itemsize.bit_length() - 1
        if found is None:
            return self._made(tensor.untyped_storage(), shift, layout.HOST)
        while found.shift > shift:
            found.writers = found.writers.repeat_interleave(2)
            found.readers = None if found.readers is None else found.readers.repeat_interleave(2)
            found.shift -= 1
        return found

    def catch_up(self, tensor: torch.Tensor) -> None:
        """Note what others than kernels have written into memory that was fresh."""
        shadow = self.find(tensor)
        if shadow is None or not shadow.fresh:
            return
        pattern = _PATTERN[1 << shadow.shift]
        integers = _integers(tensor, shadow.shift)
        unwritten = shadow.writers[: integers.numel()] == 0
        changed = unwritten & (integers != pattern)
        if bool(changed.any()):
            # A byte that is written may be the pattern's: one that is gone speaks for all.
            shadow.writers[: integers.numel()][unwritten if shadow.shift == 0 else changed] = layout.HOST
        shadow.fresh = bool((shadow.writers[: integers.numel()] == 0).any())
        if not shadow.fresh:
            self.partial.discard(shadow.base)

    def unwritten(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """Address and number of a tensor's elements that nothing has written; they are told once."""
        self.catch_up(tensor)
        shadow = self.find(tensor)
        if shadow is None or not shadow.fresh or tensor.itemsize != 1 << shadow.shift:
            return None
        first = (tensor.data_ptr() - shadow.base) >> shadow.shift
        entries = shadow.writers.as_strided(tensor.shape, tensor.stride(), first)
        missing = entries == 0
        if not bool(missing.any()):
            return None
        at = int((missing.nonzero()[0] * torch.tensor(tensor.stride(), dtype=torch.int64)).sum())
        count = int(missing.sum())
        entries[missing] = layout.HOST
        return tensor.data_ptr() + at * tensor.itemsize, count

    def start_anew(self) -> None:
        """Ticks begin again: what was written is the host's."""
        for shadow in self._kept.values():
            shadow.writers[shadow.writers != 0] = layout.HOST
            if shadow.readers is not None:
                shadow.readers.zero_()

    def _made(self, storage: torch.UntypedStorage, shift: int, writer: int) -> Shadow:
        count = -(-storage.nbytes() // (1 << shift))
        self._drop(storage.data_ptr())
        if count not in self._spare:
            for base, shadow in list(self._kept.items()):
                if shadow.alive.expired():
                    self._drop(base)
        spare = self._spare.pop(count, None)
        writers = torch.full((count,), writer, dtype=torch.int32) if spare is None else spare.fill_(writer)
        shadow = Shadow(StorageWeakRef(storage), storage.data_ptr(), shift, writers)
        self._kept[storage.data_ptr()] = shadow
        return shadow

    def _drop(self, base: int) -> None:
        """Forget a shadow whose storage is gone; new memory for entries costs more than old, so that one is kept."""
        shadow = self._kept.pop(base, None)
        self.partial.discard(base)
        if shadow is not None:
            if len(self._spare) > 64:
                self._spare.clear()
            self._spare[shadow.writers.numel()] = shadow.writers


def storage_address(tensor: torch.Tensor) -> int | None:
    """Where a tensor's storage begins; None for a wrapper, which has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _integers(tensor: torch.Tensor, shift: int) -> torch.Tensor:
    """All of a tensor's storage as integers."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() >> shift
    return torch.tensor([], dtype=_INTEGERS[1 << shift]).set_(storage, 0, (count,), (1,))


@contextmanager
def noting(note: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Within it, what torch makes without writing it is noted: torch's functions are replaced."""
    before = [(place, name, getattr(place, name)) for place, name in _MAKERS]

    def noted(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():
                return make(*args, **options)
            tensor = make(*args, **options)
            if options.get("out") is None and type(tensor) is torch.Tensor and _owns_memory(tensor):
                note(tensor)
            return tensor

        return made

    try:
        for place, name, make in before:
            setattr(place, name, noted(make))
        yield
    finally:
        for place, name, make in before:
            setattr(place, name, make)


def _owns_memory(tensor: torch.Tensor) -> bool:
    try:
        return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.data_ptr() != 0
    except RuntimeError:
        return False
