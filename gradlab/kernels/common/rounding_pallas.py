"""Stochastic rounding to bfloat16, by integer operations.

Random bits are counter-based: they depend only on a key, the step and the element's index, not on how a launch is split
into blocks.
"""

import jax
import jax.numpy as jnp

_WORD = 2**64


def stochastic(x: jax.Array, low: jax.Array) -> jax.Array:
    """One of the two bfloat16 values around the float32 x, the nearer one more often; `low` holds 16 random bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (low & jnp.uint32(0xFFFF))
    up = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    # The addition can carry from a NaN's bits into a number's, and from infinity's into a NaN's.
    return jnp.where(jnp.abs(x) < jnp.inf, up, x)


def mixed(h: jax.Array) -> jax.Array:
    """A permutation of 32 bits in which each bit depends on every bit of h."""
    h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return h ^ (h >> jnp.uint32(16))


def random_bits(low: jax.Array, high: jax.Array, key0: jax.Array, key1: jax.Array) -> jax.Array:
    """32 random bits for each element, from the lower and upper 32 bits of its index and a step's key."""
    return mixed(mixed(low ^ (key0 + mixed(high))) + key1)


def key_at(words: jax.Array, step: jax.Array) -> jax.Array:
    """The key of a step [1 2] under an array's two 32-bit words."""
    mixed_step = mixed(step.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))
    return jnp.stack([mixed(words[0] ^ mixed_step), mixed(words[1] + mixed_step)]).reshape(1, 2)


def words(seed: int | jax.Array, number: int) -> jax.Array:
    """The two 32-bit words of array `number` under a seed, or under a key of jax's.

    A seed goes through two rounds of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    if isinstance(seed, jax.Array):
        typed = seed if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(seed)
        return jax.random.key_data(jax.random.fold_in(typed, number)).ravel()[-2:]
    word = seed % _WORD
    for salt in (0x9E3779B97F4A7C15, 0x9E3779B97F4A7C15 * (number + 1)):
        word = (word + salt) % _WORD
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % _WORD
        word ^= word >> 31
    return jnp.asarray([word & 0xFFFFFFFF, word >> 32], jnp.uint32)
