"""Mapped axes (`torch.func.vmap`) become axes of a kernel: moved to the front, never looped over."""

import math
from collections.abc import Sequence
from typing import Any

import torch


def in_front(batch_size: int, in_dims: Sequence[int | None], args: Sequence[Any]) -> list[Any]:
    """The arguments with the mapped axis of every tensor in front; one without is repeated there, by stride 0."""
    return [_front(batch_size, axis, value) for axis, value in zip(in_dims, args, strict=True)]


def merged(t: torch.Tensor | None, axes: int) -> torch.Tensor | None:
    """The tensor with the axes in front of its last `axes` as one."""
    return None if t is None else t.reshape(math.prod(t.shape[:-axes]), *t.shape[-axes:])


def spread(dy: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The pullback of a sum over all but the first axes: dy repeated over the others, by stride 0."""
    return dy.reshape(dy.shape + (1,) * (len(shape) - dy.ndim)).expand(shape)


def _front(batch_size: int, axis: int | None, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.expand(batch_size, *value.shape) if axis is None else value.movedim(axis, 0)
