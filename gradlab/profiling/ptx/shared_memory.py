"""Shared memory of every block: bytes that start as what is no number, and, where asked for, what is known of each."""

from typing import Any, Protocol

import numpy as np

from gradlab.profiling.ptx.blocks import Blocks, Lanes
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction
from gradlab.profiling.ptx.shadow import ENDED, HELD, Shadow


class Watch(Protocol):
    """Who knows what tensor cores read: of each warp how many groups are closed, and what to do with a store.

    Attributes:
        opened: of each warp how many groups are closed.
    """

    opened: Array

    def written(self, i: Instruction, places: Array, size: int, lanes: Array) -> None:
        """These lanes store bytes at these places."""
        ...


class SharedMemory:
    """`size` bytes for each of some blocks.

    Attributes:
        data: bytes[block, offset].
        flat: the same bytes, all blocks behind each other; a block begins at a multiple of `stride`.
        shadow: what is known of each element; None where no fault but those of bounds is looked for.
        watch: who knows what tensor cores read; None where the kernel has none that read shared memory.
    """

    def __init__(self, blocks: Blocks, size: int, check: bool = False) -> None:
        self.blocks, self.size = blocks, size
        self.stride = -(-max(size, 16) // 16) * 16
        self.data = np.empty((blocks.blocks, self.stride), np.uint8)
        self.flat = self.data.reshape(-1)
        self._views = {n: self.flat.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.shadow = Shadow(blocks, self.stride) if check else None
        self.watch: Watch | None = None
        self._pieces = self.flat.view(np.complex128)

    def begin(self) -> None:
        """Forget what is in it: new blocks come."""
        self.flat[:] = 0xFF
        if self.shadow is not None:
            self.shadow.begin()

    def allowed(self, instruction: Instruction, offsets: Array, size: int, lanes: Lanes) -> Array | None:
        """Which offsets lie within a block's shared memory; None where all do."""
        inside = (offsets >= 0) & (offsets + size <= self.size)
        if inside.all():
            return None
        first = np.flatnonzero(~inside)[0]
        text = f"byte {int(offsets[first])} of shared memory, of which a block has {self.size}"
        self.blocks.fault("out of bounds", instruction, text, self.blocks.where(lanes)[~inside])
        return inside

    def places(self, offsets: Array, lanes: Array) -> Array:
        """Indices into `flat` of offsets in the lanes' blocks."""
        return offsets + self.blocks.block_of[lanes] * self.stride

    def read(self, instruction: Instruction, offsets: Array, lanes: Array, size: int, number: int) -> list[Array]:
        """`number` unsigned integers of `size` bytes from each offset."""
        places = self.places(offsets, lanes)
        if self.shadow is not None and offsets.size:
            atomic = instruction.root in ("atom", "red")
            self.shadow.read(instruction, lanes, self.shadow.elements_of(places, size * number), atomic)
        first = places // size
        return [self._views[size][first + n] for n in range(number)]

    def pieces(self, instruction: Instruction, offsets: Array, first: Array) -> Array:
        """Words [group, piece, 2] of pieces of 16 bytes, of which warp groups with these first lanes read the same.

        Args:
            offsets: [piece], or [group, piece].
        """
        places = (offsets + self.blocks.block_of[first][:, None] * self.stride) // 16
        if self.shadow is not None and self.watch is not None:
            group = self.watch.opened[first // 32] + 1
            for warp in range(4):
                lanes = first + warp * self.blocks.blocks * 32
                elements = self.shadow.elements_of(places.ravel() * 16, 16).reshape(len(places), -1)
                self.shadow.read_async(instruction, "wgmma", lanes, elements, group)
        return self._pieces[places].view(np.uint64).reshape(*places.shape, 2)

    def write(self, instruction: Instruction, offsets: Array, lanes: Array, size: int, values: list[Any]) -> None:
        """Store unsigned integers of `size` bytes behind each other at each offset."""
        places = self.places(offsets, lanes)
        first = places // size
        if self.shadow is None or not offsets.size:
            if self.watch is not None:
                self.watch.written(instruction, places, size * len(values), lanes)
            for n, value in enumerate(values):
                self._views[size][first + n] = value
            return
        view, shadow = self._views[size], self.shadow
        elements = shadow.elements_of(places, size * len(values))
        before = np.stack([view[first + n] for n in range(len(values))], 1)
        given = np.stack([np.broadcast_to(np.asarray(v), first.shape) for v in values], 1).astype(f"u{size}")
        for n in range(len(values)):
            view[first + n] = given[:, n]
        # In elements of the shadow: the same bytes as before; and other bytes than there are now, of another lane.
        parts = (offsets.size, elements.shape[1])
        same, lost = (
            _by_element(differs, parts)
            for differs in (before != given, np.stack([view[first + n] for n in range(len(values))], 1) != given)
        )
        if instruction.root in ("atom", "red"):
            shadow.atomic(instruction, lanes, elements)
            return
        shadow.write(instruction, lanes, elements, ~same)
        if lost.any():
            shadow.conflict(instruction, lanes, elements, lost)

    def finished(self, kind: str, lanes: Array, group: Array) -> None:
        """The lanes' warps have waited for their groups of asynchronous reads up to these, numbered from 1."""
        if self.shadow is not None:
            self.shadow.finished(kind, lanes, np.broadcast_to(group, lanes.shape))

    def held(self, instruction: Instruction, offsets: Array, lanes: Array, made: bool) -> None:
        """Lanes make or end barriers of 8 bytes at these offsets."""
        if self.shadow is not None:
            elements = self.shadow.elements_of(self.places(offsets, lanes), 8)
            self.shadow.write(instruction, lanes, elements, None, HELD)
            if not made:
                self.shadow.how[elements] = ENDED

    def touched(self, instruction: Instruction, offsets: Array, lanes: Array) -> Array:
        """Lanes use barriers of 8 bytes at these offsets; of which of them another's bytes are there now."""
        if self.shadow is None:
            return np.zeros(lanes.shape, bool)
        elements = self.shadow.elements_of(self.places(offsets, lanes), 8)
        self.shadow.read(instruction, lanes, elements)
        return np.asarray(((self.shadow.how[elements] & HELD) == 0).any(1))

    def joined(self, lanes: Array, name: int = 0) -> None:
        """These lanes have passed a barrier together: what their warps did before is known to all of them."""
        if self.shadow is not None:
            self.shadow.clocks.meet(name, np.unique(lanes // 32))

    def arrived(self, lanes: Array, name: int) -> None:
        """These lanes' warps have arrived at a barrier of the block, and go on."""
        if self.shadow is not None:
            self.shadow.clocks.arrive(name, np.unique(lanes // 32))

    def fenced(self, lanes: Array) -> None:
        """These lanes' warps have passed a fence between proxies."""
        if self.shadow is not None:
            self.shadow.clocks.fence(np.unique(lanes // 32))


def _by_element(differs: Array, shape: tuple[int, int]) -> Array:
    """Of differences[lane, value], whether any is in each element of the shadow."""
    lanes, elements = shape
    if differs.shape[1] >= elements:
        return np.any(differs.reshape(lanes, elements, -1), axis=2)
    return np.repeat(differs, elements // differs.shape[1], 1)
