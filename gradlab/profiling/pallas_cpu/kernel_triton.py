"""Triton IR that another front end than Triton's wrote, compiled for this CPU."""

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton  # noqa: F401  It looks for its back ends when it is imported, and this one has to be whole then.

from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.compiler import SANITIZE, CPUBackend
from gradlab.kernels.cpu.launching import Kernel
from gradlab.kernels.cpu.sanitize_run import loaded
from gradlab.kernels.private.private_triton import ir
from gradlab.kernels.runtime.compiled_triton import PARSER, TARGET


@functools.lru_cache(maxsize=1024)
def kernel_of(source: str, sanitized: bool = False) -> Kernel:
    """The kernel of a module of Triton IR.

    Raises:
        NotImplementedError: an operation that the compiler for CPUs lacks.
    """
    options = {"enable_fp_fusion": True, **({"instrumentation_mode": SANITIZE} if sanitized else {})}
    backend = CPUBackend(TARGET)
    parsed = backend.parse_options(options)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed)
    metadata = {"hash": hashlib.sha256(source.encode()).hexdigest()}
    with PARSER, tempfile.TemporaryDirectory(prefix="gradlab-") as folder:
        # Triton parses files.
        file = Path(folder, "kernel.ttir")
        file.write_text(source, encoding="utf-8")
        context = ir.context()
        ir.load_dialects(context)
        made: Any = ir.parse_mlir_module(str(file), context)
        made.context = context
        for stage in stages.values():
            made = stage(made, metadata)
    return loaded(Binary.unseal(made), torch.get_num_threads)
