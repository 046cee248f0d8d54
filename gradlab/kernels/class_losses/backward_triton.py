"""The gradient of a loss of logits that lie in memory, into new memory or over them, as a Triton kernel."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.long_rows_triton import (
    gradient,
    long_rows,
    powers,
    row_at,
    row_class,
    row_gradient,
    row_tile,
    zero_row,
)
from gradlab.kernels.class_losses.rows_triton import (
    constants,
    load_rows,
    logit_gradient,
    logits_tile,
    part_numbers,
    row_classes,
    targets,
    tile,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_triton import kernel, launch


# fmt: off
@kernel
def _backward_kernel(
    dy_ptr, dy_m,
    dn_ptr, dn_m,
    x_ptr, x_n, x_v, x_d,
    t_ptr, t_m,
    q_ptr, q_n, q_v, q_d,
    a_ptr, a_v,
    s_ptr, s_k, s_m,
    d_ptr, d_n, d_v, d_d,
    M, V, D, IGNORE, FIRST, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, SOFT: tl.constexpr, HAS_A: tl.constexpr, HAS_DN: tl.constexpr,
    PART: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """d[m v] = z' (dy[m] (R[m] p[m v] - r[m v]) + 2 dn[m] l[m] p[m v]); grid (M/BM * V/BV); a program owns d[BM BV]."""
    tiles_v = tl.cdiv(V, BV)
    m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
    total = TOTAL if PART else V
    t, in_range, valid = row_classes(t_ptr, t_m, m, M, total, IGNORE, FIRST, SOFT, PART)
    dy, dn, row_max, log_sum, r_sum = load_rows(dy_ptr, dy_m, dn_ptr, dn_m, s_ptr, s_k, s_m, m, M, HAS_DN, ACC)
    v, inside, x, z, r = logits_tile(
        x_ptr + (m // D * x_n + m % D * x_d)[:, None], x_v,
        q_ptr + (m // D * q_n + m % D * q_d)[:, None], q_v,
        a_ptr, a_v,
        t, m, tl.program_id(0) % tiles_v * BV, M, V, total, EPS, SOFT, HAS_A, CAP, ACC, BV,
    )
    d = logit_gradient(x, z, r, dy, dn, row_max, log_sum, r_sum, in_range, valid, CAP, HAS_DN)
    d_ptr += (m // D * d_n + m % D * d_d)[:, None]
    tl.store(d_ptr + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)


@kernel
def _row_backward_kernel(
    dy_ptr, dy_m,
    dn_ptr, dn_m,
    x_ptr, x_n, x_d,
    t_ptr, t_m,
    s_ptr, s_k, s_m,
    d_ptr, d_n, d_d,
    V, D, IGNORE, FIRST, TOTAL, STRETCH, I,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_DN: tl.constexpr, PART: tl.constexpr, SAME: tl.constexpr,
    ACC: tl.constexpr,
    EDGES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    U: tl.constexpr, B: tl.constexpr, G: tl.constexpr, TAIL: tl.constexpr,
):
    """`_backward_kernel` of classes t in long rows; grid (M * I); a program owns a STRETCH of d[m V].

    SAME if d lies in memory as x does.
    """
    m = (tl.program_id(0) // I).to(tl.int64)
    begin = tl.program_id(0) % I * STRETCH
    total = TOTAL if PART else V
    t, here, in_range, valid = row_class(t_ptr, t_m, m, V, total, IGNORE, FIRST, PART)
    dy, dn, row_max, log_sum, r_sum = load_rows(dy_ptr, dy_m, dn_ptr, dn_m, s_ptr, s_k, s_m, m, m + 1, HAS_DN, ACC)
    x_ptr, lo, hi = row_at(x_ptr, x_n, x_d, m, D, V, EDGES, G)
    if SAME:
        d_ptr, _, _ = row_at(d_ptr, d_n, d_d, m, D, V, EDGES, G)
    else:
        d_ptr += m // D * d_n + m % D * d_d - lo
    t += lo - begin
    lo = tl.maximum(lo - begin, 0)
    hi = tl.minimum(hi - begin, STRETCH)
    here = here & (t >= lo) & (t < hi)
    x_ptr += begin
    d_ptr += begin
    x_t = tl.load(x_ptr + t, mask=here, other=0.0).to(ACC)
    less = dy * (tl.full((), EPS, ACC) / total)
    a, c, e = powers(row_max, ACC)
    k = (dy * r_sum + 2 * dn * (row_max + log_sum)) * tl.exp(-log_sum) * tl.exp2(-e)
    k = tl.where(in_range, k, float("nan"))
    if valid:
        row_gradient(x_ptr, d_ptr, lo, hi, a, c, k, less, CAP, EPS > 0, EDGES, HALF, PAIRS, ACC, U, B, G, TAIL)
    else:
        zero_row(d_ptr, lo, hi, EDGES, TAIL, B, G)
    own = gradient(x_t, a, c, k, less + dy * (r_sum - EPS), CAP, True, HALF)
    # All threads write the row, and then one of them this class.
    tl.debug_barrier()
    tl.store(d_ptr + t, own.to(d_ptr.dtype.element_ty), mask=here)
# fmt: on


def backward_into(
    d: torch.Tensor,
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor | None,
    q: torch.Tensor | None,
    a: torch.Tensor | None,
    s: torch.Tensor,
    settings: Sequence[Number],
    part: Sequence[int] | None,
) -> None:
    """dx in the memory of d[N V D], which may be x itself: each logit is read by the program that writes it."""
    N, V, D = x.shape
    known = constants(settings, s.dtype, a)
    # fmt: off
    if t is not None and long_rows(x, t, a, known["EPS"]) and d.stride(1) == 1:
        _backward_of_rows(d, dy, dn, x, t, s, settings, part)
        return
    BM, BV = tile(x)
    launch(
        _backward_kernel, [-(-N * D // BM) * -(-V // BV)],
        dy, *dy.stride(),
        *((dy, 0) if dn is None else (dn, *dn.stride())),
        x, *x.stride(),
        *targets(x, t, q, a),
        s, *s.stride(),
        d, *d.stride(),
        N * D, V, D, ClassLoss.of(settings).ignore_index, *part_numbers(part),
        **known, SOFT=q is not None, HAS_DN=dn is not None, PART=part is not None, BM=BM,
        BV=BV, writes=[d],
    )
    # fmt: on


def _backward_of_rows(
    d: torch.Tensor,
    dy: torch.Tensor,
    dn: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor,
    s: torch.Tensor,
    settings: Sequence[Number],
    part: Sequence[int] | None,
) -> None:
    N, V, D = x.shape
    M = N * D
    warps = 4 if V >= 2**13 else 2
    how = row_tile(x, warps)
    step = how["U"] * how["B"] * how["G"]
    # Rows are parted where they alone would not fill a GPU.
    parts = max(1, min(-(-4096 // max(M, 1)), V // (2 * step)))
    length = V + how["EDGES"] * (how["G"] - 1)
    stretch = -(-length // (parts * step)) * step
    parts = -(-length // stretch)
    known = constants(settings, s.dtype, None)
    # fmt: off
    launch(
        _row_backward_kernel, [M * parts],
        dy, *dy.stride(),
        *((dy, 0) if dn is None else (dn, *dn.stride())),
        x, x.stride(0), x.stride(2),
        t, *t.stride(),
        s, *s.stride(),
        d, d.stride(0), d.stride(2),
        V, D, ClassLoss.of(settings).ignore_index, *part_numbers(part), stretch, parts,
        EPS=known["EPS"], CAP=known["CAP"], ACC=known["ACC"], HAS_DN=dn is not None, PART=part is not None,
        SAME=d.stride() == x.stride(), **how, writes=[d], warps=warps,
    )
    # fmt: on
