"""Benchmark files: one JSON document a run, raw samples in it, written whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlab.profiling.bench_report import policy
from gradlab.profiling.bench_row import Row

# Raised when a key changes its meaning or goes; a new key is no reason.
SCHEMA = 1


def write_json(path: Path, rows: Sequence[Row], dtype: str, machine: Mapping[str, str], complete: bool) -> None:
    """The run so far; `complete` says whether every row that was asked for is in it. Times are in seconds."""
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": dict(machine),
        "dtype": dtype,
        "precision": policy(dtype),
        "complete": complete,
    }
    # A row a line: a file that people compare is not to have a line for each of thousands of samples.
    lines = ",\n".join(f"  {json.dumps(row.as_json())}" for row in rows)
    write_whole(path, f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')


def read_json(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a file, and what else it says.

    Raises:
        ValueError: not a benchmark file of this schema.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a benchmark of schema {SCHEMA}")
    return [Row.from_json(values) for values in document.pop("rows")], document


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it, or kills this process, finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
