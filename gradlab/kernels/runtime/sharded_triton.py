"""Registered ops on DTensors: each rank runs an op on what it holds, split over the mesh as the op's text allows.

For each axis of the mesh the way is taken that moves the fewest bytes (`sharding.py` has the ways):
rows that are spread stay spread, and what no way takes as it lies is gathered. Autograd is above: a rule's backward
runs registered ops on DTensors again, which find their own way. torch asks here through `register_torch_dispatch`,
once somebody has made a DTensor; nothing of torch.distributed is imported before.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gradlab.kernels.private.private_torch import run_while_tracing
from gradlab.kernels.runtime.sharding import Part, sharding

Text = str | Callable[..., str] | None
# How many calls have their way remembered; calls of other shapes or settings start anew.
_REMEMBERED = 4096


class Rule(NamedTuple):
    """A registered op: its launching function, its fake, its text, its arguments, and the places of those it writes."""

    name: str
    run: Callable[..., Any]
    fake: Callable[..., Any]
    text: Text
    arguments: tuple[str, ...]
    written: tuple[int, ...]


class Way(NamedTuple):
    """How one call is split: placements of its tensors, the mesh axes along which one is a term, and its results."""

    inputs: tuple[tuple[Any, ...], ...]
    terms: tuple[tuple[int, ...], ...]
    # Of each result: shape, stride, placements.
    results: tuple[tuple[Any, ...], ...]


# Ops of which torch does not know yet that they take DTensors.
_waiting: list[Rule] = []
_ways: dict[Any, Way] = {}


def meets(args: Sequence[Any]) -> bool:
    """Whether a DTensor is among the arguments; if so, torch knows of all rules from here on."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is None or not any(isinstance(a, tensor.DTensor) for a in args):
        return False
    ready()
    return True


def declare(rule: Rule) -> None:
    """Keep an op's rule until a DTensor is met."""
    _waiting.append(rule)


@run_while_tracing
def ready() -> None:
    """Register the rules of all ops with torch; called where a DTensor was met."""
    tensor = sys.modules.get("torch.distributed.tensor")
    while tensor is not None and _waiting:
        rule = _waiting.pop()
        torch.library.register_torch_dispatch(f"gradlab::{rule.name}", tensor.DTensor, _dispatched(rule))


def _dispatched(rule: Rule) -> Callable[..., Any]:
    def dispatch(cls: type, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        # Derivatives are the rules' affair, above.
        with torch.no_grad():
            return _run(rule, args)

    return dispatch


def _run(rule: Rule, args: tuple[Any, ...]) -> Any:
    from torch.distributed.tensor import DTensor

    places = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    mesh = _mesh(rule, args)
    way = _way(rule, args, places, mesh)
    if mesh.get_coordinate() is None:
        locals_ = on_metas(rule.fake, args)
        if isinstance(locals_, tuple | list):
            locals_ = type(locals_)(nothing(t, mesh) for t in locals_)
        elif locals_ is not None:
            locals_ = nothing(locals_, mesh)
    else:
        local = list(args)
        moved = {}
        # A tensor that is passed twice is brought there once.
        brought: dict[tuple[int, Any], Any] = {}
        for i, wanted, terms in zip(places, way.inputs, way.terms, strict=True):
            if args[i].placements == wanted:
                t = args[i]
            elif (t := brought.get((id(args[i]), wanted))) is None:
                t = brought[id(args[i]), wanted] = args[i].redistribute(placements=wanted)
            local[i] = t.to_local()
            if any(mesh.get_local_rank(axis) for axis in terms):
                local[i] = torch.zeros_like(local[i])
            if i in rule.written and t is not args[i]:
                moved[i] = wanted
        shares = any(place.is_partial() for wanted in way.inputs for place in wanted)
        if not (rule.written or shares) and any(args[i].numel() and not local[i].numel() for i in places):
            # Nothing of a tensor is left for this rank: results are without elements too, or sums of nothing.
            locals_ = rule.fake(*local)
            for t in locals_ if isinstance(locals_, tuple | list) else (locals_,):
                t.zero_()
        else:
            locals_ = rule.run(*local)
        for i, wanted in moved.items():
            shape = args[i].shape, args[i].stride()
            args[i].copy_(DTensor.from_local(local[i], mesh, wanted, shape=shape[0], stride=shape[1]))
    if locals_ is None:
        return None
    several = isinstance(locals_, tuple | list)
    results = [
        DTensor.from_local(t, mesh, placed, run_check=False, shape=shape, stride=stride)
        for t, (shape, stride, placed) in zip(locals_ if several else (locals_,), way.results, strict=True)
    ]
    return type(locals_)(results) if several else results[0]


def on_metas(fn: Callable[..., Any], args: Sequence[Any]) -> Any:
    """`fn` of the whole arguments without their data: what a rank without a part of them knows of its results."""
    return fn(*(_meta(a) if isinstance(a, torch.Tensor) else a for a in args))


def nothing(t: torch.Tensor, mesh: Any) -> torch.Tensor:
    """What a rank that is not in a mesh holds of a tensor; of a scalar, whose shape torch asks it for, a zero."""
    return torch.zeros(t.shape if t.ndim == 0 else 0, dtype=t.dtype, device=mesh.device_type)


def _mesh(rule: Rule, args: Sequence[Any]) -> Any:
    """The mesh that all tensors of a call are on."""
    from torch.distributed.tensor import DTensor

    first, mesh = "", None
    for name, a in zip(rule.arguments, args, strict=False):
        for t in a if isinstance(a, list | tuple) else (a,):
            if not isinstance(t, torch.Tensor):
                continue
            if rule.text is None or isinstance(a, list | tuple):
                raise TypeError(f"gradlab::{rule.name}: {name} is a {type(t).__name__}, wanted a plain torch.Tensor")
            if isinstance(t, DTensor) and mesh is None:
                first, mesh = name, t.device_mesh
    for name, t in zip(rule.arguments, args, strict=False):
        if isinstance(t, torch.Tensor):
            if not isinstance(t, DTensor):
                raise TypeError(
                    f"gradlab::{rule.name}: {name} is a {type(t).__name__}, wanted a DTensor beside the DTensor {first}"
                )
            if t.device_mesh != mesh:
                raise ValueError(f"gradlab::{rule.name}: mesh of {name} is {t.device_mesh}, wanted {mesh} like {first}")
    return mesh


def _way(rule: Rule, args: tuple[Any, ...], places: list[int], mesh: Any) -> Way:
    of_tensors = tuple((t.placements, t.shape, t.stride(), t.dtype) for t in (args[i] for i in places))
    others = tuple((type(a), tuple(a) if isinstance(a, list) else a) for a in args if not isinstance(a, torch.Tensor))
    key = (rule.name, tuple(places), of_tensors, others, mesh)
    try:
        found = _ways.get(key)
    except TypeError:
        # Sizes of a program that is compiled for any: nothing to remember.
        return _found(rule, args, places, mesh)
    if found is None:
        if len(_ways) >= _REMEMBERED:
            _ways.clear()
        found = _ways[key] = _found(rule, args, places, mesh)
    return found


def _found(rule: Rule, args: tuple[Any, ...], places: list[int], mesh: Any) -> Way:
    from torch.distributed.tensor import Partial, Replicate, Shard

    def placed(part: Part) -> Any:
        return Shard(part) if isinstance(part, int) else Partial() if part == "term" else Replicate()

    text = rule.text(*args) if callable(rule.text) else rule.text
    known = sharding(text)
    # The text names every argument that may be a tensor; those that are None are left out here.
    tensors = [i for i, a in enumerate(args) if a is None or isinstance(a, torch.Tensor)]
    of_text = [tensors.index(i) for i in places]
    given = [args[i] for i in places]
    everywhere: Part = "whole"
    ways = [((everywhere,) * len(given), (everywhere,) * len(known.results))]
    ways += [(tuple(s.inputs[i] for i in of_text), s.results) for s in known.splits]
    chosen = []
    for axis in range(mesh.ndim):
        costs = [_cost(given, parts, axis, mesh.size(axis)) for parts, _ in ways]
        chosen.append(ways[costs.index(min(costs))])
    inputs, terms = [], []
    for k, t in enumerate(given):
        wanted = [placed(parts[k]) for parts, _ in chosen]
        # What is whole becomes a term by being zero on all ranks but the first.
        added = [axis for axis, place in enumerate(wanted) if place.is_partial() and t.placements[axis] != place]
        inputs.append(tuple(Replicate() if axis in added else place for axis, place in enumerate(wanted)))
        terms.append(tuple(added))
    results = on_metas(rule.fake, args)
    results = () if results is None else results if isinstance(results, tuple | list) else (results,)
    described = []
    for k, (t, letters) in enumerate(zip(results, known.results, strict=True)):
        # A result that is not needed is empty and has other axes.
        fits = t.ndim == len(letters.axes)
        described.append((t.shape, t.stride(), tuple(placed(parts[k] if fits else "whole") for _, parts in chosen)))
    return Way(tuple(inputs), tuple(terms), tuple(described))


def _cost(given: Sequence[Any], parts: Sequence[Part], axis: int, ranks: int) -> tuple[float, int]:
    """Elements' bytes that a rank receives to bring tensors to `parts` along one mesh axis, and how many change."""
    moved, changes = 0.0, 0
    for t, part in zip(given, parts, strict=True):
        size, place = t.numel() * t.dtype.itemsize * (ranks - 1) / ranks, t.placements[axis]
        shard = place.dim if _plain_shard(place) else None
        if place.is_replicate():
            # A slice of it, or zeros.
            changes += part != "whole"
        elif shard is not None and shard == part:
            continue
        elif place.is_partial():
            if part != "term" or place.reduce_op != "sum":
                changes += 1
                moved += 2 * size
        else:
            changes += 1
            moved += size / ranks if isinstance(part, int) and shard is not None else size
    return moved, changes


def _plain_shard(place: Any) -> bool:
    """Whether it is contiguous parts in the mesh's order, and not parts of parts as fully_shard makes over a mesh."""
    from torch.distributed.tensor import Shard

    return type(place) is Shard


def _meta(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
