"""A batched backward (`is_grads_batched`, `vectorize=True`, `check_batched_grad`) by each Function's own vmap rule.

torch.autograd runs it under its older vmap, whose tensors hide their batch axis without a functorch interpreter:
`torch.autograd.Function` does not see it and would hand a kernel a tensor without memory.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gradlab.kernels.private.private_torch import add_batch_dim, remove_batch_dim
from gradlab.kernels.private.private_torch import is_batched as has_batch_axis
from gradlab.kernels.private.private_torch import is_legacy_batched as _hides


class Info(NamedTuple):
    """The `info` argument of a vmap rule."""

    batch_size: int
    randomness: str


def is_batched(t: torch.Tensor | None) -> bool:
    """Whether a tensor has a batch axis that its shape does not show: of torch.autograd, or of torch.func.vmap."""
    return t is not None and (_hides(t) or has_batch_axis(t))


def hides_batch(args: Sequence[Any]) -> bool:
    """Whether one of the arguments hides a batch axis."""
    return any(isinstance(a, torch.Tensor) and _hides(a) for a in args)


def apply(rule: Any, args: Sequence[Any]) -> Any:
    """`rule.apply(*args)` by `rule.vmap`, for arguments of which one hides a batch axis."""
    return _through(rule.vmap, args)


def _through(vmap: Callable[..., Any], args: Sequence[Any]) -> Any:
    """The results, with their batch axes hidden again.

    Nested axes go through as one, so that the rule meets none that is hidden: the older vmap lacks many operations.
    """
    sizes: dict[int, int] = {}
    for a in args:
        if isinstance(a, torch.Tensor):
            sizes |= hidden(a)
    shown = [_shown(a, sizes) for a in args]
    info = Info(math.prod(sizes.values()), "error")
    results, out = vmap(info, tuple(axis for _, axis in shown), *(a for a, _ in shown))
    if not isinstance(results, tuple):
        return _hide(results, out, sizes)
    places = out if isinstance(out, tuple) else (out,) * len(results)
    return tuple(_hide(r, axis, sizes) for r, axis in zip(results, places, strict=True))


def through(vmap: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's vmap rule that takes arguments with hidden batch axes too: `torch.vmap` over such a backward."""

    @functools.wraps(vmap)
    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        levels = [level for a in args if isinstance(a, torch.Tensor) for level in hidden(a)]
        if not levels:
            return vmap(info, in_dims, *args)
        # The mapped axis is hidden too, innermost, and all of them go through as one.
        level = max(levels) + 1
        mapped = [_hide(a, axis, {level: info.batch_size}) for a, axis in zip(args, in_dims, strict=True)]
        results = _through(vmap, mapped)
        if not isinstance(results, tuple):
            return remove_batch_dim(results, level, info.batch_size, 0), 0
        return tuple(remove_batch_dim(r, level, info.batch_size, 0) for r in results), (0,) * len(results)

    return rule


def hidden(t: torch.Tensor) -> dict[int, int]:
    """The sizes of t's hidden axes by their levels, which count from 1, outermost first."""
    sizes, level = {}, 0
    while _hides(t):
        level += 1
        front = remove_batch_dim(t, level, 1, 0)
        # Without an axis of the level torch makes one of the size asked for.
        if front.shape[0] == 1 and remove_batch_dim(t, level, 2, 0).shape[0] == 2:
            continue
        sizes[level], t = front.shape[0], front
    return sizes


def _shown(value: Any, sizes: Mapping[int, int]) -> tuple[Any, int | None]:
    """The value with its hidden axes as one in front, and where that is; itself and None without one."""
    if not isinstance(value, torch.Tensor) or not _hides(value):
        return value, None
    for level in sorted(sizes, reverse=True):
        value = remove_batch_dim(value, level, sizes[level], 0)
    return value.reshape(math.prod(sizes.values()), *value.shape[len(sizes) :]), 0


def _hide(value: Any, axis: int | None, sizes: Mapping[int, int]) -> Any:
    if axis is None or not isinstance(value, torch.Tensor):
        return value
    levels = sorted(sizes)
    value = value.movedim(axis, 0)
    value = value.reshape(*(sizes[level] for level in levels), *value.shape[1:])
    for level in levels:
        value = add_batch_dim(value, 0, level)
    return value
