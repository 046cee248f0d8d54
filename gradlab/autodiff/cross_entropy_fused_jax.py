"""cross_entropy for jax with its gradient computed on the way there."""

import functools

import jax
import jax.numpy as jnp

from gradlab.autodiff.class_losses import Options
from gradlab.autodiff.row_sums_jax import Reduction, divisors, joined, total
from gradlab.kernels import cross_entropy_fused_pallas as kernels
from gradlab.kernels.launch_pallas import accumulator


def cotangents(n: jax.Array | None, z_loss: float, dr: jax.Array, M: int) -> tuple[jax.Array, jax.Array | None]:
    """What the cotangent of the sum of y / n[0] + z_loss z / n[1] is for y[M] and, where there is a z-loss, z[M]."""
    c = dr if n is None else dr / n[0]
    e = z_loss * dr if n is None else z_loss * dr / n[1]
    return jnp.broadcast_to(c, (M,)), jnp.broadcast_to(e, (M,)) if z_loss else None


def rules(loss, pullback, target_pullback):
    """`fused(x, t, q, w, n, options, z_loss)`: the sum of y / n[0] + z_loss z / n[1], made of an op's rules."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
    def both(x, t, q, w, n, options, z_loss):
        """y, z, s of the loss, and its sum's gradient, whose derivative `finish` has."""
        c, e = cotangents(n, z_loss, jnp.ones((), accumulator(x.dtype)), x.shape[0])
        return kernels.fused(c, e, x, t, q, w, *options)

    def both_fwd(x, t, q, w, n, options, z_loss):
        y, z, s, g = both(x, t, q, w, n, options, z_loss)
        return (y, z, s, g), (x, t, q, w, s)

    def both_bwd(options, z_loss, kept, cotangents_):
        x, t, q, w, s = kept
        dy, dz, _, _ = cotangents_
        dx = pullback(dy, dz if z_loss else None, x, s, t, q, w, options, False)
        return dx, None, None if q is None else target_pullback(dy, x, s, w, options), None, None

    both.defvjp(both_fwd, both_bwd)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(9,))
    def finish(g, k, c, e, x, s, t, q, w, options):
        """The pullback of c and e; g is it where k = 1."""
        return kernels.finish(g, k, c, e, x, s, t, q, w, *options)

    def finish_fwd(g, k, c, e, x, s, t, q, w, options):
        # What differentiates this needs the pullback's rule, and with it the pullback.
        dx, back = jax.vjp(lambda c, e, x, q: pullback(c, e, x, s, t, q, w, options, False), c, e, x, q)
        return dx, back

    def finish_bwd(options, back, u):
        dc, de, dx, dq = back(u)
        return None, None, dc, de, dx, None, None, dq, None

    finish.defvjp(finish_fwd, finish_bwd)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
    def fused(x, t, q, w, n, options, z_loss):
        """The sum or mean of y + z_loss z, whose gradient is computed on the way there."""
        y, z, _ = loss(x, t, q, w, options, bool(z_loss), False)
        return _sum(y, z, n, z_loss)

    def fused_fwd(x, t, q, w, n, options, z_loss):
        y, z, s, g = both(x, t, q, w, n, options, z_loss)
        return _sum(y, z, n, z_loss), (g, x, s, t, q, w, n)

    def fused_bwd(options, z_loss, kept, dr):
        g, x, s, t, q, w, n = kept
        c, e = cotangents(n, z_loss, dr, x.shape[0])
        dx = finish(g, dr, c, e, x, s, t, q, w, options)
        return dx, None, None if q is None else target_pullback(c, x, s, w, options), None, None

    fused.defvjp(fused_fwd, fused_bwd)
    return jax.jit(fused, static_argnums=(5, 6))


def divisor(x: jax.Array, t: jax.Array | None, w: jax.Array | None, options: Options,
            asked: Reduction) -> jax.Array | None:  # fmt: skip
    """What a mean divides by; None for a sum."""
    M, V = x.shape
    return divisors(x, M, t, w, V, options.ignore_index) if asked.reduction == "mean" else None


def _sum(y, z, n, z_loss):
    return joined([total(part) for part in ((y, z) if z_loss else (y,))], n, z_loss)[0]
