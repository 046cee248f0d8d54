"""Triton's cache of compiled kernels, made robust against damaged files and unwritable folders.

A file that is truncated, altered, or copied from another kernel or machine is compiled again, never run. A folder that
cannot be written is replaced by a temporary one, which is removed when the process exits.
"""

import atexit
import base64
import functools
import json
import os
import shutil
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.cache import FileCacheManager

from gradlab.kernels.cpu.binary import Binary, Broken


def install() -> None:
    """Have Triton use this cache, unless the user has chosen another cache manager."""
    if knobs.cache.manager_class is None:
        knobs.cache.manager_class = Cache


class Cache(FileCacheManager):
    """Triton's cache on disk; files of GPU kernels are handled as in Triton itself."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        try:
            super().__init__(key, override, dump)
        except OSError as error:
            self.key = key
            self._retreat(error)

    def put(self, data: str | bytes, filename: str, binary: bool = True) -> str:
        """Store a file; returns its path."""
        try:
            return self._put(data, filename)
        except OSError as error:
            self._retreat(error)
            return self._put(data, filename)

    def _put(self, data: Any, filename: str) -> str:
        """As Triton's own, without a temporary folder for each file."""
        path = os.path.join(self.cache_dir, filename)
        on_its_way = f"{path}.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(on_its_way, "wb") as file:
                file.write(data if isinstance(data, bytes) else str(data).encode())
            os.replace(on_its_way, path)
        except OSError:
            Path(on_its_way).unlink(missing_ok=True)
            raise
        return path

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of a kernel's files, or None where it has to be compiled."""
        group = super().get_group(filename)
        return group if group and _intact(group, self.key) else None

    def _retreat(self, error: OSError) -> None:
        wanted = getattr(self, "cache_dir", None) or os.path.join(knobs.cache.dir, self.key)
        _warn(os.path.dirname(wanted), error.strerror or str(error))
        self.cache_dir = os.path.join(_own_folder(os.getpid()), self.key)
        self.lock_path = os.path.join(self.cache_dir, "lock")
        os.makedirs(self.cache_dir, exist_ok=True)


def _intact(group: dict[str, str], key: str) -> bool:
    """Whether all files exist, are undamaged, and belong to the kernel that Triton calls `key`."""
    paths = {Path(name).suffix: Path(path) for name, path in group.items()}
    try:
        owner = base64.b32decode(key + "=" * (-len(key) % 8)).hex()
        metadata = json.loads(paths[".json"].read_text())
        if metadata["target"]["backend"] != "cpu":
            return True
        Binary.unseal(paths[".obj"].read_bytes(), owner)
        return metadata["hash"] == owner
    except (OSError, ValueError, KeyError, TypeError, Broken):
        return False


@functools.cache
def _own_folder(process: int) -> str:
    """A temporary folder of this process; a forked child makes another."""
    folder = tempfile.mkdtemp(prefix="gradlab-triton-")
    atexit.register(_remove, folder, process)
    return folder


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _warn(folder: str, reason: str) -> None:
    warnings.warn(
        f"Triton's cache folder {folder} cannot be written ({reason}): kernels are compiled for this process only, "
        "TRITON_CACHE_DIR names another",
        stacklevel=2,
    )
