"""The lab's kernels on a CPU: compiled by `kernels/cpu`, whichever back end is active in Triton, and cached by key.

A compiled kernel depends on dtypes, on which integers are 0 or 1 and which are past 32 bits, and on the constants. It
does not depend on whether sizes and addresses are multiples of 16, as a CPU loads vectors from any address, nor on
constants that only GPUs need, such as the geometry of a convolution.
"""

import platform
from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu import cache_triton, sanitize_torch
from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.compiler import CPUBackend
from gradlab.kernels.cpu.driver import CPUDriver
from gradlab.kernels.cpu.launcher_triton import source_file
from gradlab.kernels.cpu.launching import Kernel
from gradlab.kernels.cpu.sanitize_run import loaded
from gradlab.kernels.runtime import cache_index_triton
from gradlab.kernels.runtime.forking import Lock

# Triton's front end parses one kernel at a time.
PARSER = Lock()
TARGET = GPUTarget("cpu", platform.machine(), 1)


class Prepared:
    """A compiled kernel, with the index of each of its arguments among the launch's, and whether it is a tensor.

    Attributes:
        jit: the kernel's source; holding it keeps its id, which is part of the key, from being reused.
        numbers: for each argument of the machine code, its index among the launch's arguments.
        tensors: whether that argument is a tensor, which is passed by address.
    """

    __slots__ = ("_any", "jit", "kernel", "numbers", "tensors")

    def __init__(self, kernel: Kernel, jit: JITFunction, args: Sequence[Any]) -> None:
        self.kernel, self.jit, self._any = kernel, jit, ANY.get(id(jit), ())
        names = [*jit.arg_names[: len(args)], *self._any]
        self.numbers = [names.index(name) for name, _ in kernel.binary.arguments]
        self.tensors = [i < len(args) and isinstance(args[i], torch.Tensor) for i in self.numbers]

    def given(self, args: Sequence[Any], constants: dict[str, Any]) -> list[Any]:
        """The launch's own arguments, tensors among them, in the order of the machine code's."""
        every = (*args, *[constants[name] for name in self._any])
        return [every[i] for i in self.numbers]

    def values(self, args: Sequence[Any], constants: dict[str, Any]) -> list[Any]:
        """Addresses and numbers in the order of the machine code's arguments."""
        if self._any:
            args = (*args, *[constants[name] for name in self._any])
        return [args[i].data_ptr() if tensor else args[i] for i, tensor in zip(self.numbers, self.tensors, strict=True)]


_prepared: dict[tuple, Prepared] = {}
# The same of sanitized kernels, by their mode.
_examined: dict[str, dict[tuple, Prepared]] = {}
# By the compiler's input, a coarser key: several launches share one kernel.
_kernels: dict[tuple, Kernel] = {}
# For a kernel's id the names of its constants that are arguments here: `launch_triton.kernel_of_any`.
ANY: dict[int, tuple[str, ...]] = {}


def run(jit: JITFunction, grid: Sequence[int], args: Sequence[Any], constants: dict[str, Any]) -> None:
    """Run `jit` over `grid` on tensors of a CPU.

    Args:
        args: tensors, integers and floats in the kernel's order.
        constants: the kernel's `tl.constexpr` parameters by name.
    """
    found = prepared(jit, args, constants)
    x, y, z = (*grid, 1, 1)[:3]
    values = found.values(args, constants)
    if sanitize_torch.active is None:
        found.kernel((x, y, z), values)
    else:
        sanitize_torch.launch(found.kernel, (x, y, z), values, found.given(args, constants))


def prepared(jit: JITFunction, args: Sequence[Any], constants: dict[str, Any]) -> Prepared:
    """The kernel of such a launch, compiled at the first call."""
    any_value = ANY.get(id(jit), ())
    # What of the arguments the code depends on: dtypes, which integers are 0, 1 or past 32 bits. Most are integers.
    key = (
        # Not the kernel itself: hashing its source takes longer than the look-up.
        id(jit),
        *[
            # Inline: a function call for each argument would take longer than the rest.
            (a if a == 1 or a == 0 else 32 if -(2**31) <= a < 2**31 else 64)
            if a.__class__ is int
            else a.dtype
            if isinstance(a, torch.Tensor)
            else float
            for a in args
        ],
        *(constants.values() if not any_value else [v for name, v in constants.items() if name not in any_value]),
    )
    session = sanitize_torch.active
    cache = _prepared if session is None else _examined.setdefault(session.mode, {})
    found = cache.get(key)
    if found is None:
        made = source(jit, args, constants)
        same = (jit, None if session is None else session.mode, *made.signature.items(), *made.constants.items())
        kernel = _kernels.get(same)
        if kernel is None:
            kernel = _kernels[same] = loaded(compiled(made), torch.get_num_threads, source_file(made))
        found = cache[key] = Prepared(kernel, jit, args)
    return found


def forget() -> None:
    """Drop every kernel from memory; on disk it stays."""
    _prepared.clear()
    _examined.clear()
    _kernels.clear()


def compiled(made: ASTSource) -> Binary:
    """The machine code of a launch, from Triton's cache on disk if it is there."""
    cache_triton.install()
    # A checkout that is not installed has no entry point by which Triton finds the back end.
    backends.setdefault("cpu", Backend(compiler=CPUBackend, driver=CPUDriver))
    options: dict[str, Any] = {"enable_fp_fusion": True}
    if sanitize_torch.active is not None:
        options["instrumentation_mode"] = sanitize_torch.active.mode
    with PARSER:
        name = cache_index_triton.key(made, CPUBackend(TARGET), options)
        cached = cache_index_triton.find(name, made)
        if cached is not None:
            return cached
        found = triton.compile(made, target=TARGET, options=options)
        cache_index_triton.store(name, found.hash)
    return Binary.unseal(found.asm["obj"])


def source(
    jit: JITFunction, args: Sequence[Any], constants: dict[str, Any], kind: type[ASTSource] = ASTSource
) -> ASTSource:
    """A launch as the compiler's input, an `ASTSource` or a subclass."""
    any_value = ANY.get(id(jit), ())
    signature, fixed = dict.fromkeys(any_value, "i32"), {k: v for k, v in constants.items() if k not in any_value}
    for parameter, value in zip(jit.params, args, strict=False):
        name = parameter.name
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{type_name(value.dtype)}"
        elif isinstance(value, float):
            signature[name] = parameter.annotation_type or "fp32"
        elif value in (0, 1) and not name.isupper():
            # Strides of 1 and 0 are specialised: contiguous, and broadcast. Sizes, which have capital letters, are
            # not.
            fixed[name] = int(value)
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    signature |= dict.fromkeys(fixed, "constexpr")
    return kind(
        fn=jit,
        signature={name: signature[name] for name in jit.arg_names},
        constexprs={(jit.arg_names.index(name),): value for name, value in fixed.items()},
        attrs={},
    )


_SHORT: dict[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "bool": "i1",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
}


def type_name(dtype: torch.dtype) -> str:
    """The name of an element type in a Triton signature.

    Raises:
        TypeError: none of its own kernels takes such tensors.
    """
    found = _SHORT.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise TypeError(f"triton: argument of a kernel is a tensor of {dtype}, wanted one of {', '.join(_SHORT)}")
    return found
