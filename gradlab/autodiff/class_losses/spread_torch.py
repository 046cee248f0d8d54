"""Losses of classes on DTensors: each rank runs a rule on what it holds, and axis letters say how results are spread.

Axes of the mesh along which the logits' classes are spread are a group that exchanges row sums; along others rows are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.base.signature import Array
from gradlab.kernels.private.private_torch import innermost, is_batched, is_transformed, transforms_active, unwrapped
from gradlab.kernels.runtime.sharded_triton import nothing, on_metas
from gradlab.kernels.runtime.sharding import sharding

# Which axis of the tensors an axis of the mesh spreads: classes, rows, or none.
CLASSES, ROWS = "V", "NM"


def on_mesh(op: str, tensors: Mapping[str, Any]) -> bool:
    """Whether they are DTensors, also where torch.func's transforms have wrapped them, and none has a mapped axis."""
    # A compiler sees what it traces without wrappers.
    if not transforms_active() or torch.compiler.is_compiling():
        return want_tensors(op, tensors)
    spread = want_tensors(op, {argument: innermost(t) for argument, t in tensors.items()})
    for argument, t in tensors.items() if spread else ():
        while is_transformed(t):
            if is_batched(t):
                wanted = "one that is not mapped over: more rows do the same"
                refuse(op, argument, "a DTensor under torch.vmap", wanted, NotImplementedError)
            t = unwrapped(t)
    return spread


def roles_of(op: str, argument: str, t: Any, classes: int, rows: int | None) -> list[str]:
    """What each axis of the mesh spreads of t, whose classes and rows are on these axes.

    Raises:
        ValueError: another axis is spread, parts are no plain ones, or two axes of the mesh spread the classes.
    """
    from torch.distributed.tensor import Replicate, Shard

    found, t = [], innermost(t)
    for place in t.placements:
        if type(place) not in (Replicate, Shard) or (type(place) is Shard and place.dim not in (classes, rows)):
            wanted = f"Replicate or Shard({classes})" + ("" if rows is None else f" or Shard({rows})")
            refuse(op, f"placements of {argument}", t.placements, wanted)
        found.append("" if type(place) is Replicate else CLASSES if place.dim == classes else ROWS)
    if sum(role == CLASSES and t.device_mesh.size(axis) > 1 for axis, role in enumerate(found)) > 1:
        refuse(op, f"placements of {argument}", t.placements, "classes along one axis of the mesh")
    return found


def first_of(t: Any, axis: int, of_mesh: int) -> int:
    """The index at which this rank's part of an axis begins: parts are equal but for the last ones."""
    mesh = innermost(t).device_mesh
    part = -(-t.shape[axis] // mesh.size(of_mesh))
    return min(part * mesh.get_local_rank(of_mesh), t.shape[axis])


def want_whole_rows(op: str, argument: str, t: Any, roles: Sequence[str], D: int) -> None:
    """Refuse unequal parts of rows of D pixels: the pixels of all rows would not be parts as torch makes them."""
    t = innermost(t)
    for axis, role in enumerate(roles):
        ranks = t.device_mesh.size(axis)
        if role == ROWS and D > 1 and t.shape[0] % ranks:
            refuse(op, f"{argument} of shape {list(t.shape)}", f"spread over {ranks} ranks", "N that they share evenly")


def head_roles(op: str, h: Any, w: Any) -> list[str]:
    """What each axis of the mesh spreads: classes where it spreads the head's, else rows of the input."""
    roles = roles_of(op, "linear_weight", w, 0, None)
    kept, h = [role != CLASSES for role in roles], innermost(h)
    for axis, place in enumerate(h.placements):
        # Input that another axis of it is spread of is gathered where the classes are.
        if kept[axis] and not place.is_replicate():
            if not place.is_shard(0) or h.ndim == 1:
                refuse(
                    op, "placements of input", h.placements, "Replicate or Shard(0) where linear_weight is Replicate"
                )
            roles[axis] = ROWS
    want_whole_rows(op, "input", h, roles, 2 if h.ndim > 2 else 1)
    return roles


def rows_of_head(h: Any, roles: Sequence[str]) -> Any:
    """The input with each row whole on every rank that has some of the classes."""
    from torch.distributed.tensor import Replicate

    if is_transformed(h):
        # A transform has no rule for what torch's redistribution does; `spread` brings it there, each time.
        return h
    wanted = [Replicate() if role == CLASSES else p for p, role in zip(h.placements, roles, strict=True)]
    return h if wanted == list(h.placements) else h.redistribute(placements=wanted)


def spread(fn: Callable[..., Any], text: str, mesh: Any, roles: Sequence[str]) -> Callable[..., Any]:
    """`fn` on DTensors: it gets what this rank holds of the tensors that the text names, brought to their letters.

    Along an axis of the mesh that spreads rows a result without rows is a term of a sum; along one that spreads classes
    `fn` has added up itself.
    """
    sides = sharding(text)

    def run(*args: Any) -> Any:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        sizes: dict[str, int] = {}
        local, member = list(args), mesh.get_coordinate() is not None
        for i, array in enumerate(sides.inputs):
            if args[i] is not None:
                sizes |= dict(zip(array.axes, args[i].shape, strict=True))
                if not member:
                    continue
                wanted = [Replicate() if at is None else Shard(at) for at in _places(array, roles)]
                local[i] = args[i].redistribute(placements=wanted).to_local()
        sizes.setdefault("M", sizes.get("N", 0) * sizes.get("D", 1))
        made = []
        found = fn(*local) if member else on_metas(fn, args)
        for t, array in zip(found if isinstance(found, tuple) else (found,), sides.results, strict=True):
            fits = t is not None and t.ndim == len(array.axes)
            if t is not None and not member:
                t = nothing(t, mesh)
            if not fits:
                # A result that is not needed is empty.
                everywhere = [Replicate()] * mesh.ndim
                made.append(None if t is None else DTensor.from_local(t, mesh, everywhere, run_check=False))
                continue
            shape = torch.Size(int(axis) if axis.isdigit() else sizes[axis] for axis in array.axes)
            at = _places(array, roles)
            placed = [
                Shard(one) if one is not None else Partial() if role == ROWS else Replicate()
                for one, role in zip(at, roles, strict=True)
            ]
            stride = torch.empty(shape, device="meta").stride()
            made.append(DTensor.from_local(t, mesh, placed, run_check=False, shape=shape, stride=stride))
        return tuple(made) if isinstance(found, tuple) else made[0]

    return run


def _places(array: Array, roles: Sequence[str]) -> list[int | None]:
    """The axis of an array that each axis of the mesh spreads."""
    return [next((i for i, axis in enumerate(array.axes) if role and axis in role), None) for role in roles]
