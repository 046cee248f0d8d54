"""The one gate for Pallas launches: the platform that a program is lowered for picks interpreter, Triton or Mosaic.

A Triton-backed Pallas kernel does not mask partial blocks, and the interpreter pads them with NaN, so the gate hands
every kernel whole blocks: `pad` before, a slice after. Blocks are powers of two with at least 128 on the last axis
where a compiler asks for that; interpreted, one block is the whole array, because a step there costs the whole array.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

PLATFORMS = ("cpu", "cuda", "tpu")


def interpreted(platform: str) -> bool:
    """Whether kernels on this platform run in the interpreter, where steps are dear and elements cheap."""
    return platform == "cpu"


def launch(call: Callable[..., Any], *operands: jax.Array) -> Any:
    """`call(platform, *operands)` for the platform that the surrounding program is lowered for.

    The choice falls when the program is lowered, not when it is traced: an array on a CPU beside a GPU is interpreted,
    and a program can be lowered for a machine that is not there.
    """
    branches = {name: functools.partial(call, name) for name in PLATFORMS}
    return one_piece(functools.partial(jax.lax.platform_dependent, **branches))(*operands)


def one_piece(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of arrays and settings, which jax sees as one operation; mapped, as the mapped `fn`.

    A custom_vjp's function must have no operation without operands, as the number of the platform is, or a constant:
    where a loop is differentiated twice, jax 0.10 works them out ahead, puts them before the arguments, and counts the
    arguments that the rule keeps without them. A residual is another one then.
    """

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        tree: Any
        leaves, tree = jax.tree.flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def of_arrays(*arrays: jax.Array) -> Any:
            return fn(*tree.unflatten([dict(zip(places, arrays, strict=True)).get(i, x) for i, x in enumerate(leaves)]))

        return _one_piece(of_arrays, *(leaves[i] for i in places))

    return call


def _one_piece(fn: Callable[..., Any], *arrays: jax.Array) -> Any:
    piece = jax.custom_batching.custom_vmap(fn)

    @piece.def_vmap
    def mapped(size: int, is_mapped: Sequence[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        axes = tuple(0 if there else None for there in is_mapped)
        results = _one_piece(jax.vmap(fn, axes, axis_size=size), *arrays)
        return results, jax.tree.map(lambda _: True, results)

    return piece(*arrays)


def pallas(kernel: Callable[..., None], platform: str, grid: Sequence[int], in_specs: Sequence[pl.BlockSpec],
           out_specs: Any, out_shape: Any, *, warps: int = 4, stages: int = 3,
           **options: Any) -> Callable[..., Any]:  # fmt: skip
    """`pl.pallas_call` with the platform's backend and the kernel's name on it."""
    params: Any = None
    if platform == "cuda":
        # Without these parameters Pallas takes Mosaic GPU, which has no jnp.dot.
        params = pltriton.CompilerParams(num_warps=warps, num_stages=stages)
    if platform == "tpu":
        params = pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid))
    name = getattr(kernel, "func", kernel).__name__.strip("_")
    return pl.pallas_call(
        kernel, grid=tuple(grid), in_specs=list(in_specs), out_specs=out_specs, out_shape=out_shape,
        interpret=interpreted(platform), compiler_params=params, name=f"gradlab_{name}", **options,
    )  # fmt: skip


def block(platform: str, size: int, most: int, least: int = 16) -> int:
    """The whole axis when interpreted; else the power of two that covers `size`, between `least` and `most`."""
    if interpreted(platform):
        return size
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def pad(x: jax.Array, *blocks: int, value: float = 0) -> jax.Array:
    """`x` with each axis grown to a whole number of blocks, filled with `value`."""
    widths = [(0, -n % b) for n, b in zip(x.shape, blocks, strict=True)]
    return jnp.pad(x, widths, constant_values=value) if any(w for _, w in widths) else x


def accumulator(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are carried in: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def loop(steps: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`fori_loop` inside a kernel; counts in int32, which is what a TPU indexes with also when x64 is on."""
    if steps == 1:
        # Interpreted, which is where blocks are whole, a loop would be compiled for nothing.
        return body(jnp.int32(0), start)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(steps), body, start)


def scalars(*values: Any, dtype: Any) -> jax.Array:
    """Run-time scalars as the [1 k] array that every backend takes."""
    return jnp.stack([jnp.asarray(v, dtype) for v in values]).reshape(1, -1)
