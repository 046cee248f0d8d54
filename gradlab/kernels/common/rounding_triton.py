"""Rounding to half precision by integer operations: to nearest, or stochastic rounding.

Triton's interpreter has no bfloat16, so a rounded value is kept as the float32 that equals it: compiled and interpreted
kernels then store the same bits. Random bits are counter-based: they depend only on a key, the step and the element's
index, not on how a launch is split into chunks.
"""

import triton.language as tl

from gradlab.kernels.runtime.launch_triton import kernel

_WORD = 2**64


@kernel
def nearest(x, HALF: tl.constexpr):
    """The float32 values of HALF nearest to the float32 x, ties to even."""
    if HALF == "float16":
        found = x.to(tl.float16).to(tl.float32)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        # The addition can carry from a NaN's bits into a number's.
        found = tl.where(x == x, even.to(tl.float32, bitcast=True), x)
    return found


@kernel
def stochastic(x, low):
    """One of the two bfloat16 values around the float32 x, the nearer one more often; `low` holds 16 random bits."""
    bits = (x.to(tl.uint32, bitcast=True) + low) & 0xFFFF0000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@kernel
def mixed(h):
    """A permutation of 32 bits in which each bit depends on every bit of h."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@kernel
def key_at(word, step, start):
    """The two 32-bit keys of a step and a chunk that starts at `start`, from a tensor's 64-bit key."""
    # A chunk has a power of two of elements, and is aligned to it: indices within it share their upper 32 bits.
    mixed_step = mixed(step.to(tl.uint32) + 0x9E3779B9)
    key0 = mixed((word & 0xFFFFFFFF).to(tl.uint32) ^ mixed_step)
    key1 = mixed(((word >> 32) & 0xFFFFFFFF).to(tl.uint32) + mixed_step)
    return key0 + mixed((start >> 32).to(tl.uint32)), key1


@kernel
def random_bits(e, key0, key1):
    """32 random bits for each of the elements e."""
    return mixed(mixed((e & 0xFFFFFFFF).to(tl.uint32) ^ key0) + key1)


def key(seed: int, number: int) -> int:
    """The 64-bit key of tensor `number` under a seed, as a signed integer.

    Two rounds of splitmix64 (Steele, Lea, Flood).
    """
    word = seed % _WORD
    for salt in (0x9E3779B97F4A7C15, 0x9E3779B97F4A7C15 * (number + 1)):
        word = (word + salt) % _WORD
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % _WORD
        word ^= word >> 31
    return word - _WORD if word >= _WORD // 2 else word
