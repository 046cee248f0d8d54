"""How images lie in memory: as torch lays them out by default or channels last, and how far their offsets reach."""

import torch
import triton.language as tl


def empty(like: torch.Tensor, shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    """A new image of that shape, with the dtype and device of `like`."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def lies_channels_last(t: torch.Tensor) -> bool:
    """Whether an image lies channels last and not also as torch lays it out by default."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def suggests_channels_last(t: torch.Tensor) -> bool:
    """Whether torch's poolings answer channels last: strides that rise from C over W and H to B, gaps allowed."""
    if t.ndim != 4 or 0 in t.shape or t.stride(1) == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        # One pixel of an image is ambiguous: the default, unless the images' stride says otherwise.
        if t.stride(axis) < least or (axis == 0 and least == t.stride(1)):
            return False
        least = t.stride(axis) * max(t.shape[axis], 1)
    return True


def index(*tensors: torch.Tensor | None) -> tl.dtype:
    """The dtype of offsets: 64 bits when one, or a tile past the end, may reach 2^31; it costs registers and time."""
    reach = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t is not None)
    return tl.int64 if max(reach) >= 2**30 else tl.int32
