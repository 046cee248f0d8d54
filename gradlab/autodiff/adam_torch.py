"""One step of Adam for torch as a differentiable function; the optimizer is `adam_optimizer_torch.py`."""

from typing import Any

import torch

from gradlab.autodiff.arguments import refuse, want_floats
from gradlab.autodiff.arguments_torch import want_tensors
from gradlab.autodiff.mapped_torch import in_front
from gradlab.autodiff.ranges_torch import Function, public
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR


class Step(Function):
    """(p', m', v') of one step, in new memory."""

    @staticmethod
    def forward(p, g, m, v, scalars):
        p, m, v = (t.clone(memory_format=torch.contiguous_format) for t in (p, m, v))
        kernels.adam_([p], [g.contiguous()], [m], [v], [], scalars)
        return p, m, v

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scalars = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, cp, cm, cv):
        return *Pullback.apply(*ctx.saved_tensors, cp, cm, cv, ctx.scalars), None

    @staticmethod
    def vmap(info, in_dims, *args):
        return Step.apply(*in_front(info.batch_size, in_dims, args)), (0, 0, 0)


class Pullback(Function):
    """(dp, dg, dm, dv) for the cotangents of p', m', v'."""

    @staticmethod
    def forward(p, g, m, v, cp, cm, cv, scalars):
        return kernels.adam_pullback(p, g, m, v, cp, cm, cv, scalars)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError("adam_step: its second derivative is not implemented, wanted order 1")

    @staticmethod
    def vmap(info, in_dims, *args):
        return Pullback.apply(*in_front(info.batch_size, in_dims, args)), (0, 0, 0, 0)


@public("adam")
def adam_step(param: torch.Tensor, grad: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, *, step: int,
              lr: float = LR, betas: tuple[float, float] = (BETA1, BETA2), eps: float = EPS, weight_decay: float = 0.0,
              decoupled: bool = False,
              maximize: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """One step of Adam as a function: (p', m', v') of p, g, m, v, each of the same shape; inputs are not changed.

    Args:
        param, grad, exp_avg, exp_avg_sq: any one shape, any strides; one of float64, float32, float16, bfloat16.
        step: the number of this step, counted from 1.
        lr, betas, eps, weight_decay, maximize: as in `Adam`; plain numbers, with no derivative.
        decoupled: weight decay as in `AdamW`.

    Returns:
        The new parameter and moments; differentiable once with respect to all four tensors.

    Raises:
        ValueError: shapes that differ, another device, a step below 1.
        TypeError: not strided tensors of one such dtype.
    """
    tensors = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    want_tensors("adam_step", tensors)
    want_floats("adam_step", tensors)
    for argument, tensor in tensors.items():
        if tensor.shape != param.shape:
            refuse("adam_step", f"shape of {argument}", list(tensor.shape), f"{list(param.shape)} like param")
    if step < 1:
        refuse("adam_step", "step", step, "a number from 1")
    scalars = kernels.scalars(
        lr=lr, step=step, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay,
        decoupled=decoupled, maximize=maximize,
    )  # fmt: skip
    return Step.apply(*tensors.values(), scalars)


def by_spec(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, *, beta1: float = BETA1,
            beta2: float = BETA2, step: int = 1, **options: Any) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """adam_step with the Spec's options."""
    return adam_step(p, g, m, v, step=step, betas=(beta1, beta2), **options)
