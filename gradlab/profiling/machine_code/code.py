"""One kernel compiled for one architecture: what its machine code says, and what that means on a GPU."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gradlab.profiling.machine_code.counts import Counts


@dataclass(frozen=True)
class Code:
    """A kernel of an op as one side launches it, compiled for one architecture; all sizes in bytes.

    Attributes:
        op, case, side, dtype, arch: what was compiled.
        kernel: its name without `_` and `_kernel`; the same on both sides where the lab has twins.
        variant: from 1: the op's kernels of that name with other options, strides or tiles.
        direction: the first pass that launches it: forward, backward, or second (the backward of the backward).
        grid: programs of its largest launch; threads: of one program (a block).
        options: what tells variants apart on torch: the kernel's compile-time constants, with warps and stages.
        registers: of a thread.
        stack, shared_static, shared_dynamic: of a thread; of a block, without the 1 KiB that CUDA keeps.
        blocks: resident at once on one multiprocessor; None, as the next two, where the lab has no rule (AMD).
        occupancy: the share of the multiprocessor's warps that they make up.
        limiter: what allows no more: warps, blocks, registers or shared memory.
        counts: instructions by kind, and by line of `file`.
        gpu: the GPU that waves and floor are for.
        waves: grid / (multiprocessors x blocks).
        floor: seconds that the op's whole pass takes at least, the FLOPs and least bytes of its Spec under the named
            ceiling; None for the second backward, whose work the Spec does not state.
        ceiling: in words, with its source.
        file, line: the kernel's source, below the folder that the package lies in.
        error: why there is no machine code; then every number is 0.
    """

    op: str
    case: str
    side: str
    dtype: str
    arch: str
    kernel: str
    variant: int
    direction: str
    grid: tuple[int, ...]
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    threads: int = 0
    registers: int = 0
    stack: int = 0
    shared_static: int = 0
    shared_dynamic: int = 0
    blocks: int | None = None
    occupancy: float | None = None
    limiter: str = ""
    counts: Counts = dataclasses.field(default_factory=Counts)
    gpu: str = ""
    waves: float | None = None
    floor: float | None = None
    ceiling: str = ""
    file: str = ""
    line: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        """`product`, `product 2`, ..."""
        return self.kernel if self.variant == 1 else f"{self.kernel} {self.variant}"

    @property
    def lines(self) -> dict[int, int]:
        """Line of `file` -> instructions."""
        return self.counts.lines

    @property
    def indicative(self) -> bool:
        """Whether XLA compiles it with another revision of Triton than the one that was asked here."""
        return self.side == "jax"

    def fact(self, name: str) -> float | None:
        """A number of this kernel by name: of its own, of its counts, or a share of them; None where there is none."""
        if name in SHARES:
            some, all_ = (sum(getattr(self.counts, n) for n in names) for names in SHARES[name])
            return some / all_ if all_ else None
        return getattr(self, name) if hasattr(self, name) else getattr(self.counts, name)

    def as_json(self) -> dict[str, Any]:
        """Plain values, the counts among them and the lines by number."""
        values = dataclasses.asdict(self)
        counts = values.pop("counts")
        return {**values, "grid": list(self.grid), "indicative": self.indicative, **counts}


# Parts and wholes of what is counted, for promises.
SHARES = {"wide_share": (("wide_loads", "wide_stores"), ("loads", "stores"))}
