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
