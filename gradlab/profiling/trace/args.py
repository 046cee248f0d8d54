"""The arguments of `gradlab profile`, validated."""

import os
from dataclasses import dataclass
from pathlib import Path

from gradlab.autodiff.frameworks.side import selected

# The modes of each side, its default first.
MODES = {"torch": ("eager", "compile"), "jax": ("jit", "eager")}
TOOLS = ("auto", "trace", "nsys", "ncu")


@dataclass(frozen=True)
class ProfileArgs:
    """The validated arguments of the command line.

    Attributes:
        target: an op or a workload.
        modes: the mode of each side that is profiled.
        tool: auto, trace, nsys or ncu.
        out: the folder for what is written.
        case: of an op; "" for its first timed one.
    """

    target: str
    modes: dict[str, str]
    tool: str
    out: Path
    case: str = ""


def checked_args(
    target: str,
    sides: list[str] | None,
    mode: str | None,
    tool: str,
    out: Path | None,
    case: str | None,
    cases: tuple[str, ...],
) -> ProfileArgs:
    """Validate the arguments.

    Args:
        cases: the names that `case` may have; none for a workload.

    Raises:
        ValueError: an unknown side, mode, tool or case, or an output folder that cannot be written.
        ModuleNotFoundError: a side that is not installed, or none is.
    """
    chosen = selected(sides)
    every = tuple(dict.fromkeys(m for modes in MODES.values() for m in modes))
    if mode is not None and mode not in every:
        raise ValueError(f"profile: mode is {mode!r}, wanted one of {', '.join(every)}")
    for name in chosen:
        if mode is not None and mode not in MODES[name]:
            raise ValueError(f"profile: mode is {mode!r}, wanted {' or '.join(MODES[name])} with --side {name}")
    if tool not in TOOLS:
        raise ValueError(f"profile: tool is {tool!r}, wanted one of {', '.join(TOOLS)}")
    if case is not None and case not in cases:
        wanted = f"one of {', '.join(map(repr, cases))}" if cases else f"none: {target} is a workload"
        raise ValueError(f"profile: case is {case!r}, wanted {wanted}")
    folder = Path("profile") / target if out is None else out
    _writable(folder)
    return ProfileArgs(target, {name: mode or MODES[name][0] for name in chosen}, tool, folder, case or "")


def _writable(folder: Path) -> None:
    """Check that the folder can be made; it is made later, so that a failure leaves nothing behind."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"profile: --out is {folder}, wanted a path without the file {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"profile: --out is {folder}, wanted write permission in {parent}")
