"""Functions of CUDA's device library, which `triton.language.extra.libdevice` calls by name."""

from collections.abc import Callable

from gradlab.kernels.cpu import floats, lanes
from gradlab.kernels.cpu.elementwise import floating, function, rule
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.mathematics import FUNCTIONS
from gradlab.kernels.cpu.ttir import Operation

_INTRINSICS = {
    "fabs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint",
    "nearbyint": "nearbyint", "round": "round", "fma": "fma", "fmax": "maxnum", "fmin": "minnum",
    "copysign": "copysign",
}  # fmt: skip


@rule("tt.extern_elementwise")
def call(b: Emitter, op: Operation, operands: list[Lane]) -> Lane:
    """A function by CUDA's name: `__nv_expf`, `__nv_fast_expf`, `__nv_isnand`, `__nv_fsqrt_rn`."""
    symbol, t = str(op.attributes["symbol"]), op.type.element
    if symbol.startswith("__nv_"):
        for name in _names(symbol.removeprefix("__nv_").removeprefix("fast_")):
            if name in _INTRINSICS:
                return _intrinsic(b, _INTRINSICS[name], t, operands)
            if name in FUNCTIONS:
                return function(b, name, t, operands)
            if name in _QUESTIONS:
                source = op.operand_types[0].element
                value, wide = floats.widened(b, source, registers(b, operands[0]))
                return lanes.made(b, b.convert("zext", "i1", t, _QUESTIONS[name](b, wide, value)), t)
    raise NotImplementedError(f"the library function {symbol} is not compiled for CPUs")


def _names(name: str) -> list[str]:
    """A function's name with and without what says its type or its rounding to nearest."""
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
    "isnan": _is_nan, "isinf": _is_infinite, "isfinite": _is_finite, "finite": _is_finite, "signbit": _is_signed,
}  # fmt: skip
