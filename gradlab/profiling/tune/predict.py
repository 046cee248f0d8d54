"""What compiling says of a row, and the model: cycles of an op's launches with it, without a GPU.

The first program of each launch is executed, as `gradlab inspect --executed` does; a multiprocessor executes so many of
them one after another. Latencies are not in it: warps and stages differ by what they leave room for alone.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from gradlab.kernels.configs.tiles import Row, noting, trying
from gradlab.kernels.spec import Case, Spec
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.machine_code.gpus import GPU
from gradlab.profiling.machine_code.inspection import InspectRequest, InspectSubject, find, read, targets
from gradlab.profiling.machine_code.targets import RESERVED, Target

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Facts:
    """Of an op's launches, forward and backward, with one row.

    Attributes:
        registers, spill, shared: the most of any launch; bytes of a thread and of a block.
        blocks: resident on a multiprocessor, the fewest of any launch.
        cycles: of the model, by case; none where a launch cannot be executed.
        error: why one of them does not compile.
    """

    registers: int = 0
    spill: int = 0
    shared: int = 0
    blocks: int = 0
    cycles: tuple[float, ...] = ()
    error: str = ""


class Predictor:
    """The launches of an op's cases in one dtype, for one architecture and GPU.

    Raises:
        ModuleNotFoundError: Triton or one of its tools is not installed.
    """

    def __init__(self, op: Spec, cases: Sequence[Case], dtype: str, where: Target, gpu: GPU) -> None:
        self.where, self.gpu = where, gpu
        self._subjects = [InspectSubject(op, case, "torch", dtype) for case in cases]
        self._known: dict[Key, Code] = {}
        targets([where.name], None)

    def rows(self, names: tuple[str, ...], dtype: str) -> list[Row]:
        """The row in use of each kind whose row decides on a launch, as one for these places and this dtype alone."""
        with noting() as noted:
            launches = self._launches()
        found = []
        for (kind, _), row in noted.items():
            # What is large is said by a row of its own: without one the usual row is for all sizes.
            if kind.startswith("large ") and row.kernel != kind:
                continue
            own = replace(row, kernel=kind, on=names, dtypes=(dtype,))
            if keys(self.launches(replace(own, stages=row.stages % 4 + 1))) != keys(launches):
                found.append(own)
        return found

    def launches(self, row: Row) -> list[list[Found]]:
        """Of each case with this row."""
        return self._launches(trying(row))

    def learn(self, several: Sequence[Sequence[Sequence[Found]]]) -> None:
        """Compile and execute what these have that is not known yet, on all cores."""
        for n, subject in enumerate(self._subjects):
            new = {launch_key(f): f for launches in several for f in launches[n] if launch_key(f) not in self._known}
            one = InspectSubject(
                subject.op, subject.case, "torch", subject.dtype, functools.partial(list, new.values())
            )
            wanted = InspectRequest((one,), (self.where,), self.gpu.name, executed=True)
            self._known |= dict(zip(new, read(wanted), strict=True))

    def facts(self, launches: Sequence[Sequence[Found]]) -> Facts:
        """What compiling and executing them says."""
        self.learn([launches])
        codes = [[self._known[launch_key(f)] for f in found] for found in launches]
        every = [code for of_case in codes for code in of_case]
        if error := next((code.error for code in every if code.error), ""):
            return Facts(error=f"does not compile: {error}")
        shared, most = max(c.shared_static + c.shared_dynamic for c in every), self.where.shared - RESERVED
        cycles = [
            [self._cycles(code, f) for code, f in zip(*both, strict=True)] for both in zip(codes, launches, strict=True)
        ]
        known = all(math.isfinite(n) for of_case in cycles for n in of_case)
        return Facts(
            max(c.registers for c in every),
            max(c.counts.spill_bytes for c in every),
            shared,
            min(c.blocks or 0 for c in every),
            tuple(sum(of_case) for of_case in cycles) if known else (),
            f"takes {shared // 1024} KiB of shared memory, a block has {most // 1024}" if shared > most else "",
        )

    def _launches(self, entered: AbstractContextManager[Any] | None = None) -> list[list[Found]]:
        with entered or nullcontext():
            found = [find(subject, self.where.name) for subject in self._subjects]
        return [[f for f in of_case if f.direction != "second"] for of_case in found]

    def _cycles(self, code: Code, found: Found) -> float:
        """The least cycles of a launch; infinite where its first program cannot be executed."""
        done = code.executed
        if done is None or not done.cycles or found.call is None:
            return math.inf
        busiest = -(-done.programs // self.gpu.multiprocessors)
        moved = sum(extent.size for extent in found.call.extents)
        within = done.touched * done.programs / self.gpu.l2 if self.gpu.l2 else 0.0
        memory = moved / self.gpu.ceilings.bandwidth * self.gpu.clock
        return max(busiest * max(done.cycles.values()), within, memory)


def launch_key(found: Found) -> Key:
    """What a launch is known by: its code, options and grid."""
    return found.source.hash(), found.warps, found.stages, found.grid


def keys(launches: Sequence[Sequence[Found]]) -> Key:
    """What an op's launches are known by."""
    return tuple(tuple(map(launch_key, found)) for found in launches)


def ratio(facts: Facts, of: Facts) -> float | None:
    """The model's cycles over those of another row: the geometric mean over cases; None where they are not known."""
    if not facts.cycles or not of.cycles:
        return None
    logs: Iterator[float] = (math.log(a / b) for a, b in zip(facts.cycles, of.cycles, strict=True))
    return math.exp(sum(logs) / len(facts.cycles))
