"""The maximum of each window, and the selection that is its pullback, forward and backward, as Triton kernels.

An element's place in the image takes integer divisions. A tile of rows and columns divides for its rows only, which is
faster on a CPU; a GPU uses tiles of contiguous elements, and hides the divisions.
"""

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

import torch
import triton.language as tl

from gradlab.kernels.common.images_triton import empty, index
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_triton import (
    accumulator,
    block,
    kernel,
    kernel_of_cpus,
    launch,
    op,
    sized_for,
    triton_dtype,
)

# Larger windows loop over their taps.
UNROLLED = 32
# Elements of one program.
TILE = 1024
# Warps of a program on a GPU whose lanes have neighbouring results, one each: a window's taps lie strides apart, and
# several results of a lane would be as many requests of sectors far apart.
WARPS = 8


# fmt: off
@kernel
def _place(m, n, C, P, Q, LAST: tl.constexpr, MERGED: tl.constexpr):
    """b, c, p, q of row m and column n: rows (b p q) of channels where these lie last, else rows (b c p) of q.

    MERGED: b is 0 and c counts the channels of all images, which lie as far apart as those of one.
    """
    if LAST:
        b = m // Q // P
        c = n
        p = m // Q % P
        q = m % Q
    else:
        b = 0
        c = m // P
        p = m % P
        if not MERGED:
            b = c // C
            c = c % C
        q = n
    return b, c, p, q


@kernel
def _tile(tile, M, N, INDEX: tl.constexpr, FLAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """m, n, the element's number and whether it is there: rows m[BM 1] of columns n[1 BN], or BN neighbours if FLAT."""
    if FLAT:
        e = tile.to(INDEX) * BN + tl.arange(0, BN)[None, :]
        m = e // N
        n = e % N
        # M is a constant if there is one row.
        here = e < tl.cast(M, INDEX) * N
    else:
        tiles_n = tl.cdiv(N, BN)
        m = (tile // tiles_n).to(INDEX) * BM + tl.arange(0, BM)[:, None]
        n = (tile % tiles_n).to(INDEX) * BN + tl.arange(0, BN)[None, :]
        e = m * N + n
        here = (m < M) & (n < N)
    return m, n, e, here


@kernel
def _max_kernel(
    x_ptr, x_b, x_c, x_h, x_w,
    y_ptr, k_ptr,
    M, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr, INSIDE: tl.constexpr,
    LAST: tl.constexpr, MERGED: tl.constexpr, INDEX: tl.constexpr, FLAT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[b c p q] = max_rs x[b c i j], k its first tap; INSIDE says that no window passes the border.

    Grid (M/BM * N/BN), or (M N/BN) if FLAT, M rows of N results; a program owns BM BN results.
    """
    m, n, e, here = _tile(tl.program_id(0), M, N, INDEX, FLAT, BM, BN)
    b, c, p, q = _place(m, n, C, P, Q, LAST, MERGED)
    image = b * x_b + c * x_c
    best = tl.full((BM, BN), float("-inf"), x_ptr.dtype.element_ty)
    found = tl.full((BM, BN), 0 if INSIDE else -1, tl.int32)
    for tap in tl.range(R * S, loop_unroll_factor=UNROLL):
        i = p * SH - TOP + tap // S * DH
        j = q * SW - LEFT + tap % S * DW
        inside = here
        if not INSIDE:
            inside = here & ((i >= 0) & (i < H)) & ((j >= 0) & (j < W))
        x = tl.load(x_ptr + (image + i * x_h + j * x_w), mask=inside, other=float("-inf"))
        # The first tap in range counts even at -inf, and NaN is above every number, as in torch.
        if INSIDE:
            higher = (x > best) | (x != x)
        else:
            higher = inside & ((x > best) | (x != x) | (found < 0))
        best = tl.where(higher, x, best)
        found = tl.where(higher, tap, found)
    tl.store(y_ptr + e, best, mask=here)
    tl.store(k_ptr + e, found.to(k_ptr.dtype.element_ty), mask=here)


@kernel
def _class(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    b, c, m, n, here, over, left, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, UNROLL: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """sum of u[b c p q] where k names the pixel that lies `over` rows and `left` columns past the window m, n."""
    # A window p has its tap r on the row where SH m + over = SH p + DH r: r0, r0 + STEP_H, ...; r0 is R where none has.
    r0 = over * 0 + R
    for t in tl.static_range(0, STEP_H):
        r0 = tl.where((t * DH) % SH == over % SH, t, r0)
    s0 = left * 0 + S
    for t in tl.static_range(0, STEP_W):
        s0 = tl.where((t * DW) % SW == left % SW, t, s0)
    total = tl.zeros((BM, BN), dtype=ACC)
    for tap in tl.range(TAPS_H * TAPS_W, loop_unroll_factor=UNROLL):
        r = r0 + tap // TAPS_W * STEP_H
        s = s0 + tap % TAPS_W * STEP_W
        # The division is exact, so negative numbers are not rounded.
        p = m + (over - r * DH) // SH
        q = n + (left - s * DW) // SW
        inside = here & ((r < R) & (p >= 0) & (p < P)) & ((s < S) & (q >= 0) & (q < Q))
        k = tl.load(k_ptr + (b * k_b + c * k_c + p * k_p + q * k_q), mask=inside, other=-1).to(tl.int32)
        u = tl.load(u_ptr + (b * u_b + c * u_c + p * u_p + q * u_q), mask=inside, other=0.0).to(ACC)
        total += tl.where(k == r * S + s, u, 0.0)
    return total


@kernel_of_cpus
def _class_of(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    b, c, m, n, here, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    OVER: tl.constexpr, PAST: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """`_class` of the pixels OVER rows and PAST columns past the window m, n: which taps meet them is known."""
    total = tl.zeros((BM, BN), dtype=ACC)
    for r in tl.static_range(0, R):
        for s in tl.static_range(0, S):
            if (OVER - r * DH) % SH == 0 and (PAST - s * DW) % SW == 0:
                p = m + (OVER - r * DH) // SH
                q = n + (PAST - s * DW) // SW
                inside = here & ((p >= 0) & (p < P)) & ((q >= 0) & (q < Q))
                k = tl.load(k_ptr + (b * k_b + c * k_c + p * k_p + q * k_q), mask=inside, other=-1).to(tl.int32)
                u = tl.load(u_ptr + (b * u_b + c * u_c + p * u_p + q * u_q), mask=inside, other=0.0).to(ACC)
                total += tl.where(k == r * S + s, u, 0.0)
    return total


@kernel_of_cpus
def _square_kernel(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    x_ptr, x_b, x_c, x_h, x_w,
    M, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    LAST: tl.constexpr, MERGED: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """x[b c i j] = sum of u[b c p q] where k names (i, j), for strides of 2: what four pixels' windows hold is read
    once.

    Grid (M/BM * N/BN), M rows of N squares of pixels; a program owns BM BN squares.
    """
    m, n, _, here = _tile(tl.program_id(0), M, N, INDEX, False, BM, BN)
    b, c, m, n = _place(m, n, C, tl.cdiv(H, 2), tl.cdiv(W, 2), LAST, MERGED)
    a00 = _class_of(
        u_ptr, u_b, u_c, u_p, u_q,
        k_ptr, k_b, k_c, k_p, k_q,
        b, c, m, n, here, P, Q,
        R, S, SH, SW, DH, DW, TOP, LEFT, ACC, BM, BN,
    )
    a01 = _class_of(
        u_ptr, u_b, u_c, u_p, u_q,
        k_ptr, k_b, k_c, k_p, k_q,
        b, c, m, n, here, P, Q,
        R, S, SH, SW, DH, DW, TOP, LEFT + 1, ACC, BM, BN,
    )
    a10 = _class_of(
        u_ptr, u_b, u_c, u_p, u_q,
        k_ptr, k_b, k_c, k_p, k_q,
        b, c, m, n, here, P, Q,
        R, S, SH, SW, DH, DW, TOP + 1, LEFT, ACC, BM, BN,
    )
    a11 = _class_of(
        u_ptr, u_b, u_c, u_p, u_q,
        k_ptr, k_b, k_c, k_p, k_q,
        b, c, m, n, here, P, Q,
        R, S, SH, SW, DH, DW, TOP + 1, LEFT + 1, ACC, BM, BN,
    )
    upper = tl.interleave(a00, a01)
    lower = tl.interleave(a10, a11)
    tiles_n = tl.cdiv(N, BN)
    j = ((tl.program_id(0) % tiles_n).to(INDEX) * (2 * BN) + tl.arange(0, 2 * BN))[None, :]
    rows = ((tl.program_id(0) // tiles_n).to(INDEX) * BM + tl.arange(0, BM))[:, None] < M
    at = b * x_b + c * x_c + 2 * m * x_h + j * x_w
    tl.store(x_ptr + at, upper.to(x_ptr.dtype.element_ty), mask=rows & (2 * m < H) & (j < W))
    tl.store(x_ptr + (at + x_h), lower.to(x_ptr.dtype.element_ty), mask=rows & (2 * m + 1 < H) & (j < W))


@kernel
def _scatter_kernel(
    u_ptr, u_b, u_c, u_p, u_q,
    k_ptr, k_b, k_c, k_p, k_q,
    x_ptr, x_b, x_c, x_h, x_w,
    M, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, PAIRED: tl.constexpr,
    LAST: tl.constexpr, MERGED: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """x[b c i j] = sum of u[b c p q] where k names (i, j), over the pixels of one residue class mod the stride, or of
    both classes of columns if PAIRED.

    Grid (M/BM * N/BN * SH SW), M rows of N pixels; a program owns BM BN pixels of its class.
    """
    classes_w = 1 if PAIRED else SW
    residue = tl.program_id(0) % (SH * classes_w)
    tile = tl.program_id(0) // (SH * classes_w)
    tiles_n = tl.cdiv(N, BN)
    m, n, _, here = _tile(tile, M, N, INDEX, False, BM, BN)
    b, c, m, n = _place(m, n, C, tl.cdiv(H, SH), tl.cdiv(W, SW), LAST, MERGED)
    i = m * SH + residue // classes_w
    over = residue // classes_w + TOP
    left = residue % classes_w + LEFT
    total = _class(
        u_ptr, u_b, u_c, u_p, u_q,
        k_ptr, k_b, k_c, k_p, k_q,
        b, c, m, n, here, over, left, P, Q,
        R, S, SH, SW, DH, DW, STEP_H, STEP_W, TAPS_H, TAPS_W, UNROLL, ACC, BM, BN,
    )
    if PAIRED:
        # Columns 2 n and 2 n + 1 are adjacent: interleaved into one tile of twice the width.
        odd = _class(
            u_ptr, u_b, u_c, u_p, u_q,
            k_ptr, k_b, k_c, k_p, k_q,
            b, c, m, n, here, over, left + 1, P, Q,
            R, S, SH, SW, DH, DW, STEP_H, STEP_W, TAPS_H, TAPS_W, UNROLL, ACC, BM, BN,
        )
        total = tl.interleave(total, odd)
        j = ((tile % tiles_n).to(INDEX) * (2 * BN) + tl.arange(0, 2 * BN))[None, :]
        rows = ((tile // tiles_n).to(INDEX) * BM + tl.arange(0, BM))[:, None] < M
        here = rows & (i < H) & (j < W)
    else:
        j = n * SW + residue % classes_w
        here = here & (i < H) & (j < W)
    tl.store(x_ptr + (b * x_b + c * x_c + i * x_h + j * x_w), total.to(x_ptr.dtype.element_ty), mask=here)


@kernel
def _gather_kernel(
    u_ptr, u_b, u_c, u_h, u_w,
    k_ptr, k_b, k_c, k_p, k_q,
    y_ptr,
    M, N, C, H, W, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, UNROLL: tl.constexpr,
    LAST: tl.constexpr, MERGED: tl.constexpr, INDEX: tl.constexpr, FLAT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):
    """y[b c p q] = u[b c i j] at the tap k.

    Grid (M/BM * N/BN), or (M N/BN) if FLAT, M rows of N results; a program owns BM BN results.
    """
    m, n, e, here = _tile(tl.program_id(0), M, N, INDEX, FLAT, BM, BN)
    b, c, p, q = _place(m, n, C, P, Q, LAST, MERGED)
    k = tl.load(k_ptr + (b * k_b + c * k_c + p * k_p + q * k_q), mask=here, other=-1).to(tl.int32)
    i = p * SH - TOP + k // S * DH
    j = q * SW - LEFT + k % S * DW
    inside = here & (k >= 0) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    u = tl.load(u_ptr + (b * u_b + c * u_c + i * u_h + j * u_w), mask=inside, other=0.0)
    tl.store(y_ptr + e, u, mask=here)
# fmt: on


def _forward_fake(x, geometry, channels_last):
    y = empty(x, (*x.shape[:2], *Geometry.of(geometry).result), channels_last)
    R, S = Geometry.of(geometry).window
    return y, torch.empty_like(y, dtype=torch.int8 if R * S <= 128 else torch.int32)


@op("max_pool2d", fake=_forward_fake, sharding="x[B C H W] -> y[B C P Q], k[B C P Q]; whole H W")
def forward(x: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """y[B C P Q] of x[B C H W], and the tap k[B C P Q] of each maximum, -1 where a window holds no pixel.

    Any strides. Every element that a window reaches is read once from memory, R S / (SH SW) times in all; an element
    and a byte are written for each result (four bytes for windows of more than 128 taps).
    """
    y, k = _forward_fake(x, geometry, channels_last)
    geo, (M, N) = Geometry.of(geometry), _rows(y, channels_last)
    # A CPU's loops load rows in vectors by the mask.
    inside = sized_for(x.device) == "cuda" and max(pad for pads in geo.pads for pad in pads) <= 0
    _launch(_max_kernel, geometry, channels_last, M, N, [x], [y, k], prod(geo.window), INSIDE=inside)
    return y, k


def _scatter_fake(u, k, geometry, channels_last):
    return empty(u, (*u.shape[:2], *Geometry.of(geometry).image), channels_last)


@op("max_pool2d_scatter", fake=_scatter_fake, sharding="u[B C P Q], k[B C P Q] -> dx[B C H W]; whole P Q")
def scatter(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """dx[B C H W]: the sum of u[B C P Q] over the windows whose tap k names the pixel; each pixel is written once.

    The pixels of one residue class mod the stride meet the same taps, of windows that are neighbours.

    Any strides. u and k are read once from memory, R S / (SH SW) times in all; dx is written.
    """
    geo = Geometry.of(geometry)
    dx = _scatter_fake(u, k, geometry, channels_last)
    # Taps that meet one row are STEP apart: DH STEP is the next multiple of SH. None lies past the window.
    (SH, SW), (H, W) = geo.stride, geo.image
    steps = [min(n, s // gcd(s, d)) for n, s, d in zip(geo.window, geo.stride, geo.dilation, strict=True)]
    taps = [-(-n // step) for n, step in zip(geo.window, steps, strict=True)]
    (B, C), paired = dx.shape[:2], SW == 2 and not channels_last
    rows, columns = -(-H // SH), -(-W // SW)
    M, N = (B * rows * columns, C) if channels_last else (B * C * rows, columns)
    ACC = triton_dtype(accumulator(u.dtype))
    if paired and SH == 2 and prod(geo.window) <= UNROLLED and sized_for(dx.device) == "cpu":
        # Four classes take too many registers on a GPU.
        _launch(_square_kernel, geometry, channels_last, M, N, [u, k, dx], [dx], 1, classes=1, ACC=ACC)
        return dx
    _launch(
        _scatter_kernel,
        geometry,
        channels_last,
        M,
        N,
        [u, k, dx],
        [dx],
        taps[0] * taps[1],
        classes=SH if paired else SH * SW,
        ACC=ACC,
        STEP_H=steps[0],
        STEP_W=steps[1],
        TAPS_H=taps[0],
        TAPS_W=taps[1],
        PAIRED=paired,
    )
    return dx


def _gather_fake(u, k, geometry, channels_last):
    return empty(u, tuple(k.shape), channels_last)


@op(
    "max_pool2d_gather",
    fake=_gather_fake,
    sharding="u[B C H W], k[B C P Q] -> y[B C P Q]; whole H W P Q",
)
def gather(u: torch.Tensor, k: torch.Tensor, geometry: Sequence[int], channels_last: bool) -> torch.Tensor:
    """y[B C P Q] = u[B C H W] at the taps k[B C P Q], 0 where k is -1. Any strides; as many reads as results."""
    y = _gather_fake(u, k, geometry, channels_last)
    _launch(_gather_kernel, geometry, channels_last, *_rows(y, channels_last), [u, k], [y], 1)
    return y


def _rows(y: torch.Tensor, last: bool) -> tuple[int, int]:
    """Rows and columns of an image as it lies in memory."""
    N = y.shape[1 if last else 3]
    return y.numel() // N if N else 0, N


def _launch(
    jit,
    geometry: Sequence[int],
    last: bool,
    M: int,
    N: int,
    tensors: Sequence[torch.Tensor],
    writes: Sequence[torch.Tensor],
    taps: int,
    classes: int = 0,
    **constants: Any,
) -> None:
    """Launch over M rows of N columns, of each of so many classes; kernels take the strides of `tensors`."""
    geo = Geometry.of(geometry)
    (R, S), (SH, SW), (DH, DW), (P, Q) = geo.window, geo.stride, geo.dilation, geo.result
    if not classes:
        constants["FLAT"] = sized_for(writes[0].device) == "cuda"
    warps = 4
    if constants.get("FLAT"):
        if not last:
            warps = WARPS
        BM, BN = 1, block(M * N, TILE if last else 32 * WARPS)
        tiles = -(-M * N // BN)
    else:
        size = TILE // 2 if constants.get("PAIRED") else TILE
        BN = block(N, size, least=1)
        BM = block(M, size // BN, least=1)
        tiles = -(-M // BM) * -(-N // BN)
    C = writes[0].shape[1]
    merged = sized_for(writes[0].device) == "cuda" and all(t.stride(0) == C * t.stride(1) for t in (*tensors, *writes))
    # fmt: off
    launch(
        jit, [tiles * max(classes, 1)],
        *(part for t in tensors for part in (t, *t.stride())),
        *(t for t in writes if not any(t is other for other in tensors)),
        M, N, C, *geo.image, P, Q,
        R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, TOP=geo.pads[0][0], LEFT=geo.pads[1][0],
        UNROLL=taps if taps <= UNROLLED else 1,
        **constants, LAST=last, MERGED=merged, INDEX=index(*tensors, *writes), BM=BM, BN=BN, writes=writes, warps=warps,
    )
    # fmt: on
