"""This CPU, and LLVM's code generator for it: IR text to object file, object file to callable functions.

llvmlite carries LLVM in its wheel; it is imported when the first kernel is compiled or loaded, not before.
"""

import ctypes
import dataclasses
import functools
import hashlib
import itertools
import os
import platform
import sys
import threading
from collections.abc import Mapping
from typing import Any

# Held around LLVM's calls and around a fork: a child forked during a call would inherit llvmlite's own lock taken.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


# Unique names of linked objects.
_libraries = itertools.count()


class NoCompiler(ImportError):
    """llvmlite is not installed, or too old."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A target of code generation: LLVM's triple, CPU name and feature string, and bits of a vector register."""

    triple: str
    cpu: str
    features: str
    vector_bits: int

    @property
    def matrices(self) -> bool:
        """Whether it has tile registers that multiply bfloat16 (AMX)."""
        return self.vector_bits == 512 and "+amx-bf16" in self.features.split(",")

    def key(self) -> str:
        """Cache key of this machine's code, with the code generator's version."""
        return hashlib.sha256(repr((self, _binding().llvm_version_info)).encode()).hexdigest()[:16]


@functools.cache
def host() -> Machine:
    """The CPU that this process runs on; `GRADLAB_CPU_VECTOR_BITS` limits it to narrower registers."""
    llvm = _binding()
    features = llvm.get_host_cpu_features()
    widest = _vector_bits(features)
    given = os.environ.get("GRADLAB_CPU_VECTOR_BITS")
    if given is not None:
        if given not in ("128", "256", "512"):
            raise ValueError(f"GRADLAB_CPU_VECTOR_BITS is {given!r}, wanted 128, 256 or 512")
        widest = min(widest, int(given))
    if features.get("amx-bf16") and not _tiles_permitted():
        features.update({name: False for name in features if name.startswith("amx")})
    # On some CPUs, AMD's among them, LLVM lowers a gather to one branch a lane. Data-dependent masks are mispredicted
    # half of the time: the gather instruction is faster there too.
    text = features.flatten() + (",+fast-gather" if widest >= 256 else "")
    return Machine(llvm.get_process_triple(), llvm.get_host_cpu_name(), text, widest)


def _tiles_permitted() -> bool:
    """Request the AMX tile registers, which Linux grants to each process on request; returns whether it did."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, request, tile_data) == 0


def named(triple: str, cpu: str, features: str = "", vector_bits: int = 128) -> Machine:
    """Another CPU than the host: code for it is assembled, not run."""
    llvm = _binding()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return Machine(triple, cpu, features, vector_bits)


def object_code(ir: str, machine: Machine) -> bytes:
    """The object file of a module of IR text."""
    with _lock:
        module, target = _optimized(ir, machine)
        return target.emit_object(module)


def position_independent(ir: str, machine: Machine, entry: str, name: str) -> bytes:
    """The object file of a module of IR text for a linker, its function `entry` called `name`."""
    llvm = _binding()
    with _lock:
        module, _ = _optimized(ir.replace(f"@{entry}(", f'@"{name}"('), machine)
        found = llvm.Target.from_triple(machine.triple)
        target = found.create_target_machine(cpu=machine.cpu, features=machine.features, opt=2, reloc="pic")
        return target.emit_object(module)


def assembly(ir: str, machine: Machine) -> str:
    """The assembly text of a module of IR text."""
    with _lock:
        module, target = _optimized(ir, machine)
        return target.emit_assembly(module)


def read(ir: str, machine: Machine, size: bool = True) -> tuple[str, int]:
    """The assembly text of a module of IR text, for reading, and the size of its machine code in bytes.

    The text has LLVM's comments, which mark loops and spills. The size takes a second code generation; with size=False
    it is skipped, and given as 0.
    """
    llvm = _binding()
    with _lock:
        module, target = _optimized(ir, machine)
        # Code generation changes the module: each takes its own.
        other = llvm.parse_bitcode(module.as_bitcode()) if size else None
        target.set_asm_verbosity(True)
        text = target.emit_assembly(module)
        if other is None:
            return text, 0
        binary = llvm.ObjectFileRef.from_data(_target(machine).emit_object(other))
        return text, sum(section.size() for section in binary.sections() if section.is_text())


class Code:
    """An object file in this process's memory; its functions live as long as it does."""

    def __init__(self, binary: bytes) -> None:
        self._binary = binary
        # The linked library of each requested function.
        self._linked: dict[str, Any] = {}

    def address(self, name: str) -> int:
        """The address of a function."""
        with _lock:
            found = self._linked.get(name)
            if found is None:
                builder = _binding().JITLibraryBuilder().add_object_img(self._binary).add_current_process()
                try:
                    found = builder.export_symbol(name).link(_linker(), f"kernel{next(_libraries)}")
                except RuntimeError as error:
                    if name not in str(error):
                        raise
                    raise ValueError(f"the object file has no function {name!r}") from None
                self._linked[name] = found
            return found[name]

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function as a ctypes callable, which releases the GIL."""
        call: Any = ctypes.CFUNCTYPE(result, *arguments)(self.address(name))
        # The function keeps its code alive.
        call.code = self
        return call


@functools.cache
def _linker() -> Any:
    """One linker for the process: to make one takes five times as long as to link a kernel."""
    return _binding().create_lljit_compiler(_target(host()), suppress_errors=True)


def _optimized(ir: str, machine: Machine) -> tuple[Any, Any]:
    llvm = _binding()
    target = _target(machine)
    module = llvm.parse_assembly(f'target triple = "{machine.triple}"\n' + ir)
    module.verify()
    # The code is vectorised and hoisted already (`emit`): the passes that are left inline small functions. LLVM's full
    # optimisation at level 2 takes 60 times as long.
    manager = llvm.create_new_module_pass_manager()
    manager.add_always_inliner_pass()
    manager.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=1)))
    return module, target


def _target(machine: Machine) -> Any:
    llvm = _binding()
    found = llvm.Target.from_triple(machine.triple)
    return found.create_target_machine(cpu=machine.cpu, features=machine.features, opt=2, reloc="default", jit=True)


def _vector_bits(features: Mapping[str, bool]) -> int:
    if all(features.get(name) for name in ("avx512f", "avx512vl", "avx512bw", "avx512dq")):
        return 512
    return 256 if features.get("avx2") and features.get("fma") else 128


@functools.cache
def _binding() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise NoCompiler(
            "Triton kernels on a CPU are compiled with llvmlite, which is not installed: pip install 'gradlab[torch]', "
            "or set GRADLAB_CPU=interpret"
        ) from error
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def architecture() -> str:
    """The CPU's architecture as Python names it."""
    return platform.machine()
