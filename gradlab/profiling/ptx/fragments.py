"""Matrices as the threads of a warp hold them, and the bits of their elements as numbers.

A register of 32 bits holds as many elements as fit, behind each other in a row of the left matrix or a column of the
right one; four threads share eight of them. Source: PTX ISA 8.7, sections 9.7.14.5, 9.7.15.5.1.
"""

from collections.abc import Callable

import numpy as np

from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.small_floats import decode

# Types of what is multiplied: bits of an element.
WIDTHS = {"f16": 16, "bf16": 16, "tf32": 32, "f64": 64, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8}
# Types of sums: NumPy's.
SUMS = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}
# A warp's threads: eight rows of four.
ROWS, COLUMNS = 8, 4


def numbers(kind: str) -> Callable[[Array], Array]:
    """What makes numbers of bits, one more axis for the elements of a word: float32, in which all but f64 are exact."""
    if kind == "bf16":
        return _bf16
    if kind == "tf32":
        # The tensor cores take no notice of the lowest 13 bits.
        return lambda raw: (_split(raw, np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    if kind == "f64":
        return lambda raw: raw.view(np.float64)[..., None]
    if kind in ("e4m3", "e5m2"):
        return lambda raw: decode(_split(raw, np.uint8), kind)
    dtype = {"f16": np.float16, "s8": np.int8, "u8": np.uint8}[kind]
    return lambda raw: _split(raw, dtype).astype(np.float32)


def _split(raw: Array, dtype: type) -> Array:
    raw = np.ascontiguousarray(raw)
    return raw.view(dtype).reshape(*raw.shape, raw.dtype.itemsize // np.dtype(dtype).itemsize)


def _bf16(raw: Array) -> Array:
    halves = _split(raw, np.uint16)
    wide = np.zeros((*halves.shape, 2), np.uint16)
    wide[..., 1] = halves
    return wide.view(np.float32)[..., 0]


def left(registers: Array, halves: int) -> Array:
    """[W, rows, K] of numbers [register, W, element of 32 lanes]: `halves` of 8 rows, then as many steps along K."""
    steps, warps, each = registers.shape[0] // halves, registers.shape[1] // 32, registers.shape[-1]
    parts = registers.reshape(steps, halves, warps, ROWS, COLUMNS, each)
    return parts.transpose(2, 1, 3, 0, 4, 5).reshape(warps, halves * ROWS, steps * COLUMNS * each)


def right(registers: Array) -> Array:
    """[W, 8 columns, K] of numbers [register, lane, element]."""
    return left(registers, 1)


def spread(sums: Array, halves: int) -> Array:
    """[register, lane] of sums [W, rows, 8 columns], two registers for a thread's two neighbours in a row."""
    warps = sums.shape[0]
    parts = sums.reshape(warps, halves, ROWS, COLUMNS, 2)
    return parts.transpose(1, 4, 0, 2, 3).reshape(halves * 2, warps * 32)


def saturated(values: Array, kind: str) -> Array:
    """Integers of 64 bits as 32, the nearest that there is."""
    info = np.iinfo(np.int32)
    return np.clip(values, info.min, info.max).astype(SUMS[kind])
