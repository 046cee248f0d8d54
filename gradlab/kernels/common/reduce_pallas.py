"""Sums over all elements in Pallas, in two passes: first one for each chunk of rows; no atomics, so the same bits."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.common.column_sum_pallas import column_sum
from gradlab.kernels.common.elementwise_pallas import COLUMNS
from gradlab.kernels.runtime.interpret_pallas import program_id
from gradlab.kernels.runtime.launch_pallas import accumulator, interpreted, launch, loop, pad, pallas
from gradlab.kernels.runtime.sharded_pallas import axes, sharded

# Rows that one program sums, four or eight at a time.
CHUNK = 64


def _rule(term: Any, name: str, *arrays: jax.Array) -> str:
    shape = axes("E", arrays[0].ndim)
    return ", ".join(f"x{i}[{shape}]" for i in range(len(arrays))) + f" -> s[]; sums {shape}"


@sharded(_rule)
def sum_of(term: Callable[..., jax.Array], name: str, *arrays: jax.Array) -> jax.Array:
    """The sum of `term(*arrays)` over all elements of arrays of one shape, in their accumulator's dtype.

    `term` is elementwise on blocks in that dtype; `name` is the kernel's name in profiles.
    """
    acc, E = accumulator(arrays[0].dtype), math.prod(arrays[0].shape)
    if E == 0:
        return jnp.zeros((), acc)

    def call(platform: str, *operands: jax.Array) -> jax.Array:
        rows, N, chunk = (1, E, 1) if interpreted(platform) else (8, COLUMNS, CHUNK)
        if platform == "cuda":
            # 16 elements a thread: at 32 of float64 a term with several logarithms spills registers.
            rows = 4
        flat = [pad(pad(t.reshape(E), N).reshape(-1, N), chunk, N) for t in operands]
        parts = flat[0].shape[0] // chunk
        full, rest = divmod(E, N)

        def kernel(*refs: Any) -> None:
            """s[i r n] = sum of term over the i-th chunk of rows, r = row mod the rows of a step.

            Grid (I,); a program owns s[i].
            """
            *ins, s_ref = refs
            if interpreted(platform):
                # One program has all elements, without padding.
                s_ref[...] = jnp.sum(term(*(ref[...].astype(acc) for ref in ins)), keepdims=True)
                return
            first = program_id(0) * chunk

            def step(k: Any, sum_: jax.Array) -> jax.Array:
                row = first + k * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, N), 0)
                column = jax.lax.broadcasted_iota(jnp.int32, (rows, N), 1)
                inside = (row < full) | ((row == full) & (column < rest))
                y = term(*(ref[pl.ds(k * rows, rows), :].astype(acc) for ref in ins))
                return sum_ + jnp.where(inside, y, jnp.zeros_like(y))

            s_ref[...] = loop(chunk // rows, step, jnp.zeros((rows, N), acc))

        kernel.__name__ = f"_{name}_kernel"
        block = pl.BlockSpec((chunk, N), lambda i: (i, 0))
        wide = 1 if interpreted(platform) else N
        out = pl.BlockSpec((rows, wide), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct((parts * rows, wide), acc)
        sums = pallas(kernel, platform, (parts,), [block] * len(flat), out, shape, warps=8)(*flat)
        return sums[0, 0] if interpreted(platform) else sum_all(sums)

    return launch(call, *arrays)


def sum_all(partial: jax.Array) -> jax.Array:
    """The sum of all of partial[M N]: rows, then columns."""
    sums = column_sum(partial, None)
    return column_sum(sums.reshape(-1, 1), None)[0]
