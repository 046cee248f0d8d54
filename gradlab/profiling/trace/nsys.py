"""Nsight Systems: when each kernel ran. It counts no bytes: these come from the tensor sizes in our NVTX ranges."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradlab.profiling.trace.kernel import Kernel, bare, bytes_by_kernel, number, rows

NOTE = (
    "GB/s: what the kernel's tensors hold, over its time; the peak is a copy's rate measured in the same process. "
    "ncu counts real traffic and tensor cores."
)


def command(side: str, out: Path, argv: Sequence[str]) -> list[str]:
    """The line that profiles `argv`, from the opening of our range `capture` to its end, into `out`.nsys-rep."""
    return [
        "nsys",
        "profile",
        "--trace=cuda,nvtx",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=nvtx",
        f"--nvtx-capture=capture@gradlab.{side}",
        "--capture-range-end=stop",
        "--kill=none",
        "--force-overwrite=true",
        f"--output={out}",
        *argv,
    ]


def reading(out: Path) -> list[str]:
    """The line that prints what was recorded, a row a kernel."""
    return [
        "nsys",
        "stats",
        "--report",
        "cuda_gpu_kern_sum",
        "--format",
        "csv",
        "--output",
        "-",
        "--force-export=true",
        f"{out}.nsys-rep",
    ]


def read(text: str, found: dict[str, Any]) -> list[Kernel]:
    """The kernels of `cuda_gpu_kern_sum`; none when it says that there was no data."""
    if "does not contain CUDA kernel data" in text:
        return []
    known, peak = bytes_by_kernel(found), found.get("copy", 0.0)
    kernels = []
    for row in rows(text, "Total Time (ns)"):
        name, seconds = bare(row["Name"]), (number(row["Total Time (ns)"]) or 0.0) / 1e9
        moved = known.get(name.strip("_").removeprefix("gradlab_"), 0.0)
        percent = 100 * moved / seconds / peak if moved and seconds and peak else None
        kernels.append(Kernel(name, int(number(row["Instances"]) or 0), seconds, moved, percent))
    return kernels
