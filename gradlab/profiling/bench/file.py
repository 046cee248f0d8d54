"""Benchmark files: one JSON document a run, raw samples in it; the same as CSV and as Markdown; each in one step."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlab.base.files import write_whole
from gradlab.profiling.bench.row import Group
from gradlab.profiling.bench.words import markdown

# Increased when a key is removed or changes its meaning, not for a new key.
SCHEMA = 3
# Schema 2 has `twin` for `repeated_native`.
READABLE = (2, SCHEMA)


def document(groups: Sequence[Group], head: Mapping[str, Any]) -> str:
    """The run so far as text; one line per group, so that files can be compared."""
    start = json.dumps({"kind": "gradlab benchmark", "schema": SCHEMA, **head}, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(group.as_json())}" for group in groups)
    return f'{start},\n "groups": [\n{lines}\n ]\n}}\n'


def read_json(path: Path) -> tuple[list[Group], dict[str, Any]]:
    """The groups of a file, and what else it says.

    Raises:
        ValueError: it cannot be read, or is not a benchmark of this schema.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"bench: --compare is {path} ({error.strerror}), wanted a file that can be read") from None
    except ValueError:
        raise ValueError(f"bench: {path} is no JSON, wanted a benchmark of gradlab") from None
    if not isinstance(found, dict) or found.get("kind") != "gradlab benchmark":
        raise ValueError(f"bench: {path} is JSON of another kind, wanted a benchmark of gradlab")
    if found.get("schema") not in READABLE:
        raise ValueError(f"bench: {path} is a benchmark of schema {found.get('schema')}, wanted {SCHEMA}")
    try:
        return [Group.from_json(values) for values in found.pop("groups")], found
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"bench: {path} has groups that cannot be read, wanted an unchanged benchmark of gradlab"
        ) from None


COLUMNS = (
    "op", "case", "sizes", "side", "pass", "dtype", "device", "implementation", "function", "mode", "interpreted",
    "warm_s", "warm_low_s", "warm_high_s", "ratio", "ratio_low", "ratio_high", "noise", "verdict", "cold_s", "host_s",
    "first_call_s", "cached_call_s", "peak_bytes", "bytes", "flops", "floor_s", "share_of_floor", "rounds", "note",
)  # fmt: skip


def as_csv(groups: Sequence[Group]) -> str:
    """One line per member; times in seconds, medians with their 95 % intervals."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for group in groups:
        for member in group.members:
            time = member.time if member.warm else None
            ratio = group.ratio(member)
            medians = [sorted(kind)[len(kind) // 2] if kind else "" for kind in (member.cold, member.host)]
            table.writerow([
                group.op, group.case, group.words, group.side, group.direction, group.dtype, group.device,
                member.implementation, member.label, member.mode, member.interpreted,
                *((time.median, time.low, time.high) if time else ("",) * 3),
                *((ratio.median, ratio.low, ratio.high) if ratio else ("",) * 3),
                group.noise, group.verdict(member), *medians,
                member.first_call, member.cached_call, member.peak_bytes, group.bytes, group.flops, group.floor,
                group.share(member), len(member.warm), member.note,
            ])  # fmt: skip
    return text.getvalue()


def write(groups: Sequence[Group], head: Mapping[str, Any], files: Mapping[str, Path | None]) -> None:
    """The files of a run, by kind: "json", "csv", "markdown"; None leaves one out."""
    kinds = {
        "json": lambda: document(groups, head),
        "csv": lambda: as_csv(groups),
        "markdown": lambda: markdown(groups, head["machine"]),
    }
    for kind, text in kinds.items():
        path = files.get(kind)
        if path is not None:
            write_whole(path, text())
