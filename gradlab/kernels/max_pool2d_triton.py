"""The maximum of each window, and the selection that is its pullback there and back, as Triton kernels.

What a kernel writes is dense, so its elements are counted in the order in which they lie: offset and number are one.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import triton.language as tl

from gradlab.kernels.images_triton import empty, index
from gradlab.kernels.launch_triton import (
    accumulator,
    block,
    kernel,
    launch,
    op,
    triton_dtype,
)  # fmt: skip
from gradlab.kernels.window import Geometry

# The taps of a larger window are walked in a loop.
UNROLLED = 32


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
    y_ptr, k_ptr,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    LAST: tl.constexpr, INDEX: tl.constexpr, BE: tl.constexpr,
):
    """y[b c p q] = max_rs x[b c i j], k its first tap; grid (E/BE), E = B C P Q; a program owns BE results."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, p, q = _place(e, C, P, Q, LAST)
    image = b * x_b + c * x_c
    best = tl.full((BE,), float("-inf"), x_ptr.dtype.element_ty)
    found = tl.full((BE,), -1, tl.int32)
    for tap in tl.range(R * S, loop_unroll_factor=UNROLL):
        i = p * SH - TOP + tap // S * DH
        j = q * SW - LEFT + tap % S * DW
        inside = (e < E) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        x = tl.load(x_ptr + image + i * x_h + j * x_w, mask=inside, other=float("-inf"))
        # The first tap inside counts even at -inf, and a NaN over every number, as in torch.
        higher = inside & ((x > best) | (x != x) | (found < 0))
        best = tl.where(higher, x, best)
        found = tl.where(higher, tap, found)
    tl.store(y_ptr + e, best, mask=e < E)
    tl.store(k_ptr + e, found.to(k_ptr.dtype.element_ty), mask=e < E)


@kernel
def _scatter_kernel(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    x_ptr,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr,
):
    """x[b c i j] = sum of u[b c p q] where k names (i, j), over the taps r0, r0 + STEP_H, ... and s0, ... that a window has on the pixel; grid (E/BE), E = B C H W; a program owns BE pixels."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, i, j = _place(e, C, H, W, LAST)
    # A window has its tap r on row i where i + TOP - DH r = SH p; r0 is the first that leaves no rest, or R.
    r0 = (i * 0 + R).to(tl.int32)
    for t in tl.static_range(0, STEP_H):
        r0 = tl.where((i + TOP) % SH == (t * DH) % SH, t, r0)
    s0 = (j * 0 + S).to(tl.int32)
    for t in tl.static_range(0, STEP_W):
        s0 = tl.where((j + LEFT) % SW == (t * DW) % SW, t, s0)
    total = tl.zeros((BE,), dtype=ACC)
    for n in tl.range(TAPS_H * TAPS_W, loop_unroll_factor=UNROLL):
        r = r0 + n // TAPS_W * STEP_H
        s = s0 + n % TAPS_W * STEP_W
        down = i + TOP - r * DH
        across = j + LEFT - s * DW
        p = down // SH
        q = across // SW
        inside = (e < E) & (r < R) & (s < S) & (down >= 0) & (across >= 0) & (p < P) & (q < Q)
        k = tl.load(k_ptr + b * k_b + c * k_c + p * k_p + q * k_q, mask=inside, other=-1).to(tl.int32)
        here = inside & (k == r * S + s)
        total += tl.load(u_ptr + b * u_b + c * u_c + p * u_p + q * u_q, mask=here, other=0.0).to(ACC)
    tl.store(x_ptr + e, total.to(x_ptr.dtype.element_ty), mask=e < E)


@kernel
def _gather_kernel(
    u_ptr, u_b, u_c, u_h, u_w,
    k_ptr, k_b, k_c, k_p, k_q,
    y_ptr,
    E, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    LAST: tl.constexpr, INDEX: tl.constexpr, BE: tl.constexpr,
):
    """y[b c p q] = u[b c i j] at the tap k; grid (E/BE), E = B C P Q; a program owns BE results."""
    e = tl.program_id(0).to(INDEX) * BE + tl.arange(0, BE)
    b, c, p, q = _place(e, C, P, Q, LAST)
    k = tl.load(k_ptr + b * k_b + c * k_c + p * k_p + q * k_q, mask=e < E, other=-1).to(tl.int32)
    i = p * SH - TOP + k // S * DH
    j = q * SW - LEFT + k % S * DW
    inside = (e < E) & (k >= 0) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    u = tl.load(u_ptr + b * u_b + c * u_c + i * u_h + j * u_w, mask=inside, other=0.0)
    tl.store(y_ptr + e, u, mask=e < E)
# fmt: on


def _forward_fake(x, geometry, channels_last):
    y = empty(x, (*x.shape[:2], *Geometry.of(geometry).result), channels_last)
    R, S = Geometry.of(geometry).window
    return y, torch.empty_like(y, dtype=torch.int8 if R * S <= 128 else torch.int32)


@op("max_pool2d", fake=_forward_fake)
def forward(x: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """y[B C P Q] of x[B C H W], and the tap k[B C P Q] of each maximum, -1 where a window holds no pixel.

    Any strides. Every element that a window reaches is read once from memory, R S / (SH SW) times in all; an element
    and a byte are written for each result (four bytes for windows of more than 128 taps).
    """
    y, k = _forward_fake(x, geometry, channels_last)
    _launch(_max_kernel, geometry, channels_last, [x], [y, k])
    return y, k


def _scatter_fake(u, k, geometry, channels_last):
    return empty(u, (*u.shape[:2], *Geometry.of(geometry).image), channels_last)


@op("max_pool2d_scatter", fake=_scatter_fake)
def scatter(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """dx[B C H W]: the sum of u[B C P Q] over the windows whose tap k names the pixel; each pixel is written once.

    Any strides. u and k are read once from memory, R S / (SH SW) times in all; dx is written.
    """
    geo = Geometry.of(geometry)
    dx = _scatter_fake(u, k, geometry, channels_last)
    # Taps that meet one row are STEP apart: DH STEP is the next multiple of SH. None lies past the window.
    steps = [min(n, s // gcd(s, d)) for n, s, d in zip(geo.window, geo.stride, geo.dilation, strict=True)]
    taps = [-(-n // step) for n, step in zip(geo.window, steps, strict=True)]
    _launch(
        _scatter_kernel, geometry, channels_last, [u, k], [dx], ACC=triton_dtype(accumulator(u.dtype)),
        STEP_H=steps[0], STEP_W=steps[1], TAPS_H=taps[0], TAPS_W=taps[1],
    )  # fmt: skip
    return dx


def _gather_fake(u, k, geometry, channels_last):
    return empty(u, tuple(k.shape), channels_last)


@op("max_pool2d_gather", fake=_gather_fake)
def gather(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """y[B C P Q] = u[B C H W] at the taps k[B C P Q], 0 where k is -1. Any strides; as many reads as results."""
    y = _gather_fake(u, k, geometry, channels_last)
    _launch(_gather_kernel, geometry, channels_last, [u, k], [y])
    return y


def _launch(jit, geometry: Sequence[int], last: bool, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor],
            **constants: Any) -> None:  # fmt: skip
    """Launch over the elements of what is written."""
    geo = Geometry.of(geometry)
    (R, S), (SH, SW), (DH, DW), (P, Q) = geo.window, geo.stride, geo.dilation, geo.result
    E = writes[0].numel()
    BE = block(E, 1024)
    # fmt: off
    launch(
        jit, [-(-E // BE)],
        *(part for t in reads for part in (t, *t.stride())),
        *writes,
        E, writes[0].shape[1], *geo.image, P, Q,
        R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, TOP=geo.pads[0][0], LEFT=geo.pads[1][0],
        UNROLL=R * S if R * S <= UNROLLED else 1,
        **constants, LAST=last, INDEX=index(*reads, *writes), BE=BE, writes=writes,
    )
    # fmt: on
