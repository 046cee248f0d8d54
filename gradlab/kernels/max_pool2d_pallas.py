"""The maximum of each window, and the selection that is its pullback, forward and backward, as Pallas kernels.

Pallas' portable dialect has no gather, so images are laid out tap by tap before a kernel: for each tap the pixels that
the windows have there, one strided slice. With windows side by side that is one copy of x, with overlapping ones R S /
(SH SW) of them. Scatter works on the residue classes of the stride, in each of which a tap is a shift.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.kernels.common.elementwise_pallas import elementwise
from gradlab.kernels.common.window import Geometry
from gradlab.kernels.runtime.launch_pallas import accumulator
from gradlab.kernels.runtime.sharded_pallas import sharded


# fmt: off
def _max_kernel(*refs):
    """y[m n] = max_t x[t][m n], k its first tap; grid (M/BM, 1); a program owns y[BM N]."""
    *x_refs, first_ref, y_ref, k_ref = refs
    found = first_ref[...]
    best = jnp.full(found.shape, -jnp.inf, y_ref.dtype)
    for tap, x_ref in enumerate(x_refs):
        x = x_ref[...]
        # The border is -inf and never higher; NaN is above every number.
        higher = (x > best) | (x != x)
        best = jnp.where(higher, x, best)
        found = jnp.where(higher, jnp.full_like(found, tap), found)
    y_ref[...] = best
    k_ref[...] = found


def _scatter_kernel(*refs, taps):
    """x[m n] = sum_t u[t][m n] where k[t] = taps[t]; grid (M/BM, 1); a program owns x[BM N]."""
    *operands, x_ref = refs
    total = jnp.zeros(x_ref.shape, accumulator(x_ref.dtype))
    for t, tap in enumerate(taps):
        u, k = operands[2 * t][...], operands[2 * t + 1][...]
        total += jnp.where(k == tap, u, jnp.zeros_like(u)).astype(total.dtype)
    x_ref[...] = total.astype(x_ref.dtype)


def _gather_kernel(*refs):
    """y[m n] = u[k][m n]; grid (M/BM, 1); a program owns y[BM N]."""
    *u_refs, k_ref, y_ref = refs
    k = k_ref[...]
    y = jnp.zeros(k.shape, y_ref.dtype)
    for tap, u_ref in enumerate(u_refs):
        y = jnp.where(k == tap, u_ref[...], y)
    y_ref[...] = y
# fmt: on


@sharded("x[B H W C] -> y[B P Q C], k[B P Q C]; whole H W")
def forward(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    """y[B P Q C] of x[B H W C], and the tap k[B P Q C] of each maximum, -1 where a window holds no pixel."""
    taps = _taps(x, geometry, -jnp.inf)
    first = jnp.broadcast_to(_first(geometry)[:, :, None], taps[0].shape)
    y, k = elementwise(_max_kernel, [x.dtype, jnp.int32], *taps, first)
    return y, k


@sharded("u[B P Q C], k[B P Q C] -> dx[B H W C]; whole P Q")
def scatter(u: jax.Array, k: jax.Array, geometry: Geometry) -> jax.Array:
    """dx[B H W C]: the sum of u[B P Q C] over the windows whose tap k names the pixel; each pixel is written once."""
    (SH, SW), (top, _), (left, _), (H, W) = geometry.stride, *geometry.pads, geometry.image
    B, _, _, C = u.shape
    # Pixels of the padded image, counted in strides.
    rows, columns = -(-(top + H) // SH), -(-(left + W) // SW)
    classes = []
    for a, b in itertools.product(range(SH), range(SW)):
        operands, taps = [], []
        for tap, (i, j) in enumerate(_places(geometry)):
            if i % SH == a and j % SW == b:
                shift = (i // SH, j // SW)
                operands += [_shifted(u, shift, rows, columns, 0), _shifted(k, shift, rows, columns, -1)]
                taps.append(tap)
        if taps:
            kernel = functools.partial(_scatter_kernel, taps=tuple(taps))
            classes += elementwise(kernel, [u.dtype], *operands)
        else:
            classes.append(jnp.zeros((B, rows, columns, C), u.dtype))
    padded = jnp.stack(classes).reshape(SH, SW, B, rows, columns, C).transpose(2, 3, 0, 4, 1, 5)
    return padded.reshape(B, rows * SH, columns * SW, C)[:, top : top + H, left : left + W]


@sharded("u[B H W C], k[B P Q C] -> y[B P Q C]; whole H W P Q")
def gather(u: jax.Array, k: jax.Array, geometry: Geometry) -> jax.Array:
    """y[B P Q C] = u[B H W C] at the taps k[B P Q C]."""
    return elementwise(_gather_kernel, [u.dtype], *_taps(u, geometry, 0), k)[0]


def _places(geometry: Geometry) -> list[tuple[int, int]]:
    """Row and column of each tap in its window."""
    (R, S), (DH, DW) = geometry.window, geometry.dilation
    return [(r * DH, s * DW) for r in range(R) for s in range(S)]


def _taps(x: jax.Array, geometry: Geometry, border: Any) -> list[jax.Array]:
    """For each tap the pixels [B P Q C] that the windows have there; `border` outside the image."""
    (SH, SW), (P, Q) = geometry.stride, geometry.result
    (top, bottom), (left, right) = geometry.pads
    config = [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)]
    # A negative border crops what no window reaches.
    wide = jax.lax.pad(x, jnp.asarray(border, x.dtype), config)
    return [wide[:, i : i + SH * (P - 1) + 1 : SH, j : j + SW * (Q - 1) + 1 : SW] for i, j in _places(geometry)]


def _first(geometry: Geometry) -> np.ndarray:
    """The first tap of each window [P Q] that lies inside the image, -1 when none does."""
    (SH, SW), (P, Q), (H, W) = geometry.stride, geometry.result, geometry.image
    found = np.full((P, Q), -1, np.int32)
    for tap, (r, s) in reversed(list(enumerate(_places(geometry)))):
        i, j = np.arange(P) * SH - geometry.pads[0][0] + r, np.arange(Q) * SW - geometry.pads[1][0] + s
        found[np.outer((i >= 0) & (i < H), (j >= 0) & (j < W))] = tap
    return found


def _shifted(t: jax.Array, shift: tuple[int, int], rows: int, columns: int, border: int) -> jax.Array:
    """[B rows columns C] with t[B P Q C] at `shift`, `border` around it, cut off past the end."""
    sizes = ((shift[0], t.shape[1], rows), (shift[1], t.shape[2], columns))
    around = [(before, size - before - n, 0) for before, n, size in sizes]
    return jax.lax.pad(t, jnp.asarray(border, t.dtype), [(0, 0, 0), *around, (0, 0, 0)])
