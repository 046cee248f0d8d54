"""Runs a profiled subprocess under NVIDIA's profilers: choice of tool, command line, table."""

import importlib.util
import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from gradlab.base.terminal import print_line
from gradlab.profiling.trace import ncu, nsys
from gradlab.profiling.trace.child import ChildError, command, environment
from gradlab.profiling.trace.kernel import Kernel
from gradlab.profiling.trace.show import compilation, unit
from gradlab.profiling.trace.step import ProfileJob

PROFILERS: dict[str, Any] = {"nsys": nsys, "ncu": ncu}
INSTALL = {
    "nsys": "install Nsight Systems (Debian: nsight-systems; https://developer.nvidia.com/nsight-systems)",
    "ncu": "install Nsight Compute (Debian: nsight-compute; https://developer.nvidia.com/nsight-compute)",
}


class Choice(NamedTuple):
    """The tool that is used, and why it is not the requested one."""

    tool: str
    why: str = ""


def chosen(tool: str, gpu: bool) -> Choice:
    """The tool for `--tool`: `auto` takes ncu, else nsys, on a machine with a GPU, and the trace elsewhere."""
    if tool == "trace":
        return Choice("trace")
    if tool == "auto" and not gpu:
        return Choice("trace")
    for name in ("ncu", "nsys") if tool == "auto" else (tool,):
        if shutil.which(name) is not None:
            if importlib.util.find_spec("nvtx") is None:
                return Choice("trace", f"{name} finds the steps by NVTX: pip install nvtx; using the trace instead")
            return Choice(name)
    missing = "neither ncu nor nsys is" if tool == "auto" else f"{tool} is not"
    return Choice("trace", f"{missing} on PATH: {INSTALL['ncu' if tool == 'auto' else tool]}; using the trace instead")


def run(tool: str, jobs: Sequence[ProfileJob], module: str, folder: Path, console: Console) -> int:
    """Run each job under the tool and print what the tool counted, kernel by kernel.

    Raises:
        ChildError: the tool or the process in it failed.
    """
    profiler = PROFILERS[tool]
    for job in jobs:
        print_line(console, f"\n{job.side}, {job.mode}, under {tool}", style="bold")
        argv = profiler.command(job.side, folder / job.side, command(module, job))
        # Soft wrapping leaves the line whole for whoever copies it.
        console.print(f"$ {shlex.join(argv)}", markup=False, highlight=False, soft_wrap=True)
        Path(job.out).unlink(missing_ok=True)
        _output(tool, job, argv)
        if not Path(job.out).exists():
            raise ChildError(f"profile: {job.target} on {job.side} under {tool}: ended without a result")
        found: dict[str, Any] = json.loads(Path(job.out).read_text(encoding="utf-8"))
        reading = profiler.reading(folder / job.side)
        console.print(f"$ {shlex.join(reading)}", markup=False, highlight=False, soft_wrap=True)
        kernels = profiler.read(_output(tool, job, reading), found)
        print_line(console, found["what"])
        _table(kernels, profiler.NOTE, console)
        if found["device"] == "cpu":
            print_line(console, "The hand-written kernels ran on the CPU: a GPU's profiler sees none of them.")
        compilation(job.side, found, console)
    return 0


def _output(tool: str, job: ProfileJob, argv: Sequence[str]) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        # Both tools print the error on a line with this word.
        why = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
        raise ChildError(f"profile: {job.target} on {job.side}: {tool} ended with {done.returncode}: {why.strip()}")
    return done.stdout


def _table(kernels: Sequence[Kernel], note: str, console: Console) -> None:
    if not kernels:
        print_line(console, "no kernel ran on a GPU", style="yellow")
        return
    whole = sum(k.seconds for k in kernels)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("kernel", overflow="fold")
    for column in ("count", "time", "share", "GB/s", "% of peak\nbandwidth", "% of peak\ntensor rate"):
        table.add_column(column, justify="right", no_wrap=True)
    for k in sorted(kernels, key=lambda k: -k.seconds):
        rate = k.bytes / k.seconds / 1e9 if k.seconds else 0.0
        shown = ("-" if percent is None else f"{percent:.1f}" for percent in (k.bandwidth, k.tensor))
        share = f"{k.seconds / whole:.1%}" if whole else "-"
        table.add_row(k.name, str(k.count), unit(k.seconds), share, _digits(rate), *shown)
    console.print(table)
    print_line(console, note)


def _digits(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}" if rate else "-"
