"""One kernel compiled for one architecture: facts of its machine code, and their meaning on a GPU."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gradlab.kernels.bounds import EXECUTED
from gradlab.profiling.machine_code.counts import Counts, CPUCounts
from gradlab.profiling.machine_code.executed import FirstProgram
from gradlab.profiling.ptx.counts import WARP


@dataclass(frozen=True)
class Code:
    """A kernel of an op as one side launches it, compiled for one architecture; all sizes in bytes.

    Attributes:
        op, case, side, dtype, arch: what was compiled.
        kernel: its name without `_` and `_kernel`; the same on both sides for counterparts.
        variant: from 1: the op's kernels of that name with other options, strides or tiles.
        direction: the first pass that launches it: forward, backward, or second (the backward of the backward).
        grid: programs of its largest launch; threads: of one program (a block).
        options: what distinguishes variants on torch: the kernel's compile-time constants, warps and stages.
        registers: of a thread; on a CPU the vector registers that the code names.
        stack, shared_static, shared_dynamic: of a thread; of a block, without the 1 KiB that CUDA keeps.
        blocks: resident at once on one multiprocessor; None, as the next two, where there is no occupancy model (AMD).
        occupancy: the share of the multiprocessor's warps that they make up.
        limiter: what allows no more: warps, blocks, registers or shared memory.
        counts: instructions by kind, and by line of `file`; `CPUCounts` on a CPU.
        inner: those of the innermost loops, on a CPU; None on a GPU.
        cpu, vector_bits: LLVM's name of the CPU, and bits of a vector; "" and 0 on a GPU, as what follows.
        scratch: bytes of tiles that a thread allocates beside its stack.
        size: of the machine code.
        called: external functions that it calls.
        executed: what its first program executes, where that was asked for.
        gpu: the GPU that waves and floor are for.
        waves: grid / (multiprocessors x blocks).
        floor: minimum seconds of the op's whole pass: the FLOPs and minimum bytes of its Spec at the named
            ceiling; None for the second backward, whose work the Spec does not state.
        ceiling: in words, with its source.
        least_bytes: that the pass must move, by the Spec; None as `floor`.
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
    inner: CPUCounts | None = None
    cpu: str = ""
    vector_bits: int = 0
    scratch: int = 0
    size: int = 0
    called: tuple[str, ...] = ()
    executed: FirstProgram | None = None
    gpu: str = ""
    waves: float | None = None
    floor: float | None = None
    ceiling: str = ""
    least_bytes: float | None = None
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
        """Whether XLA compiles it with another revision of Triton than the one used here."""
        return self.side == "jax"

    def fact(self, name: str) -> float | None:
        """A number of this kernel by name; None where there is none.

        Its own, one of its counts, a share of them, or one of EXECUTED.
        """
        if name in EXECUTED:
            return self._of_executed(name)
        if name in SHARES:
            some, all_ = (sum(getattr(self.counts, n) for n in names) for names in SHARES[name])
            return some / all_ if all_ else None
        if self.inner is not None and name.startswith(INNER):
            if name == f"{INNER}width":
                return self.inner.bits / self.vector_bits
            return getattr(self.inner, name.removeprefix(INNER))
        return getattr(self, name) if hasattr(self, name) else getattr(self.counts, name)

    def _of_executed(self, name: str) -> float | None:
        done = self.executed
        if done is None or name == "tensor_share":
            return done.tensor_share if done else None
        return done.programs * done.touched / self.least_bytes if self.least_bytes else None

    def threads_executed(self) -> float | None:
        """Instructions of threads in machine code that all programs execute, as the first one does; None if unknown."""
        return WARP * self.executed.machine * self.executed.programs if self.executed else None

    def as_json(self) -> dict[str, Any]:
        """Plain values, the counts among them and the lines by number."""
        values = dataclasses.asdict(self)
        counts = values.pop("counts")
        if self.inner is not None:
            # Lines are of the whole code.
            del values["inner"]["lines"]
        if self.executed is not None:
            values["executed"] = self.executed.as_json()
        return {**values, "grid": list(self.grid), "called": list(self.called), "indicative": self.indicative, **counts}


# Prefix of a bound's fact that is counted in innermost loops only.
INNER = "inner_"
# Counted part and total of each share that a bound may name.
SHARES = {"wide_share": (("wide_loads", "wide_stores"), ("loads", "stores"))}
