"""Floating-point numbers of 8 bits: e4m3 (no infinity, NaN is all ones) and e5m2.

Source: OCP 8-bit Floating Point Specification, revision 1.0; PTX ISA 8.7, section 5.2.3.
"""

import functools
from typing import Any

import numpy as np

from gradlab.profiling.ptx.numbers import Array

SMALL = ("e4m3", "e5m2")


@functools.cache
def _values(kind: str) -> Array:
    """The number of every byte."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if kind == "e4m3" else (5, 2, 15)
    found = np.empty(256, np.float32)
    for byte in range(256):
        exponent, mantissa = byte >> mantissa_bits & (1 << exponent_bits) - 1, byte & (1 << mantissa_bits) - 1
        value = (
            (mantissa / 2**mantissa_bits) * 2.0 ** (1 - bias)
            if exponent == 0
            else (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)
        )
        if kind == "e4m3" and byte & 127 == 127:
            value = np.nan
        elif kind == "e5m2" and exponent == 31:
            value = np.nan if mantissa else np.inf
        found[byte] = -value if byte & 128 else value
    return found


def decode(bits: Array, kind: str) -> Array:
    """float32 of bytes."""
    return _values(kind)[bits]


def encode(values: Array, kind: str, relu: bool = False) -> Array:
    """Bytes of numbers: to nearest, ties to even, to the largest finite number where they are past it."""
    values = np.asarray(values, np.float64)
    if relu:
        values = np.where(values < 0, 0.0, values)
    table = _values(kind)[:128].astype(np.float64)
    finite = table[np.isfinite(table)]
    magnitude = np.minimum(np.abs(values), finite[-1])
    above = np.clip(np.searchsorted(finite, magnitude), 1, finite.size - 1)
    low, high = finite[above - 1], finite[above]
    middle: Any = (low + high) / 2
    up = (magnitude > middle) | ((magnitude == middle) & (above % 2 == 0))
    found = np.where(up, above, above - 1).astype(np.uint8)
    found = np.where(np.isnan(values), np.uint8(127), found)
    return found | np.where(np.signbit(values), np.uint8(128), np.uint8(0))
