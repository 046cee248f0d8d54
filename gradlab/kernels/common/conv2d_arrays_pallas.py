"""conv2d where one program's block is the full array, as when interpreted: a GEMM for one or a few rows of the window.

Memory traffic and matmuls with a short K dominate the time there. So the image is laid out with rows first,
x[a b h B w c] with the phases (a, b) of the stride, and the S taps of a row of the window are concatenated:
X[a][h B q, s d] = x[a, phase of s, h, B, q + shift of s, d]. A row r of the window is then P consecutive h of X, one
contiguous slice without other pixels: no row is computed only to be cropped. Rows with few channels share a matmul.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_pallas import accumulator, pallas

# The K from which on a matmul is fast: concatenating further rows of the window costs more than it gains.
INNER = 96


class Tap(NamedTuple):
    """Phase and shift of a tap along one axis."""

    phase: int
    shift: int


# fmt: off
def _full_forward_kernel(*refs, geometry, bias, relu, masked):
    """y[p b q n] = sum_{r s k} X[r][p b q, s k] w[r s k n] + c[n].

    Grid (1,) for each group; a program owns y of its group.
    """
    x_ref, w_ref, *others, y_ref = refs
    N, taps_of = w_ref.shape[-1], _side_by_side(x_ref, geometry)
    y = jnp.zeros((math.prod(y_ref.shape[:-1]), N), accumulator(y_ref.dtype))
    for first, rows in _row_groups(w_ref.shape):
        y = y + dot(taps_of(first, rows), w_ref[first : first + rows].reshape(-1, N), 1, 0)
    if bias:
        y = y + others[0][...].astype(y.dtype)
    y = y.reshape(y_ref.shape)
    if relu:
        y = jnp.where(y <= 0, jnp.zeros_like(y), y)
    if masked:
        y = jnp.where(others[-1][...] <= 0, jnp.zeros_like(y), y)
    y_ref[...] = y.astype(y_ref.dtype)


def _full_dgrad_kernel(*refs, geometry, masked):
    """dx[a b h B w k] = sum of dz[p b q n] w[r s k n] over the taps that reach the pixel.

    Grid (1,) for each group; a program owns dx of its group.
    """
    dz_ref, w_ref, *others, dx_ref = refs
    (_, S, D, N), (P, B, Q, _), tall = w_ref.shape, dz_ref.shape, dx_ref.shape[2]
    rows, columns = _taps(geometry)
    dz = _masked(dz_ref, others, masked)
    acc = accumulator(dx_ref.dtype)
    sums: dict[int, jax.Array] = {}
    for r, (a, i) in enumerate(rows):
        part = dot(dz, w_ref[r].reshape(S * D, N), 1, 1).reshape(P, B, Q, S * D)
        total = sums.get(a, jnp.zeros((tall, B, Q, S * D), acc))
        sums[a] = jax.lax.dynamic_update_slice(total, total[i : i + P] + part, (i, 0, 0, 0))
    for a in range(dx_ref.shape[0]):
        for b in range(dx_ref.shape[1]):
            dx = jnp.zeros(dx_ref.shape[2:], acc)
            for s, (phase, j) in enumerate(columns):
                if phase == b and a in sums:
                    around = [(0, 0, 0), (0, 0, 0), (j, dx.shape[2] - j - Q, 0), (0, 0, 0)]
                    dx = dx + jax.lax.pad(sums[a][..., s * D : (s + 1) * D], jnp.zeros((), acc), around)
            dx_ref[a, b] = dx.astype(dx_ref.dtype)


def _full_wgrad_kernel(*refs, geometry, masked):
    """dw[r s k n] = sum_{p b q} X[r][p b q, s k] dz[p b q n].

    Grid (1,) for each group; a program owns dw of its group.
    """
    x_ref, dz_ref, *others, dw_ref = refs
    dz, taps_of = _masked(dz_ref, others, masked), _side_by_side(x_ref, geometry)
    for first, rows in _row_groups(dw_ref.shape):
        dw = dot(taps_of(first, rows), dz, 0, 0)
        dw_ref[first : first + rows] = dw.reshape(rows, *dw_ref.shape[1:]).astype(dw_ref.dtype)
# fmt: on


def dot(a: jax.Array, b: jax.Array, in_a: int, in_b: int) -> jax.Array:
    """The sum over axis `in_a` of a and `in_b` of b, never in TF32, carried in float32 or better."""
    precision = jax.lax.Precision.HIGHEST if a.dtype in (jnp.float32, jnp.float64) else None
    axes = (((in_a,), (in_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=accumulator(a.dtype))


def _masked(dz_ref: Any, others: Any, masked: bool) -> jax.Array:
    """dz[p b q, n], zeros where mask <= 0."""
    dz = dz_ref[...]
    if masked:
        dz = jnp.where(others[0][...] <= 0, jnp.zeros_like(dz), dz)
    return dz.reshape(-1, dz.shape[-1])


def _row_groups(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Groups of a window's rows [R S D N] that share a matmul, as (first, count): enough rows for its K."""
    R, S, D, _ = shape
    each = max(1, INNER // (S * D))
    return [(first, min(each, R - first)) for first in range(0, R, each)]


def _side_by_side(x_ref: Any, geometry: Geometry) -> Callable[[int, int], jax.Array]:
    """(first, count) -> X[r][p b q, s k] of these rows r, concatenated; parts that rows share are made once."""
    rows, columns = _taps(geometry)
    P, Q = geometry.result

    @functools.cache
    def row_of_taps(a: int) -> jax.Array:
        taps = [x_ref[a, b, :, :, j : j + Q, :] for b, j in columns]
        return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)

    def taken(first: int, many: int) -> jax.Array:
        parts = [row_of_taps(a)[i : i + P] for a, i in rows[first : first + many]]
        part = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return part.reshape(-1, part.shape[-1])

    return taken


def _taps(geometry: Geometry) -> tuple[list[Tap], list[Tap]]:
    """Phases and shifts of the taps of the window's rows, and of its columns."""
    each = zip(geometry.window, geometry.stride, geometry.dilation, strict=True)
    rows, columns = ([Tap(t * d % s, t * d // s) for t in range(k)] for k, s, d in each)
    return rows, columns


def _phase_size(geometry: Geometry) -> tuple[int, int]:
    """(H', W'): rows and columns of a phase, large enough for the farthest tap and for the image."""
    each = zip(geometry.result, _taps(geometry), geometry.stride, geometry.pads, geometry.image, strict=True)
    H, W = (max(p + max(tap.shift for tap in taps), -(-(around[0] + n) // s)) for p, taps, s, around, n in each)
    return H, W


def _by_phases(x: jax.Array, geometry: Geometry) -> jax.Array:
    """x[B H W C] as x[a b h B w C]."""
    B, H, W, C = x.shape
    (sh, sw), ((top, _), (left, _)), (down, across) = geometry.stride, geometry.pads, _phase_size(geometry)
    x = jnp.pad(x, ((0, 0), (top, down * sh - top - H), (left, across * sw - left - W), (0, 0)))
    return x.reshape(B, down, sh, across, sw, C).transpose(2, 4, 1, 0, 3, 5)


def _image(x: jax.Array, geometry: Geometry) -> jax.Array:
    """The inverse of `_by_phases`."""
    (sh, sw), ((top, _), (left, _)), (H, W) = geometry.stride, geometry.pads, geometry.image
    _, _, down, B, across, C = x.shape
    x = x.transpose(3, 2, 0, 4, 1, 5).reshape(B, down * sh, across * sw, C)
    return x[:, top : top + H, left : left + W]


def _swapped(t: jax.Array) -> jax.Array:
    """[B H ...] <-> [H B ...]."""
    return t.transpose(1, 0, 2, 3)


def _run(kernel: Any, operands: list[jax.Array], shape: tuple[int, ...], geometry: Geometry, **options: Any) -> Any:
    """Run the kernel on each group's part of every last axis; groups are mapped, which batches the matmuls."""
    G = geometry.groups
    out = jax.ShapeDtypeStruct((*shape[:-1], shape[-1] // G), operands[0].dtype)
    body = functools.partial(kernel, geometry=geometry, **options)

    def group(*parts: jax.Array) -> Any:
        seen: list[Any] = [*parts, out]
        specs = [pl.BlockSpec(t.shape) for t in seen]
        return pallas(body, "cpu", (1,), specs[:-1], specs[-1], out)(*parts)

    if G == 1:
        return group(*operands)
    parts = [t.reshape(*t.shape[:-1], G, t.shape[-1] // G) for t in operands]
    return jax.vmap(group, in_axes=-2, out_axes=-2)(*parts).reshape(shape)


def forward(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, mask: jax.Array | None, geometry: Geometry, relu: bool
) -> jax.Array:
    """y[B P Q F] of x[B H W C], w[R S D F] and bias[F], then relu; zeros where mask <= 0. C >= 1."""
    operands = [_by_phases(x, geometry), w]
    operands += [] if bias is None else [bias.reshape(1, -1)]
    operands += [] if mask is None else [_swapped(mask)]
    (P, Q), options = geometry.result, {"bias": bias is not None, "relu": relu, "masked": mask is not None}
    return _swapped(_run(_full_forward_kernel, operands, (P, x.shape[0], Q, w.shape[3]), geometry, **options))


def dgrad(dy: jax.Array, w: jax.Array, mask: jax.Array | None, geometry: Geometry) -> jax.Array:
    """dx[B H W C] of dy[B P Q F] and w[R S D F], zeros in place of dy where mask <= 0."""
    operands = [_swapped(dy), w, *([] if mask is None else [_swapped(mask)])]
    down, across = _phase_size(geometry)
    shape = (*geometry.stride, down, dy.shape[0], across, geometry.groups * w.shape[2])
    return _image(_run(_full_dgrad_kernel, operands, shape, geometry, masked=mask is not None), geometry)


def wgrad(dy: jax.Array, x: jax.Array, mask: jax.Array | None, geometry: Geometry) -> jax.Array:
    """dw[R S D F] of dy[B P Q F] and x[B H W C], zeros in place of dy where mask <= 0."""
    operands = [_by_phases(x, geometry), _swapped(dy), *([] if mask is None else [_swapped(mask)])]
    shape = (*geometry.window, x.shape[3] // geometry.groups, dy.shape[3])
    return _run(_full_wgrad_kernel, operands, shape, geometry, masked=mask is not None)
