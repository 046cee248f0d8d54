"""The same values in another memory layout: stride 0, permuted strides in a buffer of NaN, the negative bit."""

import torch

from gradlab.kernels.private.private_torch import negative_view


def expanded_number(c: torch.Tensor) -> torch.Tensor:
    """One number expanded with stride 0, followed by NaN in memory."""
    buffer = c.new_full((2 + c.numel(),), torch.nan)
    buffer[0] = 0.75
    return buffer[0].expand(c.shape)


def expanded_row(c: torch.Tensor) -> torch.Tensor:
    """The first row expanded with stride 0, followed by NaN in memory."""
    if c.ndim < 2 or not c.numel():
        return expanded_number(c)
    buffer = c.new_full((1 + c.numel(),), torch.nan)
    row = buffer[: c[0].numel()].view(c[0].shape)
    row.copy_(c[0].detach())
    return row.expand(c.shape)


def strided_copy(t: torch.Tensor) -> torch.Tensor:
    """The same values with the axes reversed in memory, two elements apart, off the start of a buffer of NaN."""
    if not t.numel() or not t.ndim:
        return t
    buffer = t.new_full((*reversed([n + 1 for n in t.shape]), 2), torch.nan)
    view = buffer[tuple(slice(1, None) for _ in t.shape)][..., 1].permute(*reversed(range(t.ndim)))
    view.copy_(t.detach())
    return view


def negated_view(t: torch.Tensor) -> torch.Tensor:
    """The same values, stored negated, with the negative bit set."""
    return negative_view(t.detach().neg())
