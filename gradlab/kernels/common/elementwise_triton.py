"""The launcher of elementwise Triton kernels: over rows and columns of the result, for any strides."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text

# Elements of one program.
TILE = 4096


# fmt: off
@kernel
def _times_kernel(
    a_ptr, a_m, a_n,
    b_ptr, b_m, b_n,
    y_ptr, y_m, y_n,
    M, N,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = a[m n] b[m n]; grid (M/BM * N/BN); a program owns y[BM BN]."""
    tiles_n = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)).to(tl.int64)
    n = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(tl.int64)
    inside = (m < M)[:, None] & (n < N)[None, :]
    a = tl.load(a_ptr + m[:, None] * a_m + n[None, :] * a_n, mask=inside, other=0.0)
    b = tl.load(b_ptr + m[:, None] * b_m + n[None, :] * b_n, mask=inside, other=0.0)
    tl.store(y_ptr + m[:, None] * y_m + n[None, :] * y_n, (a * b).to(y_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _times_fake(a, b):
    return torch.empty_like(b)


@op("times", fake=_times_fake, sharding=elementwise_text("a, b -> y"))
def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """y = a b, elementwise; same shape, any strides; y has b's layout. 2 E read, E written."""
    y = torch.empty_like(b)
    elementwise(_times_kernel, [a, b, y], writes=[y])
    return y


def elementwise(
    jit: JITFunction, tensors: Sequence[torch.Tensor], *scalars: Any, writes: Sequence[torch.Tensor], **constants: Any
) -> None:
    """Launch `jit` over tensors of one shape: it takes a pointer and two strides of each, scalars, M, N; BM and BN.

    Axes are ordered by the last tensor's strides, so that its tiles are contiguous.
    """
    last = tensors[-1]
    if all(t.is_contiguous() for t in tensors):
        # One contiguous row, without a view of each tensor, which takes the host longer than a small kernel.
        M, N, written = 1, last.numel(), writes
        parts: list[Any] = [part for t in tensors for part in (t, 0, 1)]
    else:
        views = [matrix(t, last.stride()) for t in tensors]
        M, N = views[-1].shape
        written = [views[i] for i, t in enumerate(tensors) if any(t is w for w in writes)]
        parts = [part for v in views for part in (v, *v.stride())]
    BN = block(N, TILE if M == 1 else 1024)
    BM = block(M, TILE // BN, least=1)
    # fmt: off
    launch(
        jit, [-(-M // BM) * -(-N // BN)],
        *parts,
        *scalars,
        M, N,
        **constants, BM=BM, BN=BN, writes=written,
    )
    # fmt: on


def matrix(t: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """The tensor as a matrix, its axes in falling order of `stride`: a view if it has these strides itself."""
    if t.ndim < 2:
        return t.reshape(1, -1)
    order = sorted(range(t.ndim), key=lambda axis: -stride[axis])
    t = t.permute(order)
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
