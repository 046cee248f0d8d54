"""The tables of a profile."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gradlab.base.terminal import print_line

# The most rows printed; the trace has all of them.
ROWS = 14
# The most graph breaks and recompilations printed.
REASONS = 5


def show(side: str, found: Mapping[str, Any], console: Console) -> None:
    """Print one side's trace: steps, time, compilation."""
    job = found["job"]
    print_line(console, f"\n{side}, {job['mode']}: {found['what']}", style="bold")
    call, wait = (sorted(column)[len(column) // 2] for column in list(zip(*found["steps"], strict=True))[:2])
    print_line(console, f"{job['steps']} steps; median: {unit(call)} in the call, {unit(wait)} waiting for the device")
    rows = named(found)
    device = any(row["device"] for row in rows)
    key = "device" if device else "seconds"
    rows = sorted((row for row in rows if row[key]), key=lambda row: -row[key])
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("op or kernel", overflow="fold")
    for column in ("count", "on the device" if device else "time", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    whole = sum(row[key] for row in rows)
    for row in rows[:ROWS]:
        table.add_row(row["name"], str(row["count"]), unit(row[key]), f"{row[key] / whole:.1%}")
    rest = rows[ROWS:]
    if rest:
        seconds = sum(row[key] for row in rest)
        count = str(sum(row["count"] for row in rest))
        table.add_row(f"{len(rest)} more", count, unit(seconds), f"{seconds / whole:.1%}", style="dim")
    console.print(table)
    if found["interpreted"]:
        print_line(console, "interpreted: these kernels run as Python, so no time here is a kernel's speed")
    compilation(side, found, console)


def compilation(side: str, found: Mapping[str, Any], console: Console) -> None:
    """Print seconds per stage, and graph breaks and recompilations with their reasons."""
    stages = found["stages"]
    if stages:
        parts = ", ".join(f"{name} {unit(seconds)}" for name, seconds in stages.items())
        print_line(console, f"compile time: {parts}")
    if side == "torch" and found["job"]["mode"] == "compile":
        _reasons("graph break", found["breaks"], console)
    if found["job"]["mode"] != "eager" or found["recompiled"]:
        _reasons("recompilation", found["recompiled"], console)


def named(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows, with gradlab's interpreted kernels labelled."""
    kernels = {label["kernel"] for label, _ in found["labels"] if label["kernel"]}

    def is_kernel(name: str) -> bool:
        first = name.partition(" ")[0]
        return first in kernels or (first.endswith("_kernel") and name.endswith(("forward", "backward", "second")))

    return [
        {**row, "name": f"{row['name']} (interpreted)"} if found["interpreted"] and is_kernel(row["name"]) else row
        for row in found["rows"]
    ]


def unit(seconds: float) -> str:
    """Three digits and a unit."""
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {name}"
    return f"{seconds * 1e9:.0f} ns"


def _reasons(what: str, reasons: Sequence[Sequence[Any]], console: Console) -> None:
    total = sum(count for _, count in reasons)
    print_line(console, f"{what}s: {total or 'none'}")
    for reason, count in reasons[:REASONS]:
        print_line(console, f"  {count} x {reason}")
    if len(reasons) > REASONS:
        print_line(console, f"  and {len(reasons) - REASONS} other reasons")
