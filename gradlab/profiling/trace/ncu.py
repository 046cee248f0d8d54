"""Nsight Compute: what each kernel did, read from the GPU's counters while it is replayed."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradlab.profiling.trace.kernel import Kernel, bare, number, rows, weighted

TIME = "gpu__time_duration.sum"
BYTES = "dram__bytes.sum"
BANDWIDTH = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
NOTE = "From the GPU's counters at whatever clocks it ran; each kernel was replayed with cold caches."
# `--print-units base`: nanoseconds and bytes; the row of units says it, and older versions say it otherwise.
UNITS = {
    "nsecond": 1e-9,
    "ns": 1e-9,
    "usecond": 1e-6,
    "us": 1e-6,
    "msecond": 1e-3,
    "ms": 1e-3,
    "second": 1.0,
    "s": 1.0,
    "byte": 1.0,
    "Kbyte": 1e3,
    "Mbyte": 1e6,
    "Gbyte": 1e9,
}


def command(side: str, out: Path, argv: Sequence[str]) -> list[str]:
    """The line that profiles the kernels of `argv` in our range `capture`, into `out`.ncu-rep.

    Without a slash after it the filter names a range of the process, not one of a thread.
    """
    return [
        "ncu",
        "--target-processes",
        "all",
        "--nvtx",
        "--nvtx-include",
        f"gradlab.{side}@capture",
        "--clock-control",
        "none",
        "--metrics",
        ",".join((TIME, BYTES, BANDWIDTH, TENSOR)),
        "--force-overwrite",
        "--export",
        str(out),
        *argv,
    ]


def reading(out: Path) -> list[str]:
    """The line that prints what was recorded, a row a launch."""
    return ["ncu", "--import", f"{out}.ncu-rep", "--csv", "--page", "raw", "--print-units", "base"]


def read(text: str, found: dict[str, Any]) -> list[Kernel]:
    """The launches of the raw page, put together by kernel; its second line holds the units."""
    if "Kernel Name" not in text:
        return []
    units, *launches = rows(text, "Kernel Name")
    by_name: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in launches:
        by_name[bare(row["Kernel Name"])].append(row)

    def value(row: dict[str, str], metric: str) -> float:
        return (number(row.get(metric)) or 0.0) * UNITS.get(units.get(metric) or "", 1.0)

    return [
        Kernel(
            name,
            len(same),
            sum(value(row, TIME) for row in same),
            sum(value(row, BYTES) for row in same),
            weighted((number(row.get(BANDWIDTH)), value(row, TIME)) for row in same),
            weighted((number(row.get(TENSOR)), value(row, TIME)) for row in same),
        )
        for name, same in by_name.items()
    ]
