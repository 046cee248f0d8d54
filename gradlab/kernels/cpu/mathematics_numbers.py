"""Values in the lanes being written, with Python's operators: `a * b + 1.0` writes an fmul and an fadd.

The functions built on it read as formulas and are written once for float32 and float64. Nothing here takes a fast-math
flag: each operation rounds as it is written, so that scalar code and vectors of every width give the same bits.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Union

from gradlab.kernels.cpu.emit import Emitter


@dataclasses.dataclass(frozen=True)
class Format:
    """How a float is laid out: the integer of its size, the bits of its fraction, the bias of its exponent."""

    integer: str
    fraction: int
    bias: int

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.fraction

    @property
    def infinity(self) -> int:
        """The bits of infinity."""
        return (2 * self.bias + 1) << self.fraction

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def shifter(self) -> float:
        """A shift: added to a number below 2^(fraction - 1), it puts the nearest integer into the sum's low bits."""
        return 1.5 * 2.0**self.fraction


FORMATS = {"f32": Format("i32", 23, 127), "f64": Format("i64", 52, 1023)}

Operand = Union["Number", float]


class Number:
    """A value of one element type in every lane; comparisons are ordered, false where an operand is NaN."""

    def __init__(self, b: Emitter, element: str, text: str) -> None:
        self.b = b
        self.element = element
        self.text = text

    @property
    def format(self) -> Format:
        """The layout of this float."""
        return FORMATS[self.element]

    def constant(self, value: float) -> "Number":
        """A constant of this value's type."""
        return Number(self.b, self.element, self.b.constant(value, self.element))

    def integer(self, value: int) -> "Number":
        """A constant of the integer type that has this float's size."""
        return Number(self.b, self.format.integer, self.b.constant(value, self.format.integer))

    def _of(self, value: Operand) -> str:
        return value.text if isinstance(value, Number) else self.b.constant(value, self.element)

    def _op(self, instruction: str, *operands: Operand) -> "Number":
        name = self.b.op(instruction, self.element, *map(self._of, operands))
        return Number(self.b, self.element, name)

    def _arithmetic(self, instruction: str, *operands: Operand) -> "Number":
        return self._op("f" + instruction if self.element in FORMATS else instruction, *operands)

    def __add__(self, other: Operand) -> "Number":
        return self._arithmetic("add", self, other)

    def __radd__(self, other: Operand) -> "Number":
        return self._arithmetic("add", other, self)

    def __sub__(self, other: Operand) -> "Number":
        return self._arithmetic("sub", self, other)

    def __rsub__(self, other: Operand) -> "Number":
        return self._arithmetic("sub", other, self)

    def __mul__(self, other: Operand) -> "Number":
        return self._arithmetic("mul", self, other)

    def __rmul__(self, other: Operand) -> "Number":
        return self._arithmetic("mul", other, self)

    def __truediv__(self, other: Operand) -> "Number":
        return self._op("fdiv", self, other)

    def __rtruediv__(self, other: Operand) -> "Number":
        return self._op("fdiv", other, self)

    def __neg__(self) -> "Number":
        return self._op("fneg", self)

    def __and__(self, other: Operand) -> "Number":
        return self._op("and", self, other)

    def __or__(self, other: Operand) -> "Number":
        return self._op("or", self, other)

    def __xor__(self, other: Operand) -> "Number":
        return self._op("xor", self, other)

    def __invert__(self) -> "Number":
        return self._op("xor", self, 1 if self.element == "i1" else -1)

    def __lshift__(self, bits: Operand) -> "Number":
        return self._op("shl", self, bits)

    def __rshift__(self, bits: int) -> "Number":
        """A shift that keeps the sign."""
        return self._op("ashr", self, bits)

    def logical_shift(self, bits: int) -> "Number":
        """A shift to the right that brings in zeros."""
        return self._op("lshr", self, bits)

    def _compare(self, predicate: str, other: Operand) -> "Number":
        prefix = "o" if self.element in FORMATS else "s" if predicate not in ("eq", "ne") else ""
        return Number(self.b, "i1", self.b.compare(prefix + predicate, self.element, self.text, self._of(other)))

    def __lt__(self, other: Operand) -> "Number":
        return self._compare("lt", other)

    def __le__(self, other: Operand) -> "Number":
        return self._compare("le", other)

    def __gt__(self, other: Operand) -> "Number":
        return self._compare("gt", other)

    def __ge__(self, other: Operand) -> "Number":
        return self._compare("ge", other)

    def equals(self, other: Operand) -> "Number":
        """Where the two are equal."""
        return self._compare("eq", other)

    def choose(self, yes: Operand, no: Operand) -> "Number":
        """`yes` where this truth value holds, else `no`; at least one of the two is a Number, which gives the type."""
        like = yes if isinstance(yes, Number) else no
        assert isinstance(like, Number)
        name = self.b.select(self.text, like.element, like._of(yes), like._of(no))
        return Number(self.b, like.element, name)

    def call(self, intrinsic: str, *operands: Operand) -> "Number":
        """An LLVM intrinsic on this value and further operands of its type."""
        name = self.b.intrinsic(intrinsic, self.element, self.text, *map(self._of, operands))
        return Number(self.b, self.element, name)

    def fma(self, factor: Operand, addend: Operand) -> "Number":
        """self * factor + addend, rounded once."""
        return self.call("fma", factor, addend)

    def abs(self) -> "Number":
        """Without its sign."""
        return self.call("fabs")

    def signed(self, sign: Operand) -> "Number":
        """With another's sign."""
        return self.call("copysign", sign)

    def over(self, divisor: "Number", rest: "Number") -> "Number":
        """self / (divisor + rest), for an ordinary positive divisor and a rest within its last digit."""
        quotient = self / divisor
        left = (-quotient).fma(rest, (-quotient).fma(divisor, self))
        # The quotient's error is left / divisor. A reciprocal good to 5 % suffices: the negated exponent and, by the
        # same subtraction, a chord of 1 / x.
        f = self.format
        chord = (divisor.integer(2 * f.one - round(0.101 * 2.0**f.fraction)) - divisor.bits()).as_float()
        return left.fma(chord, quotient)

    def sqrt(self) -> "Number":
        """The square root, correctly rounded."""
        return self.call("sqrt")

    def at_most(self, bound: float) -> "Number":
        """The minimum with a bound; NaN stays NaN."""
        return (self > bound).choose(bound, self)

    def at_least(self, bound: float) -> "Number":
        """The maximum with a bound; NaN stays NaN."""
        return (self < bound).choose(bound, self)

    def polynomial(self, coefficients: Sequence[float]) -> "Number":
        """Horner's rule; the constant term comes first."""
        result = self.constant(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            result = result.fma(self, c)
        return result

    def two_to(self) -> "Number":
        """2 to the power of this integer, where that is a normal number."""
        base = self.format.shifter + self.format.bias
        return ((self + base).bits() << self.format.fraction).as_float()

    def bits(self) -> "Number":
        """The bits of this float as an integer."""
        integer = self.format.integer
        return Number(self.b, integer, self.b.bitcast(self.element, integer, self.text))

    def as_float(self) -> "Number":
        """These bits as a float."""
        element = "f32" if self.element == "i32" else "f64"
        return Number(self.b, element, self.b.bitcast(self.element, element, self.text))

    def any(self) -> str:
        """Whether this truth value holds in some lane: a scalar."""
        if not self.b.width:
            return self.text
        name, kind = f"llvm.vector.reduce.or.v{self.b.width}i1", self.b.type("i1")
        self.b.declare(name, "i1", kind)
        return self.b.emit(f"call i1 @{name}({kind} {self.text})")

    def outlined(self, name: str, write: Callable[..., "Number"], *further: "Number") -> "Number":
        """A call of a function that is not inlined, for rarely reached code; `write` writes its body."""
        b, element = self.b, self.element
        texts = [value.text for value in (self, *further)]
        result = b.helper(name, element, lambda *xs: write(*(Number(b, element, x) for x in xs)).text, *texts)
        full = f"{name}.{b.suffix(element)}"
        b.helpers[full] = b.helpers[full].replace("alwaysinline", "noinline cold")
        return Number(b, element, result)

    def to(self, conversion: str, element: str) -> "Number":
        """A conversion between numbers, by LLVM's name of it."""
        return Number(self.b, element, self.b.convert(conversion, self.element, element, self.text))
