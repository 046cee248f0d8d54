"""One step of stochastic gradient descent over any number of tensors in one launch, and its pullback, in Triton."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl

from gradlab.kernels.optimizers.multi_tensor_triton import (
    RowLayout,
    aligned,
    chunk_of,
    launch_many,
    masked_load,
    masked_store,
    pointer,
    scalar,
    times,
)
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype
from gradlab.kernels.runtime.sharding import elementwise


class Scalars(NamedTuple):
    """Scalars of one tensor's step, float64 on the host; all may change at every step.

    The last four are r, q, n, t of gradlab/kernels/sgd.py, b' = r b + q h and p' = p - lr (n h + t b'): r = 0 where the
    buffer is not read, t = 0 where there is none.
    """

    lr: float
    sign: float
    weight_decay: float
    b_of_b: float
    b_of_h: float
    p_of_h: float
    p_of_b: float


ROW = RowLayout(arrays=("p", "g", "b"), scalars=Scalars._fields)
column = ROW.columns()


# fmt: off
@kernel
def _step_chunk(
    p_ptr, g_ptr, b_ptr,
    e, E,
    lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b,
    ACC: tl.constexpr, FULL: tl.constexpr,
):
    """p', b' of the elements e, masked by e < E unless FULL."""
    p = masked_load(p_ptr, e, E, ACC, FULL)
    h = sign * masked_load(g_ptr, e, E, ACC, FULL) + times(weight_decay, p)
    d = h
    if p_of_b != 0:
        b = b_of_h * h
        if b_of_b != 0:
            b = b_of_b * masked_load(b_ptr, e, E, ACC, FULL) + b
        masked_store(b_ptr, e, E, b, FULL)
        d = times(p_of_h, h) + p_of_b * b
    masked_store(p_ptr, e, E, p - lr * d, FULL)


@kernel
def _step(
    p_ptr, g_ptr, b_ptr,
    start, E, whole,
    lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b,
    clip_ptr,
    ACC: tl.constexpr, CLIPPED: tl.constexpr, ALIGNED: tl.constexpr, BE: tl.constexpr,
):
    """p', b' of the BE elements from `start`, of a tensor of E elements; scalars are float64.

    `whole` says that accesses may be without a mask where all elements are there; ALIGNED, that addresses are multiples
    of 16 bytes then.
    """
    lr = lr.to(ACC)
    sign = sign.to(ACC)
    weight_decay = weight_decay.to(ACC)
    b_of_b = b_of_b.to(ACC)
    b_of_h = b_of_h.to(ACC)
    p_of_h = p_of_h.to(ACC)
    p_of_b = p_of_b.to(ACC)
    if CLIPPED:
        sign = sign * tl.load(clip_ptr + 1).to(ACC)
    e = start + tl.arange(0, BE)
    # A mask against a number that was loaded splits wide loads, so only a tensor's last chunk has one.
    if whole & (start + BE <= E):
        _step_chunk(
            aligned(p_ptr, ALIGNED), aligned(g_ptr, ALIGNED), aligned(b_ptr, ALIGNED), e, E,
            lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b, ACC, True,
        )
    else:
        _step_chunk(p_ptr, g_ptr, b_ptr, e, E, lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b, ACC, False)


@kernel
def _sgd_kernel(
    p_ptr, g_ptr, b_ptr,
    E,
    lr: tl.float64, sign: tl.float64, weight_decay: tl.float64,
    b_of_b: tl.float64, b_of_h: tl.float64, p_of_h: tl.float64, p_of_b: tl.float64,
    clip_ptr,
    ACC: tl.constexpr, CLIPPED: tl.constexpr, BE: tl.constexpr,
):
    """p', b' of one tensor, all E elements; grid (E/BE); a program owns a chunk of BE."""
    _step(
        p_ptr, g_ptr, b_ptr, tl.program_id(0).to(tl.int64) * BE, E, True,
        lr, sign, weight_decay, b_of_b, b_of_h, p_of_h, p_of_b,
        clip_ptr, ACC, CLIPPED, False, BE,
    )


@kernel
def _sgd_many_kernel(
    table_ptr, map_ptr,
    clip_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, CLIPPED: tl.constexpr,
    WORDS: tl.constexpr, ALIGN: tl.constexpr, BE: tl.constexpr,
):
    """p', b' over the tensors of a table laid out as ROW.

    Grid (chunks of BE); a program owns one chunk of one tensor.
    """
    tensor, start = chunk_of(map_ptr, BE)
    row = table_ptr + WORDS * tensor
    p = tl.load(row + column("p"))
    g = tl.load(row + column("g"))
    b = tl.load(row + column("b"))
    _step(
        pointer(p, DTYPE), pointer(g, DTYPE), pointer(b, DTYPE),
        start, tl.load(row + column("elements")), (p | g | b) % ALIGN == 0,
        scalar(row + column("lr")), scalar(row + column("sign")), scalar(row + column("weight_decay")),
        scalar(row + column("b_of_b")), scalar(row + column("b_of_h")),
        scalar(row + column("p_of_h")), scalar(row + column("p_of_b")),
        clip_ptr, ACC, CLIPPED, True, BE,
    )


@kernel
def _sgd_pullback_kernel(
    lr: tl.float64, sign: tl.float64, weight_decay: tl.float64,
    b_of_b: tl.float64, b_of_h: tl.float64, p_of_h: tl.float64, p_of_b: tl.float64,
    cp_ptr, cp_e, cb_ptr, cb_e,
    dp_ptr, dg_ptr, db_ptr,
    E,
    ACC: tl.constexpr, BUFFERED: tl.constexpr, BE: tl.constexpr,
):
    """dp, dg, db of the cotangents cp, cb of p', b'; grid (E/BE); a program owns BE elements of each."""
    lr = lr.to(ACC)
    sign = sign.to(ACC)
    weight_decay = weight_decay.to(ACC)
    b_of_b = b_of_b.to(ACC)
    b_of_h = b_of_h.to(ACC)
    p_of_h = p_of_h.to(ACC)
    p_of_b = p_of_b.to(ACC)

    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    cp = tl.load(cp_ptr + e * cp_e, mask=e < E, other=0.0).to(ACC)
    u = -lr * cp
    dh = times(p_of_h, u)
    if BUFFERED:
        db = tl.load(cb_ptr + e * cb_e, mask=e < E, other=0.0).to(ACC) + p_of_b * u
        dh = dh + b_of_h * db
        tl.store(db_ptr + e, times(b_of_b, db).to(db_ptr.dtype.element_ty), mask=e < E)
    dp = cp + times(weight_decay, dh)
    tl.store(dp_ptr + e, dp.to(dp_ptr.dtype.element_ty), mask=e < E)
    tl.store(dg_ptr + e, (sign * dh).to(dg_ptr.dtype.element_ty), mask=e < E)
# fmt: on


def _sgd_fake(params, grads, buffers, scalars, clip=None):
    return None


@op("sgd_", fake=_sgd_fake, mutates=("params", "buffers"), from_host=True)
def sgd_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    scalars: Sequence[float],
    clip: torch.Tensor | None = None,
) -> None:
    """Step every parameter in place, all in one launch: 3 E elements read, 2 E written; without momentum 2 E and E.

    Args:
        params, grads, buffers: T tensors each, of one dtype and on one device; the three of one index have the same
            elements at the same places in memory, without gaps. A buffer whose p_of_b is 0 has no elements; one whose
            b_of_b is 0 is written and not read.
        scalars: the `Scalars` of each tensor, one after another; float64 values, copied with the addresses.
        clip: the result of `norm_triton.global_norm`: gradients are multiplied by its second element.
    """
    launch_many(
        _sgd_kernel,
        _sgd_many_kernel,
        ROW,
        {"p": params, "g": grads, "b": buffers},
        scalars,
        args=(clip,),
        CLIPPED=clip is not None,
        op="sgd_step",
    )


def _sgd_pullback_fake(cp, cb, scalars):
    count = 2 if cb is None else 3
    return [torch.empty_like(cp, memory_format=torch.contiguous_format) for _ in range(count)]


def _sgd_pullback_sharding(cp, cb, scalars):
    return elementwise("cp, cb -> dp, dg" if cb is None else "cp, cb -> dp, dg, db")(cp)


@op("sgd_pullback", fake=_sgd_pullback_fake, sharding=_sgd_pullback_sharding)
def sgd_pullback(cp: torch.Tensor, cb: torch.Tensor | None, scalars: Sequence[float]) -> list[torch.Tensor]:
    """dp, dg and, where there is a buffer, db of one tensor's step, for the cotangents of p' and b', any strides.

    2 E elements read, 3 E written; without momentum E and 2 E.
    """
    grads = _sgd_pullback_fake(cp, cb, scalars)
    E = cp.numel()
    BE = block(E, 1024)
    # fmt: off
    launch(
        _sgd_pullback_kernel, [-(-E // BE)],
        *map(float, scalars),
        *(part for c in (cp, cp if cb is None else cb) for part in (c.reshape(-1), c.reshape(-1).stride(0))),
        grads[0], grads[1], grads[-1],
        E,
        ACC=triton_dtype(accumulator(cp.dtype)), BUFFERED=cb is not None, BE=BE, writes=grads,
    )
    # fmt: on
    return grads


def scalars(
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
) -> list[float]:
    """The `Scalars` of one tensor at one step, as the list that a registered op takes."""
    b_of_b, b_of_h, p_of_h, p_of_b = 0.0, 0.0, 1.0, 0.0
    if momentum:
        b_of_b, b_of_h = (0.0, 1.0) if first else (momentum, 1 - dampening)
        p_of_h, p_of_b = (1.0, momentum) if nesterov else (0.0, 1.0)
    return list(
        Scalars(
            lr=lr,
            sign=-1.0 if maximize else 1.0,
            weight_decay=weight_decay,
            b_of_b=b_of_b,
            b_of_h=b_of_h,
            p_of_h=p_of_h,
            p_of_b=p_of_b,
        )
    )
