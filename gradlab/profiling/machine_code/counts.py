"""What is counted in a kernel's machine code, whatever its architecture."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """Instructions of a kernel by kind, as they stand in its code: a loop's body counts once.

    Attributes:
        instructions: all of them.
        tensor: on tensor cores (HMMA, HGMMA, DMMA, UTC*MMA; v_mfma).
        loads, stores: of global memory, asynchronous copies among the loads.
        wide_loads, wide_stores: those of them that move 128 bits a thread, or a whole block of memory.
        copies: asynchronous ones, global to shared memory.
        waits: for copies, tensor cores or memory.
        barriers: of a block's warps.
        atomics: on global memory.
        spills: loads and stores of local memory, where registers did not suffice.
        spill_bytes: what these move, a thread and an execution.
        lines: line of the kernel's own file -> instructions.
    """

    instructions: int = 0
    tensor: int = 0
    loads: int = 0
    wide_loads: int = 0
    stores: int = 0
    wide_stores: int = 0
    copies: int = 0
    waits: int = 0
    barriers: int = 0
    atomics: int = 0
    spills: int = 0
    spill_bytes: int = 0
    lines: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CPUCounts(Counts):
    """The same of a CPU's code, of all of it or of its innermost loops.

    `tensor` are on tiles (AMX, MMLA); `loads` and `stores` move what the kernel computes with, wide ones several
    elements at once; `spills` are those in loops, including the loop over programs, and are not among the other
    accesses.

    Attributes:
        bits: of the widest vector that is worked on.
        spill_stores: those of the spills that go to the stack; what comes back alone is most often a constant, which
            would have to be loaded from elsewhere.
        fmas: products and sums in one.
        gathers, scatters: of lanes with individual addresses, by one instruction or lane by lane.
        masked: accesses that leave lanes out.
        scalars: arithmetic on one float at a time, comparisons not among them: loops branch on them.
        divisions: and square roots, of floats and integers.
        calls: of functions outside of the kernel.
    """

    bits: int = 0
    spill_stores: int = 0
    fmas: int = 0
    gathers: int = 0
    scatters: int = 0
    masked: int = 0
    scalars: int = 0
    divisions: int = 0
    calls: int = 0

    @property
    def products(self) -> int:
        """FMAs, of vectors or of tiles."""
        return self.fmas + self.tensor

    @property
    def share(self) -> float | None:
        """The part of loads and stores that move several elements at once; None where there are none."""
        accesses = self.loads + self.stores
        return (self.wide_loads + self.wide_stores) / accesses if accesses else None
