"""How the losses of rows become one number on torch: a sum, or a mean over what the rows weigh."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Direct
from gradlab.kernels.class_losses import row_sums_triton as kernels
from gradlab.kernels.runtime.launch_triton import accumulator


class Reduction(NamedTuple):
    """What is asked of the losses y[M] and the squares z[M] of their rows' log-sum-exp."""

    reduction: str
    z_loss: float
    return_z_loss: bool


class Count(Direct):
    """d[2] = (sum of w[t[m]] over the rows not ignored, their number); nothing goes back."""

    @staticmethod
    def forward(t, w, V, ignore_index, wide):
        return kernels.mean_divisors(t, w, V, ignore_index, wide)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, _):
        return None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, t, w, V, ignore_index, wide):
        (t,) = in_front(info.batch_size, in_dims[:1], (t,))
        return Count.apply(t, w, V, ignore_index, wide), 0


class Total(Direct):
    """The sum of y[M]. Linear: its pullback is a broadcast, which launches nothing."""

    @staticmethod
    def forward(y):
        return kernels.sum_rows(y)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, dr):
        return dr.unsqueeze(-1).expand(ctx.shape)

    @staticmethod
    def vmap(info, in_dims, y):
        (y,) = in_front(info.batch_size, in_dims, (y,))
        return Total.apply(y), 0


def divisors(
    like: torch.Tensor, M: int, t: torch.Tensor | None, w: torch.Tensor | None, V: int, ignore_index: int
) -> torch.Tensor:
    """What the means of y[M] and z[M] are sums over; both are M where targets are soft. In `like`'s accumulator."""
    acc = accumulator(like.dtype)
    if t is None:
        return like.new_full((2,), M, dtype=acc)
    return Count.apply(t, w, V, ignore_index, acc == torch.float64)


def reduced(
    y: torch.Tensor,
    z: torch.Tensor,
    t: torch.Tensor | None,
    w: torch.Tensor | None,
    V: int,
    ignore_index: int,
    asked: Reduction,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss y + z_loss z, and what the second term has added to it, each summed as asked."""
    parts = [y]
    # Without a z-loss its squares are neither read nor summed.
    if asked.z_loss or asked.return_z_loss:
        parts.append(z)
    if asked.reduction != "none":
        parts = [Total.apply(part) for part in parts]
    n = divisors(y, y.shape[-1], t, w, V, ignore_index) if asked.reduction == "mean" else None
    return joined(parts, n, asked.z_loss)


def joined(parts: Sequence[torch.Tensor], n: torch.Tensor | None, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of y and, where it is among the parts, z_loss z, each over its place in n; and the last term."""
    if n is not None:
        parts = [part / n[i] for i, part in enumerate(parts)]
    if len(parts) == 1:
        return parts[0], parts[0]
    added = z_loss * parts[1]
    return parts[0] + added, added
