"""Cross-correlation, dgrad and wgrad as Pallas kernels: implicit GEMMs over images whose pixels are rows of a matrix.

x[B H W C] is padded and split once by pixel modulo the stride: x[phase, m, c] with phase = (i mod sh, j mod sw) and
m = (b, i / sh, j / sw) flattened to M = B H' W' rows. y and dy have the same M rows, zeros where p >= P or q >= Q. So
a tap (r, s) is a phase and a constant shift of rows, and each program reads dense [BM BK] blocks: no im2col, no gather,
no stride. H' >= P + the farthest tap, W' alike, so that a shift past an image only meets zeros, or rows that are
cropped: M / (B P Q) - 1 of the work is wasted, 7 % for a 3 x 3 window over 28 x 28.

On a TPU a program's block is its BM rows and a halo of the farthest shift; on a GPU it may read any row. Interpreted,
one program computes a full group: common/conv2d_arrays_pallas.py.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.common import conv2d_arrays_pallas as full
from gradlab.kernels.common import conv2d_sharding_pallas as sharding
from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.conv2d_arrays_pallas import dot
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas
from gradlab.kernels.runtime.partition_pallas import once
from gradlab.kernels.runtime.sharded_pallas import sharded


class Phase(NamedTuple):
    """The taps of one phase: number and shift of the (i, j)-th are first + i * step down + j * step across."""

    number: int
    counts: tuple[int, int]
    tap: tuple[int, int, int]
    shift: tuple[int, int, int]


# fmt: off
def _forward_kernel(*refs, phases, BM, BK, looped, bias, relu, masked):
    """y[m n] = sum_{t k} x[phase(t), m + shift(t), k] w[t k n] + c[n].

    Grid (M/BM, G, N/BN); a program owns y[BM BN].
    """
    x_ref, w_ref, *others, y_ref = refs
    acc = accumulator(y_ref.dtype)
    start = program_id(0) * BM if looped else 0
    y = jnp.zeros(y_ref.shape, acc)
    for phase in phases:
        def step(tap, shift, k, total, index=phase.number):
            x, w = x_ref[index, pl.ds(start + shift, BM), k], w_ref[tap, k, :]
            return total + dot(x, w, 1, 0)
        y = _taps(phase, w_ref.shape[1], BK, looped, step, y)
    if bias:
        y = y + others[0][...].astype(acc)
    if relu:
        y = jnp.where(y <= 0, jnp.zeros_like(y), y)
    if masked:
        y = jnp.where(others[-1][...] <= 0, jnp.zeros_like(y), y)
    y_ref[...] = y.astype(y_ref.dtype)


def _dgrad_kernel(*refs, phases, BM, BK, looped, halo, masked):
    """dx[phase, m, n] = sum_{t in phase, k} dz[m - shift(t), k] w[t n k].

    Grid (M/BM, G, N/BN); a program owns dx[:, BM, BN].
    """
    dz_ref, w_ref, *others, dx_ref = refs
    acc = accumulator(dx_ref.dtype)
    start = (program_id(0) * BM if looped else 0) + halo
    for phase in phases:
        def step(tap, shift, k, total):
            m = pl.ds(start - shift, BM)
            dz = dz_ref[m, k]
            if masked:
                dz = jnp.where(others[0][m, k] <= 0, jnp.zeros_like(dz), dz)
            return total + dot(dz, w_ref[tap, :, k], 1, 1)
        dx = _taps(phase, w_ref.shape[2], BK, looped, step, jnp.zeros(dx_ref.shape[1:], acc))
        dx_ref[phase.number] = dx.astype(dx_ref.dtype)


def _wgrad_kernel(*refs, phases, steps, BM, looped, geometry, width, masked):
    """dw[z t d n] = sum_m x[phase(t), m + shift(t), d] dz[m n], z-th rows.

    Grid (Z, RS, G, D/BD, N/BN), or RS in one program.
    """
    x_ref, dz_ref, *others, dw_ref = refs
    acc = accumulator(x_ref.dtype)
    start = program_id(0) * (steps * BM) if looped else 0

    def add(index, shift, i, total):
        m = pl.ds(i * BM, BM)
        dz = dz_ref[m, :]
        if masked:
            dz = jnp.where(others[0][m, :] <= 0, jnp.zeros_like(dz), dz)
        return total + dot(x_ref[index, pl.ds(start + i * BM + shift, BM), :], dz, 0, 0)

    zero = jnp.zeros(dw_ref.shape[-2:], acc)
    if looped:
        index, shift = _locate(geometry, width, program_id(1))
        dw_ref[...] = loop(steps, lambda i, total: add(index, shift, i, total), zero).astype(dw_ref.dtype)
        return
    for phase in phases:
        def store(tap, shift, k, total, index=phase.number):
            dw_ref[tap] = add(index, shift, 0, zero).astype(dw_ref.dtype)
        _taps(phase, 1, 1, False, store, None)
# fmt: on


def _taps(phase, K, BK, looped, step, total):
    """total = step(tap, shift, block of K, total) over the taps of a phase: one loop on a GPU, unrolled elsewhere."""
    (down, across), blocks = phase.counts, K // BK

    def at(i, j, k, total):
        tap, shift = (first + i * by_row + j * by_column for first, by_row, by_column in (phase.tap, phase.shift))
        return step(tap, shift, pl.ds(k * BK, BK), total)

    if looped:
        div, rem = jax.lax.div, jax.lax.rem
        A, N = jnp.int32(across), jnp.int32(blocks)
        body = lambda n, total: at(div(n, A * N), rem(div(n, N), A), rem(n, N), total)  # noqa: E731
        return loop(down * across * blocks, body, total)
    for i in range(down):
        for j in range(across):
            for k in range(blocks):
                total = at(i, j, k, total)
    return total


def _locate(geometry: Geometry, width: int, tap):
    """The phase and the shift of a tap whose number is a run-time value."""
    S, (sh, sw), (dh, dw) = (
        jnp.int32(geometry.window[1]),
        *(map(jnp.int32, t) for t in (geometry.stride, geometry.dilation)),
    )
    div, rem = jax.lax.div, jax.lax.rem
    i, j = div(tap, S) * dh, rem(tap, S) * dw
    return rem(i, sh) * sw + rem(j, sw), div(i, sh) * jnp.int32(width) + div(j, sw)


def _rows(geometry: Geometry) -> tuple[int, int]:
    """(H', W'): rows and columns of a phase of one image, large enough for the farthest tap and for the image."""
    each = zip(
        geometry.result, geometry.window, geometry.stride, geometry.dilation, geometry.pads, geometry.image, strict=True
    )
    H, W = (max(p + (k - 1) * d // s, -(-(around[0] + n) // s)) for p, k, s, d, around, n in each)
    return H, W


def _phases(geometry: Geometry) -> tuple[Phase, ...]:
    """Every phase of the stride with its taps, which may be none."""
    S, width = geometry.window[1], _rows(geometry)[1]

    def axis(k, s, d):
        """residue mod s -> first tap, step of taps, their count, first shift, step of shifts."""
        every = s // math.gcd(s, d)
        return {r * d % s: (r, every, -(-(k - r) // every), r * d // s, every * d // s) for r in range(min(every, k))}

    down, across = (axis(*each) for each in zip(geometry.window, geometry.stride, geometry.dilation, strict=True))
    none, found = (0, 0, 0, 0, 0), []
    for a in range(geometry.stride[0]):
        for b in range(geometry.stride[1]):
            r, by_r, R, up, by_up = down.get(a, none)
            s, by_s, count, left, by_left = across.get(b, none)
            tap, shift = (r * S + s, by_r * S, by_s), (up * width + left, by_up * width, by_left)
            found.append(Phase(a * geometry.stride[1] + b, (R, count), tap, shift))
    return tuple(found)


def _halo(geometry: Geometry) -> int:
    """The farthest shift, rounded up to a multiple of a TPU's 16 sublanes."""
    (down, across), width = (
        ((k - 1) * d // s for k, d, s in zip(geometry.window, geometry.dilation, geometry.stride, strict=True)),
        _rows(geometry)[1],
    )
    far = down * width + across
    return far + -far % 16


def _lay(x: jax.Array, geometry: Geometry) -> jax.Array:
    """x[B H W C] as its phases: [sh sw, B H' W', C]."""
    B, H, W, C = x.shape
    (sh, sw), ((top, _), (left, _)), (down, across) = geometry.stride, geometry.pads, _rows(geometry)
    x = jnp.pad(x, ((0, 0), (top, down * sh - top - H), (left, across * sw - left - W), (0, 0)))
    return x.reshape(B, down, sh, across, sw, C).transpose(2, 4, 0, 1, 3, 5).reshape(sh * sw, B * down * across, C)


def _gather(rows: jax.Array, B: int, geometry: Geometry) -> jax.Array:
    """x[B H W C] from its phases: the inverse of `_lay`."""
    (sh, sw), ((top, _), (left, _)), (down, across), (H, W) = (
        geometry.stride,
        geometry.pads,
        _rows(geometry),
        geometry.image,
    )
    x = rows.reshape(sh, sw, B, down, across, -1).transpose(2, 3, 0, 4, 1, 5).reshape(B, down * sh, across * sw, -1)
    return x[:, top : top + H, left : left + W]


def _spread(dy: jax.Array, geometry: Geometry) -> jax.Array:
    """dy[B P Q F] on the rows of x: [B H' W', F], zeros where p >= P or q >= Q."""
    (down, across), (P, Q) = _rows(geometry), geometry.result
    return jnp.pad(dy, ((0, 0), (0, down - P), (0, across - Q), (0, 0))).reshape(-1, dy.shape[-1])


def _split(t: jax.Array, groups: int, wide: int) -> jax.Array:
    """Pad the channels of each group along the last axis to `wide`."""
    each = t.shape[-1] // groups
    if each == wide:
        return t
    return pad(t.reshape(*t.shape[:-1], groups, each), *t.shape[:-1], 1, wide).reshape(*t.shape[:-1], groups * wide)


def _join(t: jax.Array, groups: int, each: int) -> jax.Array:
    """The inverse of `_split`: the first `each` channels of every group."""
    wide = t.shape[-1] // groups
    if each == wide:
        return t
    return t.reshape(*t.shape[:-1], groups, wide)[..., :each].reshape(*t.shape[:-1], groups * each)


def _forward_summed(names, x, w, bias, mask, geometry, relu):
    """Where C is split: relu comes after the sum."""
    bias = None if bias is None else once(names, bias)
    y = jax.lax.psum(forward(x, w, bias, mask, geometry, False), names)
    return jnp.where(y <= 0, jnp.zeros_like(y), y) if relu else y


def _of_groups(args):
    """The arguments where groups of one channel are split: those in an array's last axis are here."""
    return [a._replace(groups=args[0].shape[3]) if isinstance(a, Geometry) else a for a in args]


@sharded(
    sharding.forward,
    own={"C": _forward_summed, "G": lambda _, *args: forward(*_of_groups(args))},  # type: ignore[has-type]
)
def forward(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, mask: jax.Array | None, geometry: Geometry, relu: bool
) -> jax.Array:
    """y[B P Q F] of x[B H W C], w[R S D F] and bias[F], then relu; zeros where mask <= 0.

    For each group a GEMM of B P Q x F/G x D R S; x and the mask are laid out once, w is read once per BM rows.
    """
    B, D, F, G, (P, Q) = x.shape[0], w.shape[2], w.shape[3], geometry.groups, geometry.result
    if 0 in (B, F):
        return jnp.zeros((B, P, Q, F), x.dtype)
    if D == 0:
        # An empty sum: computed as one zero channel.
        x, w, D = jnp.zeros((*x.shape[:3], G), x.dtype), jnp.zeros((*w.shape[:2], 1, F), w.dtype), 1
    N, halo, (down, across) = F // G, _halo(geometry), _rows(geometry)
    biased, masked = bias is not None, mask is not None

    def call(platform: str, x: jax.Array, w: jax.Array, *given: jax.Array) -> jax.Array:
        left = list(given)
        c, g = (left.pop(0) if there else None for there in (biased, masked))
        if interpreted(platform):
            return full.forward(x, w, c, g, geometry, relu)
        x, w = _lay(x, geometry), w.reshape(-1, D, F)
        others = [] if c is None else [c.reshape(1, F)]
        others += [] if g is None else [_spread(g, geometry)]
        M, T = x.shape[1:2] + w.shape[:1]
        BM, BK, BN, warps, stages = _tile(platform, x.dtype, M, D, N)
        tall, deep, wide = M + -M % BM, D + -D % BK, N + -N % BN
        operands = [
            jnp.pad(_split(x, G, deep), ((0, 0), (0, tall + halo - M), (0, 0))),
            pad(_split(w, G, wide), T, deep, 1),
            *(pad(_split(t, G, wide), 1 if t.shape[0] == 1 else BM, 1) for t in others),
        ]
        columns = wide // BN
        row = pl.BlockSpec((1, BN), lambda i, g, j: (0, g * columns + j))
        tile = pl.BlockSpec((BM, BN), lambda i, g, j: (i, g * columns + j))
        specs = [
            _input_spec(platform, x.shape[:1], BM, tall + halo, BM + halo, deep),
            pl.BlockSpec((T, deep, BN), lambda i, g, j: (0, 0, g * columns + j)),
            *[row] * biased,
            *[tile] * masked,
        ]
        kernel = functools.partial(
            _forward_kernel,
            phases=_phases(geometry),
            BM=BM,
            BK=BK,
            looped=platform == "cuda",
            bias=biased,
            relu=relu,
            masked=masked,
        )
        shape = jax.ShapeDtypeStruct((tall, G * wide), x.dtype)
        grid = (tall // BM, G, columns)
        y = pallas(kernel, platform, grid, specs, tile, shape, warps=warps, stages=stages)(*operands)
        return _join(y[:M], G, N).reshape(B, down, across, F)[:, :P, :Q]

    return launch(call, x, w, *(t for t in (bias, mask) if t is not None))


@sharded(sharding.dgrad, own={"G": lambda _, *args: dgrad(*_of_groups(args))})  # type: ignore[has-type]
def dgrad(dy: jax.Array, w: jax.Array, mask: jax.Array | None, geometry: Geometry) -> jax.Array:
    """dx[B H W C] of dy[B P Q F] and w[R S D F], zeros in place of dy where mask <= 0.

    For each group and phase a dense GEMM of B H' W' x D x F/G times its taps: a stride costs no multiplications by
    zero.
    """
    B, D, F, G = dy.shape[0], w.shape[2], w.shape[3], geometry.groups
    if 0 in (B, D, F):
        return jnp.zeros((B, *geometry.image, G * D), dy.dtype)
    halo, phases, dtype, masked = _halo(geometry), _phases(geometry), dy.dtype, mask is not None

    def call(platform: str, w: jax.Array, *given: jax.Array) -> jax.Array:
        if interpreted(platform):
            return full.dgrad(given[0], w, given[1] if len(given) > 1 else None, geometry)
        rows, w = [_spread(t, geometry) for t in given], w.reshape(-1, D, F)
        M, T = rows[0].shape[0], w.shape[0]
        BM, BK, BN, warps, stages = _tile(platform, dtype, M, F // G, D)
        tall, deep, wide = M + -M % BM, F // G + -(F // G) % BK, D + -D % BN
        operands = [jnp.pad(_split(t, G, deep), ((halo, tall - M), (0, 0))) for t in rows]
        operands.insert(1, pad(_split(w, G, deep), T, wide, 1))
        columns = wide // BN
        seen = _input_spec(platform, (), BM, tall + halo, BM + halo, deep)
        specs = [seen, pl.BlockSpec((T, BN, deep), lambda i, g, j: (0, j, g)), *[seen] * masked]
        out = pl.BlockSpec((len(phases), BM, BN), lambda i, g, j: (0, i, g * columns + j))
        kernel = functools.partial(
            _dgrad_kernel,
            phases=phases,
            BM=BM,
            BK=BK,
            looped=platform == "cuda",
            halo=halo,
            masked=masked,
        )
        shape = jax.ShapeDtypeStruct((len(phases), tall, G * wide), dtype)
        grid = (tall // BM, G, columns)
        dx = pallas(kernel, platform, grid, specs, out, shape, warps=warps, stages=stages)(*operands)
        return _gather(_join(dx[:, :M], G, D), B, geometry)

    return launch(call, w, *(t for t in (dy, mask) if t is not None))


@sharded(sharding.wgrad, own={"G": lambda _, *args: wgrad(*_of_groups(args))})  # type: ignore[has-type]
def wgrad(dy: jax.Array, x: jax.Array, mask: jax.Array | None, geometry: Geometry) -> jax.Array:
    """dw[R S D F] of dy[B P Q F] and x[B H W C], zeros in place of dy where mask <= 0.

    For each tap and group a GEMM of D x F/G x B P Q, split-K into Z parts that a second pass adds: no atomics.
    """
    B, F, G, (R, S) = x.shape[0], dy.shape[3], geometry.groups, geometry.window
    D, N, T, halo, phases = x.shape[3] // G, F // G, R * S, _halo(geometry), _phases(geometry)
    if 0 in (B, D, F):
        return jnp.zeros((R, S, D, F), dy.dtype)
    dtype, masked = dy.dtype, mask is not None

    def call(platform: str, x: jax.Array, *given: jax.Array) -> jax.Array:
        if interpreted(platform):
            return full.wgrad(given[0], x, given[1] if len(given) > 1 else None, geometry)
        x, rows = _lay(x, geometry), [_spread(t, geometry) for t in given]
        M, looped = x.shape[1], platform == "cuda"
        BD, BM, BN, warps, stages = _tile(platform, dtype, D, M, N)
        if platform == "tpu":
            BM = block(platform, M, 1024, least=128)
        deep, wide, blocks = D + -D % BD, N + -N % BN, -(-M // BM)
        grid = (T if looped else 1, G, deep // BD, wide // BN)
        # A few hundred programs fill a GPU; elsewhere a program takes one block of rows.
        steps = max(1, blocks * math.prod(grid) // 512) if looped else 1
        Z = -(-blocks // steps)
        tall = Z * steps * BM
        operands = [
            jnp.pad(_split(x, G, deep), ((0, 0), (0, tall + halo - M), (0, 0))),
            *(pad(_split(t, G, wide), tall, 1) for t in rows),
        ]
        inner, columns = deep // BD, wide // BN
        tile = pl.BlockSpec((steps * BM, BN), lambda z, t, g, d, n: (z, g * columns + n))
        specs = [
            _input_spec(
                platform, x.shape[:1], BM, tall + halo, BM + halo, BD, lambda z, t, g, d, n: (z, g * inner + d)
            ),
            *[tile] * len(rows),
        ]
        out = pl.BlockSpec((None, None if looped else T, BD, BN), lambda z, t, g, d, n: (z, t, d, g * columns + n))
        kernel = functools.partial(
            _wgrad_kernel,
            phases=phases,
            steps=steps,
            BM=BM,
            looped=looped,
            geometry=geometry,
            width=_rows(geometry)[1],
            masked=masked,
        )
        shape = jax.ShapeDtypeStruct((Z, T, deep, G * wide), dtype if Z == 1 else accumulator(dtype))
        dw = pallas(kernel, platform, (Z, *grid), specs, out, shape, warps=warps, stages=stages)(*operands)
        if Z > 1:
            dw = column_sum(dw.reshape(Z, -1), None).reshape(dw.shape[1:]).astype(dtype)
        return _join(dw.reshape(shape.shape[1:])[:, :D], G, N).reshape(R, S, D, F)

    return launch(call, x, *(t for t in (dy, mask) if t is not None))


def bias_sum(dy: jax.Array, mask: jax.Array | None) -> jax.Array:
    """db[F] = sum over B, P and Q of dy[B P Q F], zeros where mask <= 0; F comes last, so it is a column sum."""
    return column_sum(dy, mask)


def _input_spec(platform, lead, BM, rows, window, width, place=lambda i, g, j: (i, g)) -> pl.BlockSpec:
    """The block of an operand that is read at shifted rows: on a TPU the program's rows and a halo, else every row."""
    zeros = (0,) * len(lead)
    if platform == "tpu":

        def own(*at):
            i, g = place(*at)
            return (*zeros, i * BM, g * width)

        return pl.BlockSpec(tuple(pl.Element(n) for n in (*lead, window, width)), own)
    return pl.BlockSpec((*lead, rows, width), lambda *at: (*zeros, 0, place(*at)[1]))


def _tile(platform: str, dtype, M: int, K: int, N: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BN, warps, stages: tensor-core tiles in half precision."""
    if platform == "tpu":
        return 128, 128, 128, 4, 1
    if dtype in (jnp.float32, jnp.float64):
        return block(platform, M, 64), block(platform, K, 32), block(platform, N, 64), 4, 3
    BM, BN = block(platform, M, 128), block(platform, N, 128)
    return BM, block(platform, K, 64), BN, 8 if BM * BN > 64 * 128 else 4, 3
