"""A kernel as a GPU's profiler has counted it."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel.

    `seconds` is all of them together, `bytes` what they moved or hold (0 where nobody knows), `bandwidth` and `tensor`
    percent of the peak, None where nobody knows.
    """

    name: str
    count: int
    seconds: float
    bytes: float = 0.0
    bandwidth: float | None = None
    tensor: float | None = None


def rows(text: str, column: str) -> list[dict[str, str]]:
    """The rows of the CSV that a tool printed: its header is the first line that has `column`; what is before is talk.

    Raises:
        ValueError: there is no such line.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if column in next(csv.reader([line]), [])), None)
    if start is None:
        raise ValueError(f"profile: the tool printed no table with the column {column!r}")
    return list(csv.DictReader(line for line in lines[start:] if line.strip()))


def number(text: str | None) -> float | None:
    """A number as the tools print it, with commas between thousands; None for "n/a" and what is not there."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def bare(name: str) -> str:
    """A kernel's name without what a compiler put around it: `void at::f<int>(...)` -> `at::f<int>`."""
    return re.sub(r"\(.*\)$", "", name.removeprefix("void ")).strip()


def held(found: dict[str, Any]) -> dict[str, float]:
    """Bytes that all launches of each kernel held, by its name without underscores at its ends."""
    total: dict[str, float] = {}
    for label, count in found["labels"]:
        if label["kernel"]:
            total[label["kernel"]] = total.get(label["kernel"], 0.0) + label["bytes"] * count
    return total


def weighted(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The mean of the values that are there, weighted by the seconds beside them."""
    there = [(value, weight) for value, weight in pairs if value is not None]
    weight = sum(w for _, w in there)
    return sum(v * w for v, w in there) / weight if weight else None
