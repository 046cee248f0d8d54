"""Random arrays drawn on jax's default device."""

import jax
import jax.numpy as jnp


class Drawer:
    """float32 numbers that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._key = jax.random.key(seed % 2**32)

    def normal(self, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal numbers."""
        return jax.random.normal(self._next(), shape, jnp.float32)

    def uniform(self, shape: tuple[int, ...]) -> jax.Array:
        """From 0 to 1."""
        return jax.random.uniform(self._next(), shape, jnp.float32)

    def _next(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return key
