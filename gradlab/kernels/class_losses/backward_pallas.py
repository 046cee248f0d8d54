"""The gradient of a tile of logits and of soft targets from what a row kept, as a Pallas kernel."""

import jax

from gradlab.kernels.class_losses.rows_pallas import ROWS, gradient, lanes
from gradlab.kernels.runtime.interpret_pallas import program_id

Rows = tuple[jax.Array, jax.Array, jax.Array]


# fmt: off
def _backward_kernel(*refs, names, o):
    """d[m v] = h'[m v] (c[m] (R[m] p[m v] - r[m v]) + 2 e[m] l[m] p[m v]), p = softmax h; grid (M/BM, V/BV); a program owns d[BM BV]."""
    ins, d_ref = dict(zip(names, refs, strict=False)), refs[-1]
    v = lanes(program_id(1) * o.BV, d_ref.shape)
    tile = {name: ins[name][...] for name in ("x", "q", "w") if name in ins}
    d_ref[...] = gradient(ins, tile, v, [ins[k][...] for k in ROWS], o).astype(d_ref.dtype)
# fmt: on
