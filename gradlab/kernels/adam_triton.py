"""One step of Adam over any number of tensors in one launch, and its pullback, as Triton kernels."""

from collections.abc import Sequence

import torch
import triton.language as tl

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.rounding_triton import key_at, mixed, nearest, random_bits, stochastic
from gradlab.kernels.optimizers.multi_tensor_triton import (
    address,
    keep,
    launch_many,
    scalar,
    some,
    start_of,
    tensor_of,
    times,
)
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, on_device, op, triton_dtype

# Scalars of one tensor's step, in this order: float64 on the host, and all of them may change at every step.
SCALARS = ("beta1", "beta2", "eps", "weight_decay", "step_size", "correction2", "sign", "decay")


# fmt: off
@kernel
def _step_chunk(
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr,
    e, E, has_x,
    beta1, beta2, eps, weight_decay, step_size, correction2, sign, kept,
    one, other,
    ACC: tl.constexpr, AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, WHOLE: tl.constexpr,
):
    """p', m', v' of the elements e below E, x' and w' with them; WHOLE promises that all are, and nothing is masked."""
    p = some(p_ptr, e, E, ACC, WHOLE)
    if MASTER != "":
        # A parameter that is not what its master rounds to was changed by somebody else, who is to be followed.
        w = some(w_ptr, e, E, ACC, WHOLE)
        p = tl.where(nearest(w, MASTER) == p, w, p)
    g = some(g_ptr, e, E, ACC, WHOLE)
    m = some(m_ptr, e, E, ACC, WHOLE)
    v = some(v_ptr, e, E, ACC, WHOLE)
    h = sign * g + times(weight_decay, p)
    m = m + (1 - beta1).to(ACC) * (h - m)
    v = beta2.to(ACC) * v + (1 - beta2).to(ACC) * h * h
    top = v
    bits = e
    if STOCHASTIC:
        bits = random_bits(e, one, other)
    if AMSGRAD:
        if has_x != 0:
            x = some(x_ptr, e, E, ACC, WHOLE)
            # What is not a number stays so, from either side.
            top = tl.where((x >= v) | (x != x), x, v)
            if STOCHASTIC:
                keep(x_ptr, e, E, stochastic(top.to(tl.float32), mixed(bits) & 0xFFFF), WHOLE)
            else:
                keep(x_ptr, e, E, top, WHOLE)
    p = kept * p - step_size * m / (tl.sqrt(top / correction2) + eps)
    if MASTER != "":
        keep(w_ptr, e, E, p, WHOLE)
        keep(p_ptr, e, E, nearest(p, MASTER), WHOLE)
    else:
        keep(p_ptr, e, E, p, WHOLE)
    if STOCHASTIC:
        keep(m_ptr, e, E, stochastic(m.to(tl.float32), bits & 0xFFFF), WHOLE)
        keep(v_ptr, e, E, stochastic(v.to(tl.float32), bits >> 16), WHOLE)
    else:
        keep(m_ptr, e, E, m, WHOLE)
        keep(v_ptr, e, E, v, WHOLE)


@kernel
def _adam_kernel(
    table_ptr,
    T,
    scale_ptr, found_ptr, clip_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, STATE: tl.constexpr,
    AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    RATES: tl.constexpr, STEPS: tl.constexpr, SCALED: tl.constexpr, FOUND: tl.constexpr, CLIPPED: tl.constexpr,
    ALIGNED: tl.constexpr, WORDS: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):
    """p', m', v' over the tensors of a table, x' = max(x, v') and w' with them.

    Grid (chunks of BE); a program owns one chunk of one tensor.

    A row of the table is 18 words: addresses of p, g, m, v, of the largest v so far x and the master weight w;
    elements; SCALARS; addresses of the learning rate and the number of the step, where they are on the device; a key.
    """
    tensor = tensor_of(table_ptr, T, WORDS, BT)
    row = table_ptr + WORDS * tensor
    p_ptr = address(row, DTYPE, ALIGNED)
    g_ptr = address(row + 1, DTYPE, ALIGNED)
    m_ptr = address(row + 2, STATE, ALIGNED)
    v_ptr = address(row + 3, STATE, ALIGNED)
    x_ptr = address(row + 4, STATE, ALIGNED)
    w_ptr = address(row + 5, tl.float32, ALIGNED)
    has_x = tl.load(row + 4)
    E = tl.load(row + 6)
    beta1 = scalar(row + 7)
    beta2 = scalar(row + 8)
    eps = scalar(row + 9).to(ACC)
    weight_decay = scalar(row + 10).to(ACC)
    step_size = scalar(row + 11)
    correction2 = scalar(row + 12)
    sign = scalar(row + 13).to(ACC)
    decay = scalar(row + 14)

    start = start_of(table_ptr, T, tensor, WORDS, BE)
    e = start + tl.arange(0, BE)
    if RATES:
        # The host worked with a rate of 1 where the true one is on the device.
        rate = tl.load(address(row + 15, tl.float64, False), mask=tl.load(row + 15) != 0, other=1.0)
        step_size = step_size * rate
        decay = decay * rate
    one = 0
    other = 0
    if STEPS:
        # The host worked without the corrections where the number of the step is on the device.
        there = tl.load(row + 16) != 0
        step = tl.load(address(row + 16, tl.float32, False), mask=there, other=1.0)
        turns = step.to(tl.float64)
        step_size = tl.where(there, step_size / (1 - tl.exp(turns * tl.log(beta1))), step_size)
        correction2 = tl.where(there, 1 - tl.exp(turns * tl.log(beta2)), correction2)
        if STOCHASTIC:
            one, other = key_at(tl.load(row + 17), step, start)
    if SCALED:
        sign = sign / tl.load(scale_ptr).to(ACC)
    if CLIPPED:
        sign = sign * tl.load(clip_ptr + 1).to(ACC)
    if FOUND:
        # A gradient somewhere is not finite: no element is touched.
        E = tl.where(tl.load(found_ptr) == 0, E, 0)
    step_size = step_size.to(ACC)
    correction2 = correction2.to(ACC)
    kept = (1 - decay).to(ACC)
    # A mask against a number out of memory splits wide loads too, so only a tensor's last chunk has one.
    if start + BE <= E:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr, e, E, has_x,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, kept, one, other,
            ACC, AMSGRAD, MASTER, STOCHASTIC, True,
        )
    else:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr, e, E, has_x,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, kept, one, other,
            ACC, AMSGRAD, MASTER, STOCHASTIC, False,
        )


@kernel
def _adam_pullback_kernel(
    scalar_ptr, lr_ptr, lr_z,
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr,
    cp_ptr, cp_z, cp_e, cm_ptr, cm_z, cm_e, cv_ptr, cv_z, cv_e, cx_ptr, cx_z, cx_e,
    dp_ptr, dg_ptr, dm_ptr, dv_ptr, dx_ptr,
    s_ptr,
    E, I,
    AMSGRAD: tl.constexpr, LR: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr,
):
    """dp, dg, dm, dv, dx of the cotangents cp, cm, cv, cx of p', m', v', x', and s[z i] = the i-th BE of e of dlr[z].

    Grid (Z * I); a program owns BE elements of each, and s[z i].
    """
    beta1 = tl.load(scalar_ptr)
    beta2 = tl.load(scalar_ptr + 1)
    eps = tl.load(scalar_ptr + 2).to(ACC)
    weight_decay = tl.load(scalar_ptr + 3).to(ACC)
    step_size = tl.load(scalar_ptr + 4)
    correction2 = tl.load(scalar_ptr + 5).to(ACC)
    sign = tl.load(scalar_ptr + 6).to(ACC)
    decay = tl.load(scalar_ptr + 7)
    rest1 = (1 - beta1).to(ACC)
    rest2 = (1 - beta2).to(ACC)
    # Of a learning rate of 1, which is what p' depends on the learning rate by.
    unit_size = step_size.to(ACC)
    unit_decay = decay.to(ACC)
    z = (tl.program_id(0) // I).to(tl.int64)
    if LR:
        lr = tl.load(lr_ptr + z * lr_z).to(tl.float64)
        step_size = lr * step_size
        decay = lr * decay
    step_size = step_size.to(ACC)
    decay = decay.to(ACC)

    e = (tl.program_id(0) % I).to(tl.int64) * BE + tl.arange(0, BE)
    at = z * E + e
    p = tl.load(p_ptr + at, mask=e < E, other=0.0).to(ACC)
    g = tl.load(g_ptr + at, mask=e < E, other=0.0).to(ACC)
    m = tl.load(m_ptr + at, mask=e < E, other=0.0).to(ACC)
    v = tl.load(v_ptr + at, mask=e < E, other=0.0).to(ACC)
    cp = tl.load(cp_ptr + z * cp_z + e * cp_e, mask=e < E, other=0.0).to(ACC)
    cm = tl.load(cm_ptr + z * cm_z + e * cm_e, mask=e < E, other=0.0).to(ACC)
    cv = tl.load(cv_ptr + z * cv_z + e * cv_e, mask=e < E, other=0.0).to(ACC)
    h = sign * g + weight_decay * p
    m = m + rest1 * (h - m)
    v = beta2.to(ACC) * v + rest2 * h * h
    w = v
    if AMSGRAD:
        x = tl.load(x_ptr + at, mask=e < E, other=0.0).to(ACC)
        cx = tl.load(cx_ptr + z * cx_z + e * cx_e, mask=e < E, other=0.0).to(ACC)
        w = tl.where(x >= v, x, v)
    root = tl.sqrt(w / correction2)
    d = root + eps
    dm = cm - step_size * cp / d
    # The square root has no derivative at 0: no gradient flows there.
    slope = tl.where(root > 0, 0.5 / (tl.where(root > 0, root, 1.0) * correction2), 0.0)
    dw = step_size * cp * m / (d * d) * slope
    if AMSGRAD:
        # A tie is shared in halves.
        share = tl.where(v > x, 1.0, tl.where(v == x, 0.5, 0.0)).to(ACC)
        dx = (cx + dw) * (1 - share)
        dv = cv + (cx + dw) * share
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=e < E)
    else:
        dv = cv + dw
    dh = rest1 * dm + 2 * rest2 * h * dv
    dp = cp - decay * cp + weight_decay * dh
    tl.store(dp_ptr + at, dp.to(dp_ptr.dtype.element_ty), mask=e < E)
    tl.store(dg_ptr + at, (sign * dh).to(dg_ptr.dtype.element_ty), mask=e < E)
    tl.store(dm_ptr + at, (beta1.to(ACC) * dm).to(dm_ptr.dtype.element_ty), mask=e < E)
    tl.store(dv_ptr + at, (beta2.to(ACC) * dv).to(dv_ptr.dtype.element_ty), mask=e < E)
    if LR:
        # Where nothing comes back nothing is added, also where m' / d is 0 / 0, as it is past the end.
        u = tl.where(cp == 0, 0.0, -cp * (unit_size * m / d + unit_decay * p))
        tl.store(s_ptr + tl.program_id(0), tl.sum(u, axis=0))
# fmt: on


def _adam_fake(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    max_exp_avg_sqs,
    masters,
    scalars,
    lrs,
    steps,
    keys,
    grad_scale,
    found_inf,
    clip,
):
    return None


@op(
    "adam_",
    fake=_adam_fake,
    mutates=("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters"),
    from_host=True,
)
def _adam(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    max_exp_avg_sqs: Sequence[torch.Tensor],
    masters: Sequence[torch.Tensor],
    scalars: Sequence[float],
    lrs: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    keys: Sequence[int],
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
    clip: torch.Tensor | None,
) -> None:
    T = len(params)
    if not T:
        return
    # Groups share a rate: it is made float64 once.
    wide = {lr.data_ptr(): lr.to(torch.float64) for lr in {lr.data_ptr(): lr for lr in lrs}.values()}
    rates = [wide[lr.data_ptr()] for lr in lrs]
    columns = [params, grads, exp_avgs, exp_avg_sqs]
    columns += [max_exp_avg_sqs or [exp_avgs[0].new_empty(0)] * T, masters or [params[0].new_empty(0)] * T]
    on_device = [[t.data_ptr() for t in row] if row else [0] * T for row in (rates, steps)]
    # fmt: off
    launch_many(
        _adam_kernel, columns, (0, 2, 3, 4, 5), scalars,
        words=list(zip(*on_device, keys or [0] * T, strict=True)),
        args=(grad_scale, found_inf, clip),
        dtypes={"DTYPE": 0, "STATE": 2},
        AMSGRAD=any(x.numel() for x in max_exp_avg_sqs),
        MASTER=str(params[0].dtype).removeprefix("torch.") if masters else "",
        STOCHASTIC=bool(keys), RATES=bool(lrs), STEPS=bool(steps),
        SCALED=grad_scale is not None, FOUND=found_inf is not None, CLIPPED=clip is not None,
        op="adam_step",
    )
    # fmt: on


def adam_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    max_exp_avg_sqs: Sequence[torch.Tensor],
    scalars: Sequence[float],
    *,
    masters: Sequence[torch.Tensor] = (),
    lrs: Sequence[torch.Tensor] = (),
    steps: Sequence[torch.Tensor] = (),
    keys: Sequence[int] = (),
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    clip: torch.Tensor | None = None,
) -> None:
    """Step every parameter in place, all in one launch: 4 E elements read, 3 E written; 5 and 4 with the largest v.

    Nothing here waits for the device.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: T tensors each, all on one device, the first two of one dtype, the last
            two of one; the four of one index have the same elements at the same places in memory, without gaps.
        max_exp_avg_sqs: T tensors like exp_avgs, the largest exp_avg_sq so far, which the step is divided by; without
            elements where a parameter has none; an empty list where none has.
        scalars: SCALARS of each tensor, one after another; float64 values that travel with the addresses.
        masters: none, or T float32 tensors like params, which are of half precision: what is stepped, params being
            what they round to. Where a parameter is not, it was changed by somebody else, and is what is stepped.
        lrs: none, or T tensors on the device: the learning rate where `scalars` were worked out with a rate of 1, or no
            elements where it is in them.
        steps: none, or T float32 tensors on the device of one element: the number of the step that this is, where
            `scalars` were worked out with a step of infinity.
        keys: none, or of each tensor a word of `rounding_triton.key`: moments, bfloat16, are rounded stochastically.
            Needs `steps`.
        grad_scale: what the gradients were multiplied by, one float32 on the device.
        found_inf: not 0 where nothing is to change, one float32 on the device.
        clip: what `norm_triton.global_norm` gives: the gradients are taken times its second element.
    """
    _adam(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(max_exp_avg_sqs),
        list(masters),
        list(scalars),
        list(lrs),
        list(steps),
        list(keys),
        grad_scale,
        found_inf,
        clip,
    )


def _adam_pullback_fake(p, g, m, v, x, lr, cp, cm, cv, cx, scalars):
    # An op's result is a tensor: without elements where there is none.
    like = [p, g, m, v, p.new_empty(0) if x is None else x, p.new_empty(0) if lr is None else lr]
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


@op("adam_pullback", fake=_adam_pullback_fake, from_host=True)
def adam_pullback(
    p: torch.Tensor,
    g: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor | None,
    lr: torch.Tensor | None,
    cp: torch.Tensor,
    cm: torch.Tensor,
    cv: torch.Tensor,
    cx: torch.Tensor | None,
    scalars: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dp, dg, dm, dv, dx, dlr of one step, for the cotangents of p', m', v', x'; dx and dlr may be empty.

    7 E elements read, 4 E written; with x 9 E and 5 E. lr[Z] is that of the Z rows of E elements, and each dlr a sum
    in two passes.
    """
    dp, dg, dm, dv, dx, dlr = _adam_pullback_fake(p, g, m, v, x, lr, cp, cm, cv, cx, scalars)
    Z, device, acc = 1 if lr is None else lr.numel(), p.device, accumulator(p.dtype)
    E = p.numel() // max(Z, 1)
    # With fourteen arrays 8 elements of float64 a thread spill registers.
    BE = block(E, 4096 // acc.itemsize)
    parts = -(-E // BE)
    partial = p.new_empty((0, 0) if lr is None else (Z, parts), dtype=acc)
    cotangents = [p if c is None else c.reshape(Z, E) for c in (cp, cm, cv, cx)]
    # fmt: off
    launch(
        _adam_pullback_kernel, [Z * parts],
        on_device(scalars, torch.float64, device, "adam_step"),
        *((partial, 0) if lr is None else (lr.reshape(Z), lr.reshape(Z).stride(0))),
        *(p if t is None else t.contiguous() for t in (p, g, m, v, x)),
        *(part for c in cotangents for part in (c, *(c.stride() if c is not p else (0, 0)))),
        dp, dg, dm, dv, dx,
        partial,
        E, parts,
        AMSGRAD=x is not None, LR=lr is not None, ACC=triton_dtype(acc), BE=BE,
        writes=[dp, dg, dm, dv, dx, partial],
    )
    # fmt: on
    if lr is not None:
        total = column_sum(partial.unsqueeze(-1), None)[:, 0] if parts > 1 else partial.sum(1)
        dlr = total.to(lr.dtype).reshape(lr.shape)
    return dp, dg, dm, dv, dx, dlr


def scalars(
    *,
    lr: float,
    step: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
    maximize: bool = False,
) -> list[float]:
    """SCALARS of one tensor at one step: the bias corrections are worked out here, in float64."""
    return [
        beta1,
        beta2,
        eps,
        0.0 if decoupled else weight_decay,
        lr / (1 - beta1**step),
        1 - beta2**step,
        -1.0 if maximize else 1.0,
        lr * weight_decay if decoupled else 0.0,
    ]
