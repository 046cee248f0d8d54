"""Tensor maps: 128 bytes that say where a tensor lies in global memory and which box of it a bulk copy moves.

A GPU's own encoding is not published. Here they are written by `encode`, for a kernel's arguments, or by the kernel,
with tensormap.replace, and read by `decode`; nothing else looks into them.

Source: PTX ISA 8.7, sections 5.5 and 9.7.9.26, 9.7.9.27.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import SHARED_WINDOW, Machine, Step
from gradlab.profiling.ptx.memory import aligned
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction

SIZE, MOST = 128, 5
# Element types by the number that tensormap.replace gives them.
TYPES = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32", "f64", "bf16", "tf32", "tf32")
# address; rank - 1, type, swizzle, fill, interleave; box, shape, steps; strides in bytes, from the second on.
_FORM = "<Q5I5I5I5I4Q"
_FIELDS = {"global_address": (0, 8), "rank": (8, 4), "elemtype": (12, 4), "swizzle_mode": (16, 4), "fill_mode": (20, 4)}
_FIELDS |= {"interleave_layout": (24, 4), "box_dim": (28, 4), "global_dim": (48, 4), "element_stride": (68, 4)}
_FIELDS |= {"global_stride": (88, 8)}
# Bits 7 to 9 of an address, or fewer, are put over bits 4 to 6: by 32, 64, 128 bytes.
_SWIZZLED = (0, 0x10, 0x30, 0x70)


@dataclass(frozen=True)
class TensorMap:
    """A tensor and a box of it; the innermost axis is first, as in PTX.

    Attributes:
        shape, strides: of the tensor; strides in bytes, that of the innermost is its element's size.
        box, steps: elements along each axis, and how far apart they are.
        kind: type of an element.
        swizzle: 0 none, 1 to 3 for 32, 64, 128 bytes.
        fill: what lies outside of the tensor is 0, or with 1 not a number.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    kind: str
    swizzle: int
    fill: int

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.strides[0]


def encode(
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    element: int,
    swizzle: int = 0,
    fill: int = 0,
) -> bytes:
    """A tensor map, as a kernel's argument.

    Args:
        shape, strides, box: the outermost axis first; in elements.
        element: number of the type, as in tensormap.replace: 6 is float16, 7 float32, 10 bfloat16.
        swizzle: 0 none, 1 to 3 for 32, 64, 128 bytes.
        fill: 0 zeros, 1 not a number.
    """
    rank, size = len(shape), _bytes(element)
    pad = (1,) * (MOST - rank)
    outer = [stride * size for stride in reversed(strides[:-1])]
    fields = (rank - 1, element, swizzle, fill, 0, *box[::-1], *pad, *shape[::-1], *pad, *(1,) * MOST)
    return struct.pack(_FORM, address, *fields, *outer, *(0,) * (MOST - 1 - len(outer))).ljust(SIZE, b"\0")


def decode(data: bytes) -> TensorMap:
    """What a tensor map says."""
    address, rank, element, swizzle, fill, _, *rest = struct.unpack_from(_FORM, data)
    rank = min(rank + 1, MOST)
    element = min(element, len(TYPES) - 1)
    box, shape, steps = (tuple(rest[n : n + rank]) for n in (0, MOST, 2 * MOST))
    strides = (_bytes(element), *rest[3 * MOST : 3 * MOST + rank - 1])
    return TensorMap(address, shape, strides, box, steps, TYPES[element], min(swizzle, 3), fill)


def read(i: Instruction, m: Machine, address: int, lanes: Array) -> TensorMap | None:
    """The map at an address, an argument's or one in global memory; None, and a fault, where it cannot be read."""
    if not m.memory.is_kept(address, SIZE) and m.memory.allowed(np.array([address]), SIZE) is not None:
        m.fault("out of bounds", i, f"tensor map at {m.memory.describe(address)}", lanes)
        return None
    found = decode(ctypes.string_at(address, SIZE))
    if not all(found.box) or not all(found.steps) or any(b > 256 for b in found.box):
        m.fault("wrong tensor map", i, f"a box of {found.box[::-1]} elements, wanted 1 to 256 of each axis", lanes)
        return None
    return found


def swizzled(places: Array, swizzle: int) -> Array:
    """Where bytes of shared memory are that a copy writes, or reads, at these places."""
    return places ^ ((places >> 3) & _SWIZZLED[swizzle])


def box(found: TensorMap, coordinates: Array, unit: int) -> tuple[Array, Array]:
    """Addresses[lane, piece] of the pieces of `unit` bytes of a box, and which of them are inside of the tensor.

    Args:
        coordinates: [lane, axis], the innermost first, in elements.
    """
    addresses = np.full((coordinates.shape[0], 1), found.address, np.int64)
    inside = np.ones(addresses.shape, bool)
    per_unit = unit // found.size
    for axis in range(len(found.box)):
        number = -(-found.box[axis] // found.steps[axis])
        steps = np.arange(0, number, per_unit) if axis == 0 else np.arange(number)
        at = coordinates[:, axis, None] + steps * found.steps[axis]
        within = (at >= 0) & (at < found.shape[axis])
        # The first axis is the innermost of the pieces.
        addresses = (at * found.strides[axis])[:, :, None] + addresses[:, None, :]
        inside = within[:, :, None] & inside[:, None, :]
        addresses, inside = addresses.reshape(len(at), -1), inside.reshape(len(at), -1)
    return addresses, inside


def widest(found: TensorMap, coordinates: Array) -> int:
    """Bytes of the largest pieces, at most 8, that lie wholly inside or outside of the tensor."""
    row = (coordinates[:, 0] * found.size, found.shape[0] * found.size, found.box[0] * found.size, found.address)
    even = all((np.asarray(number) % 8 == 0).all() for number in (*row, *found.strides[1:]))
    return 8 if even and found.steps[0] == 1 and not found.fill else found.size


def _bytes(element: int) -> int:
    return {"8": 1, "16": 2, "32": 4, "64": 8}[TYPES[element].lstrip("usbtf")]


@instruction("tensormap")
def tensormap(i: Instruction, m: Machine) -> Step:
    """tensormap.replace and tensormap.cp_fenceproxy."""
    if i.has("cp_fenceproxy"):
        return _publish(i, m)
    offset, size = _FIELDS[i.opcode[3]]
    # One of the fields that there are several of is named by its number.
    number, value = (int(i.operands[1], 0), i.operands[2]) if len(i.operands) == 3 else (0, i.operands[1])
    address, read_value = m.address(i.operands[0]), m.source(value, f"b{8 * size}")

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        at = address(lanes) + offset + number * size
        values = np.broadcast_to(np.asarray(read_value(lanes)), where.shape)
        if i.has("shared", "shared::cta"):
            if aligned(i, m, at, lanes, size) is None and m.shared.allowed(i, at, size, lanes) is None:
                m.shared.write(i, at, where, size, [values])
        elif m.memory.allowed(at, size) is None and aligned(i, m, at, lanes, size) is None:
            m.memory.store(at, size, values)
        else:
            m.fault("out of bounds", i, f"tensor map at {m.memory.describe(int(at[0]))}", where)

    return run


def _publish(i: Instruction, m: Machine) -> Step:
    """`tensormap.cp_fenceproxy... [global], [shared], 128`: a warp together writes a map to global memory."""
    to, source = m.address(i.operands[0]), m.address(i.operands[1])

    def run(lanes: Lanes) -> None:
        where = m.where(lanes)
        first = np.flatnonzero(np.diff(where // 32, prepend=-1))
        addresses, offsets, where = to(lanes)[first], source(lanes)[first] % SHARED_WINDOW, where[first]
        wrong = m.memory.allowed(addresses, SIZE)
        if wrong is not None:
            outside = np.flatnonzero(~wrong)
            m.fault("out of bounds", i, f"tensor map at {m.memory.describe(int(addresses[outside[0]]))}", where)
            return
        if m.shared.allowed(i, offsets, SIZE, where) is not None:
            return
        if aligned(i, m, addresses, where, SIZE) is not None or aligned(i, m, offsets, where, 8) is not None:
            return
        values: list[Any] = m.shared.read(i, offsets, where, 8, SIZE // 8)
        for n, value in enumerate(values):
            m.memory.store(addresses + 8 * n, 8, value)

    return run
