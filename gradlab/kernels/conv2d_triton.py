"""Cross-correlation, dgrad, wgrad and the bias gradient as Triton kernels: implicit GEMMs, no im2col buffer."""

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

import torch
import triton.language as tl

from gradlab.kernels.common import conv2d_depthwise_triton as depthwise
from gradlab.kernels.common import conv2d_last_triton as last
from gradlab.kernels.common import conv2d_product_triton as product
from gradlab.kernels.common import conv2d_sharding as sharding
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.images_triton import empty, filters_along, index
from gradlab.kernels.common.pixel_sum_triton import pixel_sum
from gradlab.kernels.common.tiles_triton import Tile, parts, tile
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_triton import (
    accumulator,
    kernel_of_any,
    launch,
    op,
    triton_dtype,
)

_GEOMETRY = ("R", "S", "SH", "SW", "DH", "DW", "TOP", "LEFT")


# fmt: off
@kernel_of_any(*_GEOMETRY)
def _forward_kernel(
    x_ptr, x_b, x_c, x_h, x_w,
    w_ptr, w_f, w_d, w_r, w_s,
    bias_ptr, bias_f,
    mask_ptr, mask_b, mask_f, mask_p, mask_q,
    y_ptr, y_b, y_f, y_p, y_q,
    B, D, H, W, N, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr,
    PACKED: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = sum_k x[m k] w[n k] + c[n], m = (b p q), k = (d r s), n a filter of the group; GEMM B P Q x N x D R S.

    Grid (M/BM * N/BN, G); a program owns BM results of BN filters.
    """
    tiles_n = tl.cdiv(N, BN)
    group = tl.program_id(1)
    m = (tl.program_id(0) // tiles_n).to(INDEX) * BM + tl.arange(0, BM)
    n = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    b = m // (P * Q)
    p = m // Q % P
    q = m % Q
    f = (group * N + n).to(INDEX)
    i0 = p * SH - TOP
    j0 = q * SW - LEFT
    acc = tl.zeros((BM, BN), dtype=ACC)
    chunks = tl.cdiv(D, BK)
    for step in range(tl.cdiv(D * R * S, BK) if PACKED else chunks * (R * S)):
        if PACKED:
            k = step * BK + tl.arange(0, BK)
            d = k // (R * S)
            r = k // S % R
            s = k % S
            i = i0[:, None] + (r * DH)[None, :]
            j = j0[:, None] + (s * DW)[None, :]
            at = (b * x_b)[:, None] + ((group * D + d).to(INDEX) * x_c)[None, :] + i * x_h + j * x_w
            inside = (b < B)[:, None] & (d < D)[None, :] & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        else:
            # One tap at a time: a row's pixel is the same for all columns, which frees most registers.
            d = step % chunks * BK + tl.arange(0, BK)
            r = step // chunks // S
            s = step // chunks % S
            i = i0 + r * DH
            j = j0 + s * DW
            at = (b * x_b + i * x_h + j * x_w)[:, None] + ((group * D + d).to(INDEX) * x_c)[None, :]
            inside = ((b < B) & (i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        taps = d.to(INDEX) * w_d + r * w_r + s * w_s
        w = tl.load(w_ptr + taps[:, None] + (f * w_f)[None, :], mask=(d < D)[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee", out_dtype=ACC)
    if BIAS:
        acc += tl.load(bias_ptr + f * bias_f, mask=n < N, other=0.0).to(ACC)[None, :]
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    here = (b < B)[:, None] & (n < N)[None, :]
    if MASKED:
        at = (b * mask_b + p * mask_p + q * mask_q)[:, None] + (f * mask_f)[None, :]
        mask = tl.load(mask_ptr + at, mask=here, other=0.0)
        acc = tl.where(mask <= 0, 0.0, acc)
    at = (b * y_b + p * y_p + q * y_q)[:, None] + (f * y_f)[None, :]
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=here)


@kernel_of_any(*_GEOMETRY)
def _dgrad_kernel(
    u_ptr, u_b, u_f, u_p, u_q,
    w_ptr, w_f, w_d, w_r, w_s,
    mask_ptr, mask_b, mask_f, mask_p, mask_q,
    x_ptr, x_b, x_c, x_h, x_w,
    B, D, H, W, N, P, Q,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr,
    PACKED: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """dx[m d] = sum_k u[m k] w[k d], m = (b i j) of one residue class mod the stride, k = (n r s), the taps of the
    class; GEMM B H/SH W/SW x D x N R S / (SH SW).

    Grid (M/BM * D/BN, SH * SW, G); a program owns BM pixels of BN channels.
    """
    tiles_n = tl.cdiv(D, BN)
    residue_h = tl.program_id(1) // SW
    residue_w = tl.program_id(1) % SW
    group = tl.program_id(2)
    # The taps of the class: r = r0, r0 + STEP, ..., all with DH r = residue (mod SH); r0 = R if there is none.
    r0 = residue_h * 0 + R
    for t in tl.static_range(0, STEP_H):
        r0 = tl.where((t * DH) % SH == residue_h, t, r0)
    s0 = residue_w * 0 + S
    for t in tl.static_range(0, STEP_W):
        s0 = tl.where((t * DW) % SW == residue_w, t, s0)
    taps_h = (tl.maximum(R - r0, 0) + STEP_H - 1) // STEP_H
    taps_w = (tl.maximum(S - s0, 0) + STEP_W - 1) // STEP_W
    # The pixels of the class: i = i0, i0 + SH, ..., all with i + TOP = residue (mod SH).
    rows = tl.cdiv(H, SH)
    columns = tl.cdiv(W, SW)
    m = (tl.program_id(0) // tiles_n).to(INDEX) * BM + tl.arange(0, BM)
    d = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    b = m // (rows * columns)
    i = (residue_h + SH - TOP % SH) % SH + m // columns % rows * SH
    j = (residue_w + SW - LEFT % SW) % SW + m % columns * SW
    # i + TOP - residue and DH r - residue are multiples of SH, so both divisions are exact.
    p0 = (i + TOP - residue_h) // SH
    q0 = (j + LEFT - residue_w) // SW
    acc = tl.zeros((BM, BN), dtype=ACC)
    chunks = tl.cdiv(N, BK)
    taps_hw = taps_h * taps_w
    for step in range(tl.cdiv(N * taps_hw, BK) if PACKED else chunks * taps_hw):
        if PACKED:
            k = step * BK + tl.arange(0, BK)
            n = k // taps_hw
            r = r0 + k // taps_w % taps_h * STEP_H
            s = s0 + k % taps_w * STEP_W
            p = p0[:, None] - ((r * DH - residue_h) // SH)[None, :]
            q = q0[:, None] - ((s * DW - residue_w) // SW)[None, :]
            f = (group * N + n).to(INDEX)
            pixel = (b * u_b)[:, None] + p * u_p + q * u_q
            at_mask = (b * mask_b)[:, None] + p * mask_p + q * mask_q
            inside = (b < B)[:, None] & (n < N)[None, :] & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
        else:
            n = step % chunks * BK + tl.arange(0, BK)
            r = r0 + step // chunks // taps_w * STEP_H
            s = s0 + step // chunks % taps_w * STEP_W
            p = p0 - (r * DH - residue_h) // SH
            q = q0 - (s * DW - residue_w) // SW
            f = (group * N + n).to(INDEX)
            pixel = (b * u_b + p * u_p + q * u_q)[:, None]
            at_mask = (b * mask_b + p * mask_p + q * mask_q)[:, None]
            inside = ((b < B) & (p >= 0) & (p < P) & (q >= 0) & (q < Q))[:, None] & (n < N)[None, :]
        u = tl.load(u_ptr + pixel + (f * u_f)[None, :], mask=inside, other=0.0)
        if MASKED:
            mask = tl.load(mask_ptr + at_mask + (f * mask_f)[None, :], mask=inside, other=0.0)
            u = tl.where(mask <= 0, 0.0, u).to(u.dtype)
        taps = f * w_f + r * w_r + s * w_s
        at = taps[:, None] + (d.to(INDEX) * w_d)[None, :]
        w = tl.load(w_ptr + at, mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(u, w, acc, input_precision="ieee", out_dtype=ACC)
    c = (group * D + d).to(INDEX)
    at = (b * x_b + i * x_h + j * x_w)[:, None] + (c * x_c)[None, :]
    here = ((b < B) & (i < H) & (j < W))[:, None] & (d < D)[None, :]
    tl.store(x_ptr + at, acc.to(x_ptr.dtype.element_ty), mask=here)


@kernel_of_any(*_GEOMETRY)
def _wgrad_kernel(
    u_ptr, u_b, u_f, u_p, u_q,
    x_ptr, x_b, x_c, x_h, x_w,
    mask_ptr, mask_b, mask_f, mask_p, mask_q,
    w_ptr, w_z, w_f, w_d, w_r, w_s,
    M, D, H, W, N, P, Q, ROWS,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr,
    PACKED: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """w[z n k] = sum_m u[m n] x[m k] over the z-th ROWS of m = (b p q), k = (d r s); GEMM N x D R S x B P Q.

    Grid (N/BM * D R S/BN, G, Z); a program owns BM filters of BN taps, or of BN channels of one tap.
    """
    group = tl.program_id(1)
    z = tl.program_id(2).to(INDEX)
    if PACKED:
        tiles_n = tl.cdiv(D * R * S, BN)
        k = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
        d = k // (R * S)
        r = k // S % R
        s = k % S
    else:
        # A program has one tap: a row's pixel is the same for all columns.
        chunks = tl.cdiv(D, BN)
        tiles_n = chunks * (R * S)
        d = tl.program_id(0) % chunks * BN + tl.arange(0, BN)
        r = tl.program_id(0) % tiles_n // chunks // S
        s = tl.program_id(0) % tiles_n // chunks % S
    n = tl.program_id(0) // tiles_n * BM + tl.arange(0, BM)
    f = (group * N + n).to(INDEX)
    c = (group * D + d).to(INDEX)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for m0 in range(0, ROWS, BK):
        row = m0 + tl.arange(0, BK)
        m = z * ROWS + row
        live = (row < ROWS) & (m < M)
        b = m // (P * Q)
        p = m // Q % P
        q = m % Q
        inside = (n < N)[:, None] & live[None, :]
        u = tl.load(u_ptr + (f * u_f)[:, None] + (b * u_b + p * u_p + q * u_q)[None, :], mask=inside, other=0.0)
        if MASKED:
            at = (f * mask_f)[:, None] + (b * mask_b + p * mask_p + q * mask_q)[None, :]
            mask = tl.load(mask_ptr + at, mask=inside, other=0.0)
            u = tl.where(mask <= 0, 0.0, u).to(u.dtype)
        if PACKED:
            i = (p * SH - TOP)[:, None] + (r * DH)[None, :]
            j = (q * SW - LEFT)[:, None] + (s * DW)[None, :]
            at = (b * x_b)[:, None] + i * x_h + j * x_w
            inside = live[:, None] & (d < D)[None, :] & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        else:
            i = p * SH - TOP + r * DH
            j = q * SW - LEFT + s * DW
            at = (b * x_b + i * x_h + j * x_w)[:, None]
            inside = (live & (i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + at + (c * x_c)[None, :], mask=inside, other=0.0)
        acc = tl.dot(u, x, acc, input_precision="ieee", out_dtype=ACC)
    at = (z * w_z + f * w_f)[:, None] + (d.to(INDEX) * w_d + r * w_r + s * w_s)[None, :]
    tl.store(w_ptr + at, acc.to(w_ptr.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


def _forward_fake(x, w, bias, mask, geometry, relu, channels_last):
    return empty(x, (x.shape[0], w.shape[0], *Geometry.of(geometry).result), channels_last)


@op("conv2d", fake=_forward_fake, sharding=sharding.forward,
    flops=lambda x, w, *_, out_shape: 2 * prod(out_shape) * prod(w[1:]))
def forward(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None,
            geometry: Sequence[int], relu: bool, channels_last: bool) -> torch.Tensor:
    """y[B F P Q] = the correlation of x[B C H W] with w[F D R S], plus bias[F], then relu; 0 where mask[B F P Q] <= 0.

    Any strides. `geometry` is a `Geometry`, flat; `channels_last` lays y out so.
    Logical GEMM, for each group: B P Q x F/G x D R S.
    """
    geo = Geometry.of(geometry)
    y = _forward_fake(x, w, bias, mask, geometry, relu, channels_last)
    B, F, P, Q = y.shape
    D, (R, S), N = w.shape[1], geo.window, F // geo.groups
    if depthwise.takes(x, w.shape, geo):
        depthwise.forward(y, x, w, bias, mask, geo, relu)
        return y
    if product.takes(x, geo):
        product.forward(y, x, w, bias, mask, relu)
        return y
    if last.takes(x, D):
        last.forward(y, x, w, bias, mask, geo, relu)
        return y
    packed = _packed(x, D)
    BM, BK, BN, warps, stages = _tile(x, B * P * Q, D * R * S if packed else D, N)
    w = filters_along(w, B * P * Q // BM, 0)
    launch(
        _forward_kernel, [-(-B * P * Q // BM) * -(-N // BN), geo.groups],
        x, *x.stride(),
        w, *w.stride(),
        *((x, 0) if bias is None else (bias, *bias.stride())),
        *((x, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        y, *y.stride(),
        B, D, *geo.image, N, P, Q,
        **_constants(geo, x, w, mask, y), ACC=triton_dtype(accumulator(x.dtype)), BIAS=bias is not None, RELU=relu,
        MASKED=mask is not None, PACKED=packed, BM=BM, BK=BK, BN=BN, writes=[y], warps=warps, stages=stages,
    )
    return y


def _dgrad_fake(dy, w, mask, geometry, channels_last):
    geo = Geometry.of(geometry)
    return empty(dy, (dy.shape[0], w.shape[1] * geo.groups, *geo.image), channels_last)


@op("conv2d_dgrad", fake=_dgrad_fake, sharding=sharding.dgrad,
    flops=lambda dy, w, *_, out_shape: 2 * prod(dy) * prod(w[1:]))
def dgrad(dy: torch.Tensor, w: torch.Tensor, mask: torch.Tensor | None, geometry: Sequence[int],
          channels_last: bool) -> torch.Tensor:
    """dx[B C H W] of the cotangent dy[B F P Q], zeros in place of dy where mask <= 0.

    Logical GEMM, for each group and residue class of the stride: B H/SH W/SW x D x F/G times the taps of the class.
    """
    geo = Geometry.of(geometry)
    dx = _dgrad_fake(dy, w, mask, geometry, channels_last)
    (B, _, P, Q), D, (H, W), N = dy.shape, w.shape[1], geo.image, w.shape[0] // geo.groups
    if depthwise.takes(dy, w.shape, geo):
        depthwise.dgrad(dx, dy, w, mask, geo)
        return dx
    if mask is None and product.takes(dy, geo):
        product.dgrad(dx, dy, w)
        return dx
    if last.takes(dy, N):
        last.dgrad(dx, dy, w, mask, geo)
        return dx
    (SH, SW), (DH, DW), (R, S) = geo.stride, geo.dilation, geo.window
    M = B * -(-H // SH) * -(-W // SW)
    packed = _packed(dy, N)
    BM, BK, BN, warps, stages = _tile(dy, M, -(-N * R * S // (SH * SW)) if packed else N, D)
    w = filters_along(w, M // BM, 1)
    launch(
        _dgrad_kernel, [-(-M // BM) * -(-D // BN), SH * SW, geo.groups],
        dy, *dy.stride(),
        w, *w.stride(),
        *((dy, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        dx, *dx.stride(),
        B, D, H, W, N, P, Q,
        **_constants(geo, dy, w, mask, dx), STEP_H=SH // gcd(SH, DH), STEP_W=SW // gcd(SW, DW),
        ACC=triton_dtype(accumulator(dy.dtype)), MASKED=mask is not None, PACKED=packed,
        BM=BM, BK=BK, BN=BN, writes=[dx], warps=warps, stages=stages,
    )
    return dx


def _wgrad_fake(dy, x, mask, geometry, channels_last):
    geo = Geometry.of(geometry)
    return empty(dy, (dy.shape[1], x.shape[1] // geo.groups, *geo.window), channels_last)


@op("conv2d_wgrad", fake=_wgrad_fake, sharding=sharding.wgrad,
    flops=lambda dy, *_, out_shape: 2 * prod(dy) * prod(out_shape[1:]))
def wgrad(dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, geometry: Sequence[int],
          channels_last: bool) -> torch.Tensor:
    """dw[F D R S] of the cotangent dy[B F P Q], zeros in place of dy where mask <= 0.

    Logical GEMM, for each group: F/G x D R S x B P Q, split-K into Z parts that a second pass adds: no atomics.
    """
    geo = Geometry.of(geometry)
    dw = _wgrad_fake(dy, x, mask, geometry, channels_last)
    (B, F, P, Q), D, (R, S) = dy.shape, dw.shape[1], geo.window
    M, N, K = F // geo.groups, D * R * S, B * P * Q
    if depthwise.takes(dy, dw.shape, geo):
        depthwise.wgrad(dw, dy, x, mask, geo)
        return dw
    if last.takes(x, min(D, M)):
        last.wgrad(dw, dy, x, mask, geo)
        return dw
    packed = _packed(dy, D)
    BM, BK, BN, warps, stages = _tile(dy, M, K, N if packed else D, "weight gradient")
    columns = -(-N // BN) if packed else -(-D // BN) * R * S
    # Split-K: enough programs to fill the device, each with several tiles of K.
    wanted = parts(dy.device, -(-M // BM) * columns * geo.groups, (dy.numel() + x.numel()) * dy.element_size())
    Z = max(1, min(wanted, K // (8 * BK)))
    part = dw.unsqueeze(0) if Z == 1 else dy.new_empty((Z, *dw.shape), dtype=accumulator(dy.dtype))
    launch(
        _wgrad_kernel, [-(-M // BM) * columns, geo.groups, Z],
        dy, *dy.stride(),
        x, *x.stride(),
        *((dy, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        part, *part.stride(),
        K, D, *geo.image, M, P, Q, -(-K // Z),
        **_constants(geo, dy, x, mask, part), ACC=triton_dtype(accumulator(dy.dtype)), MASKED=mask is not None,
        PACKED=packed, BM=BM, BK=BK, BN=BN, writes=[part], warps=warps, stages=stages,
    )
    if Z > 1:
        dw.copy_(column_sum(part.view(Z, -1), None).view(dw.shape))
    return dw


def _bias_sum_fake(dy, mask):
    return dy.new_empty(dy.shape[1])


@op("conv2d_bias_sum", fake=_bias_sum_fake, sharding=sharding.bias_sum)
def bias_sum(dy: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """db[F] = sum over B, P and Q of dy[B F P Q], zeros where mask <= 0; in two passes, no atomics."""
    return pixel_sum(dy, mask)
# fmt: on


def _constants(geo: Geometry, *tensors: torch.Tensor | None) -> dict[str, Any]:
    return geo.constants() | {"INDEX": index(*tensors)}


def _packed(a: torch.Tensor, channels: int) -> bool:
    """Whether taps and channels share the K axis of the GEMM: with few channels."""
    return channels < 16


def _tile(a: torch.Tensor, M: int, K: int, N: int, what: str = "convolution") -> Tile:
    return tile(what if a.stride(1) == 1 else f"scattered {what}", a, M, K, N)
