"""The arrays of a run's folder by orbax: each process writes its parts, any number of devices read them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gradlab.base.terminal import first_line
from gradlab.workloads.folder import CheckpointError
from gradlab.workloads.layouts import Arrays

try:
    import orbax.checkpoint as ocp
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("orbax"):
        raise
    raise ModuleNotFoundError("orbax-checkpoint is not installed: pip install 'gradlab[scale]'", name="orbax") from None


def write(path: Path, live: Arrays) -> None:
    """Write a trainer's live arrays; all processes of the run call it together.

    Raises:
        OSError: a process could not write its parts.
    """
    try:
        with _orbax() as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.StandardSave(live))
    except OSError:
        raise
    except (ValueError, RuntimeError) as error:
        raise OSError(first_line(error)) from None


def read(path: Path, live: Arrays | None = None) -> Arrays:
    """All arrays that `write` wrote.

    Args:
        path: where.
        live: a trainer's live arrays: what is read lies as they do. Not given, it is all read into NumPy arrays.

    Raises:
        CheckpointError: nothing that can be read, or other arrays than the live ones.
    """
    try:
        with _orbax() as checkpointer:
            said = checkpointer.metadata(path.absolute()).item_metadata
            if said is None:
                raise CheckpointError(f"{path}: holds no arrays, wanted what orbax wrote")
            held = said.tree
            return checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(_like(path, held, live)))
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}, wanted what orbax wrote") from None


def _like(path: Path, held: dict[str, Any], live: Arrays | None) -> Arrays:
    """Shape, dtype and place of everything that is to be read."""
    if live is None:
        return {name: np.empty(entry.shape, entry.dtype) for name, entry in held.items()}
    if set(held) != set(live):
        raise CheckpointError(f"{path}: holds {', '.join(sorted(held))}, wanted {', '.join(sorted(live))}")
    for name, array in live.items():
        if tuple(held[name].shape) != array.shape:
            raise CheckpointError(f"{path}: {name} is {list(held[name].shape)}, wanted {list(array.shape)}")
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in live.items()}


@contextmanager
def _orbax() -> Iterator[Any]:
    """A checkpointer that says nothing but errors."""
    before, logger = logging.getLogger("absl").level, logging.getLogger("absl")
    logger.setLevel(logging.ERROR)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(before)
