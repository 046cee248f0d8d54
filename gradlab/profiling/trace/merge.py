"""Merges the traces of both sides into one Perfetto file on one clock."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

# The order of the sides among the tracks.
ORDER = ("torch", "jax")


def merged(found: Mapping[str, Mapping[str, Any]], machine: Mapping[str, str]) -> str:
    """Chrome's trace format, which ui.perfetto.dev opens, of each side's events; machine and steps beside them.

    Events come in microseconds since 1970; the file counts from the earliest one, since a double, which is what readers
    make of a number, has no tenths of a microsecond left at a date.
    """
    events = [event for side in ORDER if side in found for event in _sorted(side, found[side])]
    start = min((event["ts"] for event in events if _timed(event)), default=0.0)
    lines = (json.dumps({**e, "ts": round(e["ts"] - start, 3)} if _timed(e) else e) for e in events)
    steps = {side: [step[2] for step in found[side].get("steps", ())] for side in found}
    other = {**machine, "steps began, seconds since 1970": steps}
    head = json.dumps({"displayTimeUnit": "ms", "baseTimeNanoseconds": round(start * 1e3), "otherData": other})
    return f'{head[:-1]}, "traceEvents": [\n' + ",\n".join(lines) + "\n]}\n"


def _timed(event: Mapping[str, Any]) -> bool:
    return event.get("ph") != "M" and "ts" in event


def _sorted(side: str, found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The events of a side, its processes named after it; process ids are shifted so that they are unique."""
    shift = 1_000_000_000 * ORDER.index(side)
    pids: dict[Any, int] = {}
    for event in found["events"]:
        pid = event.get("pid", 0)
        if pid not in pids:
            pids[pid] = shift + (pid if isinstance(pid, int) else 500_000_000 + len(pids))
            yield {
                "ph": "M",
                "name": "process_sort_index",
                "pid": pids[pid],
                "args": {"sort_index": 1000 * ORDER.index(side) + len(pids)},
            }
        event = {**event, "pid": pids[pid]}
        if event.get("ph") == "M":
            # A name has no time.
            event.pop("ts", None)
        if event.get("ph") == "M" and event.get("name") == "process_name":
            name = str(event["args"]["name"]).removeprefix(f"{side} ")
            event["args"] = {"name": f"{side}: {name}"}
        elif event.get("ph") == "M" and event.get("name") == "process_sort_index":
            continue
        yield event
