"""An index of compiled kernels in Triton's cache on disk, by a key that is cheaper to compute than Triton's.

Triton's key hashes a kernel's sources and Triton's own library: the first look-up of a process reads all of the
library, which takes as long as loading a hundred kernels. Here Triton's files are identified by size and time, as in a
build tool; the rest of the key is Triton's own. An entry is Triton's name of the kernel, whose binary is loaded from
Triton's folder if it is intact. With any setting that changes how Triton compiles, everything is left to Triton.
"""

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.compiler import ASTSource
from triton.runtime import cache

from gradlab.kernels.cpu.binary import Binary, Broken
from gradlab.kernels.cpu.cache_triton import Cache
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.private.private_triton import folder_of, get_cache_invalidating_env_vars

# In Triton's cache folder, beside its kernels' folders, whose names are longer.
FOLDER = "gradlab"


def key(made: ASTSource, backend: CPUBackend, options: dict[str, Any]) -> str | None:
    """A kernel's key in this index; None if Triton has to look it up."""
    settings = (
        knobs.compilation.always_compile,
        knobs.compilation.override,
        knobs.compilation.dump_ir,
        knobs.compilation.listener,
        knobs.runtime.add_stages_inspection_hook,
    )
    if any(settings) or knobs.cache.manager_class is not Cache:
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
    """The kernel of that key; None if it has to be compiled."""
    if name is None:
        return None
    try:
        owner = _path(name).read_text()
        binary = os.path.join(knobs.cache.dir, folder_of(owner), f"{made.name[:150]}.obj")
        return Binary.unseal(Path(binary).read_bytes(), owner)
    except (OSError, ValueError, Broken):
        return None


def store(name: str | None, owner: str) -> None:
    """Store Triton's name of a kernel; a disk that cannot be written only costs time."""
    if name is None:
        return
    path = _path(name)
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(owner)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def remembered_triton_key() -> Iterator[None]:
    """Within it, what Triton reads all of its files for, a part of each of its keys, is found on disk.

    For a process of the lab's own: Triton's function is replaced.
    """
    compute = getattr(cache, "triton_key", None)
    if compute is None:
        yield
        return

    @functools.cache
    def remembered() -> str:
        name = f"triton-{triton_files()}"
        with contextlib.suppress(OSError):
            return _path(name).read_text()
        store(name, found := compute())
        return found

    cache.triton_key = remembered
    try:
        yield
    finally:
        cache.triton_key = compute


def _path(name: str) -> Path:
    return Path(knobs.cache.dir, FOLDER, name)


@functools.cache
def triton_files() -> str:
    """A hash of the sizes and times of the files that Triton's key hashes, and of its version."""
    root = Path(triton.__file__).parent
    files = [*root.glob("_C/*"), root / "runtime" / "cache.py"]
    for folder in ("compiler", "backends", "language"):
        files += (root / folder).rglob("*.py")
    stamps = [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file in files for stat in [file.stat()]]
    return hashlib.sha256(repr((triton.__version__, sorted(stamps))).encode()).hexdigest()
