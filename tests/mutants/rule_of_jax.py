"""A jax.custom_vjp out of a forward, a pullback and a fault; and what the faults need."""

import jax
import jax.numpy as jnp


def rule(forward, pullback, fault=None):
    """`forward(*args)`, `pullback(dy, *args)` and `fault(grads, dy, args, ctx)` as one function; ctx is None."""

    @jax.custom_vjp
    def f(*args):
        return forward(*args)

    def fwd(*args):
        return forward(*args), args

    def bwd(args, dy):
        grads = pullback(dy, *args)
        return tuple(grads if fault is None else fault(grads, dy, args, None))

    f.defvjp(fwd, bwd)
    return f


def keep(x, values):
    """`values` where the derivative stays that of x, so that nothing but the value is wrong at any order."""
    return x + jax.lax.stop_gradient(values - x)


def rounded(x, dtype):
    """x as a residual stored in a narrower type gives it back."""
    return keep(x, x.astype(dtype).astype(x.dtype))


def weigh(like, index, weight=0.0):
    """Ones of `like`'s shape with `weight` at `index`."""
    return jnp.ones_like(like).at[index].set(weight)
