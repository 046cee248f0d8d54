"""What the addresses of one launch are held against: the elements of its tensors, and the shadows of their storages."""

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.sanitize_run import ANYTHING, NOTHING, Examined, Extent
from gradlab.kernels.cpu.sanitize_shadow_torch import Shadow, Shadows

# Elements of a view with gaps for which it is noted which are its own.
_NOTED = 2**28


class Extents:
    """The extents of one launch, and what keeps them alive.

    Args:
        shadows: those of the session; None where only bounds are looked at.
        seen: tensors that addresses out of memory were found in before, by address.
        kernel: that is launched.
        tensors: of each of its arguments; None for what is none.
        holds: tensors that it reaches by addresses out of memory, as far as the launch says so.
        race: whether there is more than one program.
    """

    def __init__(
        self,
        shadows: Shadows | None,
        seen: "dict[int, weakref.ref[torch.Tensor]]",
        kernel: Examined,
        tensors: Sequence[torch.Tensor | None],
        holds: Iterable[torch.Tensor],
        race: bool,
    ) -> None:
        self._shadows = shadows
        self._seen = seen
        self._race = race
        self._written = _storages(kernel, tensors, (layout.STORE, layout.ATOMIC))
        self._read = _storages(kernel, tensors, (layout.LOAD, layout.OWN, layout.ATOMIC))
        self._noted = _storages(kernel, tensors, (layout.LOAD, layout.ATOMIC))
        # By their address; of those that begin at one, the largest.
        self._known: dict[int, torch.Tensor] = {}
        self._know(holds)
        self._looked = False
        self._answers: dict[tuple[int, bool], Extent] = {}
        # Addresses of storages whose readers this launch keeps, and of those without: the answers that were given.
        self._reading: set[int] = set()
        self._without: dict[int, list[tuple[int, torch.Tensor]]] = {}
        self._kept: list[torch.Tensor] = []
        # The tensor of each extent that an address was found in, by where the extent begins.
        self.found: dict[int, torch.Tensor] = {}
        # By the address of a storage and the size of an element; once a launch, which changes nothing of it.
        self._shadow_of: dict[tuple[int, int], Shadow | None] = {}
        if shadows is not None:
            for tensor in tensors:
                # All shadows have entries of the smallest elements before the first address of an entry is taken.
                if tensor is not None and tensor.numel():
                    self._shadow(tensor, tensor.untyped_storage().data_ptr())

    def of(self, tensor: torch.Tensor | None, value: Any) -> Extent:
        """What an argument points to."""
        if tensor is None:
            return ANYTHING if value else NOTHING
        return self._extent(tensor)

    def find(self, address: int, noted: bool, changed: Callable[[int, Extent], None]) -> Extent:
        """What an address out of memory belongs to: the largest tensor that begins there, or else lies around it.

        Args:
            noted: whether it may be noted who loads there.
            changed: called with an address of before, and with its extent, which has readers now.
        """
        known = self._answers.get((address, noted))
        if known is not None:
            return known
        tensor = self._find(address) if address else None
        if tensor is None:
            extent = NOTHING
        else:
            extent = self._extent(tensor, noted)
            self.found[extent.low] = tensor
            base = tensor.untyped_storage().data_ptr()
            if base not in self._reading:
                if not noted:
                    self._without.setdefault(base, []).append((address, tensor))
            else:
                for before, other in self._without.pop(base, ()):
                    self._answers[before, False] = self._extent(other, False)
                    changed(before, self._answers[before, False])
        self._answers[address, noted] = extent
        return extent

    def _find(self, address: int) -> torch.Tensor | None:
        found = self._known.get(address)
        if found is not None:
            return found
        seen = self._seen.get(address)
        tensor = seen() if seen is not None else None
        if tensor is not None and _plain(tensor) and tensor.data_ptr() == address:
            return tensor
        if not self._looked:
            self._looked = True
            self._know(_every_tensor())
        found = self._known.get(address)
        if found is not None:
            self._seen[address] = weakref.ref(found)
            return found
        around = [t for low, t in self._known.items() if low <= address < low + span(t) * t.itemsize]
        if not around and gc.get_freeze_count():
            # Objects that were frozen are not listed.
            gc.unfreeze()
            self._looked = False
            return self._find(address)
        return max(around, key=span, default=None)

    def _know(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            other = self._known.get(tensor.data_ptr())
            if other is None or span(other) < span(tensor):
                self._known[tensor.data_ptr()] = tensor

    def _extent(self, tensor: torch.Tensor, noted: bool = True) -> Extent:
        size = span(tensor)
        shift = tensor.itemsize.bit_length() - 1
        inside = 0
        if not tensor.is_contiguous() and (tensor.numel() != size or _overlaps(tensor)) and size <= _NOTED:
            own = torch.zeros(size, dtype=torch.uint8)
            own.as_strided(tensor.shape, tensor.stride()).fill_(1)
            if not bool(own.all()):
                self._kept.append(own)
                inside = own.data_ptr()
        writers, readers = self._addresses(tensor, noted) if size else (0, 0)
        return Extent(tensor.data_ptr(), size * tensor.itemsize, shift, inside, writers, readers)

    def _addresses(self, tensor: torch.Tensor, noted: bool) -> tuple[int, int]:
        """Addresses of the entries of a tensor's first element; 0 where none is kept.

        Where no load through an address is noted, readers are kept if one is through another to the same storage.
        """
        if self._shadows is None:
            return 0, 0
        base = tensor.untyped_storage().data_ptr()
        shadow = self._shadow(tensor, base)
        if shadow is None:
            return 0, 0
        self._kept.append(shadow.writers)
        at = tensor.data_ptr()
        read = self._noted is None or base in self._noted
        if not (self._roles(base)[0] and read and self._race and (noted or base in self._reading)):
            return shadow.address(shadow.writers, at), 0
        self._reading.add(base)
        readers = shadow.with_readers()
        self._kept.append(readers)
        return shadow.address(shadow.writers, at), shadow.address(readers, at)

    def _shadow(self, tensor: torch.Tensor, base: int) -> Shadow | None:
        """The shadow of a tensor's storage, which begins at `base`; None where nothing can go wrong in this launch."""
        key = base, tensor.itemsize
        if key not in self._shadow_of:
            self._shadow_of[key] = self._looked_up(tensor, base)
        return self._shadow_of[key]

    def _looked_up(self, tensor: torch.Tensor, base: int) -> Shadow | None:
        if self._shadows is None:
            return None
        written, read = self._roles(base)
        known = self._shadows.find(tensor)
        if read and known is not None and known.fresh:
            self._shadows.catch_up(tensor)
        if not written and (known is None or not known.fresh):
            return None
        fine = known is not None and known.shift <= tensor.itemsize.bit_length() - 1
        return known if fine else self._shadows.of(tensor)

    def _roles(self, base: int) -> tuple[bool, bool]:
        """Whether the kernel may write the storage at an address, and whether it may read it."""
        return (
            self._written is None or base in self._written,
            self._read is None or base in self._read,
        )


def _storages(
    kernel: Examined, tensors: Sequence[torch.Tensor | None], accesses: Sequence[int]
) -> frozenset[int] | None:
    """Addresses of the storages that a kernel may touch so; None where it does so by addresses out of memory."""
    numbers = {number for access, _, _, _, number, _, _ in kernel.binary.sites if access in accesses}
    if -1 in numbers:
        return None
    found = [tensors[number] for number in numbers]
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in found if tensor is not None)


def span(tensor: torch.Tensor) -> int:
    """Elements of memory from a tensor's first to its last."""
    count = tensor.numel()
    if not count or tensor.is_contiguous():
        return count
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether several indices may mean one element."""
    return any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _every_tensor() -> list[torch.Tensor]:
    """Every tensor with memory of a CPU that Python knows of."""
    kinds: dict[type, bool] = {}
    found = []
    for one in gc.get_objects():
        kind = type(one)
        is_tensor = kinds.get(kind)
        if is_tensor is None:
            is_tensor = kinds[kind] = issubclass(kind, torch.Tensor)
        if is_tensor and _plain(one):
            found.append(one)
    return found


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
