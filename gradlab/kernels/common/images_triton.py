"""Memory layouts of images and filters: contiguous or channels last, and how far offsets reach."""

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import sized_for

# Programs from which on copying filters to another layout pays.
COPIED = 8


def empty(like: torch.Tensor, shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    """An uninitialised image of that shape, with the dtype and device of `like`."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def lies_channels_last(t: torch.Tensor) -> bool:
    """Whether an image is channels last, and not contiguous as well."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def suggests_channels_last(t: torch.Tensor) -> bool:
    """Whether torch's poolings return channels last: strides rise from C over W and H to B, gaps allowed."""
    if t.ndim != 4 or 0 in t.shape or t.stride(1) == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        # Images of one pixel are ambiguous: taken as contiguous, unless the stride of B differs.
        if t.stride(axis) < least or (axis == 0 and least == t.stride(1)):
            return False
        least = t.stride(axis) * max(t.shape[axis], 1)
    return True


def index(*tensors: torch.Tensor | None) -> tl.dtype:
    """The dtype of offsets: 64 bits if one, also of a tile past the end, may reach 2^31; 64 bits cost registers."""
    reach = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t is not None)
    return tl.int64 if max(reach) >= 2**30 else tl.int32


def filters_along(w: torch.Tensor, programs: int, axis: int) -> torch.Tensor:
    """The filters with `axis`, the GEMM's columns, contiguous: copied where many programs on a CPU read all of them.

    Each program packs the filters by rows; from a contiguous axis it loads full vectors.
    """
    if sized_for(w.device) == "cuda" or programs < COPIED or w.stride(axis) == 1:
        return w
    return w.movedim(axis, 3).contiguous().movedim(3, axis)
