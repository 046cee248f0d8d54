"""Where a mapped axis Z (`torch.func.vmap`) goes in a convolution: among images, groups, or the filters of a group.

    mapped                 becomes
    one image operand      more images:   B -> Z B
    both operands          more groups:   C -> Z g D,  F -> Z g N,  groups -> Z groups
    the filters alone      more filters:  F -> g Z N, the images are read once for all of them

So no map of convolutions needs a kernel of its own. Z stands in front of every tensor here.
"""

from collections.abc import Sequence
from typing import Any

import torch

from gradlab.kernels.common.window import Geometry


def as_images(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """[Z B ...] -> [Z*B ...]."""
    return [t if t is None else t.flatten(0, 1) for t in tensors]


def from_images(t: torch.Tensor, size: int) -> torch.Tensor:
    """[Z*B ...] -> [Z B ...]."""
    return t.unflatten(0, (size, t.shape[0] // size))


def inside(t: torch.Tensor | None, axis: int, groups: int) -> Any:
    """[Z ... g*n ...] -> [... g*Z*n ...], `axis` counted in the result; groups = 1 puts Z before all of the axis."""
    if t is None:
        return None
    return t.unflatten(axis + 1, (groups, -1)).movedim(0, axis + 1).flatten(axis, axis + 2)


def outside(t: torch.Tensor, size: int, axis: int, groups: int) -> torch.Tensor:
    """The inverse of `inside`."""
    return t.unflatten(axis, (groups, size, -1)).movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def more_groups(geometry: Sequence[int], size: int) -> list[int]:
    """The flat geometry of `size` times the groups."""
    geo = Geometry.of(geometry)
    return geo._replace(groups=geo.groups * size).flat()
