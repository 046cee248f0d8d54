"""A Pallas kernel whose grid is one program over whole arrays, run on these arrays: how a kernel is interpreted.

Pallas' own interpreter copies every block out of its array and back in a loop over the grid, and that program is traced
three times: as a kernel, without its refs, and as the loop's body. One program over whole arrays needs none of this:
its refs are the arrays, what it computes is a plain program that XLA fuses, and `jax.vmap` maps each operation of it
instead of adding steps to a grid.
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
    """Whether the kernel that is being traced is one program over whole arrays, of this file."""
    return _alone.get()


def program_id(axis: int) -> Any:
    """`pl.program_id`; 0 where there is one program."""
    return 0 if alone() else pl.program_id(axis)


def whole(grid: Sequence[Any], specs: Sequence[pl.BlockSpec], arrays: Sequence[Any]) -> bool:
    """Whether one program sees all of every array."""
    return all(n == 1 for n in grid) and all(
        spec.block_shape == tuple(x.shape) for spec, x in zip(specs, arrays, strict=True)
    )


def run(
    kernel: Callable[..., None], operands: Sequence[jax.Array], results: Sequence[Any], aliases: Mapping[int, int]
) -> list[jax.Array]:
    """What `kernel(*operands, *results)` leaves in its results, which are given as shapes and dtypes.

    Args:
        aliases: operand -> result that begins as it; any other begins as NaN, or the lowest integer.
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
    """What stays where a kernel forgets an element, as in Pallas' interpreter."""
    floats = jnp.issubdtype(dtype, jnp.floating)
    return jnp.full(shape, jnp.nan if floats else jnp.iinfo(dtype).min, dtype)


def _places(starts: Sequence[Any]) -> list[Any]:
    """Static and traced ones in one dtype."""
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
            found = jax.lax.dynamic_slice(self.value, _places(starts), sizes)
        return found if found.shape == shape else found.reshape(shape)

    def __setitem__(self, index: Any, value: jax.Array) -> None:
        starts, sizes, shape = self._cut(index)
        if (value.shape, value.dtype) != (shape, self.dtype):
            raise ValueError(f"a kernel writes {value.dtype}{list(value.shape)}, wanted {self.dtype}{list(shape)}")
        if sizes == self.shape:
            self.value = value if value.shape == sizes else value.reshape(sizes)
        else:
            self.value = jax.lax.dynamic_update_slice(self.value, value.reshape(sizes), _places(starts))

    def _cut(self, index: Any) -> tuple[list[Any], tuple[int, ...], tuple[int, ...]]:
        """Of an index: where it starts, what it covers, and that without the axes at which it is a number."""
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
