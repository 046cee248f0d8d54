"""A kernel compiled by Triton for a machine that is not there; needs Triton, and neither torch nor jax."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.machine_code.targets import Target


@dataclass(frozen=True)
class Binary:
    """What the compiler made: the assembly (PTX or amdgcn), the machine code, and what a launch must set aside."""

    assembly: str
    code: bytes
    shared: int
    threads: int


def compiled(found: Found, where: Target) -> Binary:
    """The kernel for an architecture, from Triton's cache where it was compiled before."""
    # FP fusion is named because its default changes between Triton releases, and with it the last bit.
    options = {"num_warps": found.warps, "num_stages": found.stages, "enable_fp_fusion": True}
    machine = GPUTarget(where.backend, where.number, where.lanes)
    if isinstance(found.source, str):
        # Triton takes IR as a file, whose name says what it is.
        with tempfile.TemporaryDirectory(prefix="gradlab-") as folder:
            file = Path(folder) / "kernel.ttir"
            file.write_text(found.source, encoding="utf-8")
            made = triton.compile(str(file), target=machine, options=options)
    else:
        made = triton.compile(found.source, target=machine, options=options)
    assembly, code = ("ptx", "cubin") if where.backend == "cuda" else ("amdgcn", "hsaco")
    # Warp specialisation adds warps to those asked for, and the compiled kernel says how many it has.
    warps = made.metadata.num_warps
    return Binary(made.asm[assembly], made.asm[code], made.metadata.shared, warps * where.lanes)
