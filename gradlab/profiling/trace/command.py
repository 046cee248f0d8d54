"""`gradlab profile`: where the time of an op or a workload goes, by a trace, by nsys or by ncu."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.status import Status

from gradlab.profiling.files import write_whole
from gradlab.profiling.machine import describe, stamp
from gradlab.profiling.trace import tools
from gradlab.profiling.trace.asked import Asked
from gradlab.profiling.trace.child import ChildError, traced
from gradlab.profiling.trace.merge import merged
from gradlab.profiling.trace.show import say, show
from gradlab.profiling.trace.step import Job

# Steps that are profiled: enough to see what repeats, few enough for a reader and for ncu, which replays each kernel.
STEPS = 3


def profile(asked: Asked, module: str, console: Console) -> int:
    """Profile as asked, print, and write to the folder.

    Args:
        module: what `python -m` runs the target with: it ends in `serve`.
        console: where tables go.

    Returns:
        0; 1 when the target failed; 2 when the folder cannot be written; 130 when interrupted.
    """
    machine = describe()
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        say(console, stamp(machine))
        tool, why = tools.chosen(asked.tool, "gpu" in machine)
        if why:
            say(console, why, style="yellow")
        if tool == "trace":
            _trace(asked, module, machine, console)
            return 0
        return tools.run(tool, _jobs(asked, tool, asked.out), module, asked.out, console)
    except ChildError as error:
        say(Console(stderr=True), f"gradlab: {error}")
        return 1
    except OSError as error:
        say(Console(stderr=True), f"gradlab: profile: cannot write {asked.out}: {error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        say(Console(stderr=True), "interrupted")
        return 130
    finally:
        # Where nothing was written nothing is left; a folder that holds something stays.
        with suppress(OSError):
            asked.out.rmdir()


def _jobs(asked: Asked, tool: str, folder: Path) -> list[Job]:
    return [
        Job(asked.target, side, mode, asked.case, tool, STEPS, os.path.abspath(folder / f"{side}.json"))
        for side, mode in asked.modes.items()
    ]


def _trace(asked: Asked, module: str, machine: dict[str, str], console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder, Status("", console=console) as status:
        found = traced(module, _jobs(asked, "trace", Path(folder)), status.update)
    path = asked.out / "trace.json"
    write_whole(path, merged(found, machine))
    for side in found:
        show(side, found[side], console)
    events = sum(len(side["events"]) for side in found.values())
    say(console, f"\n{path}: {events} events on one clock, for https://ui.perfetto.dev")
