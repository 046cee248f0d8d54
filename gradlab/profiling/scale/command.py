"""`gradlab scale`: predicts, prints, and writes what was predicted."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from gradlab.base.exit_codes import OK
from gradlab.base.files import whole, write_whole
from gradlab.base.machine import describe, stamp
from gradlab.profiling.scale.args import ScaleArgs
from gradlab.profiling.scale.model import Prediction
from gradlab.profiling.scale.search import strategy
from gradlab.profiling.scale.table import show

Predictions = dict[str, dict[int, Prediction]]


def run(args: ScaleArgs, console: Console) -> int:
    """Predict, print, plot and write: an exit code."""
    found = predictions(args)
    show(args, found, console)
    if args.json is not None:
        write_whole(args.json, json.dumps(as_json(args, found), indent=1) + "\n")
        console.print(f"{args.json} has every number", highlight=False, soft_wrap=True)
    if args.plot is not None:
        plot(args, found, args.plot)
        console.print(f"{args.plot} has the figure", highlight=False, soft_wrap=True)
    return OK


def predictions(args: ScaleArgs) -> Predictions:
    """Every strategy at every number of devices."""
    return {
        name: {n: strategy(name, args.network, args.machine, n, args.rows(n), args.dtype) for n in args.devices}
        for name in args.strategies
    }


def plot(args: ScaleArgs, found: Predictions, path: Path) -> None:
    """Write the figure."""
    from gradlab.profiling.scale.plot import draw

    machine = describe()
    if args.machine.cores is None:
        # A named GPU's figures are nobody's measurement here.
        machine = {key: machine[key] for key in ("date", "commit") if key in machine}
    whole(path, lambda part: draw(args, found, stamp(machine), part))


def as_json(args: ScaleArgs, found: Predictions) -> dict[str, Any]:
    """All of it as values for JSON; a step that cannot be taken has "refused" alone."""
    machine = args.machine
    return {
        "network": args.network.name,
        "about": args.network.about,
        "parameters": args.network.parameters(),
        "dtype": args.dtype,
        "machine": describe(),
        "device": {
            "name": machine.name,
            "flops": dict(machine.ceilings.rates),
            "bandwidth": machine.ceilings.bandwidth,
            "source": machine.ceilings.source,
            "memory": machine.memory,
            "launch": machine.launch,
            "node": machine.node,
            "links": {link: vars(getattr(machine, link)) for link in ("within", "between")},
        },
        "steps": [_step(name, n, one) for name, steps in found.items() for n, one in steps.items()],
    }


def _step(name: str, devices: int, one: Prediction) -> dict[str, Any]:
    head = {"strategy": name, "devices": devices, "degrees": vars(one.degrees)}
    if one.refused or math.isinf(one.seconds):
        return head | {"refused": one.refused}
    counts: dict[tuple[str, int, int], int] = {}
    for each in one.collectives:
        key = (each.kind, each.size, each.devices)
        counts[key] = counts.get(key, 0) + 1
    return head | {
        "seconds": one.seconds,
        "parts": one.parts,
        "bound": one.bound,
        "memory": one.memory,
        "sent": one.sent,
        "batch": one.batch,
        "rows": one.rows,
        "collectives": [
            {"kind": kind, "bytes": size, "devices": n, "times": times} for (kind, size, n), times in counts.items()
        ],
    }
