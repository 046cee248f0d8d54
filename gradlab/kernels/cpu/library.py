"""Functions of CUDA's device library, which `triton.language.extra.libdevice` calls by name."""

from collections.abc import Callable

from gradlab.kernels.cpu import floats, lanes
from gradlab.kernels.cpu.elementwise import floating, function, rule
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.library_c import C_FUNCTIONS, c_function
from gradlab.kernels.cpu.library_integers import INTEGERS
from gradlab.kernels.cpu.mathematics import FUNCTIONS, SPECIAL
from gradlab.kernels.cpu.ttir import Operation

_INTRINSICS = {
    "fabs": "fabs",
    "sqrt": "sqrt",
    "floor": "floor",
    "ceil": "ceil",
    "trunc": "trunc",
    "rint": "rint",
    "nearbyint": "nearbyint",
    "round": "round",
    "fma": "fma",
    "fmax": "maxnum",
    "fmin": "minnum",
    "copysign": "copysign",
}


@rule("tt.extern_elementwise")
def call(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """A function by CUDA's name: `__nv_expf`, `__nv_fast_expf`, `__nv_isnand`, `__nv_fsqrt_rn`."""
    symbol, t = str(op.attributes["symbol"]), op.type.element
    if symbol.startswith("__nv_"):
        for name in _names(symbol.removeprefix("__nv_").removeprefix("fast_")):
            if name in INTEGERS:
                return INTEGERS[name](b, op, operands)
            if name in _INTRINSICS:
                return _intrinsic(b, _INTRINSICS[name], t, operands)
            if name in FUNCTIONS:
                return function(b, name, t, operands)
            if name in SPECIAL:
                return floating(b, t, operands, lambda wide, *values, name=name: SPECIAL[name](b, wide, *values))
            if name in _FORMULAS:
                return floating(b, t, operands, lambda wide, *values, name=name: _FORMULAS[name](b, wide, *values))
            if name == "powi":
                return _whole_power(b, op, operands)
            if name in C_FUNCTIONS:
                return c_function(b, name, op, operands)
            if name in _QUESTIONS:
                source = op.operand_types[0].element
                value, wide = floats.widened(b, source, registers(b, operands[0]))
                return lanes.made(b, b.convert("zext", "i1", t, _QUESTIONS[name](b, wide, value)), t)
    raise NotImplementedError(f"the library function {symbol} is not compiled for CPUs")


def _names(name: str) -> list[str]:
    """A function's name with and without the affixes for its type and for rounding to nearest."""
    plain = name.removesuffix("_rn")
    return [
        name,
        plain,
        plain.removesuffix("f"),
        plain.removesuffix("d"),
        plain.removeprefix("f"),
        plain.removeprefix("d"),
    ]


def _intrinsic(b: Emitter, name: str, t: str, operands: list[Lane]) -> Lane:
    return floating(b, t, operands, lambda wide, *values: b.intrinsic(name, wide, *values))


def _whole_power(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """x^n for an integer n."""
    t = op.type.element
    n = b.convert("sitofp", "i32", "f64", registers(b, operands[1]))
    x = floats.converted(b, t, "f64", registers(b, operands[0]))
    return lanes.made(b, floats.converted(b, "f64", t, FUNCTIONS["pow"](b, "f64", x, n)), t)


def _arithmetic(instruction: str) -> Callable[..., str]:
    return lambda b, t, *values: b.op(instruction, t, *values)


def _reciprocal(b: Emitter, t: str, x: str) -> str:
    return b.op("fdiv", t, b.constant(1.0, t), x)


def _exp10(b: Emitter, t: str, x: str) -> str:
    return FUNCTIONS["pow"](b, t, b.constant(10.0, t), x)


def _difference(b: Emitter, t: str, x: str, y: str) -> str:
    """x - y where that is positive, else 0; NaN of NaN."""
    behind = b.compare("ole", t, x, y)
    return b.select(behind, t, b.constant(0.0, t), b.op("fsub", t, x, y))


def _saturated(b: Emitter, t: str, x: str) -> str:
    """Clamped to [0, 1]; NaN becomes 0."""
    return b.intrinsic("minnum", t, b.intrinsic("maxnum", t, x, b.constant(0.0, t)), b.constant(1.0, t))


def _inverse(name: str) -> Callable[..., str]:
    return lambda b, t, *values: _reciprocal(b, t, FUNCTIONS[name](b, t, *values))


def _of_pi(name: str) -> Callable[..., str]:
    """sin or cos of pi x: x is reduced by its period exactly, before it is multiplied by pi."""

    def write(b: Emitter, t: str, x: str) -> str:
        half = b.op("fmul", t, x, b.constant(0.5, t))
        turn = b.intrinsic("roundeven", t, half)
        rest = b.op("fsub", t, x, b.op("fmul", t, turn, b.constant(2.0, t)))
        wide = b.convert("fpext", t, "f64", rest) if t == "f32" else rest
        value = FUNCTIONS[name](b, "f64", b.op("fmul", "f64", wide, b.constant(3.141592653589793, "f64")))
        return b.convert("fptrunc", "f64", "f32", value) if t == "f32" else value

    return write


# By name without the suffix `_rn` and the prefix f or d: `__nv_fadd_rn` is `add`.
_FORMULAS: dict[str, Callable[..., str]] = {
    "add": _arithmetic("fadd"),
    "sub": _arithmetic("fsub"),
    "mul": _arithmetic("fmul"),
    "div": _arithmetic("fdiv"),
    "fdividef": _arithmetic("fdiv"),
    "rcp": _reciprocal,
    "exp10": _exp10,
    "fdim": _difference,
    "saturate": _saturated,
    "rcbrt": _inverse("cbrt"),
    "rhypot": _inverse("hypot"),
    "sinpi": _of_pi("sin"),
    "cospi": _of_pi("cos"),
}


def _is_nan(b: Emitter, t: str, x: str) -> str:
    return b.compare("uno", t, x, x)


def _is_infinite(b: Emitter, t: str, x: str) -> str:
    return b.compare("oeq", t, b.intrinsic("fabs", t, x), b.constant(float("inf"), t))


def _is_finite(b: Emitter, t: str, x: str) -> str:
    return b.compare("olt", t, b.intrinsic("fabs", t, x), b.constant(float("inf"), t))


def _is_signed(b: Emitter, t: str, x: str) -> str:
    word = "i64" if t == "f64" else "i32"
    return b.compare("slt", word, b.bitcast(t, word, x), b.constant(0, word))


_QUESTIONS: dict[str, Callable[[Emitter, str, str], str]] = {
    "isnan": _is_nan,
    "isinf": _is_infinite,
    "isfinite": _is_finite,
    "finite": _is_finite,
    "signbit": _is_signed,
}
