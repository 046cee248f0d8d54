"""The Triton kernels of other packages for an op's case, found by calling them on real tensors of a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from gradlab.kernels.spec import OpCase
from gradlab.profiling.machine_code import inductor_torch, own_torch
from gradlab.profiling.machine_code.found import Found

# M, N, K, stages and warps of products. inductor chooses by measuring, among others these.
TILES = {"linear": ((128, 128, 64, 3, 8), (128, 256, 64, 3, 8)), "conv2d": ((128, 128, 32, 2, 8),)}


def liger(at: OpCase, dtype: str) -> list[Found]:
    """Liger-Kernel's kernels; it writes the gradient in the forward."""
    if at.spec.name == "linear_cross_entropy":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        h, w, t = _inputs(at, dtype)
        return own_torch.find(lambda h, w: liger_fused_linear_cross_entropy(h, w, t), (h, w.mT))
    from liger_kernel.transformers.functional import liger_cross_entropy

    x, t = _inputs(at, dtype)
    # Of a result: Liger writes over the logits.
    return own_torch.find(lambda x: liger_cross_entropy(x * 1, t, softcap=at.options.get("softcap")), (x,))


def inductor(at: OpCase, dtype: str) -> list[Found]:
    """What inductor writes for torch's own layer, with the tiles of TILES."""
    layers: dict[str, Callable[..., Any]] = {
        "linear": lambda x, w, b: torch.addmm(b, x, w),
        "cross_entropy": lambda x, t: functional.cross_entropy(_capped(x, at.options.get("softcap")), t),
        "conv2d": lambda x, w: functional.conv2d(x, w, padding=at.options["padding"]),
    }
    found: list[Found] = []
    for tile in TILES.get(at.spec.name, ((128, 128, 64, 3, 8),)):
        found += inductor_torch.find(layers[at.spec.name], _inputs(at, dtype), tile)
    return found


def _capped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def _inputs(at: OpCase, dtype: str) -> list[torch.Tensor]:
    """Zeros, which take no memory until they are written; a backward is looked for where products have none of aten."""
    wants = at.spec.name != "conv2d"
    return [
        torch.zeros(a.shape(at.sizes), dtype=torch.int64)
        if a.integer
        else torch.zeros(a.shape(at.sizes), dtype=getattr(torch, dtype)).requires_grad_(wants)
        for a in at.inputs
    ]
