"""Rarely used functions of CUDA's device library that the C library has: called lane by lane, in float64."""

from gradlab.kernels.cpu import lanes, types
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.ttir import Operation

# Whether float32 may be computed in float64 and rounded; not so for functions of a float's neighbours (nextafter).
C_FUNCTIONS = {
    "lgamma": True,
    "tgamma": True,
    "j0": True,
    "j1": True,
    "y0": True,
    "y1": True,
    "jn": True,
    "yn": True,
    "remainder": True,
    "ilogb": True,
    "logb": True,
    "ldexp": True,
    "scalbn": True,
    "nextafter": False,
}


def c_function(b: Emitter, name: str, op: Operation, operands: list[Lane]) -> Lane:
    """A call for each lane."""
    given = [kind.element for kind in op.operand_types]
    result = op.type.element
    if any(t not in ("f32", "f64", "i32") for t in (*given, result)):
        raise NotImplementedError(f"the library function {name} of {', '.join(given)}")
    wide = C_FUNCTIONS[name]
    taken = ["f64" if t == "f32" and wide else t for t in given]
    gives = "f64" if result == "f32" and wide else result
    symbol = name if wide or "f32" not in given else f"{name}f"
    values = [
        b.convert("fpext", t, to, registers(b, x)) if t != to else registers(b, x)
        for t, to, x in zip(given, taken, operands, strict=True)
    ]
    b.declare(symbol, types.llvm(gives), ", ".join(types.llvm(t) for t in taken))
    found = _each_lane(b, symbol, gives, taken, values)
    return lanes.made(b, b.convert("fptrunc", gives, result, found) if gives != result else found, result)


def _each_lane(b: Emitter, symbol: str, gives: str, taken: list[str], values: list[str]) -> str:
    if not b.width:
        arguments = ", ".join(f"{types.llvm(t)} {value}" for t, value in zip(taken, values, strict=True))
        return b.emit(f"call {types.llvm(gives)} @{symbol}({arguments})")
    found, kind = "poison", b.type(gives)
    for lane in range(b.width):
        parts = [
            b.emit(f"extractelement {b.type(t)} {value}, i64 {lane}") for t, value in zip(taken, values, strict=True)
        ]
        with b.lanes(0):
            one = _each_lane(b, symbol, gives, taken, parts)
        found = b.emit(f"insertelement {kind} {found}, {types.llvm(gives)} {one}, i64 {lane}")
    return found
