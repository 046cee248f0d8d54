"""One finding of a check: the outcome of one comparison for one input."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, WRONG, INCONCLUSIVE = "ok", "wrong", "inconclusive"


@dataclass(frozen=True)
class Finding:
    """The outcome of one comparison.

    Attributes:
        check: what was compared with what.
        verdict: "ok", "wrong", or "inconclusive" where the check cannot tell.
        input: the array compared: an input's name for a gradient, an output's for a value; "" for the whole function.
        where: index of the first wrong element, if known.
        detail: the finding in words, after the name of what was checked.
        numbers: error and allowed (relative to the largest value), got and wanted of one element, ...
        op, side, case: what was run, on which side, on which inputs.
        inputs: generated inputs by name, as nested lists; empty for the given ones.
        call: a line of code that calls the function on these, if they are few.
    """

    check: str
    verdict: str
    input: str = ""
    where: tuple[int, ...] = ()
    detail: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    op: str = ""
    side: str = ""
    case: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    call: str = ""

    @property
    def error(self) -> float:
        """Largest relative error; 0 for an ok finding without one, else NaN."""
        return self.numbers.get("error", 0.0 if self.verdict == OK else math.nan)

    @property
    def message(self) -> str:
        """The finding in one paragraph."""
        place = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        what = f"{self.input}{place} " if self.input else ""
        again = f"; to reproduce: {self.call}" if self.call else ""
        on = f" on {self.side}" if self.side else ""
        return f"{self.op}{on}, case {self.case!r}, {self.check}: {what}{self.detail}{again}: {self.verdict}"
