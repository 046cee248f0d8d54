"""Gradient clipping by global norm for torch: one pass measures the norm, a second one scales."""

from collections import defaultdict
from collections.abc import Iterable

import torch

from gradlab.autodiff.arguments import shards_torch as shards
from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.optimizers.optimizer_torch import want_norm, want_one_device, want_steppable
from gradlab.kernels.optimizers import norm_triton as kernels
from gradlab.kernels.optimizers.multi_tensor_triton import dense


@torch.no_grad()
def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Multiply all gradients in place by min(1, max_norm / (n + 1e-6)), n the norm of all their elements.

    As torch.nn.utils.clip_grad_norm_; the same inputs give the same bits, without host synchronisation.

    Args:
        parameters: a tensor or tensors, on one device; those without a gradient are skipped. The norm over DTensors,
            all of one mesh, is that of the full tensors.
        max_norm: the norm above which gradients are scaled down.
        norm_type: 2; no other is supported.
        error_if_nonfinite: check n on the host, which synchronises. Without it a norm of NaN makes all gradients NaN,
            and an infinite one makes them 0, as in torch.
        foreach: refused unless false or None.

    Returns:
        n, a scalar tensor: float64 if a gradient is, else float32; a replicated DTensor if they are DTensors.

    Raises:
        ValueError: another norm_type, a max_norm that is negative or not a number, several devices or meshes.
        TypeError: a gradient that is sparse, complex, of another dtype than the lab's or a subclass without memory.
        RuntimeError: n is not finite, with error_if_nonfinite.
    """
    name = "clip_grad_norm_"
    if max_norm is None:
        refuse(name, "max_norm", "None", "a number from 0")
    want_norm(name, max_norm)
    if norm_type != 2:
        refuse(name, "norm_type", repr(norm_type), "2")
    if foreach:
        refuse(name, "foreach", repr(foreach), "False or None")
    given = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    grads = [p.grad for p in given if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    for grad in grads:
        want_steppable(name, {"a gradient": grad})
    want_one_device(name, grads)
    clip = shards.global_norm(name, grads, float(max_norm), None)
    norm = clip[0].to(torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32)
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise RuntimeError(
            f"{name}: the norm of the gradients is {norm.item()}, wanted a finite one; nothing was changed"
        )
    batches: dict[tuple, list[torch.Tensor]] = defaultdict(list)
    times: dict[torch.Tensor, int] = {}
    for grad in grads:
        # As in torch, a gradient that is listed twice is scaled twice: in a second launch.
        times[grad] = times.get(grad, -1) + 1
        batches[times[grad], grad.dtype].append(shards.local(grad))
    for batch in batches.values():
        lying = [dense(g) for g in batch]
        kernels.scale_(lying, clip)
        for grad, used in zip(batch, lying, strict=True):
            if used is not grad:
                grad.copy_(used)
    return shards.like(norm, grads)
