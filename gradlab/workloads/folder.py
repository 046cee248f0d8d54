"""A run saved as a folder, which many processes write and another number of them reads.

run.json names the plan, the losses so far, the framework whose arrays these are, and the folder below with the arrays:
`step-120-5f3a...`. Arrays are written first, under a new name; then run.json is replaced, which is the moment of
saving; then the arrays before are removed. Whatever ends a process on the way, run.json names arrays that are whole.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.base.files import whole

_RUN = "run.json"
_PART = re.compile(r"step-\d+-[0-9a-f]{8}")
# What orbax leaves where it was killed while it wrote has a longer name.
_OURS = re.compile(rf"{_PART.pattern}(\..*)?")
# What writes the arrays of each side.
STORES = {"torch": "torch.distributed.checkpoint", "jax": "orbax"}


class CheckpointError(ValueError):
    """A file or folder of weights that is missing, broken or holds something else: one line."""


class SavedRun(NamedTuple):
    """A run in a folder: where its arrays are, whose they are, its plan and its losses."""

    arrays: Path
    side: str
    plan: dict[str, Any]
    losses: list[float]


def holds_run(path: Path) -> bool:
    """Whether it is a folder that `save` wrote."""
    return (path / _RUN).is_file()


def want(path: Path) -> None:
    """Refuse a place that is no folder for a run.

    Raises:
        CheckpointError: a file, or a folder of other things.
    """
    if path.suffix == ".safetensors" or (path.exists() and not path.is_dir()):
        raise CheckpointError(f"{path}: is a file, wanted a folder, as a run of several processes is saved to one")
    if path.is_dir() and not holds_run(path):
        others = [name for name in os.listdir(path) if not _OURS.fullmatch(name)]
        if others:
            raise CheckpointError(f"{path}: holds {min(others)}, wanted a new folder or one written by --save")


def arrays_of(path: Path, steps: int, token: str) -> Path:
    """Where the arrays after that many steps go: a name that no other run has written, by its token of 8 hex digits."""
    return path / f"step-{steps}-{token}"


def commit(path: Path, saved: SavedRun) -> None:
    """Make these arrays the ones that the folder holds, and remove all others.

    Raises:
        OSError: it cannot be written; the run before is unharmed.
    """
    text = json.dumps(
        {
            "side": saved.side,
            "store": STORES[saved.side],
            "arrays": saved.arrays.name,
            "plan": saved.plan,
            "losses": saved.losses,
        }
    )

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # On the disk before the name is: a crash must not leave an empty file.
            os.fsync(file.fileno())

    whole(path / _RUN, write)
    for name in os.listdir(path):
        if _OURS.fullmatch(name) and name != saved.arrays.name:
            shutil.rmtree(path / name, ignore_errors=True)


def read(path: Path) -> SavedRun:
    """The run in a folder.

    Raises:
        CheckpointError: no folder, or none that `--save` wrote.
    """
    try:
        said = json.loads((path / _RUN).read_text(encoding="utf-8"))
        saved = SavedRun(path / str(said["arrays"]), said["side"], dict(said["plan"]), list(map(float, said["losses"])))
    except FileNotFoundError:
        what = f"holds no {_RUN}" if path.is_dir() else "no such folder"
        raise CheckpointError(f"{path}: {what}, wanted a folder written by --save") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: its {_RUN} cannot be read ({why}), wanted a folder written by --save") from None
    if saved.side not in STORES:
        raise CheckpointError(f"{path}: its side is {saved.side!r}, wanted one of {', '.join(STORES)}")
    if not _PART.fullmatch(saved.arrays.name) or not saved.arrays.is_dir():
        raise CheckpointError(f"{path}: its {saved.arrays.name} is not there, wanted a folder written by --save")
    return saved
