"""What a Triton launch on tensors is called with, as a GPU would get it: bits of arguments, and memory."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradlab.profiling.machine_code.found import Call
from gradlab.profiling.ptx.global_memory import Extent


def call(signature: Mapping[str, Any], values: Mapping[str, Any], grid: Sequence[int], holds: Sequence[Any]) -> Call:
    """A launch.

    Args:
        signature: Triton's types by name; "constexpr" for what is no argument of the compiled kernel.
        values: by name.
        holds: tensors that the kernel reaches by addresses in memory.
    """
    taken = {name: values[name] for name, kind in signature.items() if kind != "constexpr"}
    tensors = {name: value for name, value in taken.items() if isinstance(value, torch.Tensor)}
    named = {**tensors, **{f"held {n}": t for n, t in enumerate(holds) if isinstance(t, torch.Tensor)}}
    extents = tuple(Extent(t.data_ptr(), _span(t) * t.element_size(), name) for name, t in named.items())
    x, y, z = (*(int(n) for n in grid), 1, 1)[:3]
    bits = tuple(_bits(value, signature[name]) for name, value in taken.items())
    return Call((x, y, z), bits, extents, tuple(named.values()))


def _bits(value: Any, kind: str) -> int:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if not isinstance(value, float):
        return int(value)
    return struct.unpack("<Q" if kind == "fp64" else "<I", struct.pack("<d" if kind == "fp64" else "<f", value))[0]


def _span(tensor: torch.Tensor) -> int:
    """Elements from the first to the last."""
    reach = (max(n - 1, 0) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + sum(reach)) * bool(tensor.numel())
