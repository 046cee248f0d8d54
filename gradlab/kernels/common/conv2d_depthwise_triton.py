"""Depthwise convolution, one channel a group and few filters of it, on GPUs: forward, dgrad and wgrad without products
of matrices, which would be empty but for one row.

A program owns a rectangle of pixels of some channels, so that what windows share is read from memory once: 2 R S FLOPs
for each element keep fewer instructions busy than memory does. Any layout: neighbours in memory are neighbouring lanes.
"""

from math import gcd

import torch
import triton.language as tl

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.images_triton import channels_last, index, multiple
from gradlab.kernels.common.tiles_triton import parts
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, sized_for, triton_dtype

# Filters of a channel from which on they are a product's rows.
MANY = 5


# fmt: off
@kernel
def _rectangle(tile, UP, ACROSS, INDEX: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr):
    """Rows and columns of the tile-th rectangle of BP x BQ of an image, and the image."""
    tiles_q = tl.cdiv(ACROSS, BQ)
    tiles_p = tl.cdiv(UP, BP)
    m = tl.arange(0, BP * BQ)
    p = tile // tiles_q % tiles_p * BP + m // BQ
    q = tile % tiles_q * BQ + m % BQ
    return (tile // (tiles_q * tiles_p)).to(INDEX), p.to(INDEX), q.to(INDEX)


@kernel
def _depthwise_kernel(
    x_ptr, x_b, x_c, x_h, x_w,
    w_ptr, w_f, w_r, w_s,
    bias_ptr, bias_f,
    mask_ptr, mask_b, mask_f, mask_h, mask_w,
    y_ptr, y_b, y_c, y_h, y_w,
    C, H, W, OUT_H, OUT_W,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, EACH: tl.constexpr, ALIGNED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BACK: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    MASKED: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):
    """y[b f p q] = sum_{r s} x[b, f / EACH, i(p, r), j(q, s)] w[f r s] + c[f], relu, 0 where mask <= 0; with BACK
    y[b c i j] = sum_{n r s} x[b, c EACH + n, p, q] w[c EACH + n, r, s] over the p, q whose window has i, j at r, s.

    Grid (B * OUT_H/BP * OUT_W/BQ * C/BN); a program owns BP x BQ pixels of BN channels.
    """
    C = multiple(C, ALIGNED)
    if ALIGNED > 1:
        # Channels are contiguous.
        x_b = multiple(x_b, ALIGNED)
        x_h = multiple(x_h, ALIGNED)
        x_w = multiple(x_w, ALIGNED)
    tiles_n = tl.cdiv(C, BN)
    c = (tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)).to(INDEX)
    b, u, v = _rectangle(tl.program_id(0) // tiles_n, OUT_H, OUT_W, INDEX, BP, BQ)
    x_ptr += b * x_b
    acc = tl.zeros((BN, BP * BQ), dtype=ACC)
    for step in range(R * S * EACH if BACK else R * S):
        if BACK:
            tap = step // EACH
            f = c * EACH + step % EACH
            channel = f * x_c
            up = u + TOP - tap // S * DH
            across = v + LEFT - tap % S * DW
            i = up // SH
            j = across // SW
            inside = (up >= 0) & (across >= 0) & (i < H) & (j < W) & (i * SH == up) & (j * SW == across)
        else:
            tap = step
            f = c
            channel = c // EACH * x_c
            i = u * SH - TOP + tap // S * DH
            j = v * SW - LEFT + tap % S * DW
            inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
        at = i * x_h + j * x_w
        x = tl.load(x_ptr + channel[:, None] + at[None, :], mask=(c < C)[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_ptr + f * w_f + tap // S * w_r + tap % S * w_s, mask=c < C, other=0.0)
        acc += x.to(ACC) * w.to(ACC)[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + c * bias_f, mask=c < C, other=0.0).to(ACC)[:, None]
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    here = (c < C)[:, None] & ((u < OUT_H) & (v < OUT_W))[None, :]
    if MASKED:
        at_mask = b * mask_b + u * mask_h + v * mask_w
        mask = tl.load(mask_ptr + (c * mask_f)[:, None] + at_mask[None, :], mask=here, other=0.0)
        acc = tl.where(mask <= 0, 0.0, acc)
    at = b * y_b + u * y_h + v * y_w
    tl.store(y_ptr + (c * y_c)[:, None] + at[None, :], acc.to(y_ptr.dtype.element_ty), mask=here)


@kernel
def _depthwise_weights_kernel(
    u_ptr, u_b, u_f, u_p, u_q,
    x_ptr, x_b, x_c, x_h, x_w,
    mask_ptr, mask_b, mask_f, mask_p, mask_q,
    w_ptr, w_z, w_f, w_t,
    F, H, W, P, Q, RECTANGLES,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, EACH: tl.constexpr, ALIGNED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr,
    BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr,
):
    """w[z f t] = sum_{b p q} u[b f p q] x[b, f / EACH, i(p, r), j(q, s)], t = (r s), over every Z-th rectangle of
    pixels from the z-th of RECTANGLES on.

    Grid (F/BN, Z); a program owns all taps of BN filters.
    """
    F = multiple(F, ALIGNED)
    if ALIGNED > 1:
        u_b = multiple(u_b, ALIGNED)
        u_p = multiple(u_p, ALIGNED)
        u_q = multiple(u_q, ALIGNED)
        x_b = multiple(x_b, ALIGNED)
        x_h = multiple(x_h, ALIGNED)
        x_w = multiple(x_w, ALIGNED)
    f = (tl.program_id(0) * BN + tl.arange(0, BN)).to(INDEX)
    z = tl.program_id(1)
    taps = tl.arange(0, BT)
    total = tl.zeros((BN, BT), dtype=ACC)
    for tile in range(z, RECTANGLES, tl.num_programs(1)):
        b, p, q = _rectangle(tile, P, Q, INDEX, BP, BQ)
        live = (p < P) & (q < Q)
        inside = (f < F)[:, None] & live[None, :]
        u = tl.load(u_ptr + (f * u_f)[:, None] + (b * u_b + p * u_p + q * u_q)[None, :], mask=inside, other=0.0)
        if MASKED:
            at = b * mask_b + p * mask_p + q * mask_q
            mask = tl.load(mask_ptr + (f * mask_f)[:, None] + at[None, :], mask=inside, other=0.0)
            u = tl.where(mask <= 0, 0.0, u).to(u.dtype)
        for tap in range(R * S):
            i = p * SH - TOP + tap // S * DH
            j = q * SW - LEFT + tap % S * DW
            seen = (f < F)[:, None] & (live & (i >= 0) & (i < H) & (j >= 0) & (j < W))[None, :]
            at = b * x_b + i * x_h + j * x_w
            x = tl.load(x_ptr + (f // EACH * x_c)[:, None] + at[None, :], mask=seen, other=0.0)
            one = tl.sum(u.to(ACC) * x.to(ACC), axis=1)
            total += tl.where((taps == tap)[None, :], one[:, None], 0.0)
    at = (z.to(INDEX) * w_z + f * w_f)[:, None] + (taps * w_t)[None, :]
    tl.store(w_ptr + at, total.to(w_ptr.dtype.element_ty), mask=(f < F)[:, None] & (taps < R * S)[None, :])
# fmt: on


def takes(images: torch.Tensor, w: tuple[int, ...], geo: Geometry) -> bool:
    """Whether these kernels are for such images and filters of the shape [F D R S]."""
    return w[1] == 1 and w[0] < MANY * geo.groups and sized_for(images.device) == "cuda"


def forward(
    y: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    geo: Geometry,
    relu: bool,
) -> None:
    """y[B F P Q] from x[B C H W] and w[F 1 R S]; any strides."""
    _depthwise(y, x, w, bias, mask, geo, relu, False)


def dgrad(dx: torch.Tensor, dy: torch.Tensor, w: torch.Tensor, mask: torch.Tensor | None, geo: Geometry) -> None:
    """dx[B C H W] from dy[B F P Q] and w[F 1 R S]; any strides."""
    _depthwise(dx, dy if mask is None else channels_last(dy, mask), w, None, None, geo, False, True)


def _depthwise(
    y: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    geo: Geometry,
    relu: bool,
    back: bool,
) -> None:
    (B, C, OUT_H, OUT_W), (_, _, H, W) = y.shape, x.shape
    BN, BP, BQ = _owned(x, C, OUT_H, OUT_W)
    # fmt: off
    launch(
        _depthwise_kernel, [B * -(-OUT_H // BP) * -(-OUT_W // BQ) * -(-C // BN)],
        x, *x.stride(),
        w, w.stride(0), *w.stride()[2:],
        *((x, 0) if bias is None else (bias, *bias.stride())),
        *((x, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        y, *y.stride(),
        C, H, W, OUT_H, OUT_W,
        **geo.constants(), EACH=w.shape[0] // geo.groups, ALIGNED=_aligned(C, x),
        ACC=triton_dtype(accumulator(x.dtype)), INDEX=index(x, w, mask, y), BACK=back, BIAS=bias is not None,
        RELU=relu, MASKED=mask is not None, BN=BN, BP=BP, BQ=BQ, writes=[y], warps=4,
    )
    # fmt: on


def wgrad(dw: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, geo: Geometry) -> None:
    """dw[F 1 R S] from dy[B F P Q] and x[B C H W]; any strides. Parts of the sum are added in a second pass."""
    (B, F, P, Q), (R, S) = dy.shape, geo.window
    BN, BP, BQ = _owned(x, F, P, Q)
    rectangles, tiles = B * -(-P // BP) * -(-Q // BQ), -(-F // BN)
    Z = max(1, min(parts(dy.device, tiles, 0), rectangles))
    part = dy.new_empty((Z, F, R * S), dtype=accumulator(dy.dtype))
    # fmt: off
    launch(
        _depthwise_weights_kernel, [tiles, Z],
        dy, *dy.stride(),
        x, *x.stride(),
        *((dy, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        part, *part.stride(),
        F, *geo.image, P, Q, rectangles,
        **geo.constants(), EACH=F // geo.groups, ALIGNED=gcd(_aligned(F, dy), _aligned(F, x)),
        ACC=triton_dtype(accumulator(dy.dtype)), INDEX=index(dy, x, mask, part), MASKED=mask is not None,
        BN=BN, BP=BP, BQ=BQ, BT=block(R * S, 2**16, 1), writes=[part], warps=4,
    )
    # fmt: on
    dw.copy_(column_sum(part.view(Z, -1), None).view(dw.shape))


def _owned(x: torch.Tensor, channels: int, rows: int, columns: int) -> tuple[int, int, int]:
    """Channels, rows and columns of a program: whole runs of memory, and rows enough that windows seldom reach out."""
    most, line = (32, 8) if x.stride(1) == 1 else (8, 128)
    BN, BQ = block(channels, most, 1), block(columns, line, 1)
    return BN, block(rows, max(1, min(2**13 // (BN * BQ), 32)), 1), BQ


def _aligned(channels: int, t: torch.Tensor) -> int:
    """The power of two, up to 16, that divides the channels and all strides of images whose channels are contiguous."""
    return gcd(16, channels, t.stride(0), t.stride(2), t.stride(3)) if t.stride(1) == 1 else 1
