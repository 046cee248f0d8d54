"""Global memory: this process' own, within the tensors that a launch may reach."""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.profiling.ptx.numbers import Array

# All of a process' addresses, seen as arrays: an access is one index of NumPy.
_LOWEST, _HIGHEST = 1 << 12, 1 << 47
# Bytes beside a tensor that are told as its own.
_NEAR = 1 << 16
_VIEWS: dict[int, Array] = {}


def _view(size: int) -> Array:
    found = _VIEWS.get(size)
    if found is None:
        kind = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}[size]
        every: Any = (kind * ((_HIGHEST - _LOWEST) // size)).from_address(_LOWEST)
        found = _VIEWS[size] = np.frombuffer(every, np.dtype(f"u{size}"))
    return found


@dataclass(frozen=True)
class Extent:
    """Memory that a launch may reach: an address, its bytes, and what to call it."""

    base: int
    size: int
    name: str


class GlobalMemory:
    """The extents of a launch.

    Args:
        extents: the memory that it may reach.
        more: what else there is, asked once, when an address lies in none of them: a kernel may have it from a table.
    """

    def __init__(self, extents: Iterable[Extent], more: Callable[[], Iterable[Extent]] | None = None) -> None:
        self._more = more
        self._kept: list[Any] = []
        self._constants: dict[str, int] = {}
        self._take(extents)

    def _take(self, extents: Iterable[Extent]) -> None:
        largest: dict[int, Extent] = {}
        for extent in sorted(extents, key=lambda e: (e.base, e.size)):
            largest[extent.base] = extent
        self.extents = list(largest.values())
        self.bases = np.array([e.base for e in self.extents], np.int64)
        # An extent may lie in another, a view in its tensor: what is allowed is their union.
        ends = np.array([e.base + e.size for e in self.extents], np.int64)
        self.ends = np.maximum.accumulate(ends) if ends.size else ends

    def keep(self, argument: int | bytes) -> int:
        """The address of a copy of an argument that kernels may read."""
        data = argument if isinstance(argument, bytes) else argument.to_bytes(8, "little", signed=argument < 0)
        buffer = np.frombuffer(bytearray(data), np.uint8)
        self._kept.append(buffer)
        return int(buffer.ctypes.data)

    def constant(self, name: str, data: bytes) -> int:
        """The address of a variable of the module."""
        if name not in self._constants:
            self._constants[name] = self.keep(data)
            self._take([*self.extents, Extent(self._constants[name], len(data), name)])
        return self._constants[name]

    def text(self, address: int) -> str:
        """The string of a variable of the module; "" where there is none."""
        data = [b.tobytes()[address - b.ctypes.data :] for b in self._kept if 0 <= address - b.ctypes.data < b.size]
        return data[0].partition(b"\0")[0].decode(errors="replace") if data else ""

    def is_kept(self, address: int, size: int) -> bool:
        """Whether an argument's copy lies there, with so many bytes."""
        return any(0 <= address - b.ctypes.data <= b.size - size for b in self._kept)

    def allowed(self, addresses: Array, size: int) -> Array | None:
        """Which of the addresses lie within an extent; None where all do."""
        inside = self._inside(addresses, size)
        if self._more is not None and not inside.all():
            more, self._more = self._more, None
            # Of two with the same bounds the last has the name.
            self._take([*more(), *self.extents])
            inside = self._inside(addresses, size)
        return None if inside.all() else inside

    def _inside(self, addresses: Array, size: int) -> Array:
        if not self.extents:
            return np.zeros(addresses.size, bool)
        number = np.searchsorted(self.bases, addresses, side="right") - 1
        return (number >= 0) & (addresses + size <= self.ends[number])

    def describe(self, address: int, size: int = 1) -> str:
        """`size` bytes at an address in words: how far into the nearest tensor or past it; far off, in no tensor."""
        if not self.extents:
            return f"address 0x{address % 2**64:x}, in no tensor"
        number = int(np.searchsorted(self.bases, address, side="right")) - 1
        near = self.extents[max(number, 0) : number + 2]
        extent = min(near, key=lambda e: max(e.base - address, address - e.base - e.size + 1))
        first = address - extent.base
        if max(-first, first - extent.size) > max(extent.size, _NEAR):
            return f"address 0x{address % 2**64:x}, in no tensor; the nearest is {extent.name}, of {extent.size} bytes"
        what = f"bytes {first} to {first + size - 1}" if 0 <= first < extent.size else f"byte {first}"
        return f"{what} of {extent.name}, which has {extent.size} bytes"

    def load(self, addresses: Array, size: int) -> Array:
        """Unsigned integers of 1, 2, 4 or 8 bytes from allowed, aligned addresses."""
        return _view(size)[(addresses - _LOWEST) // size]

    def store(self, addresses: Array, size: int, values: Array) -> None:
        """Store unsigned integers of 1, 2, 4 or 8 bytes; of two lanes with one address the last one's."""
        _view(size)[(addresses - _LOWEST) // size] = values
