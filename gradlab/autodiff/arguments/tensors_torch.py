"""Checks of torch tensors: type, device, layout."""

from collections.abc import Mapping
from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.arguments.shards_torch import DEVICES, is_sharded, want_one_mesh
from gradlab.kernels.runtime.memory_triton import PLAIN


def want_tensors(op: str, tensors: Mapping[str, Any]) -> bool:
    """Refuse what is not a strided tensor, is on a device without kernels, or is not beside the first one.

    Returns:
        Whether they are DTensors: of one there are only such, all on one mesh.
    """
    spread = False
    first = next(iter(tensors))
    beside = tensors[first]
    for argument, tensor in tensors.items():
        # The common case, by three cheap checks.
        if type(tensor) in PLAIN and tensor.is_cpu and tensor.layout is torch.strided and beside.is_cpu:
            continue
        if not isinstance(tensor, torch.Tensor):
            refuse(op, argument, f"a {type(tensor).__name__}", "a torch.Tensor", TypeError)
        if is_sharded(tensor):
            spread = True
            want_one_mesh(op, tensors)
        if tensor.layout != torch.strided:
            refuse(op, f"layout of {argument}", tensor.layout, "torch.strided", TypeError)
        # Without data there is no kernel to run: what a result's shape, strides and dtype are is known all the same.
        if tensor.device.type not in DEVICES and not tensor.is_meta:
            refuse(op, f"device of {argument}", tensor.device, " or ".join(DEVICES))
        if tensor.device != beside.device:
            refuse(op, f"device of {argument}", tensor.device, f"{beside.device} like {first}")
    return spread
