"""One step of Adam for torch as a differentiable function; the optimizer is `adam_optimizer_torch.py`."""

from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse, want_floats
from gradlab.autodiff.arguments.shards_torch import full, is_sharded, like, on_parts
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR
from gradlab.kernels.runtime.launch_triton import refuse_capture


class AdamStep(Function):
    """(p', m', v', x') of one step, in new memory; no x' without x."""

    @staticmethod
    def forward(p, g, m, v, x, lr, scalars):
        if not is_sharded(p):
            return _stepped(p, g, m, v, x, lr, scalars)
        rate = None if lr is None else full(lr)
        return on_parts(lambda p, g, m, v, x: _stepped(p, g, m, v, x, rate, scalars), p, g, m, v, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scalars = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, cp, cm, cv, cx=None):
        p, g, m, v, x, lr = ctx.saved_tensors
        # A plain number has no derivative; the kernel reads a rate also if its derivative is not needed.
        *four, dx, dlr = AdamStepBackward.apply(p, g, m, v, x, lr, cp, cm, cv, cx, ctx.scalars)
        return *four, None if x is None else dx, None if lr is None else dlr, None

    @staticmethod
    def vmap(info, in_dims, *args):
        results = AdamStep.apply(*in_front(info.batch_size, in_dims, args))
        return results, (0,) * len(results)


def _stepped(p, g, m, v, x, lr, scalars):
    # A mapped step has a learning rate of its own, and is one tensor of the launch.
    mapped = 0 if lr is None else lr.ndim
    ps, gs, ms, vs, xs = ([] if t is None else _rows(t, mapped) for t in (p, g, m, v, x))
    lrs = [] if lr is None else lr.reshape(len(ps)).unbind()
    kernels.adam_(ps, gs, ms, vs, xs, scalars * len(ps), lrs=lrs)
    new = [ps, ms, vs] if x is None else [ps, ms, vs, xs]
    if not mapped:
        return tuple(column[0] for column in new)
    return tuple(torch.stack(column).view(p.shape) if column else torch.empty_like(p) for column in new)


def _rows(t: torch.Tensor, axes: int) -> list[torch.Tensor]:
    """Contiguous copies of the tensor's slices along its first `axes` axes."""
    parts = t.flatten(0, axes - 1).unbind() if axes else (t,)
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


class AdamStepBackward(Function):
    """(dp, dg, dm, dv, dx, dlr) for the cotangents of p', m', v', x'; without elements where there is no x or lr."""

    @staticmethod
    def forward(p, g, m, v, x, lr, cp, cm, cv, cx, scalars):
        return kernels.adam_pullback(p, g, m, v, x, lr, cp, cm, cv, cx, scalars)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError("adam_step: its second derivative is not implemented, wanted order 1")

    @staticmethod
    def vmap(info, in_dims, *args):
        *given, scalars = in_front(info.batch_size, in_dims, args)
        results = AdamStepBackward.apply(*given, scalars)
        absent = [t is None for t in (given[4], given[5])]
        return results, (0, 0, 0, 0, *(None if gone else 0 for gone in absent))


@public("adam")
def adam_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    max_exp_avg_sq: torch.Tensor | None = None,
    *,
    step: int,
    lr: float | torch.Tensor = LR,
    betas: tuple[float, float] = (BETA1, BETA2),
    eps: float = EPS,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> tuple[torch.Tensor, ...]:
    """One step of Adam as a function: (p', m', v') of p, g, m, v, or with amsgrad's x (p', m', v', x').

    Inputs are not changed. x' = max(x, v') before the bias correction, as in torch.optim.

    Args:
        param, grad, exp_avg, exp_avg_sq: any one shape, any strides; one of float64, float32, float16, bfloat16.
        max_exp_avg_sq: x, alike; with it the step is that of `Adam(amsgrad=True)`.
        step: the number of this step, counted from 1.
        lr: a number, or a tensor of one, on the parameter's device or the CPU, of any of these dtypes: read by the
            kernel, with a derivative.
        betas, eps, weight_decay, maximize: as in `Adam`; plain numbers, with no derivative.
        decoupled: weight decay as in `AdamW`.

    Returns:
        The new parameter and moments; differentiable once with respect to all tensors, the learning rate too. Where
        x = v' each gets half of the derivative; the derivative of the square root at 0 is 0.

    Raises:
        ValueError: shapes that differ, another device, a step below 1.
        TypeError: not strided tensors of one such dtype, a tensor that requires a gradient where a number is wanted.
    """
    tensors = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        tensors["max_exp_avg_sq"] = max_exp_avg_sq
    want_tensors("adam_step", tensors)
    want_floats("adam_step", tensors)
    for argument, tensor in tensors.items():
        if tensor.shape != param.shape:
            refuse("adam_step", f"shape of {argument}", list(tensor.shape), f"{list(param.shape)} like param")
    if step < 1:
        refuse("adam_step", "step", step, "a number from 1")
    numbers = {"betas[0]": betas[0], "betas[1]": betas[1], "eps": eps, "weight_decay": weight_decay}
    for argument, value in numbers.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            refuse("adam_step", argument, "a tensor that requires a gradient", "a number: only lr has one", TypeError)
    rate = _rate(lr, param) if isinstance(lr, torch.Tensor) else None
    scalars = kernels.scalars(
        lr=1.0 if isinstance(lr, torch.Tensor) else lr,
        step=step,
        beta1=float(betas[0]),
        beta2=float(betas[1]),
        eps=float(eps),
        weight_decay=float(weight_decay),
        decoupled=decoupled,
        maximize=maximize,
    )
    return AdamStep.apply(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, rate, scalars)


def _rate(lr: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The learning rate beside the parameter."""
    want_tensors("adam_step", {"lr": lr})
    if lr.device != param.device:
        refuse_capture("adam_step", param.device)
    want_floats("adam_step", {"lr": lr})
    if lr.numel() != 1:
        refuse("adam_step", "shape of lr", list(lr.shape), "[], one number")
    if lr.device != param.device and lr.device.type != "cpu":
        refuse("adam_step", "device of lr", lr.device, f"{param.device} like param, or cpu")
    return like(lr.to(param.device, non_blocking=True).reshape(()), [param])


def by_spec(
    p: torch.Tensor,
    g: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    lr: torch.Tensor,
    x: torch.Tensor | None = None,
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
    step: int = 1,
    **options: Any,
) -> tuple[torch.Tensor, ...]:
    """adam_step with the Spec's options."""
    return adam_step(p, g, m, v, x, step=step, lr=lr, betas=(beta1, beta2), **options)
