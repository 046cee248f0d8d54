"""The compiler half of the Triton back end `cpu`: TTIR to LLVM IR to an object file.

Triton imports this module during its own import, in every process that imports Triton: before a kernel is compiled,
only Triton's base classes are imported here.
"""

import dataclasses
import functools
import hashlib
import platform
import re
import sys
from pathlib import Path
from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget

# The instrumentation mode, an option of Triton's own launches, that asks for a sanitized kernel.
SANITIZE = "gradlab-sanitize"
# The same, which looks at floats too.
FLOATS = "gradlab-sanitize-floats"
# Launch options that only concern GPUs; the other back ends of this Triton add theirs.
_FOR_GPUS = ("grf_mode", "generate_native_code", "maxnreg", "num_consumer_groups", "num_buffers_warp_spec")


@dataclasses.dataclass(frozen=True)
class Options:
    """The launch options that Triton's front end, its launcher or this compiler reads.

    `num_warps`, `num_stages` and `num_ctas` tune GPUs and have no effect here: launches that differ only in these share
    one compiled kernel.
    """

    num_warps: int = 4
    num_stages: int = 3
    num_ctas: int = 1
    warp_size: int = 1
    debug: bool = False
    sanitize_overflow: bool = True
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False
    ir_override: str | None = None
    instrumentation_mode: str = ""
    backend_name: str = "cpu"
    arch: str = "cpu"
    extern_libs: tuple[tuple[str, str], ...] = ()
    # Float8 types as the front end names them: E4M3FN, E5M2, E4M3FNUZ, E5M2FNUZ.
    supported_fp8_dtypes: tuple[str, ...] = ("fp8e4nv", "fp8e5", "fp8e4b8", "fp8e5b16")
    deprecated_fp8_dot_operand_dtypes: tuple[str, ...] = ()
    # A dot is computed in its operands' precision, whatever input_precision allows a GPU to round.
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple[str, ...] = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0

    @property
    def sanitized(self) -> bool:
        """Whether the kernel examines its accesses to memory."""
        return SANITIZE in self.instrumentation_mode

    def hash(self) -> str:
        """The options that change the code, as a key for Triton's cache."""
        read = (self.debug, self.sanitize_overflow, self.enable_fp_fusion, self.ir_override, self.instrumentation_mode)
        return hashlib.sha256(repr(read).encode()).hexdigest()


class CPUBackend(BaseBackend):
    """Triton's compiler interface, for CPUs."""

    instrumentation = None
    # The file that a launch loads: an object file, `binary.Binary.seal`.
    binary_ext = "obj"

    def __init__(self, target: GPUTarget) -> None:
        # Code is generated for the host; torch.compile names no architecture.
        if isinstance(target.arch, str) and target.arch not in ("", platform.machine()):
            raise ValueError(f"cpu: the target's architecture is {target.arch!r}, wanted {platform.machine()!r}")
        super().__init__(target)

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        """Whether a target is this back end's."""
        return target.backend == "cpu"

    def hash(self) -> str:
        """The cache key's part besides the kernel and its options: this compiler, LLVM and the CPU."""
        from gradlab.kernels.cpu.machine import host

        return _version(host().key())

    def parse_options(self, opts: dict[str, Any]) -> Options:
        """The options of one launch; options of other back ends are accepted and have no effect."""
        fixed = {"backend_name", "arch", "extern_libs", "warp_size"}
        own = {field.name for field in dataclasses.fields(Options)} - fixed
        given = {name: value for name, value in opts.items() if name in own and value is not None}
        given["enable_fp_fusion"] = _fusion(given.get("enable_fp_fusion"))
        # Triton checks integer overflow in debug mode only, but computes the operands of those checks in every mode.
        given["sanitize_overflow"] = given.get("sanitize_overflow", True) and given.get("debug", False)
        # Triton's own launches say so; others, as inductor's, do not.
        given.setdefault("instrumentation_mode", _instrumentation())
        if SANITIZE in given.get("instrumentation_mode", ""):
            given |= {"debug": True, "sanitize_overflow": False}
        options = Options(**given)
        for name in opts.keys() & _foreign():
            # Triton refuses launch keywords that are not attributes of the options.
            options.__dict__.setdefault(name, opts[name])
        return options

    def pack_metadata(self, metadata: Any) -> tuple[int, int, int]:
        """The metadata that launch hooks receive, as in other back ends."""
        return metadata.num_warps, metadata.num_ctas, metadata.shared

    def get_codegen_implementation(self, options: Options) -> dict[str, Any]:
        """Limits of the target that the front end checks: a dot's operands may have any size."""
        return {"convert_custom_types": None, "min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def get_module_map(self) -> dict[str, Any]:
        """Where `triton.language.extra.libdevice` is found: its calls arrive by CUDA's names, `__nv_expf`."""
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    @staticmethod
    def parse_attr(desc: str) -> list[list[Any]]:
        """Divisibility of arguments does not change the code here, and so does not change the cache key."""
        return []

    def load_dialects(self, context: Any) -> None:
        """No dialects beside Triton's own."""

    def add_stages(self, stages: dict[str, Any], options: Options, language: Any = None) -> None:
        """The steps from the front end's IR to the object file."""
        from triton import knobs

        if getattr(language, "name", "TRITON") != "TRITON":
            raise NotImplementedError("a Gluon kernel is written for one GPU's layouts: it is not compiled for the CPU")
        if knobs.compilation.store_binary_only:
            raise RuntimeError("TRITON_STORE_BINARY_ONLY stores GPU files only: unset it to compile for the CPU")
        stages["ttir"] = _ttir
        stages["llir"] = functools.partial(_llir, options=options)
        stages["obj"] = _obj


def _ttir(module: Any, metadata: dict[str, Any]) -> str:
    """Triton's own TTIR passes, those that its GPU back ends start with; the result is the printed module."""
    from gradlab.kernels.private.private_triton import ir, passes

    manager = ir.pass_manager(module.context)
    manager.enable_debug()
    for group, name in (
        (passes.common, "inliner"),
        # Block pointers; from Triton 3.8 on the front end rewrites them itself.
        (passes.ttir, "rewrite_tensor_pointer"),
        (passes.ttir, "rewrite_tensor_descriptor_to_pointer"),
        (passes.common, "canonicalizer"),
        (passes.ttir, "combine"),
        (passes.ttir, "reorder_broadcast"),
        (passes.common, "cse"),
        (passes.common, "symbol_dce"),
        (passes.ttir, "loop_unroll"),
    ):
        add = getattr(group, f"add_{name}", None)
        if add is not None:
            add(manager)
    manager.run(module, "make_ttir")
    return str(module)


def _llir(module: Any, metadata: dict[str, Any], options: Options) -> str:
    """LLVM IR; the metadata takes what a launch needs."""
    from gradlab.kernels.cpu import lower
    from gradlab.kernels.cpu.machine import host

    text = str(module)
    writing = None
    if options.sanitized:
        writing = _sanitizer(options.instrumentation_mode)
    lowered = lower.lower(text, host(), options.enable_fp_fusion, writing)
    named = re.search(r'tt\.func public @"?([^"(\s]+)', text)
    metadata["name"] = named[1] if named else lowered.name
    # Triton's runtime checks a kernel's shared memory, and host code divides the available amount by it: not 0.
    metadata["shared"] = 1
    metadata["launch"] = {
        "name": metadata["name"],
        "entry": lowered.name,
        "arguments": lowered.arguments,
        "scratch": lowered.scratch,
        "messages": lowered.messages,
        "stored": lowered.stored,
        "ordered": lowered.ordered,
        "sites": lowered.sites,
    }
    return lowered.ir


def _sanitizer(mode: str) -> Any:
    """The class that writes a sanitized kernel."""
    if FLOATS in mode:
        from gradlab.kernels.cpu.sanitize_births import Births

        return Births
    from gradlab.kernels.cpu.sanitize_lower import Sanitized

    return Sanitized


def _obj(text: str, metadata: dict[str, Any]) -> bytes:
    """The object file with the metadata that a launch needs, sealed."""
    from gradlab.kernels.cpu.binary import Binary
    from gradlab.kernels.cpu.machine import host, object_code

    try:
        code = object_code(text, host())
    except RuntimeError as error:
        raise RuntimeError(
            f"{metadata['name']}: LLVM does not take this kernel's IR ({str(error).strip().splitlines()[0]}); please "
            "report it with the file *.llir that TRITON_KERNEL_DUMP=1 writes, and TRITON_INTERPRET=1 works meanwhile"
        ) from error
    return Binary.made(code, **metadata["launch"]).seal(metadata["hash"])


def _instrumentation() -> str:
    """How kernels are to be instrumented, as Triton's knob says."""
    from triton import knobs

    return getattr(knobs.compilation, "instrumentation_mode", None) or ""


def _fusion(requested: bool | None) -> bool:
    """Whether a multiply and an add may fuse and round once: as requested, else Triton's default."""
    from triton import knobs

    if getattr(knobs.language, "force_disable_fp_fusion", False):
        return False
    return getattr(knobs.language, "default_fp_fusion", True) if requested is None else requested


@functools.cache
def _foreign() -> frozenset[str]:
    """Names of the options of this Triton's other back ends."""
    from triton.backends import backends

    modules = [sys.modules[backend.compiler.__module__] for backend in backends.values()]
    options = [
        member
        for module in modules
        for name, member in vars(module).items()
        if name.endswith("Options") and dataclasses.is_dataclass(member)
    ]
    return frozenset(_FOR_GPUS).union(*({field.name for field in dataclasses.fields(kind)} for kind in options))


@functools.cache
def _version(machine: str) -> str:
    digest = hashlib.sha256(machine.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return f"gradlab-cpu-{digest.hexdigest()}"
