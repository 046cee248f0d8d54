"""The launcher of elementwise Pallas kernels: over blocks of the flattened arrays, which are padded to full blocks."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.runtime.launch_pallas import block, interpreted, launch, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import one_by_one, sharded

# Columns of a flattened array: compiled blocks are powers of two of at least 128.
COLUMNS = 1024


# fmt: off
def _times_kernel(a_ref, b_ref, y_ref):
    """y[m n] = a[m n] b[m n]; grid (M/BM, 1); a program owns y[BM N]."""
    y_ref[...] = a_ref[...] * b_ref[...]
# fmt: on


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """y = a b, elementwise; same shape. 2 E read, E written."""
    return elementwise(_times_kernel, [b.dtype], a, b)[0]


def _rule(kernel: Any, dtypes: Sequence[Any], *arrays: jax.Array, pass_interpreted: bool = False) -> str:
    return one_by_one(len(arrays), arrays[0].ndim, len(dtypes))


@sharded(_rule)
def elementwise(
    kernel: Callable[..., None], dtypes: Sequence[Any], *arrays: jax.Array, pass_interpreted: bool = False
) -> list[jax.Array]:
    """Launch `kernel` over arrays of one shape: it takes a ref of each, then one of each result, of these dtypes.

    With `pass_interpreted` the kernel also gets `interpreted`, whether it is.
    """
    shape = arrays[0].shape
    E = math.prod(shape)
    if E == 0:
        return [jnp.zeros(shape, dtype) for dtype in dtypes]

    def call(platform: str, *operands: jax.Array) -> list[jax.Array]:
        N = E if interpreted(platform) else COLUMNS
        M = -(-E // N)
        # 16 elements a thread on a GPU: at 64 a kernel of many operands spills registers.
        BM = 4 if platform == "cuda" else block(platform, M, 8, least=8)
        flat = [pad(pad(t.reshape(E), N).reshape(M, N), BM, N) for t in operands]
        spec = pl.BlockSpec((BM, N), lambda i, j: (i, j))
        shapes = [jax.ShapeDtypeStruct(flat[0].shape, dtype) for dtype in dtypes]
        grid = (flat[0].shape[0] // BM, 1)
        body = functools.partial(kernel, interpreted=interpreted(platform)) if pass_interpreted else kernel
        found = pallas(body, platform, grid, [spec] * len(flat), [spec] * len(shapes), shapes, warps=8)(*flat)
        return [y.reshape(-1)[:E].reshape(shape) for y in found]

    return launch(call, *arrays)
