"""Compiles a kernel with Triton for a GPU that need not be present; needs neither torch nor jax."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from gradlab.kernels.private import private_triton
from gradlab.profiling.machine_code.found import Binary, Found
from gradlab.profiling.machine_code.targets import Target


def compiled(found: Found, where: Target) -> Binary:
    """The kernel for an architecture, from Triton's cache where it was compiled before."""
    options = _options(found.warps, found.stages)
    machine = GPUTarget(where.backend, where.number, where.lanes)
    if isinstance(found.source, str):
        # Triton takes IR as a file whose suffix names its kind.
        with tempfile.TemporaryDirectory(prefix="gradlab-") as folder:
            file = Path(folder) / "kernel.ttir"
            file.write_text(found.source, encoding="utf-8")
            made = triton.compile(str(file), target=machine, options=options)
    else:
        made = triton.compile(found.source, target=machine, options=options)
    assembly, code = ("ptx", "cubin") if where.backend == "cuda" else ("amdgcn", "hsaco")
    # Warp specialisation adds warps to the requested ones; the compiled kernel has the number.
    warps = made.metadata.num_warps
    scratch = getattr(made.metadata, "global_scratch_size", 0)
    return Binary(made.asm[assembly], made.asm[code], made.metadata.shared, warps * where.lanes, scratch)


def begun(source: ASTSource, where: Target, warps: int, stages: int) -> Callable[[], str]:
    """Triton's front end run on the source, from Python to its IR; the call runs the other passes, to PTX or amdgcn.

    Neither uses a cache or assembles: for tests of whether a kernel compiles.
    """
    machine = GPUTarget(where.backend, where.number, where.lanes)
    backend = make_backend(machine)
    options = backend.parse_options(_options(warps, stages))
    context = private_triton.ir.context()
    private_triton.ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(machine, options, functions, modules, context)

    def finish() -> str:
        passes: dict[str, Any] = {}
        backend.add_stages(passes, options, source.language)
        made = module
        metadata: dict[str, Any] = {}
        for name, run in passes.items():
            if name != backend.binary_ext:
                made = run(made, metadata)
        return str(made)

    return finish


def assembler(where: Target) -> Path:
    """The ptxas that Triton takes for an architecture: it has two, and from 3.9 on the newer one is for sm_90 too."""
    return private_triton.assembler(where.number)


def _options(warps: int, stages: int) -> dict[str, Any]:
    # FP fusion is named because its default changes between Triton releases, and with it the last bit.
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
