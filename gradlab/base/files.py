"""Atomic file writes, and checks that a result can be saved before the work is done."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def claim(folder: Path) -> None:
    """Make the folder and try it with a file.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def writable(command: str, path: Path | None) -> None:
    """Say that a file cannot be written before the work that it is for.

    Raises:
        ValueError: it is a folder, or its folder does not exist.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{command}: output is {path}, wanted a file in a folder that exists")


def whole(path: Path, save: Callable[[Path], object]) -> None:
    """`save` a file beside `path`, then move it there: a reader sees the old file or the new one, never a half.

    What a link names is written, not the link; a device or a pipe, as /dev/stdout may be, is written to as it stands.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        save(path)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        # mkstemp makes files that only their owner may read.
        os.chmod(name, 0o644)
        save(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text file, whole or not there."""
    whole(path, lambda part: part.write_text(text, encoding="utf-8"))
