"""One step of Adam over any number of tensors in one launch, and its pullback, as Triton kernels."""

import struct
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
    staged,
    triton_dtype,
)  # fmt: skip

# Scalars of one tensor's step, in this order: float64 on the host, and all of them may change at every step.
SCALARS = ("beta1", "beta2", "eps", "weight_decay", "step_size", "correction2", "sign", "decay")


# fmt: off
@kernel
def _step_chunk(
    p_ptr, g_ptr, m_ptr, v_ptr,
    e, E,
    beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay,
    ACC: tl.constexpr, DTYPE: tl.constexpr, WHOLE: tl.constexpr,
):
    """p', m', v' of the elements e below E; WHOLE promises that all are, and nothing is masked."""
    if WHOLE:
        p = tl.load(p_ptr + e).to(ACC)
        g = tl.load(g_ptr + e).to(ACC)
        m = tl.load(m_ptr + e).to(ACC)
        v = tl.load(v_ptr + e).to(ACC)
    else:
        p = tl.load(p_ptr + e, mask=e < E, other=0.0).to(ACC)
        g = tl.load(g_ptr + e, mask=e < E, other=0.0).to(ACC)
        m = tl.load(m_ptr + e, mask=e < E, other=0.0).to(ACC)
        v = tl.load(v_ptr + e, mask=e < E, other=0.0).to(ACC)
    h = sign * g + weight_decay * p
    m = m + (1 - beta1).to(ACC) * (h - m)
    v = beta2.to(ACC) * v + (1 - beta2).to(ACC) * h * h
    p = p - decay * p - step_size * m / (tl.sqrt(v / correction2) + eps)
    if WHOLE:
        tl.store(p_ptr + e, p.to(DTYPE))
        tl.store(m_ptr + e, m.to(DTYPE))
        tl.store(v_ptr + e, v.to(DTYPE))
    else:
        tl.store(p_ptr + e, p.to(DTYPE), mask=e < E)
        tl.store(m_ptr + e, m.to(DTYPE), mask=e < E)
        tl.store(v_ptr + e, v.to(DTYPE), mask=e < E)


@kernel
def _adam_kernel(
    table_ptr,
    T,
    ACC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):
    """p', m', v' over the tensors of a table; grid (chunks of BE); a program owns one chunk of one tensor.

    A row of the table is 13 words of 64 bits: addresses of p, g, m, v; elements; then SCALARS as float64. Behind the T
    rows stand T first chunks, in rising order: the number of them not past the program names its tensor.
    """
    i = tl.arange(0, BT)
    first = tl.load(table_ptr + 13 * T + i, mask=i < T, other=2**62)
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.sum((first <= program).to(tl.int64), axis=0) - 1
    row = table_ptr + 13 * tensor
    p_ptr = tl.load(row).to(tl.pointer_type(DTYPE))
    g_ptr = tl.load(row + 1).to(tl.pointer_type(DTYPE))
    m_ptr = tl.load(row + 2).to(tl.pointer_type(DTYPE))
    v_ptr = tl.load(row + 3).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        # Addresses out of memory promise nothing by themselves, and every element would be a load of its own.
        p_ptr = tl.multiple_of(p_ptr, 16)
        g_ptr = tl.multiple_of(g_ptr, 16)
        m_ptr = tl.multiple_of(m_ptr, 16)
        v_ptr = tl.multiple_of(v_ptr, 16)
    E = tl.load(row + 4)
    beta1 = tl.load(row + 5).to(tl.float64, bitcast=True)
    beta2 = tl.load(row + 6).to(tl.float64, bitcast=True)
    eps = tl.load(row + 7).to(tl.float64, bitcast=True).to(ACC)
    weight_decay = tl.load(row + 8).to(tl.float64, bitcast=True).to(ACC)
    step_size = tl.load(row + 9).to(tl.float64, bitcast=True).to(ACC)
    correction2 = tl.load(row + 10).to(tl.float64, bitcast=True).to(ACC)
    sign = tl.load(row + 11).to(tl.float64, bitcast=True).to(ACC)
    decay = tl.load(row + 12).to(tl.float64, bitcast=True).to(ACC)

    start = (program - tl.load(table_ptr + 13 * T + tensor)) * BE
    e = start + tl.arange(0, BE)
    # A mask against a number out of memory splits wide loads too, so only a tensor's last chunk has one.
    if start + BE <= E:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, e, E,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay, ACC, DTYPE, True,
        )
    else:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, e, E,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay, ACC, DTYPE, False,
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
    quads = list(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
    rows = [(q, scalars[len(SCALARS) * i : len(SCALARS) * (i + 1)]) for i, q in enumerate(quads) if q[0].numel()]
    if not rows:
        return
    device, dtype = params[0].device, params[0].dtype
    sizes = [q[0].numel() for q, _ in rows]
    BE = block(max(sizes), INTERPRETED_TILE, least=1) if interpreted(device) else 2048
    if not interpreted(device):
        _launch_table([(q, s, n) for (q, s), n in zip(rows, sizes, strict=True)], BE, dtype, device)
        return
    flat = [t for q, _ in rows for t in q]
    with staged(flat, [t for q, _ in rows for t in (q[0], q[2], q[3])]) as stage:
        seen = [([stage(t) for t in q], s, n) for (q, s), n in zip(rows, sizes, strict=True)]
        _launch_table(seen, BE, seen[0][0][0].dtype, device)


def _launch_table(rows: list, BE: int, dtype: torch.dtype, device: torch.device) -> None:
    words, firsts, chunks = [], [], 0
    for quad, values, size in rows:
        words += [t.data_ptr() for t in quad] + [size]
        words += struct.unpack(f"{len(SCALARS)}q", struct.pack(f"{len(SCALARS)}d", *values))
        firsts.append(chunks)
        chunks += -(-size // BE)
    table = on_device(words + firsts, torch.int64, device)
    acc = triton_dtype(accumulator(dtype))
    T = len(rows)
    aligned = all(t.data_ptr() % 16 == 0 for quad, _, _ in rows for t in quad)
    # fmt: off
    launch(
        _adam_kernel, [chunks],
        table,
        T,
        ACC=acc, DTYPE=triton_dtype(dtype), ALIGNED=aligned, BT=block(T, 2**20, least=1), BE=BE,
        writes=[table], warps=8,
    )
    # fmt: on


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
