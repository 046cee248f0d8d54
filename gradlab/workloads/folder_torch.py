"""The arrays of a run's folder by torch.distributed.checkpoint: each process writes its parts, any number read them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from gradlab.workloads.folder import CheckpointError
from gradlab.workloads.layouts import Arrays


def write(path: Path, live: Arrays) -> None:
    """Write a trainer's live arrays; all processes of the run call it together.

    Raises:
        OSError: a process could not write its parts; every process raises it.
    """
    tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a.detach() for name, a in live.items()}
    try:
        with _quiet():
            dcp.save(tensors, checkpoint_id=path)
    except CheckpointException as error:
        raise OSError(_reason(error)) from None


def read(path: Path, live: Arrays | None = None) -> Arrays:
    """All arrays that `write` wrote.

    Args:
        path: where.
        live: a trainer's live arrays: what is read is spread as they are, an optimizer's state as its parameter. Not
            given, this process reads everything for itself, as NumPy arrays.

    Raises:
        CheckpointError: nothing that can be read, or arrays of other shapes than the live ones.
    """
    alone = live is None
    try:
        held: dict[str, Any] = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        for name in live or {}:
            if not name.startswith(("optimizer.", "scaler.")) and name not in held:
                raise CheckpointError(f"{path}: holds {', '.join(sorted(held))}, wanted {name} too")
        like = {
            name: _like(path, name, tuple(entry.size), entry.properties.dtype, live or {})
            for name, entry in held.items()
        }
        with _quiet():
            dcp.load(like, checkpoint_id=path, no_dist=alone)
    except (CheckpointException, OSError, AttributeError, EOFError) as error:
        reason = _reason(error) if isinstance(error, CheckpointException) else error
        raise CheckpointError(f"{path}: {reason}, wanted what torch.distributed.checkpoint wrote") from None
    return {name: t.numpy() for name, t in like.items()} if alone else like


def _like(path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, live: Arrays) -> torch.Tensor:
    """An empty tensor for what is held under that name."""
    model: Any = live.get(name)
    if model is None and name.startswith("optimizer."):
        # optimizer.exp_avg.linear1.weight has the shape of linear1.weight, unless it is a count of steps.
        model = live.get(name.split(".", 2)[2])
        model = model if model is not None and tuple(model.shape) == shape else None
    if not isinstance(model, torch.Tensor):
        return torch.empty(shape, dtype=dtype)
    if tuple(model.shape) != shape:
        raise CheckpointError(f"{path}: {name} is {list(shape)}, wanted {list(model.shape)}")
    return torch.empty_like(model.detach(), dtype=dtype)


def _quiet() -> Any:
    """Without the warning that a single process writes or reads, which is what it was asked for."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _reason(error: CheckpointException) -> str:
    """The first process's error in one line."""
    first = next(iter(error.failures.values()))[0]
    line = str(getattr(first, "strerror", None) or first).strip().partition("\n")[0]
    # torch's writer drops the reason that the file system gave it.
    return "a file was cut short, as on a full disk" if "inline_container" in line else line
