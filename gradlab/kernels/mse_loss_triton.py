"""The sum of squared differences, and the product of differences that is its pullback, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.common import reduce_triton
from gradlab.kernels.common.elementwise_triton import elementwise, of_one, operand, tile_load, tile_of, tile_store
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, op, triton_dtype
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text
from gradlab.kernels.runtime.sharding import sums_rows


# fmt: off
@kernel
def _squares_kernel(
    x_ptr, x_z, x_e,
    t_ptr, t_z, t_e,
    s_ptr,
    E, CHUNK, I, DEN,
    ACC: tl.constexpr, BE: tl.constexpr,
):
    """s[z i] = sum_e (x[z e] - t[z e])^2 / DEN over the i-th CHUNK of e; grid (Z * I); a program owns s[z i]."""
    z = (tl.program_id(0) // I).to(tl.int64)
    start = (tl.program_id(0) % I).to(tl.int64) * CHUNK
    total = tl.zeros((BE,), dtype=ACC)
    for e0 in range(0, CHUNK, BE):
        step = e0 + tl.arange(0, BE)
        e = start + step
        inside = (step < CHUNK) & (e < E)
        x = tl.load(x_ptr + z * x_z + e * x_e, mask=inside, other=0.0).to(ACC)
        t = tl.load(t_ptr + z * t_z + e * t_e, mask=inside, other=0.0).to(ACC)
        total += (x - t) * (x - t)
    tl.store(s_ptr + tl.program_id(0), tl.sum(total, axis=0) / DEN)


@kernel
def _differences_kernel(
    a_ptr, a_m, a_n,
    b_ptr, b_m, b_n,
    x_ptr, x_m, x_n,
    t_ptr, t_m, t_n,
    y_ptr, y_m, y_n,
    DEN, M, N,
    NUM: tl.constexpr, HAS_B: tl.constexpr, HAS_T: tl.constexpr, ACC: tl.constexpr,
    ONE: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = NUM / DEN (a[m n] - b[m n]) (x[m n] - t[m n]); grid (M/BM * N/BN); a program owns y[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    a = operand(a_ptr, a_m, a_n, m, n, inside, whole, ONE, RAGGED).to(ACC)
    x = tile_load(x_ptr + m * x_m + n * x_n, inside, whole, RAGGED).to(ACC)
    if HAS_B:
        a -= tile_load(b_ptr + m * b_m + n * b_n, inside, whole, RAGGED).to(ACC)
    if HAS_T:
        x -= tile_load(t_ptr + m * t_m + n * t_n, inside, whole, RAGGED).to(ACC)
    y = a * x * NUM / DEN
    tile_store(y_ptr + m * y_m + n * y_n, y, inside, whole, RAGGED)
# fmt: on


def _squares_fake(x, t, batch_axes, den):
    return x.new_empty(x.shape[:batch_axes])


@op("squares", fake=_squares_fake, sharding=sums_rows("x, t -> y"))
def squares(x: torch.Tensor, t: torch.Tensor, batch_axes: int, den: int) -> torch.Tensor:
    """y = the sum of (x - t)^2 over all but the first `batch_axes` axes, over `den`. 2 E read."""
    return reduce_triton.sum_rows(_squares_kernel, [x, t], batch_axes, den)


def _differences_fake(a, b, x, t, num, den):
    return torch.empty_like(x)


@op("differences", fake=_differences_fake, sharding=elementwise_text("a, b, x, t -> y"))
def differences(
    a: torch.Tensor, b: torch.Tensor | None, x: torch.Tensor, t: torch.Tensor | None, num: int, den: int
) -> torch.Tensor:
    """y = num / den (a - b) (x - t), one by one, zeros for b or t that is None; laid out as x. Up to 4 E read."""
    y = torch.empty_like(x)
    tensors = [a, a if b is None else b, x, x if t is None else t, y]
    flags = {"ONE": of_one(a), "HAS_B": b is not None, "HAS_T": t is not None}
    elementwise(_differences_kernel, tensors, den, writes=[y], NUM=num, **flags, ACC=triton_dtype(accumulator(x.dtype)))
    return y
