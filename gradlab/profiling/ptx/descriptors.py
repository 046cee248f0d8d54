"""Descriptors of wgmma: where the pieces of 16 bytes of a matrix lie in shared memory.

A matrix is made of pieces whose elements are neighbours along K ("K-major") or along its rows or columns ("MN-major").
Eight lines of pieces make an atom of 16, 32, 64 or 128 bytes a line, within which a swizzle permutes the pieces.
Source: PTX ISA 8.7, section 9.7.15.5.1; CUTLASS, include/cute/arch/mma_sm90_desc.hpp and
include/cute/atom/mma_traits_sm90_gmma.hpp.
"""

import functools
from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx.numbers import Array

PIECE = 16
_SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}


@dataclass(frozen=True)
class Descriptor:
    """The fields of a descriptor.

    Attributes:
        start: offset in shared memory.
        leading, stride: bytes from one atom to the next along the leading dimension, and along the other.
        line: bytes of a line of an atom, 16 where nothing is swizzled.
        base: what the pattern's start has in the bits that the swizzle takes.
    """

    start: int
    leading: int
    stride: int
    line: int
    base: int


@functools.lru_cache(4096)
def unpack(bits: int) -> Descriptor:
    """The fields of a descriptor of 64 bits."""
    return Descriptor(
        (bits & 0x3FFF) << 4,
        (bits >> 16 & 0x3FFF) << 4,
        (bits >> 32 & 0x3FFF) << 4,
        _SWIZZLES[bits >> 62],
        bits >> 49 & 7,
    )


@functools.lru_cache(4096)
def pieces(bits: int, rows: int, elements: int, mn_major: bool) -> Array:
    """Offsets of the pieces of a matrix of `rows` rows or columns and 32 bytes, of `elements` elements, of K.

    [rows, 2], or [rows / 8, elements] for "MN-major", whose elements have 16 bits.
    """
    d = unpack(bits)
    plain = d.line == PIECE
    if mn_major:
        across, along = np.arange(rows // 8)[:, None], np.arange(elements)
        per = d.line // PIECE
        # Without a swizzle the two strides change places.
        to_rows, to_depth = (d.stride, d.leading) if plain else (d.leading, d.stride)
        offsets = across // per * to_rows + across % per * PIECE + along // 8 * to_depth + along % 8 * d.line
    else:
        across, along = np.arange(rows)[:, None], np.arange(2)
        offsets = across // 8 * d.stride + across % 8 * d.line + along * (d.leading if plain else PIECE)
    offsets = offsets + d.start
    swizzle = ((offsets >> 7) - d.base) & (d.line // PIECE - 1)
    found = offsets ^ (swizzle << 4)
    found.flags.writeable = False
    return found


@functools.lru_cache(4096)
def passes(bits: int, rows: int, elements: int, mn_major: bool) -> int:
    """How often shared memory is asked for the matrix: once for eight pieces that lie in different banks."""
    # Eight pieces are eight lines of one atom: neighbours across for K-major, along K for MN-major.
    found = pieces(bits, rows, elements, mn_major)
    eights = found.reshape(-1, 8) if mn_major else found.reshape(-1, 8, 2).swapaxes(1, 2).reshape(-1, 8)
    places = eights // PIECE % 8 + 8 * np.arange(len(eights))[:, None]
    return int(np.bincount(places.ravel(), minlength=8 * len(eights)).reshape(-1, 8).max(1).sum())
