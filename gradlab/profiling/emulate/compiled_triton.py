"""A launch as a GPU would get it: compiled to PTX for an architecture, its arguments as bits."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from gradlab.kernels.private import private_triton
from gradlab.profiling.emulate.launch import Compiled
from gradlab.profiling.machine_code.found import PARSER
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import PTXError
from gradlab.profiling.ptx.tensor_maps import encode


def prepare(jit: JITFunction, args: Sequence[Any], options: dict[str, Any], where: Target) -> Compiled:
    """Compile a launch `jit[grid](*args, **options)` and pack its arguments.

    Raises:
        TypeError: an argument that no kernel takes.
    """
    target = GPUTarget(where.backend, where.number, where.lanes)
    with PARSER:
        backend = make_backend(target)
        bound, parsed, signature, constants, attrs = private_triton.specialised(jit, backend, args, options)
        source = ASTSource(jit, signature, constants, attrs)
        made = triton.compile(source, target=target, options=parsed.__dict__)
    arguments: list[int | bytes] = []
    extents: list[Extent] = []
    maps = iter(getattr(made.metadata, "tensordesc_meta", None) or ())
    for name, kind in signature.items():
        _pack(bound[name], kind, name, arguments, extents, lambda: next(maps, None))
    metadata = made.metadata
    threads = metadata.num_warps * where.lanes
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
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    return Extent(tensor.data_ptr(), span * tensor.element_size(), name)


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
