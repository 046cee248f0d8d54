"""The product of two matrices as a Pallas kernel: bias, relu and the mask of its backward in one pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.runtime.launch_pallas import accumulator, block, interpreted, launch, loop, pad, pallas


# fmt: off
def _matmul_kernel(*refs, K, BK, turned_a, turned_b, bias, relu, place):
    """y[m n] = sum_k a[m k] b[k n] + c[m n], a | b | y gated by g > 0; grid (M/BM, N/BN); a program owns y[BM BN]."""
    a_ref, b_ref, *others, y_ref = refs
    c_ref: Any = others.pop(0) if bias else None
    g_ref: Any = others.pop(0) if place else None
    acc = accumulator(y_ref.dtype)
    precision = jax.lax.Precision.HIGHEST if a_ref.dtype in (jnp.float32, jnp.float64) else None
    contract = (((0 if turned_a else 1,), (1 if turned_b else 0,)), ((), ()))

    def step(i, total):
        k = pl.ds(i * BK, BK)
        in_a = (k, slice(None)) if turned_a else (slice(None), k)
        in_b = (slice(None), k) if turned_b else (k, slice(None))
        a = a_ref[in_a]
        b = b_ref[in_b]
        if place == "a":
            a = jnp.where(g_ref[in_a] <= 0, jnp.zeros_like(a), a)
        if place == "b":
            b = jnp.where(g_ref[in_b] <= 0, jnp.zeros_like(b), b)
        return total + jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=acc)

    y = loop(K // BK, step, jnp.zeros(y_ref.shape, acc))
    if bias:
        y = y + c_ref[...].astype(acc)
    if relu:
        y = jnp.where(y <= 0, jnp.zeros_like(y), y)
    if place == "y":
        y = jnp.where(g_ref[...] <= 0, jnp.zeros_like(y), y)
    y_ref[...] = y.astype(y_ref.dtype)

# fmt: on


def matmul(
    a: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    gate: jax.Array | None,
    turned_a: bool,
    turned_b: bool,
    place: str,
    relu: bool,
) -> jax.Array:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; where gate <= 0, zeros stand in for `place`: "a", "b" or "y".

    `turned_a`, `turned_b`: the operand comes as a[K M], b[N K] and is read so; a gate at an operand lies as it does.
    A bias[M N] gives y its dtype, and its memory where nobody else needs it: sums grow in float32.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    K, M = a.shape if turned_a else a.shape[::-1]
    N = b.shape[0] if turned_b else b.shape[1]
    grows = bias is not None and bias.ndim == 2
    dtype = bias.dtype if bias is not None and grows else a.dtype
    if 0 in (M, N):
        return jnp.zeros((M, N), dtype)
    if K == 0:
        # An empty sum: one step over a zero column says it.
        a = jnp.zeros((1, M) if turned_a else (M, 1), a.dtype)
        b, K = jnp.zeros((N, 1) if turned_b else (1, N), a.dtype), 1
        gate, place = (gate, place) if place == "y" else (None, "")
    given = [t for t in (a, b, bias if bias is None or grows else bias.reshape(1, N), gate) if t is not None]
    biased = bias is not None

    def call(platform: str, a: jax.Array, b: jax.Array, *others: jax.Array) -> jax.Array:
        BM, BK, BN, warps, stages = _tile(platform, a.dtype, M, K, N)
        whole = K + -K % BK
        # What is padded to whole tiles, and the block a program sees: of an operand all of K, which it walks along.
        # fmt: off
        tiles = {
            "a": ((BM, BK), (BM, whole), lambda i, j: (i, 0)),
            "b": ((BK, BN), (whole, BN), lambda i, j: (0, j)),
            "c": ((1,  BN), (1,     BN), lambda i, j: (0, j)),
            "y": ((BM, BN), (BM,    BN), lambda i, j: (i, j)),
        }
        if turned_a:
            tiles["a"] = ((BK, BM), (whole, BM), lambda i, j: (0, i))
        if turned_b:
            tiles["b"] = ((BN, BK), (BN, whole), lambda i, j: (j, 0))
        # fmt: on
        if grows:
            tiles["c"] = tiles["y"]
        names = ["a", "b"] + ["c"] * biased + [place] * bool(place)
        operands = [pad(t, *tiles[name][0]) for name, t in zip(names, (a, b, *others), strict=True)]
        specs = [pl.BlockSpec(*tiles[name][1:]) for name in names]
        grid = (-(-M // BM), -(-N // BN))
        kernel = functools.partial(
            _matmul_kernel,
            K=whole,
            BK=BK,
            turned_a=turned_a,
            turned_b=turned_b,
            bias=biased,
            relu=relu,
            place=place,
        )
        shape = jax.ShapeDtypeStruct((grid[0] * BM, grid[1] * BN), dtype)
        out = pl.BlockSpec(*tiles["y"][1:])
        options = {"input_output_aliases": {2: 0}} if grows else {}
        y = pallas(kernel, platform, grid, specs, out, shape, warps=warps, stages=stages, **options)(*operands)
        return y[:M, :N]

    return launch(call, *given)


def matmul_into(y: jax.Array, a: jax.Array, b: jax.Array, turned_a: bool = False, turned_b: bool = False) -> jax.Array:
    """y[M N] + a b in y's dtype, in its memory where nobody else needs it: y grows."""
    return matmul(a, b, y, None, turned_a, turned_b, "", False)


def _tile(platform: str, dtype, M: int, K: int, N: int) -> tuple[int, int, int, int, int]:
    """BM, BK, BN, warps, stages: one block when interpreted; tensor-core tiles in half precision when compiled."""
    if interpreted(platform):
        return M, K, N, 4, 1
    if platform == "tpu":
        return 128, 128, 128, 4, 1
    if dtype in (jnp.float32, jnp.float64):
        return block(platform, M, 64), 32, block(platform, N, 64), 4, 3
    BM, BN = block(platform, M, 128), block(platform, N, 128)
    return BM, block(platform, K, 64), BN, 8 if BM * BN > 64 * 128 else 4, 3
