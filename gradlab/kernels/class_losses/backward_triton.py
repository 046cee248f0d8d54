"""The gradient of a loss of logits that lie in memory, into new memory or over them, as a Triton kernel."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

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
    BM, BV = tile(x)
    # fmt: off
    launch(
        _backward_kernel, [-(-N * D // BM) * -(-V // BV)],
        dy, *dy.stride(),
        *((dy, 0) if dn is None else (dn, *dn.stride())),
        x, *x.stride(),
        *targets(x, t, q, a),
        s, *s.stride(),
        d, *d.stride(),
        N * D, V, D, ClassLoss.of(settings).ignore_index, *part_numbers(part),
        **constants(settings, s.dtype, a), SOFT=q is not None, HAS_DN=dn is not None, PART=part is not None, BM=BM,
        BV=BV, writes=[d],
    )
    # fmt: on
