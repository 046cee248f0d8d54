"""The launcher of elementwise Triton kernels: over rows and columns of the result, for any strides."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op, sized_for
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text

# Elements of one program; on a GPU bytes of each operand, so that wider elements take no more registers.
TILE = 4096
_TILE_BYTES = 8192


# fmt: off
@kernel
def tile_of(M, N, BM: tl.constexpr, BN: tl.constexpr):
    """This program's rows m[BM 1] and columns n[1 BN], which of them are there, and whether all are."""
    tiles_n = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    n = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(tl.int64)[None, :]
    whole = (tl.program_id(0) // tiles_n + 1).to(tl.int64) * BM <= M
    return m, n, (m < M) & (n < N), whole & ((tl.program_id(0) % tiles_n + 1).to(tl.int64) * BN <= N)


@kernel
def tile_load(ptr, inside, whole, RAGGED: tl.constexpr):
    """The elements that are there, 0 elsewhere.

    RAGGED: a mask would split the wide loads of whole tiles too, as the edge lies at no multiple of 16.
    """
    if RAGGED:
        if whole:
            x = tl.load(ptr)
        else:
            x = tl.load(ptr, mask=inside, other=0.0)
    else:
        x = tl.load(ptr, mask=inside, other=0.0)
    return x


@kernel
def operand(ptr, stride_m, stride_n, m, n, inside, whole, ONE: tl.constexpr, RAGGED: tl.constexpr):
    """The elements of a tile; with ONE a single one, which is all of them, as a mean's cotangent is."""
    if ONE:
        x = tl.load(ptr)
    else:
        x = tile_load(ptr + m * stride_m + n * stride_n, inside, whole, RAGGED)
    return x


@kernel
def tile_store(ptr, y, inside, whole, RAGGED: tl.constexpr):
    """Store the elements that are there, rounded; RAGGED as in `tile_load`."""
    rounded = y.to(ptr.dtype.element_ty)
    if RAGGED:
        if whole:
            tl.store(ptr, rounded)
        else:
            tl.store(ptr, rounded, mask=inside)
    else:
        tl.store(ptr, rounded, mask=inside)


@kernel
def _times_kernel(
    a_ptr, a_m, a_n,
    b_ptr, b_m, b_n,
    y_ptr, y_m, y_n,
    M, N,
    ONE: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = a[m n] b[m n]; grid (M/BM * N/BN); a program owns y[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    a = operand(a_ptr, a_m, a_n, m, n, inside, whole, ONE, RAGGED)
    b = tile_load(b_ptr + m * b_m + n * b_n, inside, whole, RAGGED)
    tile_store(y_ptr + m * y_m + n * y_n, (a * b), inside, whole, RAGGED)
# fmt: on


def _times_fake(a, b):
    return torch.empty_like(b)


@op("times", fake=_times_fake, sharding=elementwise_text("a, b -> y"))
def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """y = a b, elementwise; same shape, any strides; y has b's layout. 2 E read, E written."""
    y = torch.empty_like(b)
    if of_one(b):
        a, b = b, a
    elementwise(_times_kernel, [a, b, y], writes=[y], ONE=of_one(a))
    return y


def elementwise(
    jit: JITFunction, tensors: Sequence[torch.Tensor], *scalars: Any, writes: Sequence[torch.Tensor], **constants: Any
) -> None:
    """Launch `jit` over tensors of one shape: it takes a pointer and two strides of each, scalars, M, N; BM and BN.

    Axes are ordered by the last tensor's strides, so that its tiles are contiguous.
    """
    last = tensors[-1]
    if all(t.is_contiguous() or of_one(t) for t in tensors):
        # One contiguous row, without a view of each tensor, which takes the host longer than a small kernel.
        M, N, written = 1, last.numel(), writes
        parts: list[Any] = [part for t in tensors for part in (t, 0, int(not of_one(t)))]
    else:
        views = [matrix(t, last.stride()) for t in tensors]
        M, N = views[-1].shape
        written = [views[i] for i, t in enumerate(tensors) if any(t is w for w in writes)]
        parts = [part for v in views for part in (v, *v.stride())]
    on_gpu = sized_for(last.device) == "cuda"
    tile = _TILE_BYTES // max(2, *(t.element_size() for t in tensors)) if on_gpu else TILE
    BN = block(N, tile if M == 1 else 1024)
    BM = block(M, tile // BN, least=1)
    ragged = on_gpu and N % 16 != 0 and N > BN
    # fmt: off
    launch(
        jit, [-(-M // BM) * -(-N // BN)],
        *parts,
        *scalars,
        M, N,
        **constants, RAGGED=ragged, BM=BM, BN=BN, writes=written,
    )
    # fmt: on


def of_one(t: torch.Tensor) -> bool:
    """Whether a tensor is one element, expanded."""
    return t.numel() > 1 and not any(t.stride())


def matrix(t: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """The tensor as a matrix, its axes in falling order of `stride`: a view if it has these strides itself."""
    if t.ndim < 2:
        return t.reshape(1, -1)
    order = sorted(range(t.ndim), key=lambda axis: -stride[axis])
    t = t.permute(order)
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
