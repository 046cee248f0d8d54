"""Interpreted Pallas kernels: a grid of one program with full-array blocks is run directly on the arrays.

Pallas' own interpreter copies every block out of its array and back in a loop over the grid, and traces the program
three times: as a kernel, without its refs, and as the loop's body. One program with full-array blocks needs none of
this: its refs are the arrays, it is a plain program that XLA fuses, and `jax.vmap` maps its operations instead of
adding a grid axis.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

_alone: ContextVar[bool] = ContextVar("gradlab_alone", default=False)


def alone() -> bool:
    """Whether the kernel being traced is run by this module, as one program with full-array blocks."""
    return _alone.get()


def program_id(axis: int) -> Any:
    """`pl.program_id`; 0 where there is one program."""
    return 0 if alone() else pl.program_id(axis)


def covers(grid: Sequence[Any], specs: Sequence[pl.BlockSpec], arrays: Sequence[Any]) -> bool:
    """Whether the grid is one program whose blocks are the full arrays."""
    return all(n == 1 for n in grid) and all(
        spec.block_shape == tuple(x.shape) for spec, x in zip(specs, arrays, strict=True)
    )


def run(
    kernel: Callable[..., None], operands: Sequence[jax.Array], results: Sequence[Any], aliases: Mapping[int, int]
) -> list[jax.Array]:
    """The results of `kernel(*operands, *results)`; `results` are shapes and dtypes.

    Args:
        aliases: operand -> result that starts as its copy; others start as NaN, or as the lowest integer.
    """
    begins = {result: operands[operand] for operand, result in aliases.items()}
    outs = [Block(begins.get(i, _unwritten(s.shape, s.dtype))) for i, s in enumerate(results)]
    with _running():
        kernel(*(Block(x) for x in operands), *outs)
    return [out.value for out in outs]


@contextmanager
def _running() -> Iterator[None]:
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _unwritten(shape: tuple[Any, ...], dtype: Any) -> jax.Array:
    """The value of elements that a kernel does not write, as in Pallas' interpreter."""
    floats = jnp.issubdtype(dtype, jnp.floating)
    return jnp.full(shape, jnp.nan if floats else jnp.iinfo(dtype).min, dtype)


def _starts(starts: Sequence[Any]) -> list[Any]:
    """Static and traced starts in one dtype."""
    return [np.int32(s) if isinstance(s, int) else s.astype(jnp.int32) for s in starts]


class Block:
    """A ref to a whole array, read and written by slices and numbers: static ones, or traced starts of `pl.ds`."""

    def __init__(self, value: jax.Array) -> None:
        self.value, self.shape, self.dtype, self.ndim = value, value.shape, value.dtype, value.ndim

    def __getitem__(self, index: Any) -> jax.Array:
        starts, sizes, shape = self._cut(index)
        if sizes == self.shape:
            found = self.value
        elif all(isinstance(s, int) for s in starts):
            found = jax.lax.slice(self.value, starts, [s + n for s, n in zip(starts, sizes, strict=True)])
        else:
            found = jax.lax.dynamic_slice(self.value, _starts(starts), sizes)
        return found if found.shape == shape else found.reshape(shape)

    def __setitem__(self, index: Any, value: jax.Array) -> None:
        starts, sizes, shape = self._cut(index)
        if (value.shape, value.dtype) != (shape, self.dtype):
            raise ValueError(
                f"pallas_call: value to store is {value.dtype}{list(value.shape)}, wanted {self.dtype}{list(shape)}"
            )
        if sizes == self.shape:
            self.value = value if value.shape == sizes else value.reshape(sizes)
        else:
            self.value = jax.lax.dynamic_update_slice(self.value, value.reshape(sizes), _starts(starts))

    def _cut(self, index: Any) -> tuple[list[Any], tuple[int, ...], tuple[int, ...]]:
        """An index as its starts, its sizes, and the shape of the result, without axes that are indexed by a number."""
        given = index if isinstance(index, tuple) else (index,)
        if given == (...,):
            given = ()
        starts: list[Any] = []
        sizes, shape = [], []
        for n, at in zip(self.shape, (*given, *[slice(None)] * (self.ndim - len(given))), strict=True):
            if isinstance(at, pl.Slice):
                start, size = at.start, at.size
            elif isinstance(at, slice):
                start, stop, _ = (0, n, 1) if at == slice(None) else at.indices(n)
                size = stop - start
            else:
                start, size = at, 1
            starts.append(int(start) if isinstance(start, (int, np.integer)) else start)
            sizes.append(size)
            if isinstance(at, (slice, pl.Slice)):
                shape.append(size)
        return starts, tuple(sizes), tuple(shape)
