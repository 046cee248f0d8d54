"""`gradlab profile`: where the time of an op or a workload goes, by a trace, by nsys or by ncu."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.status import Status

from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK, UNUSABLE
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.base.terminal import print_line
from gradlab.profiling.trace import tools
from gradlab.profiling.trace.args import ProfileArgs
from gradlab.profiling.trace.child import ChildError, traced
from gradlab.profiling.trace.merge import merged
from gradlab.profiling.trace.show import show
from gradlab.profiling.trace.step import ProfileJob

# Steps that are profiled: enough to see what repeats, few enough for a reader and for ncu, which replays each kernel.
STEPS = 3


def profile(args: ProfileArgs, module: str, console: Console) -> int:
    """Profile as args, print, and write to the folder.

    Args:
        module: what `python -m` runs the target with: it ends in `serve`.
        console: where tables go.

    Returns:
        0; 1 when the target failed; 2 when the folder cannot be written; 130 when interrupted.
    """
    machine = describe()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        print_line(console, stamp(machine))
        tool, why = tools.chosen(args.tool, "gpu" in machine)
        if why:
            print_line(console, why, style="yellow")
        if tool == "trace":
            _trace(args, module, machine, console)
            return OK
        return tools.run(tool, _jobs(args, tool, args.out), module, args.out, console)
    except ChildError as error:
        print_line(Console(stderr=True), f"gradlab: {error}")
        return FOUND
    except OSError as error:
        print_line(Console(stderr=True), f"gradlab: profile: cannot write {args.out}: {error.strerror or error}")
        return UNUSABLE
    except KeyboardInterrupt:
        print_line(Console(stderr=True), "interrupted")
        return INTERRUPTED
    finally:
        # Remove the folder if it is empty.
        with suppress(OSError):
            args.out.rmdir()


def _jobs(args: ProfileArgs, tool: str, folder: Path) -> list[ProfileJob]:
    return [
        ProfileJob(args.target, side, mode, args.case, tool, STEPS, os.path.abspath(folder / f"{side}.json"))
        for side, mode in args.modes.items()
    ]


def _trace(args: ProfileArgs, module: str, machine: dict[str, str], console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder, Status("", console=console) as status:
        found = traced(module, _jobs(args, "trace", Path(folder)), status.update)
    path = args.out / "trace.json"
    write_whole(path, merged(found, machine))
    for side in found:
        show(side, found[side], console)
    events = sum(len(side["events"]) for side in found.values())
    print_line(console, f"\n{path}: {events} events on one clock, for https://ui.perfetto.dev")
