"""Functions of CUDA's device library on integers, on bits, and between integers and floats."""

from collections.abc import Callable

from gradlab.kernels.cpu import floats, lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.ttir import Operation

Function = Callable[[Emitter, Operation, list[Lane]], Lane]
_ROUNDINGS = {"rn": "roundeven", "rz": "trunc", "rd": "floor", "ru": "ceil"}
_INTEGERS = {"int": "i32", "uint": "i32", "ll": "i64", "ull": "i64"}


def _counted(name: str) -> Function:
    """How many bits are set, or lead; an i32 whatever the operand's size."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        t, result = op.operand_types[0].element, op.type.element
        found = b.intrinsic(name, t, registers(b, operands[0]), extra="i1 false" if name == "ctlz" else "")
        return lanes.made(b, b.convert("trunc", t, result, found), result)

    return write


def _reversed(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = op.type.element
    return lanes.made(b, b.intrinsic("bitreverse", t, registers(b, operands[0])), t)


def _first_set(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """The place of the lowest bit that is set, counted from 1; 0 of 0."""
    t, result, x = op.operand_types[0].element, op.type.element, registers(b, operands[0])
    place = b.op("add", t, b.intrinsic("cttz", t, x, extra="i1 false"), b.constant(1, t))
    found = b.select(b.compare("eq", t, x, b.constant(0, t)), t, b.constant(0, t), place)
    return lanes.made(b, b.convert("trunc", t, result, found), result)


def _absolute(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    t = op.type.element
    return lanes.made(b, b.intrinsic("abs", t, registers(b, operands[0]), extra="i1 false"), t)


def _high(extension: str) -> Function:
    """The upper half of a product."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        t = op.type.element
        bits = types.bits(t)
        wide = f"<{b.width} x i{2 * bits}>" if b.width else f"i{2 * bits}"
        x, y = (b.emit(f"{extension} {b.type(t)} {registers(b, o)} to {wide}") for o in operands)
        product = b.emit(f"mul {wide} {x}, {y}")
        by = f"splat (i{2 * bits} {bits})" if b.width else str(bits)
        high = b.emit(f"lshr {wide} {product}, {by}")
        return lanes.made(b, b.emit(f"trunc {wide} {high} to {b.type(t)}"), t)

    return write


def _half_sum(up: int, extension: str) -> Function:
    """(x + y + up) / 2 without overflow."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        t = op.type.element
        x, y = (b.convert(extension, t, "i64", registers(b, o)) for o in operands)
        total = b.op("add", "i64", b.op("add", "i64", x, y), b.constant(up, "i64"))
        half = b.op("ashr", "i64", total, b.constant(1, "i64"))
        return lanes.made(b, b.convert("trunc", "i64", t, half), t)

    return write


def _low_product(extend: str) -> Function:
    """The low 32 bits of the product of the low 24 bits."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        by = b.constant(8, "i32")
        x, y = (b.op(extend, "i32", b.op("shl", "i32", registers(b, o), by), by) for o in operands)
        return lanes.made(b, b.op("mul", "i32", x, y), "i32")

    return write


def _same_bits(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    source, t = op.operand_types[0].element, op.type.element
    return lanes.made(b, b.bitcast(source, t, registers(b, operands[0])), t)


def _to_integer(rounding: str, signed: bool) -> Function:
    """A float rounded, then held within the integer's range; NaN is 0."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        source, t = op.operand_types[0].element, op.type.element
        value, wide = floats.widened(b, source, registers(b, operands[0]))
        name = f"llvm.fpto{'s' if signed else 'u'}i.sat.{b.suffix(t)}.{b.suffix(wide)}"
        b.declare(name, b.type(t), b.type(wide))
        return lanes.made(
            b, b.emit(f"call {b.type(t)} @{name}({b.type(wide)} {b.intrinsic(rounding, wide, value)})"), t
        )

    return write


def _from_integer(signed: bool) -> Function:
    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        source, t = op.operand_types[0].element, op.type.element
        return lanes.made(b, b.convert("sitofp" if signed else "uitofp", source, t, registers(b, operands[0])), t)

    return write


def _toward_zero(instruction: str) -> Function:
    """A product or a quotient of float32 rounded toward zero: in float64 nothing rounds it past a float32."""

    def write(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
        if op.type.element != "f32":
            raise NotImplementedError(f"{instruction} of {op.type.element} rounded toward zero")
        x, y = (b.convert("fpext", "f32", "f64", registers(b, o)) for o in operands)
        return lanes.made(b, floats.truncated(b, "f64", "f32", b.op(instruction, "f64", x, y)), "f32")

    return write


def _conversions() -> dict[str, Function]:
    found: dict[str, Function] = {}
    for name in _INTEGERS:
        signed = not name.startswith("u")
        for source in ("float", "double"):
            for suffix, rounding in _ROUNDINGS.items():
                found[f"{source}2{name}_{suffix}"] = _to_integer(rounding, signed)
            found[f"{name}2{source}_rn"] = _from_integer(signed)
    for suffix in ("", "f"):
        found[f"llrint{suffix}"] = _to_integer("roundeven", True)
        found[f"llround{suffix}"] = _to_integer("round", True)
    return found


INTEGERS: dict[str, Function] = {
    "popc": _counted("ctpop"), "popcll": _counted("ctpop"), "clz": _counted("ctlz"), "clzll": _counted("ctlz"),
    "brev": _reversed, "brevll": _reversed, "ffs": _first_set, "ffsll": _first_set, "abs": _absolute,
    "llabs": _absolute, "mulhi": _high("sext"), "mul64hi": _high("sext"), "umulhi": _high("zext"),
    "umul64hi": _high("zext"), "hadd": _half_sum(0, "sext"), "rhadd": _half_sum(1, "sext"),
    "uhadd": _half_sum(0, "zext"), "urhadd": _half_sum(1, "zext"), "mul24": _low_product("ashr"),
    "umul24": _low_product("lshr"), "fdiv_rz": _toward_zero("fdiv"), "fmul_rz": _toward_zero("fmul"),
    **dict.fromkeys(("float_as_int", "float_as_uint", "int_as_float", "uint_as_float", "double_as_longlong",
                     "longlong_as_double"), _same_bits),
    **_conversions(),
}  # fmt: skip
