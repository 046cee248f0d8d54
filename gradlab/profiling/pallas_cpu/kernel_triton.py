"""Triton IR that another front end than Triton's wrote, compiled for this CPU; without torch."""

import base64
import functools
import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import triton  # noqa: F401  It looks for its back ends when it is imported, and this one has to be whole then.
from triton.backends.compiler import GPUTarget

from gradlab.kernels.cpu.binary import Binary, Broken
from gradlab.kernels.cpu.cache_triton import Cache
from gradlab.kernels.cpu.compiler import FLOATS, SANITIZE, CPUBackend
from gradlab.kernels.cpu.launching import Kernel, cores
from gradlab.kernels.cpu.sanitize_run import loaded
from gradlab.kernels.private.private_triton import ir
from gradlab.kernels.runtime.forking import Lock

_FILE = "kernel.obj"
# Another than that of Triton's front end for Python, which this is not.
_lock = Lock()


@functools.lru_cache(maxsize=1024)
def kernel_of(source: str, sanitized: bool = False, floats: bool = False) -> Kernel:
    """The kernel of a module of Triton IR, from Triton's cache on disk if it is there.

    Args:
        sanitized: it examines what it does to memory.
        floats: it looks at each float that it stores, too.

    Raises:
        NotImplementedError: an operation that the compiler for CPUs lacks.
    """
    options: dict[str, Any] = {"enable_fp_fusion": True}
    if sanitized:
        options["instrumentation_mode"] = FLOATS if floats else SANITIZE
    backend = CPUBackend(GPUTarget("cpu", platform.machine(), 1))
    parsed = backend.parse_options(options)
    owner = hashlib.sha256(f"{backend.hash()} {parsed.hash()} {source}".encode()).hexdigest()
    with _lock:
        cache = Cache(base64.b32encode(bytes.fromhex(owner)).decode().rstrip("="))
        kept = cache.get_file(_FILE)
        if kept is not None:
            try:
                return loaded(Binary.unseal(Path(kept).read_bytes(), owner), cores)
            except (Broken, OSError):
                pass
        made = _compiled(source, backend, parsed, owner)
        cache.put(made, _FILE, binary=True)
    return loaded(Binary.unseal(made), cores)


def _compiled(source: str, backend: CPUBackend, options: Any, owner: str) -> bytes:
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options)
    metadata = {"hash": owner}
    with tempfile.TemporaryDirectory(prefix="gradlab-") as folder:
        # Triton parses files.
        file = Path(folder, "kernel.ttir")
        file.write_text(source, encoding="utf-8")
        context = ir.context()
        ir.load_dialects(context)
        made: Any = ir.parse_mlir_module(str(file), context)
        made.context = context
        for stage in stages.values():
            made = stage(made, metadata)
    return made
