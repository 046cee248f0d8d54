"""How images lie in memory: as torch lays them out by default, or channels last."""

import torch


def empty(like: torch.Tensor, shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    """A new image of that shape, with the dtype and device of `like`."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def lies_channels_last(t: torch.Tensor) -> bool:
    """Whether an image lies channels last and not also as torch lays it out by default."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
