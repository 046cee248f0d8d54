"""Cross-entropy and its gradient in one pass over the logits, as a Pallas kernel."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.kernels.launch_pallas import accumulator, loop
from gradlab.kernels.rows_pallas import ROWS, gradient, lanes, run, standing, statistics


# fmt: off
def _fused_kernel(*refs, names, o):
    """y, z, s of `_loss_kernel`, and g[m v], the gradient of sum c y + sum e z; grid (M/BM); a program owns rows BM."""
    ins, (y_ref, z_ref, *s_refs, g_ref) = dict(zip(names, refs, strict=False)), refs[len(names):]
    top, log_sum, mass, y = statistics(ins, o, y_ref.dtype)
    known, valid = standing(ins["t"][...] if "t" in ins else None, top, o)
    for ref, value in ((y_ref, y), (z_ref, (top + log_sum) * (top + log_sum))):
        value = jnp.where(known, value, jnp.full_like(value, jnp.nan))
        ref[...] = jnp.where(valid, value, jnp.zeros_like(value))
    for ref, value in zip(s_refs, (top, log_sum, mass), strict=True):
        ref[...] = value

    def spread(i, carry):
        tile = {name: ins[name][:, pl.ds(i * o.BV, o.BV)] for name in ("x", "q", "w") if name in ins}
        g = gradient(ins, tile, lanes(i * o.BV, tile["x"].shape), (top, log_sum, mass), o)
        g_ref[:, pl.ds(i * o.BV, o.BV)] = g.astype(g_ref.dtype)
        return carry

    loop(ins["x"].shape[1] // o.BV, spread, jnp.int32(0))


def _finish_kernel(*refs, names, o):
    """d[m v] = g[m v] where k = 1, else the pullback of c and e; grid (M/BM, V/BV); a program owns d[BM BV]."""
    ins, d_ref = dict(zip(names, refs, strict=False)), refs[-1]
    v = lanes(pl.program_id(1) * o.BV, d_ref.shape)

    @pl.when(ins["k"][0, 0] != 1)
    def anew():
        tile = {name: ins[name][...] for name in ("x", "q", "w") if name in ins}
        d_ref[...] = gradient(ins, tile, v, [ins[k][...] for k in ROWS], o).astype(d_ref.dtype)

    if o.copied:
        @pl.when(ins["k"][0, 0] == 1)
        def there():
            d_ref[...] = ins["g"][...]
# fmt: on


def fused(c: jax.Array, e: jax.Array | None, x: jax.Array, t: jax.Array | None, q: jax.Array | None,
          w: jax.Array | None, ignore_index: int, eps: float, smooth: bool, cap: float,
          ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array, jax.Array], jax.Array]:  # fmt: skip
    """y[M], z[M], s as `loss` gives them, and g[M V], the gradient of sum c y + sum e z.

    M V logits read once (on a GPU once more, out of the L2 cache), M V written.
    """
    if x.shape[0] == 0:
        empty = jnp.zeros(0, accumulator(x.dtype))
        return empty, empty, (empty,) * 3, x
    arrays = {"x": x, "c": c, "e": e, "t": t, "q": q, "w": w}
    options = (ignore_index, eps, smooth, cap)
    y, z, *s, g = run(_fused_kernel, arrays, ("rows",) * 5 + ("table",), x, options, False, warps=8)
    return y, z, (s[0], s[1], s[2]), g


def finish(g: jax.Array, k: jax.Array, c: jax.Array, e: jax.Array | None, x: jax.Array,
           s: tuple[jax.Array, jax.Array, jax.Array], t: jax.Array | None, q: jax.Array | None, w: jax.Array | None,
           ignore_index: int, eps: float, smooth: bool, cap: float) -> jax.Array:  # fmt: skip
    """The pullback of c and e, which the cotangent k[] of the sum has made: `fused`'s g, in its memory, where k is 1.

    Else M V read, M V written, rounded once.
    """
    if x.shape[0] == 0:
        return x
    arrays = {"g": g, "k": k, "c": c, "e": e, "x": x, **dict(zip(ROWS, s, strict=True)), "t": t, "q": q, "w": w}
    options = (ignore_index, eps, smooth, cap)
    (d,) = run(_finish_kernel, arrays, ("table",), x, options, True, input_output_aliases={0: 0})
    return d
