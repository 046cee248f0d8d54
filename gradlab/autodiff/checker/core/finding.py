"""What a check found: one finding an input and comparison."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, WRONG, INCONCLUSIVE = "ok", "wrong", "inconclusive"


@dataclass(frozen=True)
class Finding:
    """One comparison of one array, or one promise that was kept or broken.

    Attributes:
        check: what was compared with what.
        verdict: "ok", "wrong", or "inconclusive" when nothing here can tell.
        input: the array compared: an input's name for a gradient, an output's for a value; "" for the whole function.
        where: index of the first wrong element, where it is known.
        said: the finding in words, after the name of what was checked.
        numbers: error and allowed (relative to the largest value), got and wanted where one element is meant, ...
        op, side, case: what was run, on which side, on which inputs.
        inputs: by name, the numbers of inputs that the check made up, as nested lists; empty for the given ones.
        call: the line that calls the function on these, where they are few.
    """

    check: str
    verdict: str
    input: str = ""
    where: tuple[int, ...] = ()
    said: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    op: str = ""
    side: str = ""
    case: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    call: str = ""

    @property
    def error(self) -> float:
        """Largest error, relative; 0 where there is none to speak of."""
        return self.numbers.get("error", 0.0 if self.verdict == OK else math.nan)

    @property
    def message(self) -> str:
        """The finding in one paragraph."""
        place = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        what = f"{self.input}{place} " if self.input else ""
        again = f"; again: {self.call}" if self.call else ""
        on = f" on {self.side}" if self.side else ""
        return f"{self.op}{on}, case {self.case!r}, {self.check}: {what}{self.said}{again}: {self.verdict}"
