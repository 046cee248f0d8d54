"""Tensors that are spread over a mesh of devices (DTensor): what of them lies here, and one norm over all of them.

Each rank steps the part that it holds, without communication. A norm is of the full tensors: the parts' sums of squares
are added over the axes of the mesh that shard a tensor, and counted once over those that replicate it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse
from gradlab.kernels.optimizers import norm_triton
from gradlab.kernels.private.private_torch import dispatch_modes, innermost
from gradlab.kernels.runtime import memory_triton as memory
from gradlab.kernels.runtime import sharded_triton

DEVICES = ("cpu", "cuda")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_sharded(t: Any) -> bool:
    """Whether it is a DTensor, which nobody has made before torch.distributed.tensor is imported."""
    return type(t) not in _PLAIN and sharded_triton.meets((t,))


def along(t: Any, axis: int) -> bool:
    """Whether devices hold parts of this axis."""
    return is_sharded(t) and any(place.is_shard(axis % t.ndim) for place in t.placements)


def local(t: Any) -> torch.Tensor:
    """The part of a DTensor that lies on this rank, the same memory; any other tensor as it is."""
    return t.detach().to_local() if is_sharded(t) else t


def full(t: Any) -> torch.Tensor:
    """All of a DTensor, which every rank gets; any other tensor as it is."""
    return t.full_tensor() if is_sharded(t) else t


def on_parts(fn: Callable[..., Any], *tensors: Any) -> Any:
    """`fn` of the parts that lie here, element by element: tensors and results are spread as the first tensor is.

    Sums that are still to be made are made. If the first is no DTensor, `fn` takes all as they are.
    """
    first = tensors[0]
    if not is_sharded(first):
        return fn(*tensors)
    from torch.distributed.tensor import DTensor, Replicate

    first = first.redistribute(placements=[Replicate() if p.is_partial() else p for p in first.placements])
    mesh, shape, stride = first.device_mesh, first.shape, first.stride()
    results = fn(*(None if t is None else beside(t, first) for t in (first, *tensors[1:])))
    made = [
        DTensor.from_local(t, mesh, first.placements, run_check=False, shape=shape, stride=stride)
        for t in (results if isinstance(results, tuple) else (results,))
    ]
    return tuple(made) if isinstance(results, tuple) else made[0]


def want_one_mesh(name: str, tensors: Mapping[str, Any]) -> None:
    """Refuse tensors of which one is no DTensor, or is on another mesh than the first."""
    beside, mesh = next((argument, t.device_mesh) for argument, t in tensors.items() if is_sharded(t))
    for argument, t in tensors.items():
        if not is_sharded(t):
            # What a transform of torch.func has wrapped may be one.
            t = innermost(t)
        if not is_sharded(t):
            wanted = f"a DTensor on {mesh} like {beside}: distribute_tensor makes one"
            refuse(name, argument, f"a {type(t).__name__}", wanted, TypeError)
        if t.device_mesh != mesh:
            refuse(name, f"mesh of {argument}", t.device_mesh, f"{mesh} like {beside}")


def want_parts(name: str, argument: str, t: Any) -> None:
    """Refuse what is neither a tensor with memory of its own nor a DTensor of such parts, nor what traces them."""
    # A plain one that has no memory all the same is told apart by the op that takes it.
    if type(t) in _PLAIN or torch.compiler.is_compiling() or dispatch_modes() or type(t).__name__ == "FakeTensor":
        return
    part = local(t)
    if part.layout == torch.strided and part.device.type in DEVICES and not memory.has_memory(part):
        refuse(name, argument, memory.kind(part), "a plain torch.Tensor or a DTensor", TypeError)


def want_beside(name: str, argument: str, t: Any, p: Any, exact: bool = True) -> None:
    """Refuse what is not spread as its parameter is; unless `exact` a gradient that can be brought there will do."""
    if type(t) in _PLAIN and type(p) in _PLAIN:
        return
    if is_sharded(t) != is_sharded(p):
        came, wanted = (f"a {type(t).__name__} beside a {type(p).__name__} parameter", f"a {type(p).__name__}")
        refuse(name, argument, came, f"{wanted} like its parameter", TypeError)
    if not is_sharded(p):
        return
    if any(place.is_partial() for place in p.placements):
        refuse(name, "placements of a parameter", p.placements, "Shard or Replicate")
    if t.device_mesh != p.device_mesh:
        refuse(name, f"mesh of {argument}", t.device_mesh, f"{p.device_mesh} like its parameter")
    if exact and t.placements != p.placements:
        refuse(name, f"placements of {argument}", t.placements, f"{p.placements} like its parameter")


def beside(t: Any, p: Any) -> torch.Tensor:
    """The part of a gradient that lies where its parameter's does; sums that are still to be made are made."""
    if is_sharded(t) and t.placements != p.placements:
        t = t.detach().redistribute(p.device_mesh, p.placements)
    return local(t)


def part_of(t: Any) -> int:
    """The number of this rank's part, equal for ranks that hold the same part; 0 of a tensor that is not sharded."""
    if not is_sharded(t):
        return 0
    mesh, number = t.device_mesh, 0
    for axis, place in enumerate(t.placements):
        if not place.is_replicate():
            number = number * mesh.size(axis) + mesh.get_local_rank(axis)
    return number


def global_norm(name: str, tensors: Sequence[Any], max_norm: float, grad_scale: torch.Tensor | None) -> torch.Tensor:
    """`norm_triton.global_norm` of whole tensors, of which DTensors hold parts; the same number on every rank.

    Each rank sums the squares of its parts, of what several ranks have the first one alone, and one number is added up
    over the mesh. Partial sums are made whole first.

    Raises:
        ValueError: tensors on several meshes, or on a mesh and on none: ranks would come to different norms.
    """
    if not any(map(is_sharded, tensors)):
        return norm_triton.global_norm(list(tensors), max_norm, grad_scale)
    from torch.distributed.tensor import Replicate

    mesh, parts = next(t.device_mesh for t in tensors if is_sharded(t)), []
    for t in tensors:
        if not is_sharded(t) or t.device_mesh != mesh:
            came = f"one over {mesh} and {t.device_mesh if is_sharded(t) else 'a plain tensor'}"
            refuse(name, "the norm", came, "one over gradients on a single mesh")
        places = [Replicate() if p.is_partial() else p for p in t.placements]
        if tuple(places) != tuple(t.placements):
            t = t.redistribute(mesh, places)
        if not any(p.is_replicate() and mesh.get_local_rank(axis) for axis, p in enumerate(places)):
            parts.append(local(t))
    if parts:
        square = norm_triton.global_norm(parts, max_norm, grad_scale)[:1].square()
    else:
        square = torch.zeros(1, dtype=torch.float64, device=local(tensors[0]).device)
    return norm_triton.clip_factor(_over_mesh(square, mesh), max_norm)


def _over_mesh(number: torch.Tensor, mesh: Any) -> torch.Tensor:
    """The sum over all ranks of a mesh: at once where they are all that there are, or along one axis, else by axes."""
    from torch.distributed.tensor import DTensor, Partial

    if mesh.ndim == 1 or mesh.size() != torch.distributed.get_world_size():
        return DTensor.from_local(number, mesh, [Partial()] * mesh.ndim, run_check=False).full_tensor()
    torch.distributed.all_reduce(number)
    return number


def like(number: torch.Tensor, tensors: Sequence[Any]) -> torch.Tensor:
    """A number that all ranks have, as a DTensor where the tensors are."""
    if is_sharded(number):
        return number
    for t in tensors:
        if is_sharded(t):
            from torch.distributed.tensor import DTensor, Replicate

            mesh = t.device_mesh
            return DTensor.from_local(number, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return number
