"""Floats without arithmetic on the CPU: widened to float32 before an operation, rounded to nearest even after."""

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.emit import Emitter

# Exponent bias, mantissa bits and largest magnitude of 8-bit floats. E5M2 alone has infinities; the NaN of E4M3FN is
# all ones, and the NaN of types ending in UZ has the bits of -0.
_SMALL = {"f8E4M3FN": (7, 3, 0x7E), "f8E5M2": (15, 2, 0x7B), "f8E4M3FNUZ": (8, 3, 0x7F), "f8E5M2FNUZ": (16, 2, 0x7F)}


def widened(b: Emitter, element: str, value: str) -> tuple[str, str]:
    """A float widened to the type that arithmetic is done in: the value and its element type."""
    if element in types.NATIVE_FLOATS or not types.is_float(element):
        return value, element
    if element == "f16":
        return b.convert("fpext", "f16", "f32", value), "f32"
    if element == "bf16":
        word = b.convert("zext", "bf16", "i32", value)
        return b.bitcast("i32", "f32", b.op("shl", "i32", word, b.constant(16, "i32"))), "f32"
    if element in _SMALL:
        word = b.helper(f"from_{element}", "i32", lambda x: _from_small(b, element, x), _word(b, element, value))
        return b.bitcast("i32", "f32", word), "f32"
    raise NotImplementedError(f"arithmetic on {element}")


def narrowed(b: Emitter, element: str, value: str) -> str:
    """A float32 rounded to `element`: to nearest, ties to even; 8-bit floats saturate."""
    if element == "f32":
        return value
    if element == "f16":
        return b.convert("fptrunc", "f32", "f16", value)
    if element == "bf16":
        return _to_bfloat(b, value)
    if element in _SMALL:
        word = _to_small(b, element, b.bitcast("f32", "i32", value))
        return b.convert("trunc", "i32", element, word)
    raise NotImplementedError(f"rounding to {element}")


def converted(b: Emitter, source: str, target: str, value: str) -> str:
    """A float converted to another type."""
    if source == target:
        return value
    if source == "f64":
        if target == "f32":
            return b.convert("fptrunc", "f64", "f32", value)
        # For float16 too: LLVM would call a library function.
        return narrowed(b, target, _odd_single(b, value))
    value, source = widened(b, source, value)
    return b.convert("fpext", "f32", "f64", value) if target == "f64" else narrowed(b, target, value)


def truncated(b: Emitter, source: str, target: str, value: str) -> str:
    """A float rounded toward zero to a narrower type: to nearest, then a step back where that went away from zero."""
    found, wide = converted(b, source, target, value), "f64" if source == "f64" else "f32"
    exact = converted(b, source, wide, value)
    beyond = b.compare(
        "ogt",
        wide,
        b.intrinsic("fabs", wide, converted(b, target, wide, found)),
        b.intrinsic("fabs", wide, exact),
    )
    word = f"i{types.bits(target)}"
    stepped = b.op("sub", word, b.bitcast(target, word, found), b.convert("zext", "i1", word, beyond))
    return b.bitcast(word, target, stepped)


def _word(b: Emitter, element: str, value: str) -> str:
    return b.convert("zext", element, "i32", value)


def _to_bfloat(b: Emitter, value: str) -> str:
    word = b.bitcast("f32", "i32", value)
    last = b.op("and", "i32", b.op("lshr", "i32", word, b.constant(16, "i32")), b.constant(1, "i32"))
    rounded = b.op("add", "i32", b.op("add", "i32", word, last), b.constant(0x7FFF, "i32"))
    rounded = b.op("lshr", "i32", rounded, b.constant(16, "i32"))
    nan = b.compare("uno", "f32", value, value)
    quiet = b.op("or", "i32", b.op("lshr", "i32", word, b.constant(16, "i32")), b.constant(0x40, "i32"))
    return b.convert("trunc", "i32", "bf16", b.select(nan, "i32", quiet, rounded))


def _odd_single(b: Emitter, value: str) -> str:
    """float64 to float32 rounded to odd, so that rounding once more to fewer bits is one rounding in effect."""
    single = b.convert("fptrunc", "f64", "f32", value)
    back = b.convert("fpext", "f32", "f64", single)
    word = b.bitcast("f32", "i32", single)
    # Where rounding went away from zero, one step back; then, where bits were lost, set the last bit.
    beyond = b.compare("ogt", "f64", b.intrinsic("fabs", "f64", back), b.intrinsic("fabs", "f64", value))
    word = b.op("sub", "i32", word, b.convert("zext", "i1", "i32", beyond))
    lost = b.compare("one", "f64", back, value)
    return b.bitcast("i32", "f32", b.op("or", "i32", word, b.convert("zext", "i1", "i32", lost)))


def _from_small(b: Emitter, element: str, word: str) -> str:
    bias, mantissa, _ = _SMALL[element]
    magnitude = b.op("and", "i32", word, b.constant(0x7F, "i32"))
    sign = b.op("shl", "i32", b.op("and", "i32", word, b.constant(0x80, "i32")), b.constant(24, "i32"))
    # A float32 with the narrow type's exponent; multiplying corrects the bias, subnormals included.
    shifted = b.bitcast("i32", "f32", b.op("shl", "i32", magnitude, b.constant(23 - mantissa, "i32")))
    value = b.op("fmul", "f32", shifted, b.constant(2.0 ** (127 - bias), "f32"))
    value = b.bitcast("f32", "i32", value)
    nan = b.constant(0x7FC00000, "i32")
    if element.endswith("UZ"):
        special = b.compare("eq", "i32", word, b.constant(0x80, "i32"))
        return b.select(special, "i32", nan, b.op("or", "i32", value, sign))
    if element == "f8E4M3FN":
        special = b.compare("eq", "i32", magnitude, b.constant(0x7F, "i32"))
        value = b.select(special, "i32", nan, value)
    else:
        special = b.compare("uge", "i32", magnitude, b.constant(0x7C, "i32"))
        exponent = b.constant(0x7F800000, "i32")
        wide = b.op("or", "i32", b.op("shl", "i32", magnitude, b.constant(21, "i32")), exponent)
        value = b.select(special, "i32", wide, value)
    return b.op("or", "i32", value, sign)


def _to_small(b: Emitter, element: str, word: str) -> str:
    bias, mantissa, largest = _SMALL[element]
    cut = 23 - mantissa
    magnitude = b.op("and", "i32", word, b.constant(0x7FFFFFFF, "i32"))
    sign = b.op("and", "i32", b.op("lshr", "i32", word, b.constant(24, "i32")), b.constant(0x80, "i32"))
    # Normal numbers: round the dropped bits, then correct the bias.
    last = b.op("and", "i32", b.op("lshr", "i32", magnitude, b.constant(cut, "i32")), b.constant(1, "i32"))
    normal = b.op("add", "i32", b.op("add", "i32", magnitude, last), b.constant((1 << (cut - 1)) - 1, "i32"))
    normal = b.op(
        "sub", "i32", b.op("lshr", "i32", normal, b.constant(cut, "i32")), b.constant((127 - bias) << mantissa, "i32")
    )
    # Subnormals: adding a power of two whose last bit is the smallest subnormal rounds them in place.
    power = 2.0 ** (1 - bias - mantissa + 23)
    value = b.bitcast("i32", "f32", magnitude)
    summed = b.bitcast("f32", "i32", b.op("fadd", "f32", value, b.constant(power, "f32")))
    subnormal = b.op("and", "i32", summed, b.constant(0x7FFFFF, "i32"))
    small = b.compare("olt", "f32", value, b.constant(2.0 ** (1 - bias), "f32"))
    found = b.select(small, "i32", subnormal, normal)
    found = b.intrinsic("umin", "i32", found, b.constant(largest, "i32"))
    # A large number, infinity included, wraps in the subtraction above only past the largest.
    over = b.compare("uge", "i32", magnitude, b.constant(0x7F800000, "i32"))
    found = b.select(over, "i32", b.constant(largest, "i32"), found)
    nan = b.compare("ugt", "i32", magnitude, b.constant(0x7F800000, "i32"))
    if element.endswith("UZ"):
        # UZ types have no -0: its bits are the NaN.
        zero = b.compare("eq", "i32", found, b.constant(0, "i32"))
        signed = b.select(zero, "i32", found, b.op("or", "i32", found, sign))
        return b.select(nan, "i32", b.constant(0x80, "i32"), signed)
    found = b.select(nan, "i32", b.constant(0x7F, "i32"), found)
    return b.op("or", "i32", found, sign)
