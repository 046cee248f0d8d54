"""The stream and the matmul that measure jax's ceilings."""

import functools

import jax
import jax.numpy as jnp

from gradlab.profiling.bench.ceilings import Work


def stream(size: int, dtype: str) -> Work:
    """Reads size / 2 bytes and writes as many, into the operand's own memory."""
    step = jax.jit(jnp.negative, donate_argnums=0)
    buffer = [jax.random.normal(jax.random.key(0), (size // 2 // jnp.dtype(dtype).itemsize,)).astype(dtype)]

    def call() -> jax.Array:
        buffer[0] = step(buffer[0])
        return buffer[0]

    return Work(call, 2 * buffer[0].nbytes)


def product(n: int, dtype: str) -> Work:
    """a[n n] b[n n], random, in full precision: zeros would draw less power and run faster."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
    precision = jax.lax.Precision.HIGHEST if dtype in ("float32", "float64") else None
    return Work(functools.partial(jax.jit(functools.partial(jnp.dot, precision=precision)), a, b), 2 * n**3)
