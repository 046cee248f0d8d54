"""Three AVX-512 instructions that split a float into exponent and fraction and scale it by a power of two.

They handle denormals and infinities, and give the same bits as the portable arithmetic in a third of the instructions.
LLVM's portable forms (`frexp`, `ldexp`) become calls of the C library on other CPUs.
"""

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.mathematics_numbers import Number

_BITS = 512


def covers(x: Number) -> bool:
    """Whether the CPU has the instructions and the lanes fill one register or two."""
    return x.b.vector_bits == _BITS and x.b.width * types.bits(x.element) in (_BITS, 2 * _BITS)


def exponent(x: Number) -> Number:
    """k of |x| = m 2^k with m from 1 to 2, as a float: of 0 -inf, of inf inf, of NaN NaN."""
    return _whole("getexp", x)


def fraction(x: Number) -> Number:
    """The m from 3/4 to 3/2 that is x over a power of 2: of 0 and inf 1, of NaN and x < 0 NaN."""
    return _whole("getmant", x, "i32 15")


def scaled(x: Number, n: Number) -> Number:
    """x 2^n for an integer n, rounded once."""
    return _whole("scalef", x, n)


def _whole(name: str, x: Number, *further: Number | str) -> Number:
    b, element = x.b, x.element
    lanes = _BITS // types.bits(element)
    if b.width == lanes:
        return _register(name, x, *further)
    halves = []
    for first in (0, lanes):
        part = _half(x, first, lanes)
        others = [v if isinstance(v, str) else _half(v, first, lanes) for v in further]
        with b.lanes(lanes):
            halves.append(_register(name, part, *others))
    kind = f"<{lanes} x {types.llvm(element)}>"
    order = ", ".join(f"i32 {i}" for i in range(2 * lanes))
    joined = f"shufflevector {kind} {halves[0].text}, {kind} {halves[1].text}, <{2 * lanes} x i32> <{order}>"
    return Number(b, element, b.emit(joined))


def _half(x: Number, first: int, lanes: int) -> Number:
    kind = x.b.type(x.element)
    order = ", ".join(f"i32 {first + i}" for i in range(lanes))
    return Number(x.b, x.element, x.b.emit(f"shufflevector {kind} {x.text}, {kind} poison, <{lanes} x i32> <{order}>"))


def _register(name: str, x: Number, *further: Number | str) -> Number:
    """The intrinsic on one register, unmasked, with the current rounding mode."""
    b, kind = x.b, x.b.type(x.element)
    full = f"llvm.x86.avx512.mask.{name}.{'ps' if x.element == 'f32' else 'pd'}.{_BITS}"
    operands = [v if isinstance(v, str) else f"{kind} {v.text}" for v in (x, *further)]
    operands += [f"{kind} zeroinitializer", f"i{b.width} -1", "i32 4"]
    # A declaration is the types alone, which may hold spaces.
    b.declare(full, kind, ", ".join(operand.rpartition(" ")[0] for operand in operands))
    return Number(b, x.element, b.emit(f"call {kind} @{full}({', '.join(operands)})"))
