"""Cross-entropy whose gradient takes the memory of the logits, with the loss or after it, as Triton kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.backward_triton import backward_into
from gradlab.kernels.class_losses.class_range_triton import refuse_out_of_range
from gradlab.kernels.class_losses.long_rows_triton import (
    block_at,
    gradient,
    group,
    held_gradient,
    held_softmax,
    held_tile,
    long_rows,
    powers,
    row_at,
    row_class,
    row_gradient,
    row_reference,
    row_softmax,
    row_target,
    row_tile,
    zero_row,
)
from gradlab.kernels.class_losses.rows_triton import (
    constants,
    empty_rows,
    logit_gradient,
    logits_tile,
    online_softmax,
    row_classes,
    row_masked,
    store_rows,
    targets,
    tile,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, op, triton_dtype

# Logits of a row that one program holds in registers; a longer row is read again.
HELD = 2**14
# Programs that scale a gradient: as many as a GPU has at once. Most often there is nothing to do.
SCALERS = 1024


# fmt: off
@kernel
def _row_with_gradient_kernel(
    x_ptr, x_n, x_d,
    t_ptr, t_m,
    a_ptr, a_v,
    div_ptr,
    y_ptr,
    n_ptr,
    V, D, IGNORE, Z_LOSS,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_A: tl.constexpr, MEAN: tl.constexpr, HELD: tl.constexpr,
    ACC: tl.constexpr,
    EDGES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    U: tl.constexpr, B: tl.constexpr, G: tl.constexpr, TAIL: tl.constexpr,
):
    """`_loss_with_gradient_kernel` of classes t in long rows; grid (M); a program owns row m."""
    m = tl.program_id(0).to(tl.int64)
    dy = tl.full((), 1.0, ACC)
    dn = tl.full((), 0.0, ACC) + Z_LOSS
    if MEAN:
        dy = dy / tl.load(div_ptr)
        dn = dn / tl.load(div_ptr + 1)
    t, here, in_range, valid = row_class(t_ptr, t_m, m, V, V, IGNORE, 0, False)
    x_ptr, lo, hi = row_at(x_ptr, x_n, x_d, m, D, V, EDGES, G)
    ref = row_reference(x_ptr, lo, CAP, EPS > 0, HALF, ACC)
    if HELD:
        x, inside = block_at(x_ptr, 0, hi, True, False, PAIRS, ACC, U, B, G)
        row_max, sum_exp, gap, p = held_softmax(x, inside, ref, CAP, EPS > 0, HALF)
    else:
        row_max, sum_exp, gap = row_softmax(
            x_ptr, lo, tl.where(valid, hi, 0), ref, CAP, EPS > 0, True, EDGES, HALF, PAIRS, ACC, U, B, G, TAIL,
        )
    r_dot, r_sum, x_t = row_target(x_ptr, lo, t, here, row_max, gap, ref, a_ptr, a_v, V, V, EPS, CAP, HAS_A, HALF, ACC)
    log_sum = tl.log(sum_exp)
    lse = row_max + log_sum
    tl.store(y_ptr + m, row_masked(r_dot + r_sum * log_sum, in_range, valid))
    tl.store(n_ptr + m, row_masked(lse * lse, in_range, valid))
    less = dy * (tl.full((), EPS, ACC) / V)
    k = tl.where(in_range, (dy * r_sum + 2 * dn * lse) / sum_exp, float("nan"))
    a, c, e = powers(row_max, ACC)
    if valid:
        if HELD:
            g = held_gradient(x, p, k, less, CAP, EPS > 0, HALF)
            at = group(U, B, G) + tl.arange(0, G)[None, None, :]
            tl.store(x_ptr + at, g.to(x_ptr.dtype.element_ty), mask=inside)
        else:
            row_gradient(
                x_ptr, x_ptr, lo, hi, a, c, k * tl.exp2(-e), less, CAP, EPS > 0, EDGES, HALF, PAIRS, ACC, U, B, G, TAIL,
            )
    else:
        zero_row(x_ptr, lo, hi, EDGES, TAIL, B, G)
    own = gradient(x_t, a, c, k * tl.exp2(-e), less + dy * (r_sum - EPS), CAP, True, HALF)
    # The row is written by all threads, this class after it.
    tl.debug_barrier()
    tl.store(x_ptr + lo + t, own.to(x_ptr.dtype.element_ty), mask=here)
# fmt: off
@kernel
def _loss_with_gradient_kernel(
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    a_ptr, a_v,
    div_ptr,
    y_ptr,
    n_ptr,
    s_ptr,
    M, V, D, IGNORE, Z_LOSS,
    EPS: tl.constexpr, CAP: tl.constexpr, SOFT: tl.constexpr, HAS_A: tl.constexpr,
    MEAN: tl.constexpr, HELD: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """y, n, s of `_loss_kernel`; x[m v] becomes the gradient of sum y / div[0] + Z_LOSS sum n / div[1].

    Grid (M/BM); a program owns rows BM.
    """
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    dy = tl.full((1,), 1.0, ACC)
    dn = tl.zeros((1,), ACC) + Z_LOSS
    if MEAN:
        dy = dy / tl.load(div_ptr)
        dn = dn / tl.load(div_ptr + 1)
    t, in_range, valid = row_classes(t_ptr, t_m, m, M, V, IGNORE, 0, SOFT, False)
    x_ptr += (m // D * x_n + m % D * x_d)[:, None]
    q_ptr += (m // D * q_n + m % D * q_d)[:, None]
    row_max = tl.full((BM,), float("-inf"), dtype=ACC)
    sum_exp = tl.zeros((BM,), dtype=ACC)
    r_dot = tl.zeros((BM,), dtype=ACC)
    r_sum = tl.zeros((BM,), dtype=ACC)
    v, inside, x, z, r = logits_tile(
        x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, 0, M, V, V, EPS, SOFT, HAS_A, CAP, ACC, BV,
    )
    row_max, sum_exp, r_dot, r_sum = online_softmax(row_max, sum_exp, r_dot, r_sum, z, r, inside, True)
    if HELD == 0:
        for v0 in range(BV, V, BV):
            v, inside, x, z, r = logits_tile(
                x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, v0, M, V, V, EPS, SOFT, HAS_A, CAP, ACC, BV,
            )
            row_max, sum_exp, r_dot, r_sum = online_softmax(row_max, sum_exp, r_dot, r_sum, z, r, inside, True)
    log_sum = tl.log(sum_exp)
    store_rows(y_ptr, n_ptr, s_ptr, m, M, row_max, log_sum, r_dot, r_sum, in_range, valid)
    if HELD:
        d = logit_gradient(x, z, r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, True)
        tl.store(x_ptr + v[None, :] * x_v, d.to(x_ptr.dtype.element_ty), mask=inside)
    else:
        for v0 in range(0, V, BV):
            v, inside, x, z, r = logits_tile(
                x_ptr, x_v, q_ptr, q_v, a_ptr, a_v, t, m, v0, M, V, V, EPS, SOFT, HAS_A, CAP, ACC, BV,
            )
            d = logit_gradient(x, z, r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, True)
            tl.store(x_ptr + v[None, :] * x_v, d.to(x_ptr.dtype.element_ty), mask=inside)


@kernel
def _scale_kernel(
    c_ptr,
    g_ptr, g_n, g_v, g_d,
    M, V, D,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """g[m v] *= c in place, and nothing read or written where c = 1; grid (I); a program owns each I-th g[BM BV]."""
    c = tl.load(c_ptr).to(ACC)
    if c != 1.0:
        tiles_v = tl.cdiv(V, BV)
        for i in range(tl.program_id(0), tl.cdiv(M, BM) * tiles_v, tl.num_programs(0)):
            m = (i // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
            v = (i % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
            inside = (m < M)[:, None] & (v < V)[None, :]
            tile_ptr = g_ptr + (m // D * g_n + m % D * g_d)[:, None] + v[None, :] * g_v
            g = tl.load(tile_ptr, mask=inside, other=0.0).to(ACC)
            tl.store(tile_ptr, (g * c).to(g_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_with_gradient_fake(x, t, q, a, divisors, z_loss, settings):
    return empty_rows(x)[:2]


@op("cross_entropy_loss_with_gradient_", fake=_loss_with_gradient_fake, mutates=("x",))
def loss_with_gradient_(
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    divisors: torch.Tensor | None,
    z_loss: float,
    settings: Sequence[Number],
) -> tuple[torch.Tensor, torch.Tensor]:
    """y[M] and n[M] as `loss` gives them.

    Over the logits the gradient of sum y / divisors[0] + z_loss sum n / divisors[1].

    Without divisors of their sums. M V logits read once (rows past HELD once more), M V written.
    """
    N, V, D = x.shape
    ignore_index = ClassLoss.of(settings).ignore_index
    if t is not None:
        refuse_out_of_range("cross_entropy", t, V, D, ignore_index)
    y, n, s = empty_rows(x)
    known = constants(settings, s.dtype, a)
    # fmt: off
    if t is not None and long_rows(x, t, a, known["EPS"]):
        warps, how, held = _row_launch(x)
        launch(
            _row_with_gradient_kernel, [N * D],
            x, x.stride(0), x.stride(2),
            t, *t.stride(),
            *((x, 0) if a is None else (a, *a.stride())),
            s if divisors is None else divisors,
            y,
            n,
            V, D, ignore_index, float(z_loss),
            **known, MEAN=divisors is not None, HELD=held, **how, writes=[y, n, x], warps=warps,
        )
        return y, n
    BM, BV = tile(x)
    if V <= HELD and x.stride(1) == 1:
        BM, BV = 1, block(V, HELD)
    launch(
        _loss_with_gradient_kernel, [-(-N * D // BM)],
        x, *x.stride(),
        *targets(x, t, q, a),
        s if divisors is None else divisors,
        y,
        n,
        s,
        N * D, V, D, ignore_index, float(z_loss),
        **known, SOFT=q is not None, MEAN=divisors is not None, HELD=V <= BV, BM=BM, BV=BV,
        writes=[y, n, s, x], warps=max(4, min(16, BM * BV // 1024)),
    )
    # fmt: on
    return y, n


def _row_launch(x: torch.Tensor) -> tuple[int, dict[str, Any], bool]:
    """Warps of a program, how it goes over a row, and whether it holds it in registers: a row past HELD is read again.

    The second read comes out of the L2 cache if all rows that are worked on fit there. Registers allow 3 programs of 8
    warps on a multiprocessor, or one of 16: of 132 of them 396 rows of at most 112 KiB, or 132 longer ones.
    """
    held = held_tile(x, HELD)
    if held is not None:
        return *held, True
    warps = 8 if x.shape[1] * x.element_size() <= 112 * 2**10 else 16
    return warps, row_tile(x, warps), False


def _backward_in_place_fake(dy, dn, x, t, q, a, s, settings, part=None):
    return None


@op("cross_entropy_backward_", fake=_backward_in_place_fake, mutates=("x",))
def backward_(
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    s: torch.Tensor,
    settings: Sequence[Number],
    part: Sequence[int] | None = None,
) -> None:
    """The gradient of the loss, written over the logits; M V read, M V written."""
    backward_into(x, dy, dn, x, t, q, a, s, settings, part)


def _scale_fake(g, c):
    return None


@op("cross_entropy_scale_", fake=_scale_fake, mutates=("g",))
def scale_(g: torch.Tensor, c: torch.Tensor) -> None:
    """g[N V D] *= c[] in place. Where c is 1, which only the device reads, nothing is read or written."""
    N, V, D = g.shape
    BM, BV = tile(g)
    # fmt: off
    launch(
        _scale_kernel, [min(SCALERS, -(-N * D // BM) * -(-V // BV))],
        c,
        g, *g.stride(),
        N * D, V, D,
        ACC=triton_dtype(accumulator(g.dtype)), BM=BM, BV=BV, writes=[g],
    )
    # fmt: on
