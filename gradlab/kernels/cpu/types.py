"""Element types of Triton IR: their size, their LLVM type, their constants.

An element type is written as in printed IR: "i1", "i8", ..., "f16", "bf16", "f32", "f64", an 8-bit float "f8E4M3FN", or
a pointer "*f32". bfloat16 and 8-bit floats are integers in registers: LLVM's own bfloat conversions flush denormals on
some CPUs, and it has no 8-bit floats.
"""

import functools
import math
import struct

BITS = {
    "i1": 1,
    "i8": 8,
    "i16": 16,
    "i32": 32,
    "i64": 64,
    "index": 64,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "f8E4M3FN": 8,
    "f8E5M2": 8,
    "f8E4M3FNUZ": 8,
    "f8E5M2FNUZ": 8,
    "f8E4M3B11FNUZ": 8,
}
FLOATS = frozenset(name for name in BITS if name.startswith(("f", "bf")))
# Floats that LLVM has arithmetic for; the others are widened to float32, computed and rounded.
NATIVE_FLOATS = ("f32", "f64")

_LLVM = {"f32": "float", "f64": "double", "f16": "half", "bf16": "i16", "index": "i64"}


def is_float(element: str) -> bool:
    """Whether an element type is a floating one."""
    return element in FLOATS


def is_pointer(element: str) -> bool:
    """Whether an element type is an address."""
    return element.startswith("*")


def pointee(element: str) -> str:
    """The element type that a pointer type points to."""
    return element[1:]


@functools.cache
def bits(element: str) -> int:
    """Bits of one element in a register; an address has 64."""
    return 64 if is_pointer(element) else BITS[element]


def size(element: str) -> int:
    """Bytes of one element in memory; a truth value takes one."""
    return max(1, bits(element) // 8)


@functools.cache
def llvm(element: str) -> str:
    """The LLVM type of one element in a register."""
    if is_pointer(element):
        return "ptr"
    if element in FLOATS and BITS[element] == 8:
        return "i8"
    return _LLVM.get(element, element)


def in_memory(element: str) -> str:
    """The LLVM type of one element in memory, where a truth value is a byte."""
    return "i8" if element == "i1" else llvm(element)


def computed(element: str) -> str:
    """The element type that arithmetic on `element` is done in."""
    return "f32" if element in FLOATS and element not in NATIVE_FLOATS else element


def constant(value: float | int | bool, element: str) -> str:
    """LLVM's text of a constant: floats by their bits, so that nothing is rounded twice."""
    if is_pointer(element):
        return "null" if not value else f"inttoptr (i64 {int(value)} to ptr)"
    if element == "i1":
        return "true" if value else "false"
    if element not in FLOATS:
        return str(int(value))
    if element == "f64":
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if element == "f32":
        single = _single(float(value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
    if element == "f16":
        return f"0xH{_half_bits(float(value)):04X}"
    if element == "bf16":
        return str(_bfloat_bits(float(value)))
    return str(_small_bits(float(value), element))


def from_bits(word: int, element: str) -> float:
    """The value of a float constant that printed IR gives by its bits."""
    if element == "f64":
        return struct.unpack("<d", struct.pack("<Q", word))[0]
    if element == "f32":
        return struct.unpack("<f", struct.pack("<I", word))[0]
    if element == "f16":
        return struct.unpack("<e", struct.pack("<H", word))[0]
    if element == "bf16":
        return struct.unpack("<f", struct.pack("<I", word << 16))[0]
    return _small_values(element)[word]


def _single(value: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def _half_bits(value: float) -> int:
    try:
        return struct.unpack("<H", struct.pack("<e", value))[0]
    except OverflowError:
        return 0xFC00 if value < 0 else 0x7C00


def _bfloat_bits(value: float) -> int:
    if value != value:
        return 0x7FC0
    word = struct.unpack("<I", struct.pack("<f", _single(value)))[0]
    return (word + 0x7FFF + ((word >> 16) & 1)) >> 16 & 0xFFFF


@functools.cache
def _small_values(element: str) -> list[float]:
    """The value of each of the 256 bit patterns of an 8-bit float."""
    exponent_bits = int(element[3])
    mantissa_bits = 7 - exponent_bits
    no_negative_zero = element.endswith("UZ")
    bias = 11 if "B11" in element else 2 ** (exponent_bits - 1) - (not no_negative_zero)
    values = []
    for word in range(256):
        exponent, mantissa = (word & 0x7F) >> mantissa_bits, word & ((1 << mantissa_bits) - 1)
        if exponent:
            value = (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)
        else:
            value = mantissa / 2**mantissa_bits * 2.0 ** (1 - bias)
        if no_negative_zero:
            value = math.nan if word == 0x80 else value
        elif element == "f8E4M3FN":
            value = math.nan if word & 0x7F == 0x7F else value
        elif exponent == 2**exponent_bits - 1:
            value = math.nan if mantissa else math.inf
        values.append(-value if word & 0x80 else value)
    return values


def _small_bits(value: float, element: str) -> int:
    """The nearest 8-bit float, ties to even; larger numbers saturate, as in a kernel's conversion."""
    values = _small_values(element)
    if value != value:
        return next(word for word, other in enumerate(values) if other != other)
    if value == 0:
        return 0x80 if math.copysign(1, value) < 0 and not element.endswith("UZ") else 0
    near = [word for word, other in enumerate(values) if math.isfinite(other) and (other < 0) == (value < 0)]
    held = min(max(value, min(values[word] for word in near)), max(values[word] for word in near))
    return min(near, key=lambda word: (abs(values[word] - held), word & 1))
