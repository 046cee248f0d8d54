"""Rounding that NumPy has no function for: fused multiply-add, and subnormal numbers flushed to zero."""

from typing import Any

import numpy as np

from gradlab.profiling.ptx.numbers import Array

# Of a float64 the low bits that a narrower type drops, and the least number of that type that is normal.
_DROPPED = {"f32": (29, 2.0**-126), "f16": (42, 2.0**-14), "bf16": (45, 2.0**-126)}


def fma(a: Any, b: Any, c: Any, kind: str) -> Array:
    """a b + c, rounded once.

    In half precision and float32 exactly: the product is exact in float64, and so is twice rounding the sum, but where
    the first rounding gives the middle of two numbers or a subnormal one; there it is rounded to odd. In float64 within
    one rounding of what is left of the sum.
    """
    a, b, c = (np.asarray(v, np.float64) for v in (a, b, c))
    product = a * b
    if kind == "f64":
        return _fma64(a, b, c, product)
    total = product + c
    dropped, least = _DROPPED[kind]
    rest = np.ascontiguousarray(total).view(np.int64) & ((1 << dropped) - 1)
    twice = (rest == 1 << dropped - 1) | ((np.abs(total) < least) & (rest != 0))
    if twice.any():
        total = np.where(twice, _to_odd(product, c, total), total)
    return total.astype(np.float16 if kind == "f16" else np.float32) if kind != "bf16" else odd_bf16(total)


def _to_odd(product: Array, c: Array, total: Array) -> Array:
    """A sum in float64 rounded to odd: the last rounding, to nearest, is then what it would be of the exact sum."""
    # What the addition dropped (Knuth's two-sum).
    other = total - product
    dropped = (product - (total - other)) + (c - other)
    bits = np.ascontiguousarray(total).view(np.int64)
    even = (bits & 1 == 0) & (dropped != 0) & np.isfinite(total)
    step = np.where((dropped > 0) == (total > 0), 1, -1)
    return np.where(even, bits + step, bits).view(np.float64)


def odd_bf16(values: Array) -> Array:
    """float32 of float64, rounded to odd, so that rounding it to bfloat16 rounds once."""
    near = values.astype(np.float32)
    bits = near.view(np.int32)
    inexact = (near.astype(np.float64) != values) & np.isfinite(near) & (bits & 1 == 0)
    step = np.where((np.abs(values) > np.abs(near)), 1, -1).astype(np.int32)
    return np.where(inexact, bits + step, bits).astype(np.int32).view(np.float32)


def _fma64(a: Array, b: Array, c: Array, product: Array) -> Array:
    split = 134217729.0
    high_a = split * a - (split * a - a)
    high_b = split * b - (split * b - b)
    low_a, low_b = a - high_a, b - high_b
    error = low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)
    total = product + c
    other = total - product
    dropped = (product - (total - other)) + (c - other)
    found = total + (dropped + error)
    return np.where(np.isfinite(found), found, total)


def flushed(values: Any) -> Any:
    """Subnormal float32 as zero, its sign kept."""
    values = np.asarray(values)
    return np.where(np.abs(values) < np.float32(2**-126), np.copysign(np.float32(0), values), values)
