"""SGD for torch: an optimizer that steps all parameters in one launch, and its step as a differentiable function."""

from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse, want_floats
from gradlab.autodiff.arguments.shards_torch import is_sharded, on_parts
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.autodiff.optimizers.optimizer_torch import OneLaunch, Row, nothing
from gradlab.kernels import sgd_triton as kernels
from gradlab.kernels.sgd import LR


class SGD(OneLaunch, torch.optim.SGD):
    """SGD, all parameters of one dtype and device in one launch; `torch.optim.SGD` in every other respect.

        p' = p - lr b',    b' = momentum b + (1 - dampening) (g + weight_decay p)

    gradlab/kernels/sgd.py has all formulas. Param groups, hooks, schedulers and state_dicts are torch's own, which
    load both ways. Parameters may be DTensors, as fully_shard makes them; then their buffers are, too.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD; run-time values:
            changing them does not recompile. Without momentum there is no buffer.
        foreach, differentiable, fused: refused unless false or None; those of a loaded checkpoint are dropped.
        max_norm: gradients are clipped to this norm over all parameters, as by torch.nn.utils.clip_grad_norm_, but in
            the kernel: `.grad` does not change; `grad_norm` is the last norm.

    Raises:
        ValueError, TypeError: as torch.optim.SGD raises them, and for an option refused.
    """

    _layout = kernels.ROW
    _refused = ("foreach", "differentiable", "fused")

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = LR,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | torch.Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.max_norm = max_norm
        self._refuse_options()

    def _row(self, group: dict[str, Any], p: torch.Tensor, number: int) -> Row:
        """The row of `kernels.ROW`; without momentum b has no elements."""
        assert p.grad is not None
        momentum, first = float(group["momentum"]), False
        buffer = None
        if momentum:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = torch.empty_like(p, memory_format=torch.preserve_format)
                self._created.add(p)
            # As in torch, both steps of a parameter that is listed twice are then the first.
            first = p in self._created
        buffer = nothing(p.dtype, p.device) if buffer is None else buffer
        tensors = kernels.ROW.arrays_of(p=p, g=p.grad, b=buffer)
        return Row(tensors, self._numbers(group, p, first))

    def _numbers(self, group: dict[str, Any], p: torch.Tensor, first: bool = False) -> list[float]:
        scalars = self._scalars.get((id(group), first))
        if scalars is None:
            scalars = self._scalars[id(group), first] = kernels.scalars(
                lr=float(group["lr"]),
                momentum=float(group["momentum"]),
                dampening=float(group["dampening"]),
                first=first,
                weight_decay=float(group["weight_decay"]),
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
        return scalars

    def _step_all(
        self,
        tensors: dict[str, list[torch.Tensor]],
        scalars: list[float],
        on_device: list[tuple],
        clip: torch.Tensor | None,
    ) -> None:
        kernels.sgd_(tensors["p"], tensors["g"], tensors["b"], scalars, clip)


class SGDStep(Function):
    """(p', b') of one step, in new memory.

    Without momentum there is no b'; b is None then, and at the first step.
    """

    @staticmethod
    def forward(p, g, b, scalars):
        if not is_sharded(p):
            return _stepped(p, g, b, scalars)
        return on_parts(lambda p, g, b: _stepped(p, g, b, scalars), p, g, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, b, ctx.scalars = inputs
        ctx.has_b = b is not None

    @staticmethod
    def backward(ctx, cp, cb=None):
        dp, dg, *db = SGDStepBackward.apply(cp, cb, ctx.scalars)
        return dp, dg, db[0] if ctx.has_b else None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        results = SGDStep.apply(*in_front(info.batch_size, in_dims, args))
        return results, (0,) * len(results)


def _stepped(p, g, b, scalars):
    p = p.clone(memory_format=torch.contiguous_format)
    buffered = kernels.Scalars(*scalars).p_of_b != 0
    if b is not None:
        b = b.clone(memory_format=torch.contiguous_format)
    else:
        b = torch.empty_like(p) if buffered else p.new_empty(0)
    kernels.sgd_([p], [g.contiguous()], [b], scalars)
    return (p, b) if buffered else (p,)


class SGDStepBackward(Function):
    """(dp, dg, db) for the cotangents of p', b'. Its own pullback is the step.

    Without momentum there is neither b' nor db.
    """

    @staticmethod
    def forward(cp, cb, scalars):
        return tuple(kernels.sgd_pullback(cp, cb, scalars))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, ctx.scalars = inputs

    @staticmethod
    def backward(ctx, up, ug, ub=None):
        cp, *cb = SGDStep.apply(up, ug, ub, ctx.scalars)
        return cp, *(cb or [None]), None

    @staticmethod
    def vmap(info, in_dims, *args):
        results = SGDStepBackward.apply(*in_front(info.batch_size, in_dims, args))
        return results, (0,) * len(results)


@public("sgd")
def sgd_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum_buffer: torch.Tensor | None = None,
    *,
    lr: float = LR,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One step of SGD as a function: (p', b') of p, g, b, each of the same shape; inputs are not changed.

    Args:
        param, grad: any one shape, any strides; one of float64, float32, float16, bfloat16.
        momentum_buffer: b, of the same shape; None at the first step, whose b' is its gradient g + weight_decay p.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in `SGD`; plain numbers, with no derivative.

    Returns:
        The new parameter and buffer; without momentum the buffer as it came. Derivatives of every order with respect
        to the tensors are exact.

    Raises:
        ValueError: shapes that differ, another device, nesterov without momentum or with dampening.
        TypeError: not strided tensors of one such dtype.
    """
    tensors = {"param": param, "grad": grad}
    if momentum_buffer is not None:
        tensors["momentum_buffer"] = momentum_buffer
    want_tensors("sgd_step", tensors)
    want_floats("sgd_step", tensors)
    for argument, tensor in tensors.items():
        if tensor.shape != param.shape:
            refuse("sgd_step", f"shape of {argument}", list(tensor.shape), f"{list(param.shape)} like param")
    if nesterov and (not momentum or dampening):
        came = f"True with momentum {momentum} and dampening {dampening}"
        refuse("sgd_step", "nesterov", came, "a momentum and zero dampening with it")
    scalars = kernels.scalars(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        first=momentum_buffer is None,
    )
    if not momentum:
        return SGDStep.apply(param, grad, None, scalars)[0], momentum_buffer
    return SGDStep.apply(param, grad, momentum_buffer, scalars)


def by_spec(
    p: torch.Tensor, g: torch.Tensor, b: torch.Tensor, *, first: bool = False, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """sgd_step with the Spec's options."""
    p, new = sgd_step(p, g, None if first else b, **options)
    return p, b if new is None else new
