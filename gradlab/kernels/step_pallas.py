"""One step of an optimizer over one array: flattened, padded to whole blocks, in place where that is allowed."""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl

from gradlab.kernels.launch_pallas import interpreted, launch, pad, pallas


def step(kernel: Callable[..., None], scalars: jax.Array, operands: list[jax.Array], results: int,
                aliases: dict[int, int]) -> list[jax.Array]:  # fmt: skip
    """`results` arrays of `kernel(scalars, *operands, *results)`, each of the operands' shape and dtype.

    Args:
        scalars: [1 k], whole in every program.
        operands: arrays of one shape and dtype, at least one.
        aliases: operand -> result that may take its memory, the scalars being operand 0.
    """
    like = operands[0]
    if like.size == 0:
        return [like] * results

    def call(platform: str, scalars: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        columns = like.size if interpreted(platform) else 128
        # 8 elements a thread on a GPU: Adam's pullback has eleven arrays, and at 32 it spilled registers.
        BR = 1 if interpreted(platform) else 16 if platform == "cuda" else 32
        flat = [pad(t.reshape(-1), BR * columns).reshape(-1, columns) for t in operands]
        tile = pl.BlockSpec((BR, columns), lambda i: (i, 0))
        specs = [pl.BlockSpec(scalars.shape, lambda i: (0, 0))] + [tile] * len(flat)
        shape = jax.ShapeDtypeStruct(flat[0].shape, like.dtype)
        outs = pallas(
            kernel, platform, [flat[0].shape[0] // BR], specs, [tile] * results, [shape] * results,
            warps=8, input_output_aliases=aliases,
        )(scalars, *flat)  # fmt: skip
        return [t.reshape(-1)[: like.size].reshape(like.shape) for t in outs]

    return launch(call, scalars, *operands)
