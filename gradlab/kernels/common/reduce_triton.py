"""How a loss is summed on torch: each program a stretch of a row, then the stretches; no atomics, so the same bits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.runtime.launch_triton import accumulator, block, launch, triton_dtype

# Elements that one program sums before a second one is worth its launch.
STRETCH = 2**16


def rows(
    jit: JITFunction, tensors: Sequence[torch.Tensor | None], keep: int, den: int, **constants: Any
) -> torch.Tensor:
    """y[Z] = the sums, over all but the first `keep` axes, of what `jit` makes of the tensors, over `den`.

    `jit` takes for each tensor a pointer and two strides, then the partial sums' pointer, then E, STRETCH, parts and
    den; ACC and BE. A tensor that is None stands for nothing that the kernel reads. The first is there.
    """
    first = tensors[0]
    assert first is not None
    Z, E = math.prod(first.shape[:keep]), math.prod(first.shape[keep:])
    views = [first if t is None else t.reshape(Z, E) for t in tensors]
    parts = max(1, min(1024, -(-E // STRETCH)))
    stretch = -(-E // parts)
    acc = accumulator(first.dtype)
    partial = first.new_empty((Z, parts), dtype=acc)
    # fmt: off
    launch(
        jit, [Z * parts],
        *(part for t, v in zip(tensors, views, strict=True) for part in ((v, 0, 0) if t is None else (v, *v.stride()))),
        partial,
        E, stretch, parts, den,
        ACC=triton_dtype(acc), BE=block(stretch, 2048), **constants, writes=[partial],
    )
    # fmt: on
    total = partial[:, 0] if parts == 1 else column_sum(partial.unsqueeze(-1), None)[:, 0]
    return total.to(first.dtype).reshape(first.shape[:keep])
