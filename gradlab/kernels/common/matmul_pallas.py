"""The product of two matrices as a Pallas kernel: bias, relu and the mask of its backward in one pass."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.pallas_triton.backend_pallas import chosen
from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, masks, pad, pallas
from gradlab.kernels.runtime.partition_pallas import once
from gradlab.kernels.runtime.sharded_pallas import axes, sharded

_Map = Callable[..., tuple[Any, ...]]
# Rows of tiles that programs take together.
GROUP = 16
# Of a large GPU: with fewer of the largest tiles, some of its multiprocessors would have none.
MULTIPROCESSORS = 132


# fmt: off
def _matmul_kernel(*refs, K, BK, transposed_a, transposed_b, bias, relu, masked):
    """y[m n] = sum_k a[m k] b[k n] + c[m n], with a, b or y 0 where mask <= 0.

    Grid (M/BM, N/BN); a program owns y[BM BN].
    """
    a_ref, b_ref, *others, y_ref = refs
    c_ref: Any = others.pop(0) if bias else None
    mask_ref: Any = others.pop(0) if masked else None
    acc = accumulator(y_ref.dtype)
    precision = jax.lax.Precision.HIGHEST if a_ref.dtype in (jnp.float32, jnp.float64) else None
    contract = (((0 if transposed_a else 1,), (1 if transposed_b else 0,)), ((), ()))

    def step(i, total):
        k = pl.ds(i * BK, BK)
        in_a = (k, slice(None)) if transposed_a else (slice(None), k)
        in_b = (slice(None), k) if transposed_b else (k, slice(None))
        a = a_ref[in_a]
        b = b_ref[in_b]
        if masked == "a":
            a = jnp.where(mask_ref[in_a] <= 0, jnp.zeros_like(a), a)
        if masked == "b":
            b = jnp.where(mask_ref[in_b] <= 0, jnp.zeros_like(b), b)
        return total + jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=acc)

    y = loop(K // BK, step, jnp.zeros(y_ref.shape, acc))
    if bias:
        y = y + c_ref[...].astype(acc)
    if relu:
        y = jnp.where(y <= 0, jnp.zeros_like(y), y)
    if masked == "y":
        y = jnp.where(mask_ref[...] <= 0, jnp.zeros_like(y), y)
    y_ref[...] = y.astype(y_ref.dtype)

# fmt: on


def _rule(a, b, bias, mask, transposed_a, transposed_b, masked, relu) -> str:
    """Rows are all axes of an operand but its last; relu comes after a sum, so `_summed` makes that."""
    M, K = ("M", axes("K", a.ndim - 1)) if transposed_a else (axes("M", a.ndim - 1), "K")
    of = {"a": f"{K} {M}" if transposed_a else f"{M} {K}", "b": f"N {K}" if transposed_b else f"{K} N", "y": f"{M} N"}
    given = [f"a[{of['a']}]", f"b[{of['b']}]"]
    given += [] if bias is None else [f"bias[{'N' if bias.ndim == 1 else of['y']}]"]
    given += [] if mask is None else [f"mask[{of[masked]}]"]
    sums = "" if relu and K != "K" else f"; sums {K}" + ("" if bias is None else "; adds bias")
    return f"{', '.join(given)} -> y[{of['y']}]{sums}"


def _summed(names, a, b, bias, mask, transposed_a, transposed_b, masked, relu) -> jax.Array:
    bias = None if bias is None else once(names, bias)
    y = jax.lax.psum(matmul(a, b, bias, mask, transposed_a, transposed_b, masked, False), names)
    return jnp.where(y <= 0, jnp.zeros_like(y), y) if relu else y


@sharded(_rule, own={"K": _summed})
def matmul(
    a: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transposed_a: bool,
    transposed_b: bool,
    masked: str,
    relu: bool,
) -> jax.Array:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; the array named by `masked`, "a", "b" or "y", is 0 where mask <= 0.

    `transposed_a`, `transposed_b`: the operand is stored as a[K M], b[N K]; a mask of an operand is stored alike.
    Its first axis may be several ones, as may M of y. A bias[M N] is accumulated to: the result has its dtype, and
    reuses its memory where that is donated.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    lead = a.shape[-1:] if transposed_a else a.shape[:-1]
    a, b, bias, mask = _rows(a), _rows(b), _rows(bias), _rows(mask)
    K, M = a.shape if transposed_a else a.shape[::-1]
    N = b.shape[0] if transposed_b else b.shape[1]
    accumulates = bias is not None and bias.ndim == 2
    dtype = bias.dtype if bias is not None and accumulates else a.dtype
    if 0 in (M, N):
        return jnp.zeros((*lead, N), dtype)
    if K == 0:
        # An empty sum: computed as one step over a zero column.
        a = jnp.zeros((1, M) if transposed_a else (M, 1), a.dtype)
        b, K = jnp.zeros((N, 1) if transposed_b else (1, N), a.dtype), 1
        mask, masked = (mask, masked) if masked == "y" else (None, "")
    given = [t for t in (a, b, bias if bias is None or accumulates else bias.reshape(1, N), mask) if t is not None]
    biased = bias is not None

    def call(platform: str, a: jax.Array, b: jax.Array, *others: jax.Array) -> jax.Array:
        BM, BK, BN, warps, stages = _tile(platform, a.dtype, M, K, N)
        padded_K = K + -K % BK
        # For each array the tile that it is padded to, a program's block (an operand's has all of K), the index map.
        tiles = {
            "a": ((BM, BK), (BM, padded_K), lambda i, j: (i, 0)),
            "b": ((BK, BN), (padded_K, BN), lambda i, j: (0, j)),
            "c": ((1, BN), (1, BN), lambda i, j: (0, j)),
            "y": ((BM, BN), (BM, BN), lambda i, j: (i, j)),
        }
        if transposed_a:
            tiles["a"] = ((BK, BM), (padded_K, BM), lambda i, j: (0, i))
        if transposed_b:
            tiles["b"] = ((BN, BK), (BN, padded_K), lambda i, j: (j, 0))
        if accumulates:
            tiles["c"] = tiles["y"]
        grid = (-(-M // BM), -(-N // BN))
        launched, at = _grouped(platform, *grid)
        names = ["a", "b"] + ["c"] * biased + [masked] * bool(masked)
        operands = [_fitted(platform, name, t, tiles[name][0]) for name, t in zip(names, (a, b, *others), strict=True)]
        specs = [pl.BlockSpec(tiles[name][1], at(tiles[name][2])) for name in names]
        kernel = functools.partial(
            _matmul_kernel,
            K=padded_K,
            BK=BK,
            transposed_a=transposed_a,
            transposed_b=transposed_b,
            bias=biased,
            relu=relu,
            masked=masked,
        )
        shape = jax.ShapeDtypeStruct((M, N) if masks(platform) else (grid[0] * BM, grid[1] * BN), dtype)
        out = pl.BlockSpec(tiles["y"][1], at(tiles["y"][2]))
        options = {"input_output_aliases": {2: 0}} if accumulates else {}
        y = pallas(kernel, platform, launched, specs, out, shape, warps=warps, stages=stages, **options)(*operands)
        return y[:M, :N]

    return launch(call, *given).reshape(*lead, N)


def _fitted(platform: str, name: str, t: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """An array as the kernel takes it: padded to whole tiles, or, where partial ones are masked, as it is.

    Rows of an operand begin at multiples of 16 bytes there, without which they are not copied while others are used.
    """
    if not masks(platform):
        return pad(t, *tile)
    return pad(t, 1, 16 // t.dtype.itemsize) if name in ("a", "b") else t


def _rows(t: Any) -> Any:
    """t[... N] as a matrix."""
    return t if t is None or t.ndim < 3 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def matmul_add(
    y: jax.Array, a: jax.Array, b: jax.Array, transposed_a: bool = False, transposed_b: bool = False
) -> jax.Array:
    """y[M N] + a b in y's dtype; its memory is reused where it is donated."""
    return matmul(a, b, y, None, transposed_a, transposed_b, "", False)


def _grouped(platform: str, rows: int, columns: int) -> tuple[tuple[int, ...], Callable[[_Map], _Map]]:
    """The grid over tiles of y, and what makes of a map from a tile's row and column one from the grid's numbers.

    On a GPU programs that run at once take GROUP rows of tiles, column by column: what they read together is about as
    high as wide, and lies in the L2 cache. With fewer rows that is the order of a grid of two axes.
    """
    if platform != "cuda" or rows <= GROUP:
        return (rows, columns), lambda of: of

    def place(p: Any) -> tuple[Any, Any]:
        first = jax.lax.div(p, jnp.int32(GROUP * columns)) * GROUP
        height = jnp.minimum(rows - first, GROUP)
        q = jax.lax.rem(p, jnp.int32(GROUP * columns))
        return first + jax.lax.rem(q, height), jax.lax.div(q, height)

    return (rows * columns,), lambda of: lambda p: of(*place(p))


def _tile(platform: str, dtype, M: int, K: int, N: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BN, warps, stages: one block interpreted; 128 on TPU; on a GPU 64x32x64.

    In half precision 128x64x128 or 128x32x256: of 128 columns tensor cores wait for shared memory, which two groups of
    warps read; of 256 they do not.
    """
    if interpreted(platform):
        return M, K, N, 4, 1
    if platform == "tpu":
        return 128, 128, 128, 4, 1
    if dtype in (jnp.float32, jnp.float64):
        return block(platform, M, 64), 32, block(platform, N, 64), 4, 3
    # Pallas' own back end carries offsets in 64 bits, for which a program of that tile has too few registers.
    if chosen() == "jax-triton" and -(-M // 128) * -(-N // 256) >= MULTIPROCESSORS:
        return 128, block(platform, K, 32), 256, 8, 4
    BM, BN = block(platform, M, 128), block(platform, N, 128)
    return BM, block(platform, K, 64), BN, 8 if BM * BN > 64 * 128 else 4, 3
