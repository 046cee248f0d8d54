"""torch.autocast through the hand-written layers: cast where torch's own layer of the same name is."""

from typing import Any

import torch


def to_autocast_dtype(*tensors: torch.Tensor | None) -> list[Any]:
    """Under autocast, in its dtype: what a product's operands do. float64 and integers stay, as they do in torch."""
    return _cast(None, tensors)


def to_float32(*tensors: torch.Tensor | None) -> list[Any]:
    """Under autocast, in float32: what a loss's arguments do."""
    return _cast(torch.float32, tensors)


def _cast(dtype: torch.dtype | None, tensors: tuple[torch.Tensor | None, ...]) -> list[Any]:
    first = next((t for t in tensors if isinstance(t, torch.Tensor)), None)
    # Autocast knows no meta device, and refuses the question.
    if first is None or first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return list(tensors)
    wanted = torch.get_autocast_dtype(first.device.type) if dtype is None else dtype
    return [t.to(wanted) if isinstance(t, torch.Tensor) and _eligible(t) else t for t in tensors]


def _eligible(t: torch.Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float64
