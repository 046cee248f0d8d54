"""Sums over rows: of their losses, and of the weights that a mean divides by, as Triton kernels."""

import math

import torch
import triton.language as tl

from gradlab.kernels.common import reduce_triton
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _mean_divisors_kernel(
    t_ptr, t_z, t_m,
    a_ptr, a_v,
    d_ptr,
    M, V, IGNORE, STRETCH, I, FIRST,
    HAS_A: tl.constexpr, PART: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr,
):
    """d[z i] = (sum of a[t[z m]], number of them) over the rows not ignored in the i-th STRETCH of m.

    Grid (Z * I); a program owns d[z i].
    """
    z = (tl.program_id(0) // I).to(tl.int64)
    start = (tl.program_id(0) % I).to(tl.int64) * STRETCH
    weight = tl.zeros((BM,), dtype=ACC)
    count = tl.zeros((BM,), dtype=ACC)
    for m0 in range(0, STRETCH, BM):
        step = m0 + tl.arange(0, BM)
        m = start + step
        inside = (step < STRETCH) & (m < M)
        t = tl.load(t_ptr + z * t_z + m * t_m, mask=inside, other=0).to(tl.int64)
        valid = inside & (t != IGNORE)
        one = valid.to(ACC)
        count += one
        if PART:
            t -= FIRST
        if HAS_A:
            one = tl.load(a_ptr + t * a_v, mask=valid & (t >= 0) & (t < V), other=0.0).to(ACC)
        weight += one
    tl.store(d_ptr + 2 * tl.program_id(0), tl.sum(weight, axis=0))
    tl.store(d_ptr + 2 * tl.program_id(0) + 1, tl.sum(count, axis=0))


@kernel
def _sum_rows_kernel(
    y_ptr, y_z, y_m,
    s_ptr,
    M, STRETCH, I, DEN,
    ACC: tl.constexpr, BE: tl.constexpr,
):
    """s[z i] = sum_m y[z m] / DEN over the i-th STRETCH of m; grid (Z * I); a program owns s[z i]."""
    z = (tl.program_id(0) // I).to(tl.int64)
    start = (tl.program_id(0) % I).to(tl.int64) * STRETCH
    partial = tl.zeros((BE,), dtype=ACC)
    for m0 in range(0, STRETCH, BE):
        step = m0 + tl.arange(0, BE)
        m = start + step
        partial += tl.load(y_ptr + z * y_z + m * y_m, mask=(step < STRETCH) & (m < M), other=0.0)
    tl.store(s_ptr + tl.program_id(0), tl.sum(partial, axis=0) / DEN)
# fmt: on


def _mean_divisors_fake(t, a, V, ignore_index, wide, first=None):
    return t.new_empty((*t.shape[:-1], 2), dtype=torch.float64 if wide else torch.float32)


@op("mean_divisors", fake=_mean_divisors_fake)
def mean_divisors(
    t: torch.Tensor, a: torch.Tensor | None, V: int, ignore_index: int, wide: bool, first: int | None = None
) -> torch.Tensor:
    """d[2] = (sum of a[t[m]] over the rows that are not ignored, their number), in float64 if `wide`, else float32.

    Of V classes from `first` on the sum is of the rows whose class is among them. t may have one more axis Z in front:
    a pair for each of its places. M read.
    """
    *Z, M = t.shape
    t = t.reshape(math.prod(Z), M)
    parts = max(1, min(1024, -(-M // 2**16)))
    stretch = -(-M // parts)
    acc = torch.float64 if wide else torch.float32
    d = t.new_empty((t.shape[0], parts, 2), dtype=acc)
    # fmt: off
    launch(
        _mean_divisors_kernel, [t.shape[0] * parts],
        t, *t.stride(),
        *((d, 0) if a is None else (a, *a.stride())),
        d,
        M, V, ignore_index, stretch, parts, first or 0,
        HAS_A=a is not None, PART=first is not None, ACC=triton_dtype(acc), BM=block(stretch, 2048), writes=[d],
    )
    # fmt: on
    return (d[:, 0] if parts == 1 else column_sum(d, None)).reshape(*Z, 2)


def _sum_rows_fake(y):
    return y.new_empty(y.shape[:-1])


def _sum_rows_sharding(y):
    return "y[M] -> r[]; sums M" if y.ndim == 1 else "y[Z M] -> r[Z]; sums M"


@op("sum_rows", fake=_sum_rows_fake, sharding=_sum_rows_sharding)
def sum_rows(y: torch.Tensor) -> torch.Tensor:
    """The sum of y[M], which may have one more axis Z in front. M read."""
    return reduce_triton.sum_rows(_sum_rows_kernel, [y], y.ndim - 1, 1)
