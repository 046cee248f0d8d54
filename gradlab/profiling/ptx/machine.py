"""Blocks of a grid executed at once: their registers and memory, and what reads and writes an operand."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from gradlab.profiling.ptx.blocks import LANES, Blocks, Lanes
from gradlab.profiling.ptx.counts import Counts
from gradlab.profiling.ptx.faults import Faults
from gradlab.profiling.ptx.global_memory import GlobalMemory
from gradlab.profiling.ptx.numbers import RAW, Array, immediate, reader, writer
from gradlab.profiling.ptx.parse import PTXError
from gradlab.profiling.ptx.program import Program
from gradlab.profiling.ptx.shared_memory import SharedMemory

Step = Callable[[Lanes], None]
T = TypeVar("T")
_RANGE = re.compile(r"^(.*\D)(\d+)$")
_ADDRESS = re.compile(r"^\[\s*([%$\w@.]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")
# Shared memory lies here among generic addresses, above all that a process has.
SHARED_WINDOW = 1 << 56
# And local memory.
LOCAL_WINDOW = 1 << 57


class Machine(Blocks):
    """Registers and memory of some blocks.

    Attributes:
        roots: of the opcodes that the kernel has.
        shared, memory: shared memory of the blocks, global memory.
        late: whether asynchronous copies land at the last moment that a GPU may take, or at the first.
        at: the instruction that each lane is at; stalled: whether it stands still there until something happens.
        parts: what some instructions need and others do not, by its class.
    """

    def __init__(
        self,
        program: Program,
        blocks: int,
        threads: int,
        arguments: Sequence[int | bytes],
        memory: GlobalMemory,
        shared: int,
        counts: Counts,
        faults: Faults,
        exact: bool = True,
        check: bool = False,
        late: bool = True,
    ) -> None:
        super().__init__(program, blocks, threads, counts, faults)
        self.roots = {i.root for i in program.instructions}
        self.memory = memory
        self.shared = SharedMemory(self, program.static + shared, check)
        self.late = late
        self.at = np.zeros(self.lanes, np.int64)
        self.stalled = np.zeros(self.lanes, bool)
        self.parts: dict[Any, Any] = {}
        # Approximate instructions give the nearest number, or one as far off as their documentation allows.
        self.exact = exact
        self.arguments: dict[str, int | bytes] = {
            p.name: value for p, value in zip(program.parameters, arguments, strict=True)
        }
        self.registers: dict[str, Array] = {}
        self.special = self._special()

    def begin(self, first: int, grid: tuple[int, int, int]) -> Array:
        """Take the blocks from `first` on; which lanes have work."""
        x, y, z = grid
        self.program[:] = first + np.arange(self.blocks)
        mine = self.program[self.block_of]
        self.special["%ctaid.x"][:], self.special["%ctaid.y"][:] = mine % x, mine // x % y
        self.special["%ctaid.z"][:] = mine // (x * y)
        for axis, number in zip("xyz", grid, strict=True):
            self.special[f"%nctaid.{axis}"][:] = number
        for raw in self.registers.values():
            # What was never written is not a number, and no index that a kernel could mean.
            raw.view(np.uint8)[:] = raw.dtype != np.bool_ and 0xFF
        self.shared.begin()
        for part in self.parts.values():
            part.begin()
        return (mine < x * y * z) & (self.special["%tid.x"] < self.threads)

    def part(self, kind: Callable[["Machine"], T]) -> T:
        """The machine's own unit of a class, made when an instruction first asks for it."""
        if kind not in self.parts:
            self.parts[kind] = kind(self)
        return self.parts[kind]

    def raw(self, name: str) -> Array:
        """A register's bits, of every lane."""
        found = self.registers.get(name)
        if found is None:
            found = self.registers[name] = np.zeros(self.lanes, self.kind(name))
            found.view(np.uint8)[:] = found.dtype != np.bool_ and 0xFF
        return found

    def kind(self, name: str) -> Any:
        """NumPy's type of a register's bits."""
        match = _RANGE.match(name)
        kind = self.code.registers.get(name) or (self.code.registers.get(match[1]) if match else None)
        if kind is None:
            raise KeyError(name)
        return RAW[kind]

    def is_register(self, name: str) -> bool:
        """Whether that is the name of a register that is declared."""
        match = _RANGE.match(name)
        return name in self.code.registers or (match is not None and match[1] in self.code.registers)

    def source(self, text: str, kind: str) -> Callable[[Lanes], Any]:
        """What gives an operand's values, of a type: a register, a special register, a constant, a variable."""
        if text.startswith("!"):
            positive = self.source(text[1:].strip(), kind)
            return lambda lanes: ~positive(lanes)
        if text.startswith("-") and not text[1:2].isdigit():
            plus = self.source(text[1:].strip(), kind)
            return lambda lanes: np.negative(plus(lanes))
        if self.is_register(text):
            return reader(self.raw(text), kind)
        if text in self.special:
            return reader(self.special[text], kind)
        if text in self.code.shared:
            value: Any = np.uint64(self.shared_offset(text)).astype(f"u{RAW[kind]().itemsize}")
        elif text in self.code.local:
            value = np.uint64(self.code.local[text]).astype(f"u{RAW[kind]().itemsize}")
        elif text in self.code.constants:
            value = np.uint64(self.memory.constant(text, self.code.constants[text]))
        elif text in self.arguments:
            # The address of a parameter, which only a table of what a copy moves has.
            value = np.uint64(self.memory.keep(self.arguments[text]))
        else:
            value = immediate(text, kind)
        return lambda lanes: value

    def target(self, text: str, kind: str) -> Callable[[Lanes, Any], None]:
        """What writes values of a type to a register; to `_`, nothing."""
        if text == "_":
            return lambda lanes, values: None
        return writer(self.raw(text), kind)

    def address(self, text: str) -> Callable[[Lanes], Array]:
        """What gives the addresses of a memory operand, `[%rd1+16]`, as int64."""
        match = _ADDRESS.match(text)
        if match is None:
            raise PTXError(f"emulate: operand is {text}, wanted [register+offset]")
        base, offset = match[1], int(match[2] or "0", 0)
        if self.is_register(base):
            raw = self.raw(base)
            if raw.dtype == np.uint64:
                signed = raw.view(np.int64)
                return lambda lanes: signed[lanes] + offset
            return lambda lanes: raw[lanes].astype(np.int64) + offset
        known = base in self.code.shared
        start = (
            self.shared_offset(base) if known else self.code.local[base] if base in self.code.local else int(base, 0)
        )
        everyone = np.full(self.lanes, start + offset, np.int64)
        return everyone.__getitem__

    def shared_offset(self, name: str) -> int:
        """Offset in a block's shared memory of a variable; of dynamic shared memory, which is last, its start."""
        offset = self.code.shared[name]
        return self.code.static if offset < 0 else offset

    def _special(self) -> dict[str, Array]:
        def all_lanes(values: Any) -> Array:
            return np.broadcast_to(np.asarray(values), self.lanes).astype(np.uint32)

        thread = self.warp_of * LANES + self.lane_of
        one = np.uint32(1)
        found = {
            "%tid.x": thread,
            "%ntid.x": self.threads,
            "%laneid": self.lane_of,
            "%warpid": self.warp_of,
            "%nwarpid": self.warps,
            "WARP_SZ": LANES,
            "%lanemask_eq": one << self.lane_of,
            "%lanemask_lt": (one << self.lane_of) - one,
            "%lanemask_le": ((one << self.lane_of) - one) | (one << self.lane_of),
        }
        for name in ("%tid", "%ctaid", "%clusterid", "%cluster_ctaid"):
            found |= {f"{name}.{axis}": found.get(f"{name}.{axis}", 0) for axis in "xyz"}
        for name in ("%ntid", "%nctaid", "%nclusterid", "%cluster_nctaid"):
            found |= {f"{name}.{axis}": found.get(f"{name}.{axis}", 1) for axis in "xyz"}
        found |= {"%cluster_ctarank": 0, "%cluster_nctarank": 1, "%smid": 0, "%nsmid": 1, "%dynamic_smem_size": 0}
        found |= {"%clock": 0, "%globaltimer_lo": 0}
        ready = {name: all_lanes(values).copy() for name, values in found.items()}
        return ready | {name: np.zeros(self.lanes, np.uint64) for name in ("%globaltimer", "%clock64")}
