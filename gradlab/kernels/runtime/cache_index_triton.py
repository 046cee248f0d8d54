"""Compiled kernels in Triton's cache on disk, found by a key of the lab's own in front of Triton's.

Triton names a kernel by all that it is made of, and of itself: the first look-up of a process reads the whole of its
library to do so, for as long as a hundred kernels take to load. Here Triton's files are told by size and time, as a
build tool tells them; the rest of the key is Triton's own. What stands under it is Triton's name of the kernel, whose
binary is taken from Triton's folder if it is whole. Whatever changes how Triton compiles leaves everything to Triton.
"""

import contextlib
import functools
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.compiler import ASTSource

from gradlab.kernels.cpu.binary import Binary, Broken
from gradlab.kernels.cpu.cache_triton import Cache
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.private.private_triton import folder_of, get_cache_invalidating_env_vars

# Beside Triton's folders, whose names are longer.
FOLDER = "gradlab"


def key(made: ASTSource, backend: CPUBackend, options: dict[str, Any]) -> str | None:
    """The name of a kernel here; None where Triton is to be asked."""
    asked = (
        knobs.compilation.always_compile,
        knobs.compilation.override,
        knobs.compilation.dump_ir,
        knobs.compilation.listener,
        knobs.runtime.add_stages_inspection_hook,
    )
    if any(asked) or knobs.cache.manager_class is not Cache:
        return None
    parts = (
        triton_files(),
        made.hash(),
        backend.hash(),
        backend.parse_options(options).hash(),
        str(sorted(get_cache_invalidating_env_vars().items())),
    )
    return hashlib.sha256("-".join(parts).encode()).hexdigest()


def find(name: str | None, made: ASTSource) -> Binary | None:
    """The kernel of that name here, or None where it is to be compiled."""
    if name is None:
        return None
    try:
        owner = _path(name).read_text()
        binary = os.path.join(knobs.cache.dir, folder_of(owner), f"{made.name[:150]}.obj")
        return Binary.unseal(Path(binary).read_bytes(), owner)
    except (OSError, ValueError, Broken):
        return None


def keep(name: str | None, owner: str) -> None:
    """Remember what Triton calls a kernel; where the disk cannot be written, nothing is lost but time."""
    if name is None:
        return
    path = _path(name)
    on_its_way = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        on_its_way.write_text(owner)
        os.replace(on_its_way, path)
    except OSError:
        with contextlib.suppress(OSError):
            on_its_way.unlink()


def _path(name: str) -> Path:
    return Path(knobs.cache.dir, FOLDER, name)


@functools.cache
def triton_files() -> str:
    """Sizes and times of the files that Triton's own name of a kernel is made of, and its version."""
    root = Path(triton.__file__).parent
    files = [*root.glob("_C/*"), root / "runtime" / "cache.py"]
    for folder in ("compiler", "backends", "language"):
        files += (root / folder).rglob("*.py")
    told = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file in files for stat in [file.stat()]]
    return hashlib.sha256(repr((triton.__version__, sorted(told))).encode()).hexdigest()
