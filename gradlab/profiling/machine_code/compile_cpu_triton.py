"""Compiles one kernel for a CPU, this or another: its assembly, with source lines or without."""

from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

from gradlab.kernels.cpu import located, lower, machine
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.machine import Machine
from gradlab.kernels.private.private_triton import ir
from gradlab.kernels.runtime.compiled_triton import TARGET
from gradlab.profiling.machine_code.assembly import read
from gradlab.profiling.machine_code.targets import CPU


@dataclass(frozen=True)
class Binary:
    """The compiled kernel.

    Attributes:
        assembly: with LLVM's comments on loops and spills.
        size: bytes of machine code; 0 unless requested.
        scratch: bytes of tiles that a thread allocates beside its stack.
        machine: what the code is for.
    """

    assembly: str
    size: int
    scratch: int
    machine: Machine


def compiled(source: ASTSource, where: CPU, lines: bool = False, size: bool = True) -> Binary:
    """The kernel for a CPU; with `lines` each instruction's source line stands in front of it as a directive."""
    what = machine_of(where)
    made = lower.lower(front(source), what, True, located.Located if lines else None)
    assembly, weight = machine.read(made.ir, what, size)
    return Binary(assembly, weight, made.scratch, what)


def facts(source: ASTSource, where: CPU, lines: bool, size: bool) -> dict[str, Any]:
    """Facts of the machine code, by the attributes of `code.Code`."""
    made = compiled(source, where, lines, size)
    found = read(made.assembly, made.machine.triple, made.machine.vector_bits, lower.NAME)
    return {
        "cpu": made.machine.cpu,
        "vector_bits": made.machine.vector_bits,
        "registers": found.registers,
        "stack": found.stack,
        "scratch": made.scratch,
        "size": made.size,
        "called": found.calls,
        "counts": found.counts,
        "inner": found.inner,
        "threads": 1,
    }


def front(source: ASTSource) -> str:
    """Triton IR as the CPU's compiler takes it, out of Triton's front end and its own passes."""
    backend = CPUBackend(TARGET)
    options = backend.parse_options({"enable_fp_fusion": True})
    context = ir.context()
    ir.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(TARGET, options, functions, modules, context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    return str(stages["ttir"](module, {}))


def machine_of(where: CPU) -> Machine:
    """LLVM's description of a CPU.

    Raises:
        NoCompiler: llvmlite is not installed.
    """
    return machine.named(where.triple, where.cpu, where.features, where.bits) if where.triple else machine.host()
