"""Where and with what a number was measured; imports neither framework."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "triton", "jax", "jaxlib", "numpy")


def describe() -> dict[str, str]:
    """The machine, the versions, the date and the commit, in words; what is not there has no key.

    Keys: cpu, cores (that this process may use), gpu, driver, os, python, torch, triton, jax, jaxlib, numpy, gradlab,
    date (UTC), commit (with "dirty" when the package differs from it).
    """
    found = {
        "cpu": _cpu(),
        "cores": str(_cores()),
        **_gpu(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in (*PACKAGES, "gradlab")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(Path(__file__).resolve().parents[2]),
    }
    return {key: value for key, value in found.items() if value}


def stamp(machine: dict[str, str]) -> str:
    """The description in one line, for a figure's foot."""
    where = ", ".join(machine[key] for key in ("gpu", "cpu", "os") if key in machine)
    versions = ", ".join(f"{key} {machine[key]}" for key in ("python", *PACKAGES) if key in machine)
    commit = " ".join(word[:10] for word in machine.get("commit", "").split())
    return "; ".join(part for part in (where, versions, machine["date"], f"commit {commit}" * bool(commit)) if part)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cores() -> int:
    # A container may give fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> dict[str, str]:
    lines = _say(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).splitlines()
    cards = [[word.strip() for word in line.rpartition(",")[::2]] for line in lines if "," in line]
    if not cards:
        return {}
    name, driver = cards[0]
    return {"gpu": name if len(cards) == 1 else f"{len(cards)} cards, the first {name}", "driver": driver}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "gradlab":
            return ""
        # A checkout that is not installed has no metadata; the package, which this file is part of, is at hand.
        return sys.modules["gradlab"].__version__


def _commit(root: Path) -> str:
    # An environment may lie inside somebody else's repository, whose commit says nothing about this package.
    if not _say(["git", "ls-files", "gradlab/__init__.py"], root):
        return ""
    commit = _say(["git", "rev-parse", "--verify", "--quiet", "HEAD"], root)
    # Only the package: results that are being written do not change what was measured.
    changed = _say(["git", "--no-optional-locks", "status", "--porcelain", "--", "gradlab"], root)
    return f"{commit} dirty" if commit and changed else commit


def _say(command: Sequence[str], folder: Path | None = None) -> str:
    """What a command prints, or nothing when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
