"""The sum of the losses of logits, and the derivatives that its pullbacks are made of, as Pallas kernels."""

import functools

import jax
import jax.numpy as jnp

from gradlab.kernels.common import reduce_pallas
from gradlab.kernels.common.elementwise_pallas import elementwise
from gradlab.kernels.runtime.launch_pallas import accumulator


# fmt: off
def _log1p(z):
    """log(1 + z) for 0 <= z <= 1, with all digits of a small z.

    What 1 + z rounds off, the quotient puts back (Kahan).
    """
    u = 1 + z
    return jnp.where(u == 1, z, jnp.log(u) * (z / jnp.where(u == 1, jnp.ones_like(u), u - 1)))


def _term(x, t, w, p, j, k):
    """The derivative of the loss, j times by the logit and k times by the target."""
    z = jnp.exp(-jnp.abs(x))
    one, zero = jnp.ones_like(z), jnp.zeros_like(z)
    p = one if p is None else p
    yes, no = jnp.where(x >= 0, one, z) / (1 + z), jnp.where(x >= 0, z, one) / (1 + z)
    # Terms of one sign, each with all its digits: (1 - t) x + log(1 + exp(-x)) would cancel where the answer is sure.
    if (j, k) == (0, 0):
        both = _log1p(z)
        g = (1 - t) * (jnp.maximum(x, zero) + both) + p * t * (jnp.maximum(-x, zero) + both)
    elif (j, k) == (1, 0):
        g = (1 - t) * yes - p * t * no
    elif (j, k) == (0, 1):
        g = (p - 1) * (jnp.maximum(-x, zero) + _log1p(z)) - x
    elif (j, k) == (1, 1):
        g = -yes - p * no
    elif (j, k) == (2, 0):
        g = ((1 - t) + p * t) * yes * no
    else:
        g = (p - 1) * yes * no
    return g if w is None else w * g


def _derivative_kernel(*refs, names, j, k, den):
    """y[m n] = c[m n] w[m n] G_jk[m n] / den; grid (M/BM, 1); a program owns y[BM N]."""
    *ins, y_ref = refs
    values = {name: ref[...].astype(accumulator(y_ref.dtype)) for name, ref in zip(names, ins, strict=True)}
    y = _term(values["x"], values["t"], values.get("w"), values.get("p"), j, k)
    y = y * values["c"] if "c" in values else y
    y_ref[...] = (y / den).astype(y_ref.dtype)
# fmt: on


def losses(x: jax.Array, t: jax.Array, w: jax.Array | None, p: jax.Array | None, den: int) -> jax.Array:
    """y = the sum of w G00, over `den`. 2 to 4 E read."""
    names, arrays = _present(x=x, t=t, w=w, p=p)

    def term(*values: jax.Array) -> jax.Array:
        by_name = dict(zip(names, values, strict=True))
        return _term(by_name["x"], by_name["t"], by_name.get("w"), by_name.get("p"), 0, 0)

    return (reduce_pallas.sum_of(term, "losses", *arrays) / den).astype(x.dtype)


def derivative(
    c: jax.Array | None, x: jax.Array, t: jax.Array, w: jax.Array | None, p: jax.Array | None, j: int, k: int, den: int
) -> jax.Array:
    """y = c w G_jk / den, one by one, ones for c or w that is None. Up to 5 E read, E written."""
    names, arrays = _present(x=x, t=t, w=w, p=p, c=c)
    kernel = functools.partial(_derivative_kernel, names=names, j=j, k=k, den=max(den, 1))
    return elementwise(kernel, [x.dtype], *arrays)[0]


def _present(**arrays: jax.Array | None) -> tuple[tuple[str, ...], list[jax.Array]]:
    """Names and arrays of those that are there."""
    there = {name: a for name, a in arrays.items() if a is not None}
    return tuple(there), list(there.values())
