"""Rules on DTensors: a cotangent that autograd has none for stays None, where it would make a plain tensor of zeros.

A product with a fused relu is such a case: its result is the mask of its backward, through which no derivative flows.
"""

import functools
from typing import Any

import torch


@functools.cache
def rule_of(rule: Any) -> Any:
    """A Function with the rule's methods, whose backward is asked for nothing where no cotangent has come."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        rule.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)
        ctx.results = [_described(t) for t in output] if isinstance(output, tuple) else None

    def backward(ctx: Any, *cotangents: Any) -> Any:
        if all(c is None for c in cotangents):
            return (None,) * len(ctx.needs_input_grad)
        if ctx.results is not None:
            both = zip(cotangents, ctx.results, strict=True)
            cotangents = tuple(_zeros(*d) if c is None and d[1].is_floating_point else c for c, d in both)
        return rule.backward(ctx, *cotangents)

    methods = {"forward": rule.forward, "vmap": rule.vmap, "setup_context": setup_context, "backward": backward}
    return type(rule.__name__, (torch.autograd.Function,), {name: staticmethod(f) for name, f in methods.items()})


def _described(t: Any) -> tuple[Any, ...]:
    return t.shape, t.dtype, t.device_mesh, t.placements


def _zeros(shape: Any, dtype: torch.dtype, mesh: Any, places: Any) -> torch.Tensor:
    from torch.distributed.tensor import Replicate, zeros

    placed = [Replicate() if p.is_partial() else p for p in places]
    return zeros(shape, dtype=dtype, device_mesh=mesh, placements=placed)
