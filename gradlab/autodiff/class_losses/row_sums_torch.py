"""How the losses of rows become one number on torch: a sum, or a mean over the weights of the rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradlab.autodiff.class_losses.vocabulary_torch import VocabularyPart, gathered
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Direct
from gradlab.kernels.class_losses import row_sums_triton as kernels
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.runtime.launch_triton import accumulator


class Reduction(NamedTuple):
    """What becomes of the losses y[M] and the squares n[M] of their rows' log-sum-exp."""

    reduction: str
    z_loss: float
    return_z_loss: bool

    @property
    def with_n(self) -> bool:
        """Whether n is in the result; without a z-loss it is neither read nor summed, and has no cotangent."""
        return bool(self.z_loss) or self.return_z_loss


class MeanDivisors(Direct):
    """(sum of a[t[m]] over the rows not ignored, their number)[2]; it has no gradient."""

    @staticmethod
    def forward(t, a, V, ignore_index, wide, part):
        if part is None:
            return kernels.mean_divisors(t, a, V, ignore_index, wide)
        return part.on_locals(_divisors_of_part, "t[M], a[V] -> d[2]")(t, a, V, ignore_index, wide, part)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, _):
        return (None,) * 6

    @staticmethod
    def vmap(info, in_dims, t, a, V, ignore_index, wide, part):
        (t,) = in_front(info.batch_size, in_dims[:1], (t,))
        return MeanDivisors.apply(t, a, V, ignore_index, wide, part), 0


def _divisors_of_part(t, a, V, ignore_index, wide, part):
    if part.group is None or a is None:
        return kernels.mean_divisors(t, a, V, ignore_index, wide)
    d = kernels.mean_divisors(t, a, a.shape[0], ignore_index, wide, part.first)
    # The rank that has a class has its weight.
    weights = gathered(d[..., 0], part.group)
    d[..., 0] = column_sum(weights.reshape(weights.shape[0], -1), None).view(d.shape[:-1])
    return d


class SumRows(Direct):
    """The sum of y[M]. Linear: its backward is a broadcast, which launches nothing."""

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
        return SumRows.apply(y), 0


def mean_divisors(
    like: torch.Tensor,
    M: int,
    t: torch.Tensor | None,
    a: torch.Tensor | None,
    V: int,
    ignore_index: int,
    part: VocabularyPart | None = None,
) -> torch.Tensor:
    """What the means of y[M] and n[M] are sums over; both are M where targets are soft. In `like`'s accumulator."""
    acc = accumulator(like.dtype)
    if t is None:
        return like.new_full((2,), M, dtype=acc)
    return MeanDivisors.apply(t, a, V, ignore_index, acc == torch.float64, part)


def reduced(
    y: torch.Tensor,
    n: torch.Tensor,
    t: torch.Tensor | None,
    a: torch.Tensor | None,
    V: int,
    ignore_index: int,
    how: Reduction,
    part: VocabularyPart | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss y + z_loss n, and what the second term has added to it, each reduced."""
    parts = [y, n] if how.with_n else [y]
    if how.reduction != "none":
        parts = [SumRows.apply(part) for part in parts]
    divisors = mean_divisors(y, y.shape[-1], t, a, V, ignore_index, part) if how.reduction == "mean" else None
    return joined(parts, divisors, how.z_loss)


def joined(
    parts: Sequence[torch.Tensor], divisors: torch.Tensor | None, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of y and, where it is among the parts, z_loss n, each over its divisor; and the last term."""
    if divisors is not None:
        parts = [part / divisors[i] for i, part in enumerate(parts)]
    if len(parts) == 1:
        return parts[0], parts[0]
    added = z_loss * parts[1]
    return parts[0] + added, added
