"""Division of integers: common CPUs have no vector instruction for it, and the scalar one traps on zero."""

from gradlab.kernels.cpu import lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, Uniform, registers

_LLVM = {"divsi": "sdiv", "remsi": "srem", "divui": "udiv", "remui": "urem"}


def divided(b: Emitter, name: str, element: str, x: Lane, y: Lane) -> Lane:
    """x / y or its remainder, rounded toward zero; a divisor of 0 gives an unspecified number, not a trap.

    Args:
        name: divsi, remsi, divui or remui.
    """
    if name not in _LLVM:
        raise NotImplementedError(f"arith.{name}")
    quotient = name.startswith("div")
    if isinstance(y, Uniform) and y.known == 1:
        return x if quotient else lanes.known(0, element)
    folded = _folded(name, x, y)
    if folded is not None:
        return lanes.known(folded, element)
    if b.width and isinstance(y, Uniform) and y.known is not None and y.known > 0 and types.bits(element) <= 32:
        # LLVM turns division by a constant into a multiplication.
        return lanes.made(b, b.op(_LLVM[name], element, registers(b, x), registers(b, y)), element)
    if b.width and isinstance(y, Uniform) and types.bits(element) <= 32:
        return lanes.made(b, _by_reciprocal(b, name, element, registers(b, x), y), element)
    divisor = _safe(b, name, element, registers(b, x), y)
    if b.width and types.bits(element) <= 32:
        return lanes.made(b, _by_float(b, name, element, registers(b, x), divisor), element)
    return lanes.made(b, b.op(_LLVM[name], element, registers(b, x), divisor), element)


def _folded(name: str, x: Lane, y: Lane) -> int | None:
    """Constant folding, where signed and unsigned agree or the operation is signed."""
    if not isinstance(x, Uniform) or not isinstance(y, Uniform) or x.known is None or not y.known:
        return None
    if name.endswith("ui") and min(x.known, y.known) < 0:
        return None
    whole = abs(x.known) // abs(y.known) * (-1 if (x.known < 0) != (y.known < 0) else 1)
    return whole if name.startswith("div") else x.known - whole * y.known


def _safe(b: Emitter, name: str, element: str, x: str, y: Lane) -> str:
    """The divisor, with 1 in place of divisors that trap: 0, and -1 under the smallest number."""
    divisor = registers(b, y)
    if isinstance(y, Uniform) and y.known is not None and y.known > 0:
        return divisor
    one = b.constant(1, element)
    wrong = b.compare("eq", element, divisor, b.constant(0, element))
    if name.endswith("si"):
        smallest = b.compare("eq", element, x, b.constant(-(2 ** (types.bits(element) - 1)), element))
        minus = b.compare("eq", element, divisor, b.constant(-1, element))
        wrong = b.op("or", "i1", wrong, b.op("and", "i1", smallest, minus))
    return b.select(wrong, element, one, divisor)


def _by_float(b: Emitter, name: str, element: str, x: str, y: str) -> str:
    """Exact division by way of float64: its rounding is below a 32-bit quotient's distance to the next integer."""
    signed = name.endswith("si")
    to, back = ("sitofp", "fptosi") if signed else ("uitofp", "fptoui")
    quotient = b.op("fdiv", "f64", b.convert(to, element, "f64", x), b.convert(to, element, "f64", y))
    whole = b.convert(back, "f64", element, quotient)
    if name.startswith("div"):
        return whole
    return b.op("sub", element, x, b.op("mul", element, whole, y))


def _by_reciprocal(b: Emitter, name: str, element: str, x: str, y: Uniform) -> str:
    """Division by a uniform divisor: its reciprocal in float64 once, and a product for each lane.

    (|x| + 1/2) / |y| is at least 1/2 / |y| away from an integer, and rounding moves it by less than 2^-21 / |y|.
    """
    signed = name.endswith("si")
    to, back = ("sitofp", "fptosi") if signed else ("uitofp", "fptoui")
    with b.lanes(0):
        divisor = b.select(b.compare("eq", element, y.ssa, "0"), element, "1", y.ssa)
        reciprocal = b.op("fdiv", "f64", b.constant(1.0, "f64"), b.convert(to, element, "f64", divisor))
    value = b.convert(to, element, "f64", x)
    half = b.constant(0.5, "f64")
    half = b.intrinsic("copysign", "f64", half, value) if signed else half
    product = b.op("fmul", "f64", b.op("fadd", "f64", value, half), b.splat("f64", reciprocal))
    # The smallest number divided by -1 is the only quotient out of range.
    whole = b.emit(f"freeze {b.type(element)} {b.convert(back, 'f64', element, product)}")
    if name.startswith("div"):
        return whole
    return b.op("sub", element, x, b.op("mul", element, whole, b.splat(element, divisor)))
