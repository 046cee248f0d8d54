"""Elementwise operations on lanes: a table from an operation's name to the function that writes it.

Every function takes the emitter, the operation and its operands' lanes, and returns the result's lanes. A value that is
uniform over the lanes is computed once, as a scalar; integer arithmetic on ramps gives a ramp where the result is one.
"""

from collections.abc import Callable

from gradlab.kernels.cpu import floats, lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.integers import divided
from gradlab.kernels.cpu.lanes import Lane, Pointer, Ramp, Shifted, Uniform, Vector, registers
from gradlab.kernels.cpu.mathematics import FUNCTIONS
from gradlab.kernels.cpu.ttir import Operation

Rule = Callable[[Emitter, Operation, list[Lane]], Lane]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the one that writes these operations."""

    def enter(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return enter


def compute(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """The operation's result, at the emitter's width."""
    if b.width and lanes.is_scalar(*operands):
        with b.lanes(0):
            return RULES[op.name](b, op, operands)
    return RULES[op.name](b, op, operands)


def _result(op: Operation) -> str:
    return op.result_types[0].element


# Integers.

_INTEGER = {
    "arith.subi": "sub",
    "arith.muli": "mul",
    "arith.andi": "and",
    "arith.ori": "or",
    "arith.xori": "xor",
}
_SHIFTS = {"arith.shli": "shl", "arith.shrui": "lshr", "arith.shrsi": "ashr"}
_MINMAX = {"arith.maxsi": "smax", "arith.minsi": "smin", "arith.maxui": "umax", "arith.minui": "umin"}


@rule("arith.addi")
def _add(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    x, y = operands
    t = _result(op)
    if isinstance(x, Uniform) and isinstance(y, Uniform):
        return lanes.add(b, x, y)
    if isinstance(y, Ramp):
        x, y = y, x
    if isinstance(x, Ramp) and isinstance(y, Uniform):
        return Ramp(lanes.add(b, x.base, y), x.step, t)
    if isinstance(x, Ramp) and isinstance(y, Ramp) and isinstance(x.step, int) and isinstance(y.step, int):
        return Ramp(lanes.add(b, x.base, y.base), x.step + y.step, t)
    return lanes.shifted(b, x, y)


@rule("arith.subi")
def _subtract(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    x, y = operands
    if isinstance(x, Uniform) and isinstance(y, Uniform):
        return lanes.subtract(b, x, y)
    if isinstance(x, Ramp) and isinstance(y, Uniform):
        return Ramp(lanes.subtract(b, x.base, y), x.step, _result(op))
    if isinstance(x, Shifted) and isinstance(y, Uniform):
        return Shifted(x.vector, lanes.subtract(b, x.by, y), x.element)
    return Vector(b.op("sub", _result(op), registers(b, x), registers(b, y)), _result(op))


@rule("arith.muli")
def _multiply(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    x, y = operands
    t = _result(op)
    if isinstance(x, Uniform) and isinstance(y, Uniform):
        return lanes.multiply(b, x, y)
    if isinstance(y, Ramp):
        x, y = y, x
    if isinstance(x, Ramp) and isinstance(y, Uniform):
        if y.known == 0:
            return y
        if y.known is not None and isinstance(x.step, int):
            return Ramp(lanes.multiply(b, x.base, y), lanes.wrap(x.step * y.known, t), t)
        return Ramp(lanes.multiply(b, x.base, y), lanes.multiply(b, lanes.as_uniform(x.step, t), y), t)
    if isinstance(y, Shifted):
        x, y = y, x
    if isinstance(x, Shifted) and isinstance(y, Uniform):
        return Shifted(b.op("mul", t, x.vector, b.splat(t, y.ssa)), lanes.multiply(b, x.by, y), t)
    return Vector(b.op("mul", t, registers(b, x), registers(b, y)), t)


@rule("arith.andi", "arith.ori", "arith.xori")
def _bitwise(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = _result(op)
    if t == "i1" and op.name != "arith.xori":
        absorbing = int(op.name == "arith.ori")
        for x, other in (operands, operands[::-1]):
            if isinstance(x, Uniform) and x.known is not None:
                return x if x.known == absorbing else other
    x, y = operands
    if isinstance(x, Uniform) and isinstance(y, Uniform) and x.known is not None and y.known is not None:
        fold = {"and": x.known & y.known, "or": x.known | y.known, "xor": x.known ^ y.known}
        return lanes.known(fold[_INTEGER[op.name]], t)
    return lanes.made(b, b.op(_INTEGER[op.name], t, registers(b, x), registers(b, y)), t)


@rule(*_SHIFTS)
def _shift(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t, name = _result(op), _SHIFTS[op.name]
    x, y = (registers(b, o) for o in operands)
    # For amounts past the width a GPU shifts every bit out, where LLVM gives poison.
    amount = operands[1]
    if isinstance(amount, Uniform) and amount.known is not None and 0 <= amount.known < types.bits(t):
        return lanes.made(b, b.op(name, t, x, y), t)
    last = b.constant(types.bits(t) - 1, t)
    held = b.intrinsic("umin", t, y, last)
    shifted = b.op(name, t, x, held)
    if name == "ashr":
        return lanes.made(b, shifted, t)
    return lanes.made(b, b.select(b.compare("ugt", t, y, last), t, b.constant(0, t), shifted), t)


@rule("arith.divsi", "arith.remsi", "arith.divui", "arith.remui", "arith.ceildivsi", "arith.floordivsi")
def _divide(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    return divided(b, op.name.removeprefix("arith."), _result(op), *operands)


@rule(*_MINMAX)
def _integer_extreme(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = _result(op)
    return lanes.made(b, b.intrinsic(_MINMAX[op.name], t, *(registers(b, o) for o in operands)), t)


@rule("math.absi")
def _absolute(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = _result(op)
    return lanes.made(b, b.intrinsic("abs", t, registers(b, operands[0]), extra="i1 false"), t)


@rule("tt.mulhiui")
def _high_product(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = _result(op)
    wide = "i64" if t == "i32" else "i128"
    with_width = f"<{b.width} x {wide}>" if b.width else wide
    x, y = (b.emit(f"zext {b.type(t)} {registers(b, o)} to {with_width}") for o in operands)
    product = b.emit(f"mul {with_width} {x}, {y}")
    by = f"splat ({wide} {types.bits(t)})" if b.width else str(types.bits(t))
    high = b.emit(f"lshr {with_width} {product}, {by}")
    return lanes.made(b, b.emit(f"trunc {with_width} {high} to {b.type(t)}"), t)


_FOLDED = {
    "slt": lambda x, y: x < y,
    "sle": lambda x, y: x <= y,
    "sgt": lambda x, y: x > y,
    "sge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}


@rule("arith.cmpi")
def _compare_integers(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    x, y = operands
    predicate, t = op.attributes["predicate"], op.operand_types[0].element
    if isinstance(x, Uniform) and isinstance(y, Uniform) and x.known is not None and y.known is not None:
        fold = _FOLDED.get(predicate)
        if fold:
            return lanes.known(fold(x.known, y.known), "i1")
    if t == "i64" and predicate in ("slt", "sge") and isinstance(x, Ramp) and x.step == 1 and isinstance(y, Uniform):
        # One scalar difference, clamped to [0, width], in place of two vectors of 64-bit integers.
        width = str(b.width)
        with b.lanes(0):
            left = b.intrinsic("ssub.sat", t, y.ssa, x.base.ssa)
            left = b.intrinsic("smax", t, b.intrinsic("smin", t, left, width), "0")
            left = b.convert("trunc", "i64", "i32", left)
        return Vector(b.emit(f"icmp {predicate} {b.type('i32')} {b.iota('i32')}, {b.splat('i32', left)}"), "i1")
    return lanes.made(b, b.emit(f"icmp {predicate} {b.type(t)} {registers(b, x)}, {registers(b, y)}"), "i1")


# Floats.

_FLOAT = {
    "arith.addf": "fadd",
    "arith.subf": "fsub",
    "arith.mulf": "fmul",
    "arith.divf": "fdiv",
    "arith.remf": "frem",
    "tt.precise_divf": "fdiv",
}
_FLOAT_EXTREMES = {
    "arith.maxnumf": "maxnum",
    "arith.minnumf": "minnum",
    "arith.maximumf": "maximum",
    "arith.minimumf": "minimum",
}
_ROUNDINGS = {
    "math.floor": "floor",
    "math.ceil": "ceil",
    "math.sqrt": "sqrt",
    "tt.precise_sqrt": "sqrt",
    "math.absf": "fabs",
    "math.round": "round",
    "math.roundeven": "roundeven",
    "math.trunc": "trunc",
    "math.fma": "fma",
    "math.copysign": "copysign",
}


def floating(b: Emitter, element: str, operands: list[Lane], write: Callable[..., str]) -> Lane:
    """`write(element, *values)` on floats; types without arithmetic on the CPU are widened before, rounded after."""
    wide = types.computed(element)
    values = [floats.widened(b, element, registers(b, o))[0] for o in operands]
    found = write(wide, *values)
    return lanes.made(b, found if wide == element else floats.narrowed(b, element, found), element)


@rule(*_FLOAT)
def _float_arithmetic(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    # A multiply and an add may contract into one rounding, as with a GPU's FP fusion; nothing else may change.
    fused = " contract" if b.fusion and op.name in ("arith.addf", "arith.subf", "arith.mulf") else ""
    name = _FLOAT[op.name] + fused
    return floating(b, _result(op), operands, lambda t, *values: b.op(name, t, *values))


@rule(*_FLOAT_EXTREMES)
def _float_extreme(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    name = _FLOAT_EXTREMES[op.name]
    return floating(b, _result(op), operands, lambda t, *values: b.intrinsic(name, t, *values))


@rule(*_ROUNDINGS)
def _rounding(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    name = _ROUNDINGS[op.name]
    return floating(b, _result(op), operands, lambda t, *values: b.intrinsic(name, t, *values))


@rule("arith.negf")
def _negate(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    return floating(b, _result(op), operands, lambda t, x: b.emit(f"fneg {b.type(t)} {x}"))


@rule("tt.clampf")
def _clamp(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    above, below = (
        ("maximum", "minimum") if "all" in str(op.attributes.get("propagateNan", "none")) else ("maxnum", "minnum")
    )
    return floating(
        b, _result(op), operands, lambda t, x, lo, hi: b.intrinsic(below, t, b.intrinsic(above, t, x, lo), hi)
    )


@rule("arith.cmpf")
def _compare_floats(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = op.operand_types[0].element
    x, y = (floats.widened(b, t, registers(b, o))[0] for o in operands)
    return lanes.made(b, b.compare(op.attributes["predicate"], types.computed(t), x, y), "i1")


def function(b: Emitter, name: str, element: str, operands: list[Lane]) -> Lane:
    return floating(b, element, operands, lambda t, *values: FUNCTIONS[name](b, t, *values))


_MATH = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "erf", "erfc", "sin", "cos", "tan", "rsqrt",
    "powf", "atan", "atan2", "asin", "acos", "sinh", "cosh", "cbrt",
)  # fmt: skip


@rule(*(f"math.{name}" for name in _MATH))
def _mathematics(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    name = op.name.removeprefix("math.")
    return function(b, {"powf": "pow"}.get(name, name), _result(op), operands)


# Conversions.

_INTEGER_CASTS = {
    "arith.extsi": "sext",
    "arith.extui": "zext",
    "arith.trunci": "trunc",
    "arith.index_cast": "sext",
    "arith.index_castui": "zext",
}


@rule(*_INTEGER_CASTS)
def _resize(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    (x,), source, t = operands, op.operand_types[0].element, _result(op)
    name = _INTEGER_CASTS[op.name]
    if types.bits(source) > types.bits(t):
        name = "trunc"
    if isinstance(x, Uniform) and x.known is not None:
        value = x.known & ((1 << types.bits(source)) - 1) if name == "zext" else x.known
        # A truth value is stored as 0 or 1, and sign-extends to 0 or -1.
        return lanes.known(-value if name == "sext" and source == "i1" else value, t)
    if (
        isinstance(x, Ramp)
        and name == "sext"
        and source != "i1"
        and (not isinstance(x.step, int) or abs(x.step) < 2**16)
    ):
        # Offsets that wrap within a vector address no memory; integers meant to wrap (hashes) have large steps.
        return Ramp(lanes.widen(b, x.base, t), lanes.step(b, x, t), t)
    return lanes.made(b, b.convert(name, source, t, registers(b, x)), t)


@rule("arith.sitofp", "arith.uitofp")
def _integer_to_float(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    source, t = op.operand_types[0].element, _result(op)
    wide = types.computed(t)
    if wide != t and types.bits(source) > 16:
        # 32 and 64 bits are rounded to a narrow float once: by way of float64, rounded to odd.
        value = b.convert(op.name.removeprefix("arith."), source, "f64", registers(b, operands[0]))
        return lanes.made(b, floats.converted(b, "f64", t, value), t)
    value = b.convert(op.name.removeprefix("arith."), source, wide, registers(b, operands[0]))
    return lanes.made(b, value if wide == t else floats.narrowed(b, t, value), t)


@rule("arith.fptosi", "arith.fptoui")
def _float_to_integer(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    source, t = op.operand_types[0].element, _result(op)
    value, wide = floats.widened(b, source, registers(b, operands[0]))
    # Out of range a GPU saturates, and NaN is 0; LLVM's plain conversion is poison there.
    name = f"llvm.{op.name.removeprefix('arith.')}.sat.{b.suffix(t)}.{b.suffix(wide)}"
    b.declare(name, b.type(t), b.type(wide))
    return lanes.made(b, b.emit(f"call {b.type(t)} @{name}({b.type(wide)} {value})"), t)


@rule("arith.extf", "arith.truncf", "tt.fp_to_fp")
def _float_to_float(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    source, t = op.operand_types[0].element, _result(op)
    if op.attributes.get("rounding") in ("rtz", 0) and types.bits(source) > types.bits(t):
        return lanes.made(b, floats.truncated(b, source, t, registers(b, operands[0])), t)
    return lanes.made(b, floats.converted(b, source, t, registers(b, operands[0])), t)


@rule("arith.bitcast", "tt.bitcast")
def _same_bits(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    (x,), source, t = operands, op.operand_types[0].element, _result(op)
    if types.is_pointer(t):
        same = types.size(types.pointee(source)) == types.size(types.pointee(t))
        if isinstance(x, Pointer) and (x.offset is None or same):
            return Pointer(x.base, x.offset, t)
        return Vector(registers(b, x), t)
    if isinstance(x, Uniform) and x.known is not None and not types.is_float(t) and not types.is_float(source):
        return lanes.known(x.known, t)
    return lanes.made(b, b.bitcast(source, t, registers(b, x)), t)


# Pointers and choices.


@rule("tt.addptr")
def _move(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    return lanes.moved(b, *operands)


@rule("tt.int_to_ptr")
def _to_pointer(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = _result(op)
    return lanes.made(b, b.emit(f"inttoptr {b.type('i64')} {registers(b, operands[0])} to {b.type(t)}"), t)


@rule("tt.ptr_to_int")
def _from_pointer(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    source = op.operand_types[0].element
    return lanes.made(b, b.emit(f"ptrtoint {b.type(source)} {registers(b, operands[0])} to {b.type('i64')}"), "i64")


@rule("arith.select")
def _choose(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    condition, yes, no = operands
    if isinstance(condition, Uniform) and condition.known is not None:
        return yes if condition.known else no
    t = _result(op)
    kind = b.type(t)
    chosen = f"i1 {condition.ssa}" if isinstance(condition, Uniform) else f"{b.type('i1')} {registers(b, condition)}"
    return lanes.made(b, b.emit(f"select {chosen}, {kind} {registers(b, yes)}, {kind} {registers(b, no)}"), t)


@rule("ub.poison")
def _undefined(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    return lanes.constant(0, _result(op))
