"""Convolutions of images whose channels are contiguous, for tensor cores: forward, dgrad and wgrad.

Filters are the rows of the tensor cores' tile, and pixels its columns, of which there are always enough: 128 x 256
reuses what is read from shared memory so often that tensor cores need not wait for it. Copies are asynchronous and 128
bits wide. Taps are walked through in the inner loop: a chunk of channels is read for all taps while caches have it.

Images in another layout are copied on the way in, and results are written in any layout: bytes of twice the image.
"""

from math import gcd

import torch
import triton.language as tl

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.images_triton import channels_last, index, multiple
from gradlab.kernels.common.tiles_triton import parts, tile
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, launch, sized_for, triton_dtype

# Below every row of an image, and any tap away from it still.
_NOWHERE = tl.constexpr(-(2**29))


# fmt: off
@kernel
def _class(residue, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr,
           BEFORE: tl.constexpr):
    """dgrad along one axis, of the pixels i + BEFORE = residue (mod STRIDE): their first; their first tap, how many
    taps they meet, and which result the first pixel has at the first tap."""
    tap = residue * 0 + TAPS
    for t in tl.static_range(0, STEP):
        tap = tl.where((t * DILATION) % STRIDE == residue, t, tap)
    taps = (tl.maximum(TAPS - tap, 0) + STEP - 1) // STEP
    pixel = (residue + STRIDE - BEFORE % STRIDE) % STRIDE
    # Both are multiples of STRIDE.
    return pixel, tap, taps, (pixel + BEFORE - residue) // STRIDE - (tap * DILATION - residue) // STRIDE


@kernel
def _windows_kernel(
    x_ptr, x_b, x_h, x_w,
    w_ptr, w_n, w_k, w_r, w_s,
    bias_ptr, bias_n,
    mask_ptr, mask_b, mask_n, mask_h, mask_w,
    y_ptr, y_b, y_n, y_h, y_w,
    B, K, H, W, N, OUT_H, OUT_W, PIXELS,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    ALIGNED_X: tl.constexpr, ALIGNED_W: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BACK: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    MASKED: tl.constexpr, PADDED: tl.constexpr, FULL_K: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """y[n m] = sum_k w[n k] x[k m] + c[n], relu, 0 where mask <= 0; n a channel of the group's results, m = (b u v) a
    pixel of PIXELS, or with BACK one of a residue class mod the stride, k = (r s) times the group's channels.

    Grid (M/BM * N/BN, classes, G); a program owns BM pixels of BN channels.
    """
    K = multiple(K, ALIGNED_X)
    N = multiple(N, ALIGNED_W)
    tiles_n = tl.cdiv(N, BN)
    group = tl.program_id(2)
    if BACK:
        # x is dy[b f p q], and K the filters of a group; a pixel meets taps STEP apart, of results TAP apart.
        low_h, r0, taps_h, first_h = _class(tl.program_id(1) // SW % SH, R, SH, DH, STEP_H, TOP)
        low_w, s0, taps_w, first_w = _class(tl.program_id(1) % SW, S, SW, DW, STEP_W, LEFT)
        U = tl.cdiv(OUT_H, SH)
        V = tl.cdiv(OUT_W, SW)
        UP_H = 1
        UP_W = 1
        TAP_H = -(STEP_H * DH // SH)
        TAP_W = -(STEP_W * DW // SW)
        w_k = multiple(w_k, ALIGNED_W)
        w_ptr += (group * K).to(INDEX) * w_k
    else:
        r0 = 0
        s0 = 0
        taps_h = R
        taps_w = S
        first_h = -TOP
        first_w = -LEFT
        U = OUT_H
        V = OUT_W
        UP_H = SH
        UP_W = SW
        TAP_H = DH
        TAP_W = DW
        w_n = multiple(w_n, ALIGNED_W)
        w_ptr += (group * N).to(INDEX) * w_n
    x_b = multiple(x_b, ALIGNED_X)
    x_h = multiple(x_h, ALIGNED_X)
    x_w = multiple(x_w, ALIGNED_X)
    w_r = multiple(w_r, ALIGNED_W)
    w_s = multiple(w_s, ALIGNED_W)
    m = (tl.program_id(0) // tiles_n).to(INDEX) * BM + tl.arange(0, BM)
    n = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    b = m // PIXELS
    i0 = m // V % U * UP_H + first_h
    j0 = m % V * UP_W + first_w
    row = b * x_b + i0 * x_h + j0 * x_w
    i0 = tl.where(b < B, i0, _NOWHERE)
    filters = n.to(INDEX) * w_n
    x_ptr += group * K
    acc = tl.zeros((BN, BM), dtype=ACC)
    taps = taps_h * taps_w
    for step in range(tl.cdiv(K, BK) * taps):
        k = step // taps * BK + tl.arange(0, BK)
        r = step % taps // taps_w
        s = step % taps_w
        if PADDED:
            # One comparison of unsigned numbers for both ends.
            i = (i0 + r * TAP_H).to(tl.uint32)
            j = (j0 + s * TAP_W).to(tl.uint32)
            inside = (i < H) & (j < W)
        else:
            inside = b < B
        at = row + ((r * TAP_H).to(INDEX) * x_h + (s * TAP_W).to(INDEX) * x_w)
        taken = (r0 + r * STEP_H).to(INDEX) * w_r + (s0 + s * STEP_W).to(INDEX) * w_s
        if FULL_K:
            in_w = (n < N)[:, None]
            in_x = inside[None, :]
        else:
            in_w = (n < N)[:, None] & (k < K)[None, :]
            in_x = (k < K)[:, None] & inside[None, :]
        w = tl.load(w_ptr + (filters + taken)[:, None] + (k.to(INDEX) * w_k)[None, :], mask=in_w, other=0.0)
        x = tl.load(x_ptr + at[None, :] + k[:, None], mask=in_x, other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee", out_dtype=ACC)
    c = (group * N + n).to(INDEX)
    if BIAS:
        acc += tl.load(bias_ptr + c * bias_n, mask=n < N, other=0.0).to(ACC)[:, None]
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)
    if BACK and SH * SW > 1:
        i = low_h + m // V % U * SH
        j = low_w + m % V * SW
        at = b * y_b + i * y_h + j * y_w
        here = (n < N)[:, None] & ((b < B) & (i < OUT_H) & (j < OUT_W))[None, :]
    else:
        # An image's pixels follow each other in memory, and are as contiguous there as m is.
        at = b * y_b + m % PIXELS * y_w
        here = (n < N)[:, None] & (b < B)[None, :]
    if MASKED:
        at_mask = b * mask_b + m // V % U * mask_h + m % V * mask_w
        mask = tl.load(mask_ptr + (c * mask_n)[:, None] + at_mask[None, :], mask=here, other=0.0)
        acc = tl.where(mask <= 0, 0.0, acc)
    tl.store(y_ptr + (c * y_n)[:, None] + at[None, :], acc.to(y_ptr.dtype.element_ty), mask=here)


@kernel
def _quotient(n, multiplier, bits):
    """n / d for n below 2^31, with `multiplier` and `bits` from `divisor(d)`: a division takes 20 instructions."""
    n = n.to(tl.uint32)
    return ((tl.umulhi(n, tl.cast(multiplier, tl.uint32)) + n) >> tl.cast(bits, tl.uint32)).to(tl.int32)


@kernel
def _window_weights_kernel(
    u_ptr, u_m,
    x_ptr, x_b, x_h, x_w,
    w_ptr, w_z, w_f, w_d, w_r, w_s,
    M, D, H, W, N, P, Q, ROWS,
    image, image_bits, line, line_bits,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, ALIGNED_U: tl.constexpr, ALIGNED_X: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PADDED: tl.constexpr, LINEAR: tl.constexpr, ACROSS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):
    """w[z n k] = sum_m u[m n] x[m k] over the z-th ROWS, a multiple of BK, of m = (b p q); k = (r s d), n a filter.

    Grid (N/BM * R S D/BN, G, Z); a program owns BM filters of BN columns: ACROSS taps, or channels of one tap.
    """
    group = tl.program_id(1)
    z = tl.program_id(2).to(INDEX)
    if ACROSS:
        tiles_k = tl.cdiv(R * S * D, BN)
        k = tl.program_id(0) % tiles_k * BN + tl.arange(0, BN)
        tap = k // D
        d = k % D
        in_k = k < R * S * D
    else:
        chunks = tl.cdiv(D, BN)
        tiles_k = chunks * (R * S)
        tap = tl.program_id(0) % tiles_k // chunks
        d = tl.program_id(0) % chunks * BN + tl.arange(0, BN)
        in_k = d < D
    n = tl.program_id(0) // tiles_k * BM + tl.arange(0, BM)
    f = (group * N + n).to(INDEX)
    u_m = multiple(u_m, ALIGNED_U)
    x_b = multiple(x_b, ALIGNED_X)
    x_h = multiple(x_h, ALIGNED_X)
    x_w = multiple(x_w, ALIGNED_X)
    D = multiple(D, ALIGNED_X)
    N = multiple(N, ALIGNED_U)
    r = tap // S
    s = tap % S
    column = (r * DH).to(INDEX) * x_h + (s * DW).to(INDEX) * x_w + (group * D + d)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for m0 in range(0, ROWS, BK):
        m = z * ROWS + m0 + tl.arange(0, BK)
        u = tl.load(u_ptr + f[:, None] + (m * u_m)[None, :], mask=(n < N)[:, None] & (m < M)[None, :], other=0.0)
        if LINEAR:
            # One tap of every pixel: x is a matrix, as u is.
            row = m * x_w
        else:
            if INDEX == tl.int32:
                b = _quotient(m, image, image_bits)
                p = _quotient(m, line, line_bits)
            else:
                b = m // (P * Q)
                p = m // Q
            i0 = (p - b * P) * SH - TOP
            j0 = (m - p * Q) * SW - LEFT
            row = b * x_b + i0 * x_h + j0 * x_w
        if PADDED:
            i0 = tl.where(m < M, i0, _NOWHERE)
            if ACROSS:
                i = i0[:, None] + (r * DH)[None, :]
                j = j0[:, None] + (s * DW)[None, :]
                inside = (i.to(tl.uint32) < H) & (j.to(tl.uint32) < W) & in_k[None, :]
            else:
                i = i0 + r * DH
                j = j0 + s * DW
                inside = ((i.to(tl.uint32) < H) & (j.to(tl.uint32) < W))[:, None] & in_k[None, :]
        else:
            inside = (m < M)[:, None] & in_k[None, :]
        x = tl.load(x_ptr + row[:, None] + column[None, :], mask=inside, other=0.0)
        acc = tl.dot(u, x, acc, input_precision="ieee", out_dtype=ACC)
    at = d.to(INDEX) * w_d + r * w_r + s * w_s
    tl.store(w_ptr + (z * w_z + f * w_f)[:, None] + at[None, :], acc.to(w_ptr.dtype.element_ty),
             mask=(n < N)[:, None] & in_k[None, :])
# fmt: on


def takes(images: torch.Tensor, channels: int) -> bool:
    """Whether these kernels are for such images, and so many channels or filters of a group to sum over."""
    if images.dtype not in (torch.float16, torch.bfloat16) or channels < 16:
        return False
    # Dynamo, which traces the rules that ask, is told nothing of a CPU with a GPU's sizes.
    return images.is_cuda or (not torch.compiler.is_compiling() and sized_for(images.device) == "cuda")


def forward(
    y: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    geo: Geometry,
    relu: bool,
) -> None:
    """y[B F P Q], whose rows follow each other in memory, from x[B C H W] and w[F D R S] of any strides."""
    _windows(y, x, w, bias, mask, geo, relu, False)


def dgrad(dx: torch.Tensor, dy: torch.Tensor, w: torch.Tensor, mask: torch.Tensor | None, geo: Geometry) -> None:
    """dx[B C H W], whose rows follow each other in memory, from dy[B F P Q] and w[F D R S] of any strides."""
    _windows(dx, dy if mask is None else channels_last(dy, mask), w, None, None, geo, False, True)


def _windows(
    y: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    geo: Geometry,
    relu: bool,
    back: bool,
) -> None:
    x, w = (t if t.stride(1) == 1 else channels_last(t) for t in (x, w))
    (SH, SW), (DH, DW), F, D = geo.stride, geo.dilation, w.shape[0], w.shape[1]
    B, _, OUT_H, OUT_W = y.shape
    K, N = (F // geo.groups, D) if back else (D, F // geo.groups)
    n, k = (1, 0) if back else (0, 1)
    pixels = -(-OUT_H // SH) * -(-OUT_W // SW) if back else OUT_H * OUT_W
    BN, BK, BM, warps, stages = tile("window", x, N, K, B * pixels)
    # fmt: off
    launch(
        _windows_kernel, [-(-B * pixels // BM) * -(-N // BN), SH * SW if back else 1, geo.groups],
        x, x.stride(0), *x.stride()[2:],
        w, w.stride(n), w.stride(k), *w.stride()[2:],
        *((x, 0) if bias is None else (bias, *bias.stride())),
        *((x, 0, 0, 0, 0) if mask is None else (mask, *mask.stride())),
        y, *y.stride(),
        B, K, *x.shape[2:], N, OUT_H, OUT_W, pixels,
        **geo.constants(), STEP_H=SH // gcd(SH, DH) if back else 1, STEP_W=SW // gcd(SW, DW) if back else 1,
        ALIGNED_X=_aligned(K, x), ALIGNED_W=_aligned(N, w), ACC=triton_dtype(accumulator(x.dtype)),
        INDEX=index(x, w, mask, y), BACK=back, BIAS=bias is not None, RELU=relu, MASKED=mask is not None,
        PADDED=back or _padded(geo), FULL_K=K % BK == 0,
        BM=BM, BK=BK, BN=BN, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on


def wgrad(dw: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None, geo: Geometry) -> None:
    """dw[F D R S] from dy[B F P Q] and x[B C H W]; any strides. Parts of the sum are added in a second pass."""
    if mask is not None or not dy.is_contiguous(memory_format=torch.channels_last) or dy.stride(1) != 1:
        dy = channels_last(dy, mask)
    x = x if x.stride(1) == 1 else channels_last(x)
    (B, F, P, Q), D, (R, S) = dy.shape, dw.shape[1], geo.window
    N, M = F // geo.groups, B * P * Q
    across = D % 16 == 0
    linear = (
        geo.stride == geo.window == (1, 1) and not _padded(geo) and x.is_contiguous(memory_format=torch.channels_last)
    )
    if linear:
        # The stride of an axis of size 1 says nothing: rows of the matrix are as far apart as they are long.
        (_, C, H, W) = x.shape
        x = x.as_strided(x.shape, (C * H * W, 1, C * W, C))
    BM, BK, BN, warps, stages = tile("window weight gradient", x, N, M, R * S * D if across else D)
    columns = -(-R * S * D // BN) if across else R * S * -(-D // BN)
    programs = -(-N // BM) * columns * geo.groups
    Z = max(1, min(parts(x.device, 2 * programs, 0), M // (8 * BK)))
    part = dw.unsqueeze(0) if Z == 1 else dw.new_empty((Z, F, R, S, D), dtype=accumulator(dw.dtype)).movedim(4, 2)
    # fmt: off
    launch(
        _window_weights_kernel, [-(-N // BM) * columns, geo.groups, Z],
        dy, F,
        x, x.stride(0), *x.stride()[2:],
        part, *part.stride(),
        M, D, *geo.image, N, P, Q, -(-M // (Z * BK)) * BK,
        *divisor(P * Q), *divisor(Q),
        **geo.constants(), ALIGNED_U=gcd(16, N, F), ALIGNED_X=_aligned(D, x), ACC=triton_dtype(accumulator(x.dtype)),
        INDEX=index(dy, x, part), PADDED=_padded(geo), LINEAR=linear, ACROSS=across,
        BM=BM, BK=BK, BN=BN, writes=[part], warps=warps, stages=stages,
    )
    # fmt: on
    if Z > 1:
        dw.copy_(column_sum(part.movedim(2, 4).view(Z, -1), None).view(F, R, S, D).movedim(3, 1))


def _aligned(channels: int, t: torch.Tensor) -> int:
    """The power of two, up to 16, that divides a number of channels and the strides past the one of channels, 1."""
    return gcd(16, channels, t.stride(0), t.stride(2), t.stride(3))


def _padded(geo: Geometry) -> bool:
    """Whether a window may reach out of the image."""
    return max(map(max, geo.pads)) > 0


def divisor(d: int) -> tuple[int, int]:
    """The multiplier 2^32 (2^bits - d) / d + 1, as the signed number of its 32 bits, and the bits of d - 1.

    Granlund and Montgomery, Division by invariant integers using multiplication, figure 4.1.
    """
    bits = (d - 1).bit_length()
    multiplier = (2**32 * (2**bits - d)) // d + 1
    return multiplier - 2**32 * (multiplier >= 2**31), bits
