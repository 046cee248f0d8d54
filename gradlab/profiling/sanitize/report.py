"""The faults of a run: one of each place in the source, however often it was met."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradlab.profiling.sanitize.words import paragraph

SCHEMA = 1


@dataclasses.dataclass
class Report:
    """What was found while launches were examined; true when that is nothing.

    Attributes:
        faults: `gradlab.kernels.cpu.sanitize_fault.Fault`, in the order they were met, one of each place: `count` is
            the elements of all launches, `launches` how many there were, the rest is of the first.
        triton, pallas: how many launches of either's kernels were examined.
        left: Pallas kernels that were interpreted as the program says and not examined, with the reason.
    """

    faults: list[Any] = dataclasses.field(default_factory=list)
    triton: int = 0
    pallas: int = 0
    left: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def launches(self) -> int:
        """How many launches were examined."""
        return self.triton + self.pallas

    def __bool__(self) -> bool:
        return not self.faults

    def add(self, found: Iterable[Any]) -> None:
        """Take over the faults of a launch."""
        places = {_place(fault): i for i, fault in enumerate(self.faults)}
        for fault in found:
            i = places.get(_place(fault))
            if i is None:
                places[_place(fault)] = len(self.faults)
                self.faults.append(fault)
                continue
            known = self.faults[i]
            count, launches = known.count + fault.count, known.launches + 1
            self.faults[i] = dataclasses.replace(known, count=count, launches=launches)

    def __str__(self) -> str:
        number = len(self.faults)
        faults = f"{number or 'no'} fault{'s' * (number > 1)}"
        launches = []
        if self.triton or not self.pallas:
            launches.append(f"{_launches(self.triton)} of Triton kernels on CPU tensors")
        if self.pallas:
            launches.append(f"{_launches(self.pallas)} of Pallas kernels, lowered for CUDA, on CPU arrays")
        summary = f"{faults} in {' and '.join(launches)}"
        left = [f"not examined, but interpreted: {name} ({reason})" for name, reason in self.left.items()]
        return "\n\n".join([*map(paragraph, self.faults), *left, summary])

    def write_json(self, path: Path) -> None:
        """Keep every fault in a file."""
        faults = [dataclasses.asdict(fault) for fault in self.faults]
        facts = {"schema": SCHEMA, "launches": self.launches, "pallas": self.pallas, "not_examined": self.left}
        path.write_text(json.dumps({**facts, "faults": faults}, indent=1) + "\n")


def _launches(number: int) -> str:
    return f"{number:,} launch{'es' * (number != 1)}"


def _place(fault: Any) -> tuple[Any, ...]:
    inside = fault.index is not None and 0 <= fault.index < fault.span
    return fault.kind, fault.access, fault.kernel, fault.file, fault.line, fault.callers, fault.argument, inside
