"""Row sums in Triton, in two passes: first one for each chunk of a row; no atomics, so the same bits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.runtime.launch_triton import accumulator, block, launch, triton_dtype

# Elements that one program sums before a second program pays.
CHUNK = 2**16


def sum_rows(
    jit: JITFunction, tensors: Sequence[torch.Tensor | None], batch_axes: int, den: int, **constants: Any
) -> torch.Tensor:
    """y[Z] = the sum of `jit`'s terms over all but the first `batch_axes` axes, divided by `den`.

    `jit` takes for each tensor a pointer and two strides, then the partial sums' pointer, then E, CHUNK, parts and den;
    ACC and BE. A tensor that is None, none of them the first, is not read.
    """
    first = tensors[0]
    assert first is not None
    Z, E = math.prod(first.shape[:batch_axes]), math.prod(first.shape[batch_axes:])
    views = [first if t is None else t.reshape(Z, E) for t in tensors]
    parts = max(1, min(1024, -(-E // CHUNK)))
    chunk = -(-E // parts)
    acc = accumulator(first.dtype)
    partial = first.new_empty((Z, parts), dtype=acc)
    # fmt: off
    launch(
        jit, [Z * parts],
        *(part for t, v in zip(tensors, views, strict=True) for part in ((v, 0, 0) if t is None else (v, *v.stride()))),
        partial,
        E, chunk, parts, den,
        ACC=triton_dtype(acc), BE=block(chunk, 2048), **constants, writes=[partial],
    )
    # fmt: on
    total = partial[:, 0] if parts == 1 else column_sum(partial.unsqueeze(-1), None)[:, 0]
    return total.to(first.dtype).reshape(first.shape[:batch_axes])
