"""One step of Adam over any number of tensors in one launch, and its pullback, as Triton kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.optimizers.adam_step_triton import step
from gradlab.kernels.optimizers.multi_tensor_triton import RowLayout, chunk_of, launch_many, pointer, scalar
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype
from gradlab.kernels.runtime.sharding import elementwise


class Scalars(NamedTuple):
    """Scalars of one tensor's step, float64 on the host; all may change at every step.

    step_size = lr / (1 - beta1^t), correction2 = 1 - beta2^t; sign multiplies the gradient, -1 to maximize, and takes
    the loss scale's inverse and the clipping factor; decay = lr weight_decay where it is decoupled, else 0.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step_size: float
    correction2: float
    sign: float
    decay: float


# x is the largest v so far, w the master weight; lr and step are addresses, 0 where the number is in the scalars.
ROW = RowLayout(arrays=("p", "g", "m", "v", "x", "w"), scalars=Scalars._fields, words=("lr", "step", "key"))
column = ROW.columns()


# fmt: off
@kernel
def _adam_kernel(
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr,
    E,
    beta1: tl.float64, beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    step_size: tl.float64, correction2: tl.float64, sign: tl.float64, decay: tl.float64,
    lr_ptr, step_ptr, key,
    scale_ptr, found_ptr, clip_ptr,
    ACC: tl.constexpr, AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    RATES: tl.constexpr, STEPS: tl.constexpr, SCALED: tl.constexpr, FOUND: tl.constexpr, CLIPPED: tl.constexpr,
    BE: tl.constexpr,
):
    """p', m', v', x' = max(x, v'), w' of one tensor, all E elements; grid (E/BE); a program owns a chunk of BE."""
    step(
        p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr,
        tl.program_id(0).to(tl.int64) * BE, E, True,
        beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay,
        lr_ptr, step_ptr, key,
        scale_ptr, found_ptr, clip_ptr,
        ACC, AMSGRAD, MASTER, STOCHASTIC, RATES, STEPS, SCALED, FOUND, CLIPPED, False, BE,
    )


@kernel
def _adam_many_kernel(
    table_ptr, map_ptr,
    scale_ptr, found_ptr, clip_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, STATE: tl.constexpr,
    AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    RATES: tl.constexpr, STEPS: tl.constexpr, SCALED: tl.constexpr, FOUND: tl.constexpr, CLIPPED: tl.constexpr,
    WORDS: tl.constexpr, ALIGN: tl.constexpr, BE: tl.constexpr,
):
    """p', m', v', x' = max(x, v'), w' over the tensors of a table laid out as ROW.

    Grid (chunks of BE); a program owns one chunk of one tensor.
    """
    tensor, start = chunk_of(map_ptr, BE)
    row = table_ptr + WORDS * tensor
    p = tl.load(row + column("p"))
    g = tl.load(row + column("g"))
    m = tl.load(row + column("m"))
    v = tl.load(row + column("v"))
    x = tl.load(row + column("x"))
    w = tl.load(row + column("w"))
    step(
        pointer(p, DTYPE), pointer(g, DTYPE), pointer(m, STATE),
        pointer(v, STATE), pointer(x, STATE), pointer(w, tl.float32),
        start, tl.load(row + column("elements")), (p | g | m | v | x | w) % ALIGN == 0,
        scalar(row + column("beta1")), scalar(row + column("beta2")), scalar(row + column("eps")),
        scalar(row + column("weight_decay")), scalar(row + column("step_size")), scalar(row + column("correction2")),
        scalar(row + column("sign")), scalar(row + column("decay")),
        pointer(tl.load(row + column("lr")), tl.float64), pointer(tl.load(row + column("step")), tl.float32),
        tl.load(row + column("key")),
        scale_ptr, found_ptr, clip_ptr,
        ACC, AMSGRAD, MASTER, STOCHASTIC, RATES, STEPS, SCALED, FOUND, CLIPPED, True, BE,
    )


@kernel
def _adam_pullback_kernel(
    beta1: tl.float64, beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    step_size: tl.float64, correction2: tl.float64, sign: tl.float64, decay: tl.float64,
    lr_ptr, lr_z,
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr,
    cp_ptr, cp_z, cp_e, cm_ptr, cm_z, cm_e, cv_ptr, cv_z, cv_e, cx_ptr, cx_z, cx_e,
    dp_ptr, dg_ptr, dm_ptr, dv_ptr, dx_ptr,
    s_ptr,
    E, I,
    AMSGRAD: tl.constexpr, LR: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr,
):
    """dp, dg, dm, dv, dx of the cotangents cp, cm, cv, cx of p', m', v', x', and s[z i], the i-th part of dlr[z]'s sum.

    Grid (Z * I); a program owns BE elements of each, and s[z i].
    """
    eps = eps.to(ACC)
    weight_decay = weight_decay.to(ACC)
    correction2 = correction2.to(ACC)
    sign = sign.to(ACC)
    rest1 = (1 - beta1).to(ACC)
    rest2 = (1 - beta2).to(ACC)
    beta1 = beta1.to(ACC)
    beta2 = beta2.to(ACC)
    # Step size and decay for a learning rate of 1: p' is linear in the learning rate.
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
    v = beta2 * v + rest2 * h * h
    q = v
    if AMSGRAD:
        x = tl.load(x_ptr + at, mask=e < E, other=0.0).to(ACC)
        cx = tl.load(cx_ptr + z * cx_z + e * cx_e, mask=e < E, other=0.0).to(ACC)
        q = tl.where(x >= v, x, v)
    root = tl.sqrt(q / correction2)
    d = root + eps
    dm = cm - step_size * cp / d
    # The square root has no derivative at 0: no gradient flows there.
    slope = tl.where(root > 0, 0.5 / (tl.where(root > 0, root, 1.0) * correction2), 0.0)
    dq = step_size * cp * m / (d * d) * slope
    if AMSGRAD:
        # Where x = v' each takes half.
        share = tl.where(v > x, 1.0, tl.where(v == x, 0.5, 0.0)).to(ACC)
        dx = (cx + dq) * (1 - share)
        dv = cv + (cx + dq) * share
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=e < E)
    else:
        dv = cv + dq
    dh = rest1 * dm + 2 * rest2 * h * dv
    dp = cp - decay * cp + weight_decay * dh
    tl.store(dp_ptr + at, dp.to(dp_ptr.dtype.element_ty), mask=e < E)
    tl.store(dg_ptr + at, (sign * dh).to(dg_ptr.dtype.element_ty), mask=e < E)
    tl.store(dm_ptr + at, (beta1 * dm).to(dm_ptr.dtype.element_ty), mask=e < E)
    tl.store(dv_ptr + at, (beta2 * dv).to(dv_ptr.dtype.element_ty), mask=e < E)
    if LR:
        # A cotangent of 0 adds nothing, also where m' / d is 0 / 0, as in masked-off elements.
        u = tl.where(cp == 0, 0.0, -cp * (unit_size * m / d + unit_decay * p))
        tl.store(s_ptr + tl.program_id(0), tl.sum(u, axis=0))
# fmt: on


def _adam_fake(*args):
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
    # A rate that parameters share is converted to float64 once.
    wide = {lr.data_ptr(): lr.to(torch.float64) for lr in {lr.data_ptr(): lr for lr in lrs}.values()}
    rates = [wide[lr.data_ptr()] for lr in lrs]
    tensors = {"p": params, "g": grads, "m": exp_avgs, "v": exp_avg_sqs}
    tensors["x"] = max_exp_avg_sqs or [exp_avgs[0].new_empty(0)] * T
    tensors["w"] = masters or [params[0].new_empty(0)] * T
    # fmt: off
    launch_many(
        _adam_kernel, _adam_many_kernel, ROW, tensors, scalars,
        words={"lr": rates or [params[0]] * T, "step": steps or [params[0]] * T, "key": keys or [0] * T},
        args=(grad_scale, found_inf, clip),
        dtypes={"DTYPE": "p", "STATE": "m"},
        AMSGRAD=any(t.numel() for t in max_exp_avg_sqs),
        MASTER=str(params[0].dtype).removeprefix("torch.") if masters else "",
        STOCHASTIC=bool(keys), RATES=any(t.numel() for t in lrs), STEPS=any(t.numel() for t in steps),
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

    No host synchronisation.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: T tensors each, all on one device, the first two of one dtype, the last
            two of one; the four of one index have the same elements at the same places in memory, without gaps.
        max_exp_avg_sqs: T tensors like exp_avgs, the largest exp_avg_sq so far, for amsgrad; one without elements where
            a parameter has none; an empty list where none has.
        scalars: the `Scalars` of each tensor, one after another; float64 values, copied with the addresses.
        masters: none, or T float32 tensors, the master weights of half-precision params. A parameter that differs from
            its rounded master was changed outside of the optimizer: it is stepped, and becomes the master.
        lrs: none, or T tensors on the device: the learning rate, where `scalars` were computed for a rate of 1; one
            without elements where the rate is in the scalars.
        steps: none, or T float32 tensors of one element on the device: the number of this step, where `scalars` were
            computed without bias corrections.
        keys: none, or a `rounding_triton.key` for each tensor: moments in bfloat16 are rounded stochastically. Needs
            `steps`.
        grad_scale: the factor that the gradients were multiplied by, one float32 on the device.
        found_inf: one float32 on the device; if it is not 0, nothing changes.
        clip: the result of `norm_triton.global_norm`: gradients are multiplied by its second element.
    """
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, scalars, lrs, steps, keys)
    _adam(*map(list, lists), grad_scale, found_inf, clip)


def _adam_pullback_fake(p, g, m, v, x, lr, cp, cm, cv, cx, scalars):
    # A registered op returns tensors: one without elements stands for no result.
    like = [p, g, m, v, p.new_empty(0) if x is None else x, p.new_empty(0) if lr is None else lr]
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


_TEXT = elementwise("p, g, m, v, x, lr[], cp, cm, cv, cx -> dp, dg, dm, dv, dx, dlr[]")


@op("adam_pullback", fake=_adam_pullback_fake, sharding=_TEXT)
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
    """dp, dg, dm, dv, dx, dlr of one step, for the cotangents of p', m', v', x'; dx and dlr are empty without x and lr.

    7 E elements read, 4 E written; with x 9 E and 5 E. lr[Z] belongs to Z rows of E elements; each dlr is summed in two
    passes.
    """
    dp, dg, dm, dv, dx, dlr = _adam_pullback_fake(p, g, m, v, x, lr, cp, cm, cv, cx, scalars)
    Z, acc = 1 if lr is None else lr.numel(), accumulator(p.dtype)
    E = p.numel() // max(Z, 1)
    # Fourteen arrays: with 8 elements of float64 a thread, registers spill.
    BE = block(E, 4096 // acc.itemsize)
    parts = -(-E // BE)
    partial = p.new_empty((0, 0) if lr is None else (Z, parts), dtype=acc)
    cotangents = [p if c is None else c.reshape(Z, E) for c in (cp, cm, cv, cx)]
    # fmt: off
    launch(
        _adam_pullback_kernel, [Z * parts],
        *map(float, scalars),
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
    """The `Scalars` of one tensor at one step, bias corrections in float64, as the list that a registered op takes."""
    return list(
        Scalars(
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=0.0 if decoupled else weight_decay,
            step_size=lr / (1 - beta1**step),
            correction2=1 - beta2**step,
            sign=-1.0 if maximize else 1.0,
            decay=lr * weight_decay if decoupled else 0.0,
        )
    )
