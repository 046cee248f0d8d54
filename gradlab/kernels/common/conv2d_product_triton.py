"""Convolution by a window of one pixel on GPUs: forward and dgrad are products of matrices, which views of images are.

An image whose channels are contiguous is a matrix [B H W, C] row by row; one in planes, as torch has it, is a matrix
[H W, C] column by column for each image. Neither is copied.
"""

import torch

from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_triton import sized_for

# Bytes that planes are multiples of, so that they are read in full width.
_WIDE = 16


def takes(images: torch.Tensor, geo: Geometry) -> bool:
    """Whether a convolution of such images is a product: one tap, no stride, no padding, one group."""
    one = geo.window == geo.stride == (1, 1) and geo.pads == ((0, 0), (0, 0)) and geo.groups == 1
    return one and sized_for(images.device) == "cuda" and images.numel() > 0 and _lies(images)


def forward(
    y: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    relu: bool,
) -> None:
    """y[B F P Q] = w[F C] x[B C P Q] + bias, relu, 0 where mask <= 0."""
    _product(y, x, w[:, :, 0, 0].mT, bias, mask, relu)


def dgrad(dx: torch.Tensor, dy: torch.Tensor, w: torch.Tensor) -> None:
    """dx[B C P Q] = w[F C] dy[B F P Q], transposed."""
    _product(dx, dy, w[:, :, 0, 0], None, None, False)


def _product(
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    relu: bool,
) -> None:
    rows = [_rows(t) for t in (y, a, *([] if mask is None else [mask]))]
    images = y.shape[0]
    if any(t.ndim == 3 for t in rows):
        rows = [t if t.ndim == 3 else t.unflatten(0, (images, -1)) for t in rows]
        b = b.expand(images, *b.shape)
        bias = bias if bias is None else bias.expand(images, -1)
    matmul_into(rows[0], rows[1], b, bias, None if mask is None else rows[2], "" if mask is None else "y", relu)


def _rows(t: torch.Tensor) -> torch.Tensor:
    """The pixels of images as rows of their channels: [B H W, C] of channels last, else [B, H W, C]; a view, but of a
    mask in a layout of its own."""
    if t.is_contiguous(memory_format=torch.channels_last) and t.stride(1) == 1:
        return t.movedim(1, 3).flatten(0, 2)
    return t.flatten(2).mT


def _lies(t: torch.Tensor) -> bool:
    """Whether its pixels are rows as they lie, and are read in full width."""
    if t.stride(1) == 1:
        return t.is_contiguous(memory_format=torch.channels_last)
    return t.is_contiguous() and t.shape[2] * t.shape[3] * t.element_size() % _WIDE == 0
