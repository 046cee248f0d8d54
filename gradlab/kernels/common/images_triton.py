"""Memory layouts of images and filters: contiguous or channels last, and how far offsets reach."""

from collections.abc import Sequence
from math import gcd

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op, sized_for

# Programs from which on copying filters to another layout pays.
COPIED = 8


# fmt: off
@kernel
def multiple(value, OF: tl.constexpr):
    """A multiple of OF, as one: of arguments Triton knows only whether they are multiples of 16."""
    return value // OF * OF


@kernel
def _channels_last_kernel(
    x_ptr, x_b, x_c, x_h, x_w,
    mask_ptr, mask_b, mask_c, mask_h, mask_w,
    y_ptr,
    C, W, PIXELS,
    ALIGNED: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr, PLANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[b m c] = x[b c m], 0 where mask <= 0; m = (h w) a pixel of PIXELS.

    Grid (B * PIXELS/BM * C/BN); a program owns BM pixels of BN channels. With PLANES, an image's pixels follow each
    other in x and mask as they do in y.
    """
    PIXELS = multiple(PIXELS, ALIGNED)
    tiles_n = tl.cdiv(C, BN)
    tiles_m = tl.cdiv(PIXELS, BM)
    b = (tl.program_id(0) // (tiles_n * tiles_m)).to(INDEX)
    m = tl.program_id(0) // tiles_n % tiles_m * BM + tl.arange(0, BM)
    c = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(INDEX)
    inside = (c < C)[:, None] & (m < PIXELS)[None, :]
    x_ptr += b * multiple(x_b, ALIGNED)
    mask_ptr += b * multiple(mask_b, ALIGNED)
    channel = c * multiple(x_c, ALIGNED)
    of_mask = c * multiple(mask_c, ALIGNED)
    if PLANES:
        at = m.to(INDEX) * x_w
        at_mask = m.to(INDEX) * mask_w
    else:
        h = (m // W).to(INDEX)
        w = (m % W).to(INDEX)
        at = h * x_h + w * x_w
        at_mask = h * mask_h + w * mask_w
    x = tl.load(x_ptr + channel[:, None] + at[None, :], mask=inside, other=0.0)
    if MASKED:
        mask = tl.load(mask_ptr + of_mask[:, None] + at_mask[None, :], mask=inside, other=0.0)
        x = tl.where(mask <= 0, 0.0, x).to(x.dtype)
    y_ptr += b * PIXELS * C
    tl.store(y_ptr + (m.to(INDEX) * C)[None, :] + c[:, None], x, mask=inside)
# fmt: on


def _channels_last_fake(x, mask=None):
    return empty(x, x.shape, True)


@op("channels_last", fake=_channels_last_fake, sharding="x[B C H W], mask[B C H W] -> y[B C H W]")
def channels_last(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """A copy of x[B C H W] with its channels contiguous, pixel after pixel, 0 where mask[B C H W] <= 0; any strides.

    Reads x and mask once and writes a tensor of x's size.
    """
    B, C, H, W = x.shape
    y = _channels_last_fake(x)
    given = [x] if mask is None else [x, mask]
    BM, BN = block(H * W, 64), block(C, 64)
    # fmt: off
    launch(
        _channels_last_kernel, [B * -(-(H * W) // BM) * -(-C // BN)],
        x, *x.stride(),
        *((x, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        y,
        C, W, H * W,
        ALIGNED=gcd(16, H * W, *(s for t in given for s in t.stride()[:2])), INDEX=index(*given, y),
        MASKED=mask is not None, PLANES=all(H == 1 or t.stride(2) == W * t.stride(3) for t in given),
        BM=BM, BN=BN, writes=[y],
    )
    # fmt: on
    return y


def empty(like: torch.Tensor, shape: Sequence[int], channels_last: bool) -> torch.Tensor:
    """An uninitialised image of that shape, with the dtype and device of `like`."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=order)


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
