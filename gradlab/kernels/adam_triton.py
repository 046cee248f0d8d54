"""One step of Adam over any number of tensors in one launch, and its pullback, as Triton kernels."""

from collections.abc import Sequence

import torch
import triton.language as tl

from gradlab.kernels.launch_triton import (
    INTERPRETED_TILE,
    accumulator,
    block,
    interpreted,
    kernel,
    launch,
    on_device,
    op,
    triton_dtype,
)  # fmt: skip
from gradlab.kernels.many_triton import address, keep, launch_many, scalar, some, start_of, tensor_of

# Scalars of one tensor's step, in this order: float64 on the host, and all of them may change at every step.
SCALARS = ("beta1", "beta2", "eps", "weight_decay", "step_size", "correction2", "sign", "decay")


# fmt: off
@kernel
def _step_chunk(
    p_ptr, g_ptr, m_ptr, v_ptr,
    e, E,
    beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay,
    ACC: tl.constexpr, WHOLE: tl.constexpr,
):
    """p', m', v' of the elements e below E; WHOLE promises that all are, and nothing is masked."""
    p = some(p_ptr, e, E, ACC, WHOLE)
    g = some(g_ptr, e, E, ACC, WHOLE)
    m = some(m_ptr, e, E, ACC, WHOLE)
    v = some(v_ptr, e, E, ACC, WHOLE)
    h = sign * g + weight_decay * p
    m = m + (1 - beta1).to(ACC) * (h - m)
    v = beta2.to(ACC) * v + (1 - beta2).to(ACC) * h * h
    p = p - decay * p - step_size * m / (tl.sqrt(v / correction2) + eps)
    keep(p_ptr, e, E, p, WHOLE)
    keep(m_ptr, e, E, m, WHOLE)
    keep(v_ptr, e, E, v, WHOLE)


@kernel
def _adam_kernel(
    table_ptr,
    T,
    ACC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):
    """p', m', v' over the tensors of a table; grid (chunks of BE); a program owns one chunk of one tensor.

    A row of the table is 13 words: addresses of p, g, m, v; elements; then SCALARS.
    """
    tensor = tensor_of(table_ptr, T, 13, BT)
    row = table_ptr + 13 * tensor
    p_ptr = address(row, DTYPE, ALIGNED)
    g_ptr = address(row + 1, DTYPE, ALIGNED)
    m_ptr = address(row + 2, DTYPE, ALIGNED)
    v_ptr = address(row + 3, DTYPE, ALIGNED)
    E = tl.load(row + 4)
    beta1 = scalar(row + 5)
    beta2 = scalar(row + 6)
    eps = scalar(row + 7).to(ACC)
    weight_decay = scalar(row + 8).to(ACC)
    step_size = scalar(row + 9).to(ACC)
    correction2 = scalar(row + 10).to(ACC)
    sign = scalar(row + 11).to(ACC)
    decay = scalar(row + 12).to(ACC)

    start = start_of(table_ptr, T, tensor, 13, BE)
    e = start + tl.arange(0, BE)
    # A mask against a number out of memory splits wide loads too, so only a tensor's last chunk has one.
    if start + BE <= E:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, e, E,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay, ACC, True,
        )
    else:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, e, E,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay, ACC, False,
        )


@kernel
def _adam_pullback_kernel(
    scalar_ptr,
    p_ptr, g_ptr, m_ptr, v_ptr,
    cp_ptr, cp_e, cm_ptr, cm_e, cv_ptr, cv_e,
    dp_ptr, dg_ptr, dm_ptr, dv_ptr,
    E,
    ACC: tl.constexpr, BE: tl.constexpr,
):
    """dp, dg, dm, dv of the cotangents cp, cm, cv of p', m', v'; grid (E/BE); a program owns BE elements of each."""
    beta1 = tl.load(scalar_ptr)
    beta2 = tl.load(scalar_ptr + 1)
    eps = tl.load(scalar_ptr + 2).to(ACC)
    weight_decay = tl.load(scalar_ptr + 3).to(ACC)
    step_size = tl.load(scalar_ptr + 4).to(ACC)
    correction2 = tl.load(scalar_ptr + 5).to(ACC)
    sign = tl.load(scalar_ptr + 6).to(ACC)
    decay = tl.load(scalar_ptr + 7).to(ACC)
    rest1 = (1 - beta1).to(ACC)
    rest2 = (1 - beta2).to(ACC)

    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    p = tl.load(p_ptr + e, mask=e < E, other=0.0).to(ACC)
    g = tl.load(g_ptr + e, mask=e < E, other=0.0).to(ACC)
    m = tl.load(m_ptr + e, mask=e < E, other=0.0).to(ACC)
    v = tl.load(v_ptr + e, mask=e < E, other=0.0).to(ACC)
    cp = tl.load(cp_ptr + e * cp_e, mask=e < E, other=0.0).to(ACC)
    cm = tl.load(cm_ptr + e * cm_e, mask=e < E, other=0.0).to(ACC)
    cv = tl.load(cv_ptr + e * cv_e, mask=e < E, other=0.0).to(ACC)
    h = sign * g + weight_decay * p
    m = m + rest1 * (h - m)
    v = beta2.to(ACC) * v + rest2 * h * h
    root = tl.sqrt(v / correction2)
    d = root + eps
    dm = cm - step_size * cp / d
    # The square root has no derivative at 0, where m' is 0 too: no gradient flows there.
    slope = tl.where(v > 0, 0.5 / (tl.where(v > 0, root, 1.0) * correction2), 0.0)
    dv = cv + step_size * cp * m / (d * d) * slope
    dh = rest1 * dm + 2 * rest2 * h * dv
    dp = cp - decay * cp + weight_decay * dh
    tl.store(dp_ptr + e, dp.to(dp_ptr.dtype.element_ty), mask=e < E)
    tl.store(dg_ptr + e, (sign * dh).to(dg_ptr.dtype.element_ty), mask=e < E)
    tl.store(dm_ptr + e, (beta1.to(ACC) * dm).to(dm_ptr.dtype.element_ty), mask=e < E)
    tl.store(dv_ptr + e, (beta2.to(ACC) * dv).to(dv_ptr.dtype.element_ty), mask=e < E)
# fmt: on


def _adam_fake(params, grads, exp_avgs, exp_avg_sqs, scalars):
    return None


@op("adam_", fake=_adam_fake, mutates=("params", "exp_avgs", "exp_avg_sqs"))
def adam_(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], exp_avgs: Sequence[torch.Tensor],
          exp_avg_sqs: Sequence[torch.Tensor], scalars: Sequence[float]) -> None:  # fmt: skip
    """Step every parameter in place, all in one launch: 4 E elements read, 3 E written.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: T tensors each, of one dtype and on one device; the four of one index
            have the same elements at the same places in memory, without gaps.
        scalars: SCALARS of each tensor, one after another; float64 values that travel with the addresses.
    """
    launch_many(_adam_kernel, (params, grads, exp_avgs, exp_avg_sqs), (0, 2, 3), scalars)


def _adam_pullback_fake(p, g, m, v, cp, cm, cv, scalars):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (p, g, m, v))


@op("adam_pullback", fake=_adam_pullback_fake)
def adam_pullback(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor,
                  cp: torch.Tensor, cm: torch.Tensor, cv: torch.Tensor, scalars: Sequence[float],
                  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dp, dg, dm, dv of one step of one tensor, for the cotangents of p', m', v'; 7 E elements read, 4 E written."""
    grads = _adam_pullback_fake(p, g, m, v, cp, cm, cv, scalars)
    E, device = p.numel(), p.device
    BE = block(E, INTERPRETED_TILE if interpreted(device) else 1024)
    # fmt: off
    launch(
        _adam_pullback_kernel, [-(-E // BE)],
        on_device(scalars, torch.float64, device),
        *(t.contiguous() for t in (p, g, m, v)),
        *(part for c in (cp, cm, cv) for part in (c.reshape(-1), c.reshape(-1).stride(0))),
        *grads,
        E,
        ACC=triton_dtype(accumulator(p.dtype)), BE=BE, writes=grads,
    )
    # fmt: on
    return grads


def scalars(*, lr: float, step: float, beta1: float, beta2: float, eps: float, weight_decay: float,
            decoupled: bool = False, maximize: bool = False) -> list[float]:  # fmt: skip
    """SCALARS of one tensor at one step: the bias corrections are worked out here, in float64."""
    return [
        beta1, beta2, eps, 0.0 if decoupled else weight_decay, lr / (1 - beta1**step), 1 - beta2**step,
        -1.0 if maximize else 1.0, lr * weight_decay if decoupled else 0.0,
    ]  # fmt: skip
