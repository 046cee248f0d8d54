"""Weights and runs on disk: safetensors files, written atomically; a folder of a run is read as such a file is.

A run's file holds the weights by their side's names, the optimizer's state as `optimizer.*`, the loss scale as
`scaler.*` and the losses so far as `losses`; its metadata is the plan. Files of weights only can be read too.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.base.files import whole
from gradlab.workloads import folder, layouts
from gradlab.workloads.folder import CheckpointError
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.network import Network, Weights

_KEY = "gradlab"
_STATE = ("optimizer.", "scaler.")


def save(path: Path, arrays: Arrays, run: dict[str, Any] | None = None) -> None:
    """Write arrays, and the plan of a run, to `path` atomically.

    Raises:
        OSError: it cannot be written; an older file is unchanged.
    """
    from safetensors.numpy import save as pack

    metadata = None if run is None else {_KEY: json.dumps(run)}
    content = pack({name: a.copy(order="C") for name, a in arrays.items()}, metadata)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            # Flush to disk before the rename, so that a crash leaves no empty file.
            os.fsync(file.fileno())

    whole(path, write)


def read(path: Path) -> tuple[Arrays, dict[str, Any] | None]:
    """The arrays of a file or of a run's folder, and the plan of the run that wrote it; None if it holds weights only.

    Raises:
        CheckpointError: no such file, or not one of safetensors; a folder without a run.
    """
    if folder.holds_run(path):
        saved = folder.read(path)
        arrays = importlib.import_module(f"gradlab.workloads.folder_{saved.side}").read(saved.arrays)
        return arrays | {"losses": np.array(saved.losses, np.float64)}, saved.plan
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(
            f"{path}: {'is a folder without a run' if path.is_dir() else 'no such file'}, "
            "wanted a safetensors file, or the folder of a run"
        )
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            run = (file.metadata() or {}).get(_KEY)
            return arrays, None if run is None else json.loads(run)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}, wanted a safetensors file") from None


def weights_of(arrays: Arrays) -> Arrays:
    """The weights among a file's arrays."""
    return {name: a for name, a in arrays.items() if not name.startswith(_STATE) and name != "losses"}


def weights_for(network: Network, path: Path) -> Weights:
    """The network's weights in torch's layout, from a file of either side.

    Raises:
        CheckpointError: no such file, or weights of another network.
    """
    found = weights_of(read(path)[0])
    try:
        weights = layouts.to_torch(found) if layouts.side_of(found) == "jax" else found
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    wanted = network.parameters()
    if set(weights) != set(wanted):
        raise CheckpointError(f"{path}: holds {', '.join(sorted(weights))}, wanted {', '.join(sorted(wanted))}")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise CheckpointError(f"{path}: {name} is {list(weights[name].shape)}, wanted {list(shape)}")
        if weights[name].dtype.kind != "f":
            raise CheckpointError(f"{path}: {name} is {weights[name].dtype}, wanted a floating dtype")
    return {name: weights[name].astype(np.float32) for name in wanted}


def convert(source: Path, target: Path) -> str:
    """Convert a file of weights to the other side's names and layout; returns that side.

    Raises:
        CheckpointError: no such file, or no weights of one side.
        OSError: the target cannot be written.
    """
    arrays = weights_of(read(source)[0])
    try:
        side = layouts.side_of(arrays)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    save(target, layouts.to_jax(arrays) if side == "torch" else layouts.to_torch(arrays))
    return "jax" if side == "torch" else "torch"
