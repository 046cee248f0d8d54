"""The maximum of each window, and the selection that is its pullback there and back, as Triton kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl

from gradlab.kernels.images_triton import empty, index_dtype
from gradlab.kernels.launch_triton import (
    INTERPRETED_TILE,
    accumulator,
    block,
    interpreted,
    kernel,
    launch,
    op,
    triton_dtype,
)  # fmt: skip
from gradlab.kernels.window import Geometry


# fmt: off
@kernel
def _place(e, C, P, Q, LAST: tl.constexpr):
    """b, c, p, q of the e-th element: channels run fastest where they lie last, else columns do."""
    if LAST:
        c = e % C
        q = e // C % Q
        p = e // C // Q % P
        b = e // C // Q // P
    else:
        q = e % Q
        p = e // Q % P
        c = e // Q // P % C
        b = e // Q // P // C
    return b, c, p, q


@kernel
def _max_kernel(
    x_ptr, x_b, x_c, x_h, x_w,
    y_ptr, y_b, y_c, y_p, y_q,
    k_ptr, k_b, k_c, k_p, k_q,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, BE: tl.constexpr,
):
    """y[b c p q] = max_rs x[b c i j], k its first tap; grid (E/BE), E = B C P Q; a program owns BE results."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, p, q = _place(e, C, P, Q, LAST)
    best = tl.full((BE,), float("-inf"), x_ptr.dtype.element_ty)
    found = tl.full((BE,), -1, tl.int32)
    for tap in range(R * S):
        i = p * SH - TOP + tap // S * DH
        j = q * SW - LEFT + tap % S * DW
        inside = (e < E) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        x = tl.load(x_ptr + b * x_b + c * x_c + i * x_h + j * x_w, mask=inside, other=float("-inf"))
        # The first tap inside counts even at -inf, and a NaN over every number, as in torch.
        higher = inside & ((x > best) | (x != x) | (found < 0))
        best = tl.where(higher, x, best)
        found = tl.where(higher, tap, found)
    tl.store(y_ptr + b * y_b + c * y_c + p * y_p + q * y_q, best, mask=e < E)
    tl.store(k_ptr + b * k_b + c * k_c + p * k_p + q * k_q, found, mask=e < E)


@kernel
def _scatter_kernel(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    x_ptr, x_b, x_c, x_h, x_w,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, BE: tl.constexpr,
):
    """x[b c i j] = sum of u[b c p q] where k names (i, j); grid (E/BE), E = B C H W; a program owns BE pixels."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, i, j = _place(e, C, H, W, LAST)
    total = tl.zeros((BE,), dtype=ACC)
    for tap in range(R * S):
        # The window that has this pixel at its tap starts where the division leaves no rest.
        down = i + TOP - tap // S * DH
        across = j + LEFT - tap % S * DW
        p = down // SH
        q = across // SW
        inside = (e < E) & (down >= 0) & (across >= 0) & (p * SH == down) & (q * SW == across) & (p < P) & (q < Q)
        k = tl.load(k_ptr + b * k_b + c * k_c + p * k_p + q * k_q, mask=inside, other=-1)
        u = tl.load(u_ptr + b * u_b + c * u_c + p * u_p + q * u_q, mask=inside & (k == tap), other=0.0)
        total += u.to(ACC)
    tl.store(x_ptr + b * x_b + c * x_c + i * x_h + j * x_w, total.to(x_ptr.dtype.element_ty), mask=e < E)


@kernel
def _gather_kernel(
    u_ptr, u_b, u_c, u_h, u_w,
    k_ptr, k_b, k_c, k_p, k_q,
    y_ptr, y_b, y_c, y_p, y_q,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, BE: tl.constexpr,
):
    """y[b c p q] = u[b c i j] at the tap k; grid (E/BE), E = B C P Q; a program owns BE results."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, p, q = _place(e, C, P, Q, LAST)
    k = tl.load(k_ptr + b * k_b + c * k_c + p * k_p + q * k_q, mask=e < E, other=-1)
    i = p * SH - TOP + k // S * DH
    j = q * SW - LEFT + k % S * DW
    inside = (e < E) & (k >= 0) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    u = tl.load(u_ptr + b * u_b + c * u_c + i * u_h + j * u_w, mask=inside, other=0.0)
    tl.store(y_ptr + b * y_b + c * y_c + p * y_p + q * y_q, u, mask=e < E)
# fmt: on


def _forward_fake(x, geometry, channels_last):
    y = empty(x, (*x.shape[:2], *Geometry.of(geometry).result), channels_last)
    return y, torch.empty_like(y, dtype=torch.int32)


@op("max_pool2d", fake=_forward_fake)
def forward(x: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """y[B C P Q] of x[B C H W], and the tap k[B C P Q] of each maximum, -1 where a window holds no pixel.

    Any strides. R S elements read for each result, most of them from cache; two written.
    """
    y, k = _forward_fake(x, geometry, channels_last)
    _launch(_max_kernel, geometry, channels_last, x, [x, y, k], y, writes=[y, k])
    return y, k


def _scatter_fake(u, k, geometry, channels_last):
    return empty(u, (*u.shape[:2], *Geometry.of(geometry).image), channels_last)


@op("max_pool2d_scatter", fake=_scatter_fake)
def scatter(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """dx[B C H W]: the sum of u[B C P Q] over the windows whose tap k names the pixel; each pixel is written once."""
    dx = _scatter_fake(u, k, geometry, channels_last)
    acc = triton_dtype(accumulator(u.dtype))
    _launch(_scatter_kernel, geometry, channels_last, dx, [u, k, dx], dx, writes=[dx], ACC=acc)
    return dx


def _gather_fake(u, k, geometry, channels_last):
    return empty(u, tuple(k.shape), channels_last)


@op("max_pool2d_gather", fake=_gather_fake)
def gather(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """y[B C P Q] = u[B C H W] at the taps k[B C P Q]."""
    y = _gather_fake(u, k, geometry, channels_last)
    _launch(_gather_kernel, geometry, channels_last, u, [u, k, y], y, writes=[y])
    return y


def _launch(jit, geometry: Sequence[int], last: bool, image: torch.Tensor, tensors: Sequence[torch.Tensor],
            owned: torch.Tensor, writes: Sequence[torch.Tensor], **constants: Any) -> None:  # fmt: skip
    """Launch over the elements of `owned`, in the order in which they lie."""
    geo = Geometry.of(geometry)
    (R, S), (SH, SW), (DH, DW), (P, Q) = geo.window, geo.stride, geo.dilation, geo.result
    E = owned.numel()
    BE = block(E, INTERPRETED_TILE if interpreted(owned.device) else 1024)
    # fmt: off
    launch(
        jit, [-(-E // BE)],
        *(part for t in tensors for part in (t, *t.stride())),
        E, image.shape[1], *geo.image, P, Q,
        R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, TOP=geo.pads[0][0], LEFT=geo.pads[1][0], LAST=last,
        INDEX=index_dtype(*tensors), **constants, BE=BE, writes=writes,
    )
    # fmt: on
