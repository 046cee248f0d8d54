"""tanh and the slopes that its pullbacks of every order need, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.common.elementwise_triton import elementwise, tile_load, tile_of, tile_store
from gradlab.kernels.common.softcap_triton import tanh_of
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, op, triton_dtype
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text


# fmt: off
@kernel
def _tanh_kernel(
    x_ptr, x_m, x_n,
    y_ptr, y_m, y_n,
    M, N,
    ACC: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = tanh(x[m n]); grid (M/BM * N/BN); a program owns y[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    x = tile_load(x_ptr + m * x_m + n * x_n, inside, whole, RAGGED).to(ACC)
    y = tanh_of(x)
    tile_store(y_ptr + m * y_m + n * y_n, y, inside, whole, RAGGED)


@kernel
def _slope_kernel(
    a_ptr, a_m, a_n,
    y_ptr, y_m, y_n,
    d_ptr, d_m, d_n,
    M, N,
    K: tl.constexpr, ACC: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """d[m n] = a[m n] s_k(y[m n]); grid (M/BM * N/BN); a program owns d[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    a = tile_load(a_ptr + m * a_m + n * a_n, inside, whole, RAGGED).to(ACC)
    y = tile_load(y_ptr + m * y_m + n * y_n, inside, whole, RAGGED).to(ACC)
    if K == 0:
        s = (1 - y) * (1 + y)
    elif K == 1:
        s = -2 * y
    else:
        s = y * 0 - 2
    tile_store(d_ptr + m * d_m + n * d_n, (a * s), inside, whole, RAGGED)
# fmt: on


def _tanh_fake(x):
    return torch.empty_like(x)


@op("tanh", fake=_tanh_fake, sharding=elementwise_text("x -> y"))
def tanh(x: torch.Tensor) -> torch.Tensor:
    """y = tanh(x), laid out as x; any strides. E read, E written."""
    y = torch.empty_like(x)
    elementwise(_tanh_kernel, [x, y], writes=[y], ACC=triton_dtype(accumulator(x.dtype)))
    return y


def _slope_fake(a, y, k):
    return torch.empty_like(y)


@op("tanh_slope", fake=_slope_fake, sharding=elementwise_text("a, y -> d"))
def slope(a: torch.Tensor, y: torch.Tensor, k: int) -> torch.Tensor:
    """d = a s_k(y): s_0 = 1 - y^2, s_1 = -2 y, s_2 = -2; laid out as y, any strides. 2 E read, E written."""
    d = torch.empty_like(y)
    elementwise(_slope_kernel, [a, y, d], writes=[d], K=k, ACC=triton_dtype(accumulator(y.dtype)))
    return d
