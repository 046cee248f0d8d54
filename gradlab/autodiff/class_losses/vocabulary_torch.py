"""A vocabulary that is spread over the ranks of a process group: which classes a rank has, and what ranks exchange.

Every rank launches the kernels on its own logits. What goes between ranks are a few numbers a row: sums over a rank's
classes, gathered, which each rank puts together in one order, or added up. A loss and what it is made of are then the
same bits on every rank. Logits stay where they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.class_losses.spread_torch import (
    CLASSES,
    first_of,
    head_roles,
    roles_of,
    rows_of_head,
    spread,
    want_whole_rows,
)
from gradlab.kernels.class_losses.settings import ClassPart
from gradlab.kernels.private.private_torch import innermost, outside_transforms


class VocabularyPart(NamedTuple):
    """The classes of this rank, those from `first` on, of `total` that the ranks of `group` have.

    Of DTensors what each axis of their mesh spreads; where none spreads classes there is no group.
    """

    first: int
    total: int
    group: Any
    mesh: Any = None
    roles: tuple[str, ...] = ()

    def on_locals(self, fn: Callable[..., Any], text: str) -> Callable[..., Any]:
        """`fn`, on DTensors of what this rank holds of the arrays of `text` in axis letters."""
        return fn if self.mesh is None else spread(fn, text, self.mesh, self.roles)


def flat(part: VocabularyPart | None) -> list[int] | None:
    """The part's `ClassPart`, as a registered op takes it."""
    return None if part is None or part.group is None else list(ClassPart(part.first, part.total))


# What the ranks of a group have agreed on: their parts, by op, sizes and options.
_agreed: WeakKeyDictionary[Any, dict[Any, VocabularyPart | None]] = WeakKeyDictionary()


def want_group(op: str, group: Any) -> None:
    """Refuse what is not a process group that this rank is a member of."""
    if not dist.is_available() or not dist.is_initialized():
        refuse(op, "group", "there before torch.distributed.init_process_group", "a group of started processes")
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        refuse(op, "group", "one without this rank", "one that this rank is a member of")
    if not isinstance(group, dist.ProcessGroup):
        refuse(op, "group", f"a {type(group).__name__}", "a torch.distributed.ProcessGroup", TypeError)


def part_of_logits(op: str, input: Any, group: Any, inplace: bool) -> VocabularyPart:
    """This rank's part of DTensor logits [V], [N V] or [N V ...]."""
    roles = roles_of(op, "input", input, min(1, input.ndim - 1), 0 if input.ndim > 1 else None)
    want_whole_rows(op, "input", input, roles, math.prod(input.shape[2:]))
    if inplace:
        refuse(op, "inplace", "True for a DTensor", "False")
    return _part_of_mesh(op, "input", input, min(1, input.ndim - 1), roles, group)


def part_of_head(op: str, h: Any, w: Any, group: Any) -> tuple[VocabularyPart, Any]:
    """This rank's part of a DTensor head w[V K], and its input h[... K] with whole rows where classes are spread."""
    roles = head_roles(op, h, w)
    return _part_of_mesh(op, "linear_weight", w, 0, roles, group), rows_of_head(h, roles)


def _part_of_mesh(op: str, argument: str, t: Any, classes: int, roles: Sequence[str], group: Any) -> VocabularyPart:
    if group is not None:
        refuse(op, "group", f"there beside a DTensor {argument}", "one of the two: a DTensor has its mesh")
    mesh, total = innermost(t).device_mesh, t.shape[classes]
    if mesh.get_coordinate() is None:
        # This rank has none of the classes, and no group.
        return VocabularyPart(0, total, None, mesh, tuple(roles))
    for axis, role in enumerate(roles):
        if role == CLASSES and mesh.size(axis) > 1:
            return VocabularyPart(first_of(t, classes, axis), total, mesh.get_group(axis), mesh, tuple(roles))
    return VocabularyPart(0, total, None, mesh, tuple(roles))


# In place of `together` where there is no group.
NO_GROUP = nullcontext()


@contextmanager
def together(op: str, group: Any) -> Iterator[None]:
    """Tell the other ranks what is refused here: at a group's first call they wait to agree, and are refused too."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if group not in _agreed:
            _gather_objects({"refused": str(error)}, group)
        raise


def vocabulary_part(
    op: str, group: Any, V: int, same: Mapping[str, Any], target: torch.Tensor
) -> VocabularyPart | None:
    """This rank's part of the classes, of which it has V, those of lower ranks before; None in a group of one.

    Ranks compare what they were called with once for each V and `same`, what is to be the same on all of them, and then
    also whether their classes are.

    Raises:
        ValueError: ranks of different arguments, or one that refuses its own; on every rank.
    """
    key = (op, V, *same.items())
    known = _agreed.get(group, {})
    if key not in known:
        part = _agree(op, group, V, same, target) if dist.get_world_size(group) > 1 else None
        known = _agreed.setdefault(group, {})
        known[key] = part
    part = known[key]
    if part is None and V == 0:
        refuse(op, "V", 0, "at least one class")
    # The cached entry holds no group: it would keep its own key alive.
    return part and part._replace(group=group)


def _agree(op: str, group: Any, V: int, same: Mapping[str, Any], target: torch.Tensor) -> VocabularyPart:
    mine: dict[str, Any] = {
        "op": op,
        "version of gradlab": version("gradlab"),
        **{name: str(value) for name, value in same.items()},
    }
    if not target.is_floating_point() and not target.is_meta:
        # Of all rows that a transform of torch.func maps over.
        with outside_transforms():
            wide = innermost(target).to(torch.int64)
            places = torch.arange(1, wide.numel() + 1, device=wide.device)
            mine["sum of target"] = int(wide.sum())
            mine["sum of target times row"] = int((wide.flatten() * places).sum())
    found = _gather_objects({**mine, "classes": V}, group)
    for rank, other in enumerate(found):
        if "refused" in other:
            refuse(op, f"a call on rank {rank} of the group", f"refused there ({other['refused']})", "one on all ranks")
        for name in mine:
            if other.get(name) != found[0].get(name):
                came = f"{other.get(name)}, and {found[0].get(name)} on rank 0"
                refuse(op, f"{name} on rank {rank} of the group", came, "the same on every rank")
    sizes = [other["classes"] for other in found]
    if sum(sizes) == 0:
        refuse(op, "V", "0 on every rank", "at least one class")
    return VocabularyPart(sum(sizes[: dist.get_rank(group)]), sum(sizes), None)


def _gather_objects(mine: Mapping[str, Any], group: Any) -> list[Mapping[str, Any]]:
    found: list[Any] = [None] * dist.get_world_size(group)
    # Under a transform of torch.func the bytes that are sent would have no memory.
    with outside_transforms():
        dist.all_gather_object(found, mine, group=group)
    return found


def gathered(p: torch.Tensor, group: Any) -> torch.Tensor:
    """p[...] of all ranks, [S ...]."""
    S = dist.get_world_size(group)
    out = p.new_empty(S * p.numel())
    if out.numel():
        # Renamed in torch 2.13.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(out, p.reshape(-1), group=group)
    return out.view(S, *p.shape)


def summed(group: Any, *terms: torch.Tensor) -> list[torch.Tensor]:
    """The sums over all ranks of tensors of one dtype, in one exchange; what is empty stays so."""
    flat = torch.cat([term.reshape(-1) for term in terms]) if len(terms) > 1 else terms[0].contiguous()
    if flat.numel():
        dist.all_reduce(flat, group=group)
    sizes = [term.numel() for term in terms]
    return [one.view(term.shape) for one, term in zip(flat.view(-1).split(sizes), terms, strict=True)]
