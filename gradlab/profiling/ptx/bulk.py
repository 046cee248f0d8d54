"""cp.async.bulk: copies of boxes of tensors, or of rows of bytes, between global and shared memory.

One thread begins a copy. What it writes to shared memory is waited for by an mbarrier that counts its bytes; what it
reads from there, by the thread's groups. The bytes move at the last moment that a GPU may take, or the first.

Source: PTX ISA 8.7, sections 9.7.9.25.4 and 9.7.9.25.5, 5.5.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gradlab.profiling.ptx import tensor_maps
from gradlab.profiling.ptx.atomics import combined
from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.groups import Groups
from gradlab.profiling.ptx.machine import SHARED_WINDOW, Machine, Step
from gradlab.profiling.ptx.mbarriers import Barriers
from gradlab.profiling.ptx.memory import aligned
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.program import Instruction
from gradlab.profiling.ptx.shadow import OPERAND

_TENSOR = re.compile(r"^\[\s*(.+?)\s*,\s*\{(.*)\}\s*\]$")
_REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
_NOT_A_NUMBER = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "tf32": 0x7FFFFFFF, "f64": 2**63 - 1}
# Bytes that a copy's ends are a multiple of: in global memory, and in shared memory of a tensor's box.
_UNIT, _TENSOR_UNIT = 16, 128


@dataclass(frozen=True)
class Transfer:
    """A bulk copy by each of some lanes, in pieces of `unit` bytes.

    Attributes:
        places, addresses, inside: [lane, piece], of shared memory, of global memory, and whether the piece is inside of
            the tensor.
        kind: type of an element; operation: what a store does with what was there, None for nothing.
        outside: what is written for pieces outside.
        group: number of the lane's group of stores.
    """

    instruction: Instruction
    lanes: Array
    places: Array
    addresses: Array
    inside: Array
    unit: int
    kind: str = "b8"
    operation: str | None = None
    outside: int = 0
    group: Array | None = None

    @property
    def size(self) -> int:
        """Bytes of the copy of one lane."""
        return self.places.shape[1] * self.unit

    def part(self, which: Array) -> "Transfer":
        """The copies of some of the lanes."""
        names = ("lanes", "places", "addresses", "inside") + (() if self.group is None else ("group",))
        return replace(self, **{name: getattr(self, name)[which] for name in names})


class Bulk:
    """The bulk copies of a machine that are on their way; those to shared memory wait at their barriers."""

    def __init__(self, m: Machine) -> None:
        self.m, self.barriers = m, m.part(Barriers)
        self.stores: Groups[Transfer] = Groups(m.lanes)
        self.outstanding = np.zeros(m.blocks, np.int64)

    def begin(self) -> None:
        """New blocks: nothing is on its way."""
        self.stores.begin()
        self.outstanding[:] = 0

    def finish(self) -> None:
        """All threads are at their end: what they stored goes out, from memory that may be another block's by then."""
        left = self.stores.everything()
        if self.m.shared.shadow is not None:
            for copy in left:
                text = "the block ends, and its shared memory with it, while a bulk copy still reads there: "
                self.m.fault(OPERAND, copy.instruction, text + "cp.async.bulk.wait_group must come before", copy.lanes)
        self.stored(left)

    def load(self, copy: Transfer, number: Array) -> None:
        """Lanes begin copies to shared memory, which barriers wait for."""
        shadow = self.m.shared.shadow
        if shadow is not None:
            agent, due = self.barriers.promise(copy.lanes, number)
            shadow.copy_begins(copy.instruction, copy.lanes, _elements(copy, shadow.unit), agent, due)
        self._count(copy, 1)

        def land() -> None:
            self._count(copy, -1)
            self._fill(copy)

        self.barriers.later(copy.instruction, copy.lanes, number, copy.size, land)

    def store(self, copy: Transfer) -> None:
        """Lanes begin copies to global memory."""
        group = self.stores.committed[copy.lanes] + 1
        shadow = self.m.shared.shadow
        if shadow is not None:
            elements = _elements(copy, shadow.unit)
            shadow.read_async(copy.instruction, "bulk", copy.lanes, elements, group)
        self.stores.add(replace(copy, group=group))
        self._count(copy, 1)
        if not self.m.late:
            self._send(copy)

    def stored(self, copies: list[Transfer]) -> None:
        """Lanes have waited for stores."""
        for copy in copies:
            if self.m.late:
                self._send(copy)
            if copy.group is not None:
                self.m.shared.finished("bulk", copy.lanes, copy.group)
            self._count(copy, -1)

    def _count(self, copy: Transfer, sign: int) -> None:
        number = np.bincount(self.m.block_of[copy.lanes], minlength=self.m.blocks)
        self.outstanding += sign * copy.size * number
        self.m.counts.in_flight = max(self.m.counts.in_flight, int(self.outstanding.max()))

    def _fill(self, copy: Transfer) -> None:
        view = self.m.shared.flat.view(f"u{copy.unit}")
        values = np.full(copy.places.shape, copy.outside, view.dtype)
        values[copy.inside] = self.m.memory.load(copy.addresses[copy.inside], copy.unit)
        view[copy.places // copy.unit] = values

    def _send(self, copy: Transfer) -> None:
        values = self.m.shared.flat.view(f"u{copy.unit}")[copy.places // copy.unit]
        for given, inside, addresses in zip(values, copy.inside, copy.addresses, strict=True):
            to, new = addresses[inside], given[inside]
            if copy.operation is not None:
                new = combined(copy.operation, copy.kind, self.m.memory.load(to, copy.unit), new)
            self.m.memory.store(to, copy.unit, new)


def _elements(copy: Transfer, unit: int) -> Array:
    """Elements[lane, number] of the shadow that a copy moves."""
    if copy.unit >= unit:
        each = copy.places[:, :, None] // unit + np.arange(copy.unit // unit)
        return each.reshape(copy.places.shape[0], -1)
    first = copy.places[0] % unit == 0
    return copy.places[:, first] // unit


def copy(i: Instruction, m: Machine) -> Step:
    """cp.async.bulk and cp.reduce.async.bulk, of tensors or not, and their groups."""
    units = m.part(Bulk)
    if i.has("prefetch"):
        return lambda lanes: None
    if i.has("commit_group"):
        return lambda lanes: units.stores.commit(m.where(lanes))
    if i.has("wait_group"):
        left = int(i.operands[0], 0)
        return lambda lanes: units.stored(units.stores.wait(m.where(lanes), left))
    operation = next((part for part in i.opcode if part in _REDUCTIONS), None) if i.has("reduce") else None
    load = i.has("mbarrier::complete_tx::bytes")
    transfers = _tensor(i, m, load, operation) if i.has("tensor") else _rows(i, m, load, operation)
    if not load:

        def run_store(lanes: Lanes) -> None:
            for each in transfers(lanes):
                if right := _checked(i, m, each, False):
                    units.store(right)

        return run_store
    at = i.operands[2 if i.has("tensor") else 3]
    barrier = m.address(at)

    def run_load(lanes: Lanes) -> None:
        offsets = np.zeros(m.lanes, np.int64)
        offsets[lanes] = barrier(lanes) % SHARED_WINDOW
        for each in transfers(lanes):
            number = units.barriers.of(i, each.lanes, offsets[each.lanes])
            if (number < 0).any():
                each, number = each.part(number >= 0), number[number >= 0]
            if right := _checked(i, m, each, True):
                units.load(right, number[np.isin(each.lanes, right.lanes)])

    return run_load


def _checked(i: Instruction, m: Machine, copy: Transfer, load: bool) -> Transfer | None:
    """The copies of the lanes whose addresses are right; the others are noted."""
    if not copy.lanes.size:
        return None
    allowed = m.memory.allowed(copy.addresses[copy.inside], copy.unit)
    if allowed is not None:
        wrong = np.zeros(copy.inside.shape, bool)
        wrong[copy.inside] = ~allowed
        text = f"{'load' if load else 'store'} of {m.memory.describe(int(copy.addresses[wrong][0]))}"
        m.fault("out of bounds", i, text, copy.lanes[wrong.any(1)])
        copy = copy.part(np.asarray(~wrong.any(1)))
        if not copy.lanes.size:
            return None
    # One address a piece of 16 bytes is enough to count sectors.
    first = copy.inside & (copy.places % _UNIT < copy.unit)
    lanes = np.broadcast_to(copy.lanes[:, None], first.shape)
    m.counts.global_access(i.index, copy.addresses[first], lanes[first], _UNIT, not load, False)
    m.counts.shared_pieces(i.index, copy.lanes.size, copy.size)
    return copy


def _tensor(i: Instruction, m: Machine, load: bool, operation: str | None) -> Callable[[Lanes], list[Transfer]]:
    """What gives the copies of boxes, one a tensor map."""
    if i.has("im2col", "im2col::w", "tile::gather4", "tile::scatter4", "im2col_no_offs"):
        raise KeyError("im2col")
    match = _TENSOR.match(i.operands[1 if load else 0])
    if match is None:
        raise KeyError(i.operands[0])
    maps = m.source(match[1], "s64")
    axes = [m.source(name.strip(), "s32") for name in match[2].split(",")]
    shared = m.address(i.operands[0 if load else 1])

    def transfers(lanes: Lanes) -> list[Transfer]:
        where = m.where(lanes)
        given = [np.broadcast_to(read(lanes), where.shape).astype(np.int64) for read in (maps, *axes)]
        offsets = shared(lanes) % SHARED_WINDOW
        right = aligned(i, m, offsets, lanes, _TENSOR_UNIT)
        chosen = np.flatnonzero(np.ones(where.size, bool) if right is None else right)
        by_map: dict[tensor_maps.TensorMap, list[int]] = {}
        for n in chosen:
            found = tensor_maps.read(i, m, int(given[0][n]), where[n : n + 1])
            if found is not None:
                by_map.setdefault(found, []).append(int(n))
        made = (_box(i, m, found, where[n], offsets[n], given[1:], n, operation) for found, n in by_map.items())
        return [each for each in made if each is not None]

    return transfers


def _box(
    i: Instruction,
    m: Machine,
    found: tensor_maps.TensorMap,
    lanes: Array,
    offsets: Array,
    given: list[Array],
    which: list[int],
    operation: str | None,
) -> Transfer | None:
    if len(given) != len(found.box):
        text = f"{len(given)} coordinates of a tensor of {len(found.box)} axes"
        m.fault("wrong tensor map", i, text, lanes)
        return None
    uneven = [found.address % _UNIT, *(s % _UNIT for s in found.strides[1:]), found.box[0] * found.size % _UNIT]
    if any(uneven):
        text = f"address 0x{found.address:x}, strides {found.strides[:0:-1]} and a row of {found.box[0] * found.size}"
        m.fault("misaligned address", i, f"{text} bytes of a tensor, wanted multiples of {_UNIT}", lanes)
        return None
    coordinates = np.stack([axis[which] for axis in given], 1)
    unit = found.size if operation else tensor_maps.widest(found, coordinates)
    addresses, inside = tensor_maps.box(found, coordinates, unit)
    size = addresses.shape[1] * unit
    if m.shared.allowed(i, offsets, size, lanes) is not None:
        return None
    # The swizzle is by the address, which blocks have the same of: they begin at 0.
    places = tensor_maps.swizzled(offsets[:, None] + np.arange(0, size, unit), found.swizzle)
    places = m.shared.places(places, lanes[:, None])
    outside = _NOT_A_NUMBER.get(found.kind, 0) if found.fill else 0
    return Transfer(i, lanes, places, addresses, inside, unit, found.kind, operation, outside)


def _rows(i: Instruction, m: Machine, load: bool, operation: str | None) -> Callable[[Lanes], list[Transfer]]:
    """What gives the copies of bytes behind each other, one a size."""
    to, source = m.address(i.operands[0]), m.address(i.operands[1])
    shared, outer = (to, source) if load else (source, to)
    sizes = m.source(i.operands[2], "u32")
    kind = i.opcode[-1] if operation else "b8"
    unit = {"8": 1, "16": 2, "32": 4, "64": 8}[kind.lstrip("bfus")] if operation else 8

    def transfers(lanes: Lanes) -> list[Transfer]:
        where = m.where(lanes)
        offsets, addresses = shared(lanes) % SHARED_WINDOW, outer(lanes)
        number = np.broadcast_to(sizes(lanes), where.shape).astype(np.int64)
        good = np.ones(where.size, bool)
        for each in (offsets, addresses, number):
            right = aligned(i, m, each, lanes, _UNIT)
            good &= True if right is None else right
        found = []
        for size in np.unique(number[good]):
            mine = good & (number == size)
            if m.shared.allowed(i, offsets[mine], int(size), where[mine]) is not None:
                continue
            steps = np.arange(0, size, unit)
            places = m.shared.places(offsets[mine][:, None] + steps, where[mine][:, None])
            at = addresses[mine][:, None] + steps
            found.append(Transfer(i, where[mine], places, at, np.ones(at.shape, bool), unit, kind, operation))
        return found

    return transfers
