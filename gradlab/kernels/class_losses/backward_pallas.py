"""The gradient of the class losses in their logits as a Pallas kernel: logits that are read, or made again."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from gradlab.kernels.class_losses.blocks_pallas import launch_over
from gradlab.kernels.class_losses.rows_pallas import (
    Rows,
    class_gradient,
    logit_gradient,
    logit_tile,
    logits,
)
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.interpret_pallas import program_id


# fmt: off
def _backward_kernel(*refs, names, o):
    """dx[m v] = z' (dy (R p - r) + 2 dn l p)[m v] of x, or x = h w + b; grid (M/BM, V/BV); a program owns dx[BM BV]."""
    ins, dx_ref = dict(zip(names, refs, strict=False)), refs[-1]
    # First of all: what is read before a product waits in registers through its loop.
    x = logits(ins, slice(None), o, ins["row_max"].dtype)
    rows = Rows.of(ins)
    if o.group and rows.t is not None and not o.settings.label_smoothing:
        dx_ref[...] = class_gradient(ins, program_id(1), x, rows.t, rows, o).astype(dx_ref.dtype)
        return
    tile = logit_tile(ins, program_id(1), slice(None), x, rows, o)
    dx_ref[...] = logit_gradient(tile, rows, o).astype(dx_ref.dtype)
# fmt: on


def logit_gradients(
    arrays: Mapping[str, jax.Array | None],
    sizes: Mapping[str, int],
    dtype: Any,
    settings: ClassLoss,
    tile: Callable[[str], tuple[int, int, int, int, int]],
    V: int,
    inplace: bool = False,
) -> jax.Array:
    """dx[M V] in `dtype`, as `launch_over` takes its arguments.

    `inplace` declares it as the memory of the first array.
    """
    results, aliases = [("MV", dtype)], {0: 0} if inplace else {}
    (dx,) = launch_over("MV", _backward_kernel, arrays, results, sizes, settings, tile, V, aliases)
    return dx
