"""relu and the gate that is its pullback, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.common.elementwise_triton import elementwise
from gradlab.kernels.runtime.launch_triton import kernel, op


# fmt: off
@kernel
def _gate_kernel(
    x_ptr, x_m, x_n,
    g_ptr, g_m, g_n,
    y_ptr, y_m, y_n,
    M, N,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = 0 where g[m n] <= 0, else x[m n]; grid (M/BM * N/BN); a program owns y[BM BN]."""
    tiles_n = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)).to(tl.int64)
    n = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(tl.int64)
    inside = (m < M)[:, None] & (n < N)[None, :]
    x = tl.load(x_ptr + m[:, None] * x_m + n[None, :] * x_n, mask=inside, other=0.0)
    g = tl.load(g_ptr + m[:, None] * g_m + n[None, :] * g_n, mask=inside, other=0.0)
    # Not (g > 0): a NaN passes, as it does in both frameworks' forward.
    y = tl.where(g <= 0, 0.0, x)
    tl.store(y_ptr + m[:, None] * y_m + n[None, :] * y_n, y.to(y_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _gate_fake(x, gate):
    return torch.empty_like(gate)


@op("gate", fake=_gate_fake)
def gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """y = 0 where gate <= 0, else x; same shape, any strides; y is laid out as the gate. gate(x, x) is relu.

    E elements: 2 E read (E when both are one tensor in cache), E written.
    """
    y = torch.empty_like(gate)
    elementwise(_gate_kernel, [x, gate, y], writes=[y])
    return y
