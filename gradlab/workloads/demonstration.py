"""The training demo for the report: four runs of one network as plain data."""

import json
import struct
from pathlib import Path
from typing import Any

from gradlab.autodiff.frameworks.side import installed
from gradlab.base.exit_codes import OK
from gradlab.workloads import command

NAME = "digits-cnn"
COLUMNS = ("run", "kernels", "last loss", "test", "seconds")


def trained(out: Path) -> dict[str, Any]:
    """Train the demonstration into `out`/training; a name, columns, rows, notes, and the figure with its size.

    Raises:
        KeyboardInterrupt: as it came.
    """
    folder = out / "training"
    args = command.TrainArgs(NAME, installed(), None, None, None, None, None, None, None, None)
    code = command.train(args, True, folder, None, None, None)
    if code == 130:
        raise KeyboardInterrupt
    numbers, figure = folder / "results.json", folder / "loss.png"
    found: dict[str, Any] = {"name": NAME, "columns": COLUMNS, "rows": [], "notes": []}
    if code != OK:
        found["notes"].append("A run failed or violated an expectation; see the terminal.")
    if numbers.is_file():
        for run in json.loads(numbers.read_text(encoding="utf-8"))["runs"]:
            name = f"{run['side']} {run['layers']}"
            found["rows"].append(
                [name, run["kernels"], f"{run['losses'][-1]:.6f}", f"{run['score']:.2%}", f"{run['seconds']:.1f}"]
            )
    if figure.is_file():
        found |= {"figure": "training/loss.png", "size": _size(figure)}
    return found


def _size(png: Path) -> tuple[int, int]:
    """Width and height from the PNG header, for the page's layout."""
    return struct.unpack(">II", png.read_bytes()[16:24])
