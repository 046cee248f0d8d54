"""relu and the mask that is its pullback, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.common.elementwise_triton import elementwise, tile_load, tile_of, tile_store
from gradlab.kernels.runtime.launch_triton import kernel, op
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text


# fmt: off
@kernel
def _relu_mask_kernel(
    x_ptr, x_m, x_n,
    mask_ptr, mask_m, mask_n,
    y_ptr, y_m, y_n,
    M, N,
    RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = 0 where mask[m n] <= 0, else x[m n]; grid (M/BM * N/BN); a program owns y[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    x = tile_load(x_ptr + m * x_m + n * x_n, inside, whole, RAGGED)
    mask = tile_load(mask_ptr + m * mask_m + n * mask_n, inside, whole, RAGGED)
    # Not `where(mask > 0, x, 0)`: a NaN passes, as it does in both frameworks' forward.
    y = tl.where(mask <= 0, 0.0, x)
    tile_store(y_ptr + m * y_m + n * y_n, y, inside, whole, RAGGED)
# fmt: on


def _relu_mask_fake(x, mask):
    return torch.empty_like(mask)


@op("relu_mask", fake=_relu_mask_fake, sharding=elementwise_text("x, mask -> y"))
def relu_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """y = 0 where mask <= 0, else x; same shape, any strides; y is laid out as the mask. relu_mask(x, x) is relu.

    E elements: 2 E read (E when both are one tensor in cache), E written.
    """
    y = torch.empty_like(mask)
    elementwise(_relu_mask_kernel, [x, mask, y], writes=[y])
    return y
