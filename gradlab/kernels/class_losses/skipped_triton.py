"""Tiles of linear_cross_entropy's gradient that are taken as 0, and the products that walk over the others alone.

A tile is SIDE rows by SIDE classes of d[M V], whatever tiles the kernels of a device compute in: which of them count is
the same everywhere.
"""

import math
from collections.abc import Sequence

import torch
import triton.language as tl
from torch.types import Number

from gradlab.kernels.class_losses.rows_triton import row_classes
from gradlab.kernels.class_losses.settings import SIDE, ClassLoss
from gradlab.kernels.common.matmul_triton import strides
from gradlab.kernels.common.product_triton import load_tile, operand, store_tile, tile_at, ways
from gradlab.kernels.common.tiles_triton import tile
from gradlab.kernels.runtime.launch_triton import accumulator, block, kernel, launch, triton_dtype


# fmt: off
@kernel
def _active_tiles_kernel(
    g_ptr,
    s_ptr,
    t_ptr, t_z, t_m,
    c_ptr,
    M, V, G, J, IGNORE, BELOW,
    SIDE: tl.constexpr, EACH: tl.constexpr, BJ: tl.constexpr,
):
    """c[z i j] = 1 where a row of the tile counts: it has its class there, or max_v p[m v] >= BELOW; else 0.

    g[z G M] are the largest z[m v] of EACH classes. Ignored rows never count, those of a class out of range always.

    Grid (Z * M/SIDE, J/BJ); a program owns c[z i BJ].
    """
    tiles_m = tl.cdiv(M, SIDE)
    z = (tl.program_id(0) // tiles_m).to(tl.int64)
    m = (tl.program_id(0) % tiles_m * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    t, in_range, valid = row_classes(t_ptr + z * t_z, t_m, m, M, V, IGNORE, 0, False, False)
    row_max = tl.load(s_ptr + 3 * z * M + m, mask=m < M, other=0.0)
    log_sum = tl.load(s_ptr + 3 * z * M + M + m, mask=m < M, other=0.0)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    counts = (t // SIDE)[None, :] == j[:, None]
    for n in range(SIDE // EACH):
        of = (j * (SIDE // EACH) + n).to(tl.int64)
        inside = (of < G)[:, None] & (m < M)[None, :]
        g = tl.load(g_ptr + z * G * M + of[:, None] * M + m[None, :], mask=inside, other=float("-inf"))
        p = tl.exp((g - row_max[None, :]) - log_sum[None, :])
        # Not >=: a NaN counts.
        counts = counts | (inside & ((p < BELOW) == 0))
    counts = valid[None, :] & (counts | (in_range == 0)[None, :])
    tl.store(c_ptr + tl.program_id(0).to(tl.int64) * J + j, tl.max(counts.to(tl.int32), axis=1), mask=j < J)


@kernel
def _lists_kernel(
    c_ptr, c_z, c_i, c_j,
    l_ptr,
    I, J, W,
    BJ: tl.constexpr,
):
    """l[z i s] = (n, j_1 .. j_n, ...), the j of the s-th run of W, counted from its first on, with c[z i j] = 1.

    In their order; what follows the n of them is not written. Grid (Z * I, S); a program owns l[z i s 1 + W].
    """
    z = (tl.program_id(0) // I).to(tl.int64)
    i = (tl.program_id(0) % I).to(tl.int64)
    first = tl.program_id(1) * W
    l_ptr += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (1 + W)
    count = tl.zeros((), dtype=tl.int32)
    for j0 in range(0, W, BJ):
        j = j0 + tl.arange(0, BJ)
        inside = (j < W) & (first + j < J)
        counts = tl.load(c_ptr + z * c_z + i * c_i + (first + j).to(tl.int64) * c_j, mask=inside, other=0)
        tl.store(l_ptr + count + tl.cumsum(counts, axis=0), j, mask=counts != 0)
        count += tl.sum(counts, axis=0)
    tl.store(l_ptr, count)


@kernel
def _listed_product_kernel(
    a_ptr, a_z, a_m, a_k,
    b_ptr, b_z, b_k, b_n,
    c_ptr, c_z, c_m, c_n,
    y_ptr, y_z, y_m, y_n,
    l_ptr, l_z, l_i,
    M, K, N,
    ACC: tl.constexpr, ADD: tl.constexpr, FULL_K: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, Y: tl.constexpr, SIDE: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):
    """y[z m n] = c[z m n] (if ADD) + sum_k a[z m k] b[z k n] over the tiles of SIDE k that l[z m/SIDE] lists.

    Nothing else of a is read. Grid (Z * M/BM * N/BN), down GROUP rows of tiles first; a program owns y[z BM BN].
    """
    STEPS: tl.constexpr = SIDE // BK
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    z = (tl.program_id(0) // tiles).to(tl.int64)
    m0, n0 = tile_at(tl.program_id(0) % tiles, M, N, BM, BN, GROUP)
    a = operand(a_ptr, z, a_z, a_m, a_k, M, K, A, BM, BK)
    b = operand(b_ptr, z, b_z, b_k, b_n, K, N, B, BK, BN)
    y = operand(y_ptr, z, y_z, y_m, y_n, M, N, Y, BM, BN)
    l_ptr += z * l_z + (m0 // SIDE).to(tl.int64) * l_i
    if ADD:
        # First, not last: a sum to begin with takes no registers beside the tile.
        acc = load_tile(c_ptr + z * c_z, c_m, c_n, m0, n0, M, N, "pointers", False, False, BM, BN).to(ACC)
    else:
        acc = tl.zeros((BM, BN), dtype=ACC)
    # One loop over the steps of all tiles, whose loads run ahead as in any product: no step is left out in it.
    for i in range(tl.load(l_ptr) * STEPS):
        k0 = tl.load(l_ptr + 1 + i // STEPS) * SIDE + i % STEPS * BK
        a_tile = load_tile(a, a_m, a_k, m0, k0, M, K, A, False, FULL_K, BM, BK)
        b_tile = load_tile(b, b_k, b_n, k0, n0, K, N, B, FULL_K, False, BK, BN)
        acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee", out_dtype=ACC)
    store_tile(y, y_m, y_n, acc.to(y_ptr.dtype.element_ty), m0, n0, M, N, Y, BM, BN)
# fmt: on


def active_tiles(
    g: torch.Tensor, s: torch.Tensor, t: torch.Tensor, V: int, each: int, settings: Sequence[Number], below: float
) -> torch.Tensor:
    """1 or 0 for each tile [Z M/SIDE V/SIDE] of d, of the maxima g[Z V/each M], row statistics s[Z 3 M], classes t."""
    (Z, G, M), J = g.shape, -(-V // SIDE)
    c = t.new_empty((Z, -(-M // SIDE), J), dtype=torch.int32)
    # fmt: off
    launch(
        _active_tiles_kernel, [Z * c.shape[1], -(-J // 8)],
        g,
        s,
        t, *t.stride(),
        c,
        M, V, G, J, ClassLoss.of(settings).ignore_index, below,
        SIDE=SIDE, EACH=each, BJ=8, writes=[c],
    )
    # fmt: on
    return c


def lists(c: torch.Tensor, width: int) -> torch.Tensor:
    """l[Z I S 1 + width] of c[Z I J]: how many of each run of `width` of J are 1, and which, counted from its start."""
    Z, I, J = c.shape
    runs = -(-J // width) if J else 1
    found = c.new_empty((Z, I, runs, 1 + width))
    launch(_lists_kernel, [Z * I, runs], c, *c.stride(), found, I, J, width, BJ=block(width, 256), writes=[found])
    return found


def listed_product_into(
    y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, listed: torch.Tensor
) -> None:
    """y[Z M N] = c + a b of what `listed`[Z M/SIDE 1 + K/SIDE] lists of a's tiles [SIDE SIDE]; c may be y itself."""
    M, K, N = *a.shape[-2:], b.shape[-1]
    BM, BK, BN, warps, stages = tile("matmul", a, M, K, N)
    BM, BK = min(BM, SIDE), min(BK, SIDE)
    by = ways(a, b, y)
    # fmt: off
    launch(
        _listed_product_kernel, [math.prod(a.shape[:-2]) * -(-M // BM) * -(-N // BN)],
        a, *strides(a, 2),
        b, *strides(b, 2),
        *((a, 0, 0, 0) if c is None else (c, *strides(c, 2))),
        y, *strides(y, 2),
        listed, *listed.stride()[:2],
        M, K, N,
        ACC=triton_dtype(accumulator(a.dtype)), ADD=c is not None, FULL_K=K % SIDE == 0, A=by[0], B=by[1], Y=by[2],
        SIDE=SIDE, BM=BM, BK=BK, BN=BN, GROUP=8, writes=[y], warps=warps, stages=stages,
    )
    # fmt: on
