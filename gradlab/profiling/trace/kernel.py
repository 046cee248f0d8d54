"""The counts of one kernel from a GPU profiler."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel.

    `seconds` is their total, `bytes` what they moved or hold (0 if unknown), `bandwidth` and `tensor` percent of the
    peak (None if unknown).
    """

    name: str
    count: int
    seconds: float
    bytes: float = 0.0
    bandwidth: float | None = None
    tensor: float | None = None


def rows(text: str, column: str) -> list[dict[str, str]]:
    """The rows of the CSV that a tool printed: its header is the first line with `column`; lines before are messages.

    Raises:
        ValueError: there is no such line.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if column in next(csv.reader([line]), [])), None)
    if start is None:
        raise ValueError(f"profile: tool printed no CSV, wanted a table with the column {column!r}")
    return list(csv.DictReader(line for line in lines[start:] if line.strip()))


def number(text: str | None) -> float | None:
    """A number as the tools print it, with commas between thousands; None for "n/a" and for None."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def bare(name: str) -> str:
    """A kernel's name without return type and parameters: `void at::f<int>(...)` -> `at::f<int>`."""
    return re.sub(r"\(.*\)$", "", name.removeprefix("void ")).strip()


def bytes_by_kernel(found: dict[str, Any]) -> dict[str, float]:
    """Total bytes of the tensors in all launches of each kernel, by its name without outer underscores."""
    total: dict[str, float] = {}
    for label, count in found["labels"]:
        if label["kernel"]:
            total[label["kernel"]] = total.get(label["kernel"], 0.0) + label["bytes"] * count
    return total


def weighted(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of the values that are not None, weighted by the seconds beside them."""
    known = [(value, weight) for value, weight in pairs if value is not None]
    weight = sum(w for _, w in known)
    return sum(v * w for v, w in known) / weight if weight else None
