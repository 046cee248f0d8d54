"""A launch as a GPU would get it: compiled to PTX for an architecture, its arguments as bits."""

import contextlib
import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu.sanitize_extents_torch import span
from gradlab.kernels.private import private_triton
from gradlab.profiling.emulate.launch import Compiled
from gradlab.profiling.emulate.words import in_a_line, shown
from gradlab.profiling.machine_code.found import PARSER
from gradlab.profiling.machine_code.targets import RESERVED, Target
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError
from gradlab.profiling.ptx.tensor_maps import encode

# Threads that a block may have (CUDA C++ Programming Guide, "Compute Capabilities").
_THREADS = 1024
# Options of a launch that AMD's GPUs have.
_ELSEWHERE = ("kpack", "matrix_instr_nonkdim", "schedule_hint", "waves_per_eu")


def prepare(jit: JITFunction, args: Sequence[Any], options: dict[str, Any], where: Target) -> Compiled:
    """Compile a launch `jit[grid](*args, **options)` and pack its arguments.

    Raises:
        TypeError: an argument that no kernel takes.
        PTXError: a kernel that does not compile for the architecture, or wants clusters of blocks.
    """
    target = GPUTarget(where.backend, where.number, where.lanes)
    # A file without a GPU may give what is meant for another back end.
    options = {name: value for name, value in options.items() if name not in _ELSEWHERE or name in jit.arg_names}
    if (blocks := options.get("num_ctas") or 1) > 1 and "num_ctas" not in jit.arg_names:
        raise PTXError(f"emulate: num_ctas of {jit.fn.__name__} is {blocks}, wanted 1: clusters are not executed")
    # Of a kernel that an assembler refuses Triton prints all of the PTX.
    with PARSER, contextlib.redirect_stdout(io.StringIO()):
        backend = make_backend(target)
        try:
            bound, parsed, signature, constants, attrs = private_triton.specialised(jit, backend, args, options)
            source = ASTSource(jit, signature, constants, attrs)
            made = triton.compile(source, target=target, options=parsed.__dict__)
        except Exception as error:
            node = getattr(error, "node", None)
            line = jit.starting_line_number + getattr(node, "lineno", 1) - 1
            place = f"{shown(jit.fn.__code__.co_filename)}:{line}"
            raise PTXError(
                f"emulate: {jit.fn.__name__} ({place}) came with {in_a_line(error)}, wanted a launch that compiles for "
                f"{where.name}"
            ) from error
    arguments: list[int | bytes] = []
    extents: list[Extent] = []
    maps = iter(getattr(made.metadata, "tensordesc_meta", None) or ())
    for name, kind in signature.items():
        _pack(bound[name], kind, name, arguments, extents, lambda: next(maps, None))
    metadata = made.metadata
    threads = metadata.num_warps * where.lanes
    if threads > _THREADS:
        raise PTXError(f"emulate: {jit.fn.__name__} has blocks of {threads} threads, wanted at most {_THREADS}")
    if metadata.shared > (most := where.shared - RESERVED):
        raise PTXError(
            f"emulate: {jit.fn.__name__} wants {metadata.shared:,} bytes of shared memory, wanted at most "
            f"{most:,}, which a block of {where.name} has"
        )
    return Compiled(
        made.asm["ptx"],
        made.asm["cubin"],
        threads,
        metadata.shared,
        metadata.global_scratch_size,
        tuple(arguments),
        tuple(extents),
    )


def extent(tensor: torch.Tensor, name: str) -> Extent:
    """The memory of a tensor from its first element to its last."""
    return Extent(tensor.data_ptr(), span(tensor) * tensor.element_size(), name)


def _pack(
    value: Any,
    kind: Any,
    name: str,
    arguments: list[int | bytes],
    extents: list[Extent],
    next_map: Callable[[], Any],
) -> None:
    if isinstance(kind, tuple):
        for n, (part, part_kind) in enumerate(zip(value, kind, strict=True)):
            _pack(part, part_kind, f"{name}[{n}]", arguments, extents, next_map)
    elif kind == "constexpr":
        return
    elif kind.startswith("tensordesc"):
        base, sizes, strides = value.base, [int(n) for n in value.shape], [int(n) for n in value.strides]
        extents.append(extent(base, name))
        meta = next_map()
        if meta is None:
            arguments += [base.data_ptr(), *sizes, *strides, int(value.padding == "nan"), int(value.round_f32_to_tf32)]
        else:
            fill, box = int(value.padding == "nan"), [int(n) for n in meta["block_size"]]
            if meta["fp4_padded"]:
                raise PTXError(f"emulate: {name} is a tensor descriptor of padded 4-bit numbers, wanted another type")
            arguments.append(encode(base.data_ptr(), sizes, strides, box, meta["elem_type"], meta["swizzle"], fill))
        arguments += [*sizes, *strides]
    elif kind.startswith("*"):
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise PTXError(f"emulate: {name} is a tensor on {value.device.type}, wanted one on a CPU")
            extents.append(extent(value, name))
            arguments.append(value.data_ptr())
        else:
            arguments.append(value.data_ptr() if hasattr(value, "data_ptr") else int(value or 0))
    elif kind in _FLOATS:
        arguments.append(_FLOATS[kind](float(value)))
    else:
        arguments.append(int(value))


def _bits(pack: str, unpack: str) -> Callable[[float], int]:
    return lambda value: struct.unpack(unpack, struct.pack(pack, value))[0]


_FLOATS: dict[str, Callable[[float], int]] = {
    "fp16": _bits("<e", "<H"),
    "bf16": lambda value: _bits("<f", "<I")(value) >> 16,
    "fp32": _bits("<f", "<I"),
    "f32": _bits("<f", "<I"),
    "fp64": _bits("<d", "<Q"),
}
