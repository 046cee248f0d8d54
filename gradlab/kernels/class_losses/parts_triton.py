"""The loss of a row from sums over parts of its classes, which several devices have, as a Triton kernel."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.rows_triton import merged, row_classes, store_rows
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _merge_parts_kernel(
    p_ptr, p_s, p_z, p_i,
    t_ptr, t_z, t_m,
    y_ptr,
    n_ptr,
    s_ptr,
    M, V, S, IGNORE,
    SOFT: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr,
):
    """y, n, s of rows with V classes, p = (row_max, sum_exp, r_dot, r_sum) of S parts of them.

    Grid (Z * M/BM); a program owns y[z BM], n[z BM], s[z 3 BM].
    """
    tiles_m = tl.cdiv(M, BM)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * BM + tl.arange(0, BM)).to(tl.int64)
    _, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, V, IGNORE, 0, SOFT, False)
    row_max, sum_exp, r_dot, r_sum = merged(p_ptr + z * p_z + m, p_i, p_s, S, m < M, ACC, BM)
    store_rows(
        y_ptr + z * M, n_ptr + z * M, s_ptr + 3 * z * M, m, M,
        row_max, tl.log(sum_exp), r_dot, r_sum, in_range, valid,
    )
# fmt: on


def _merge_parts_fake(p, t, settings, classes):
    _, Z, _, M = p.shape
    return p.new_empty((Z, M)), p.new_empty((Z, M)), p.new_empty((Z, 3, M))


@op("merge_parts", fake=_merge_parts_fake)
def merge_parts(
    p: torch.Tensor, t: torch.Tensor | None, settings: Sequence[Number], classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y[Z M], n[Z M] = l^2 and the row statistics s[Z 3 M] of p[S Z 4 M], which each of S parts has of its rows.

    Targets are t[Z M], or soft and None, of `classes` classes in all parts. Read in one order: whoever has the same p
    comes to the same bits. 4 S M numbers read.
    """
    S, Z, _, M = p.shape
    y, n, s = _merge_parts_fake(p, t, settings, classes)
    BM = block(M, 64)
    # fmt: off
    launch(
        _merge_parts_kernel, [Z * -(-M // BM)],
        p, *p.stride()[:3],
        *((p, 0, 0) if t is None else (t, *t.stride())),
        y,
        n,
        s,
        M, classes, S, ClassLoss.of(settings).ignore_index,
        SOFT=t is None, ACC=triton_dtype(p.dtype), BM=BM, writes=[y, n, s],
    )
    # fmt: on
    return y, n, s
