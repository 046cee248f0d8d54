"""Integer and floating-point arithmetic: add, sub, mul, mad, fma, div, rem, min, max, abs, neg.

Source: PTX ISA 8.7, sections 9.7.1, 9.7.3, 9.7.4.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import MAKERS, instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import BITS, Array, from_bf16, is_float, meaning, to_bf16
from gradlab.profiling.ptx.program import Instruction
from gradlab.profiling.ptx.rounding import flushed, fma

_PLAIN: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_PAIRS = ("f16x2", "bf16x2", "f32x2", "s16x2", "u16x2")


@instruction("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "abs", "neg", "mul24", "mad24", "sad")
def arithmetic(i: Instruction, m: Machine) -> Step:
    """`op.type d, a, b, c`."""
    kind = i.opcode[-1]
    if i.has("cc"):
        return MAKERS["addc"](i, m)
    if kind in _PAIRS:
        return _pair(i, m, kind)
    if not is_float(kind):
        return _integer(i, m, kind)
    write, sources = m.target(i.operands[0], kind), [m.source(o, kind) for o in i.operands[1:]]
    compute = _float(i, kind)
    return lambda lanes: write(lanes, compute(*[source(lanes) for source in sources]))


def _float(i: Instruction, kind: str) -> Callable[..., Any]:
    """The operation on values of a type's meaning."""
    compute = _float_operation(i, kind)
    if i.has("ftz") and kind == "f32":
        inner = compute
        compute = lambda *values: flushed(inner(*map(flushed, values)))  # noqa: E731
    if i.has("sat"):
        unbounded = compute
        # A NaN saturates to zero.
        compute = lambda *values: np.nan_to_num(np.clip(unbounded(*values), 0, 1), nan=0.0)  # noqa: E731
    if i.has("relu"):
        signed = compute
        compute = lambda *values: np.where((v := signed(*values)) < 0, v.dtype.type(0), v)  # noqa: E731
    return compute


def _float_operation(i: Instruction, kind: str) -> Callable[..., Any]:
    root = i.root
    if root in _PLAIN:
        return _directed(i, _PLAIN[root], kind)
    if root in ("fma", "mad"):
        return lambda a, b, c: fma(a, b, c, kind)
    if root == "div":
        return np.divide
    if root in ("min", "max"):
        keeps = i.has("NaN")
        chosen = {("min", True): np.minimum, ("max", True): np.maximum, ("min", False): np.fmin}.get(
            (root, keeps), np.fmax
        )
        if i.has("xorsign"):
            return lambda a, b: np.copysign(chosen(np.abs(a), np.abs(b)), np.sign(a) * np.sign(b))
        return chosen
    return np.abs if root == "abs" else np.negative


def _directed(i: Instruction, operation: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Rounded to nearest, or in the direction that the instruction names."""
    if not i.has("rz", "rm", "rp") or kind != "f32":
        return operation
    way = next(part for part in i.opcode if part in ("rz", "rm", "rp"))

    def rounded(a: Any, b: Any) -> Any:
        exact = operation(np.asarray(a, np.float64), np.asarray(b, np.float64))
        near = exact.astype(np.float32)
        down, up = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
        low, high = np.where(near > exact, down, near), np.where(near < exact, up, near)
        return low if way == "rm" else high if way == "rp" else np.where(exact > 0, low, high)

    return rounded


def _pair(i: Instruction, m: Machine, kind: str) -> Step:
    """Two numbers in one register."""
    half = kind[:-2]
    bits = BITS[half]
    write, sources = m.target(i.operands[0], f"b{2 * bits}"), [m.source(o, f"b{2 * bits}") for o in i.operands[1:]]
    compute = _float(i, half) if is_float(half) else _INTEGER[i.root]
    raw = np.dtype(f"u{bits // 8}")

    def values(packed: Any, high: bool) -> Array:
        part = (np.asarray(packed) >> np.asarray(bits * high).astype(packed.dtype)).astype(raw)
        return from_bf16(part) if half == "bf16" else part.view(meaning(half))

    def back(computed: Array) -> Array:
        if half == "bf16":
            return to_bf16(computed).astype(f"u{bits // 4}")
        return np.ascontiguousarray(computed, meaning(half)).view(raw).astype(f"u{bits // 4}")

    def run(lanes: Lanes) -> None:
        packed = [source(lanes) for source in sources]
        low, high = (back(compute(*[values(p, part) for p in packed])) for part in (False, True))
        write(lanes, low | (high << high.dtype.type(bits)))

    return run


def _integer(i: Instruction, m: Machine, kind: str) -> Step:
    bits = BITS[kind]
    sources = [m.source(o, kind) for o in i.operands[1:]]
    wide = i.has("wide")
    result = f"{kind[0]}{2 * bits}" if wide else kind
    if i.root in ("mad", "mad24", "sad"):
        sources[2] = m.source(i.operands[3], result if i.root != "sad" else f"u{bits}")
    write = m.target(i.operands[0], result)
    if i.root in ("mul", "mad", "mul24", "mad24"):
        multiply = _wide(meaning(result)) if wide else product(kind, i)
        if i.root in ("mul", "mul24"):
            compute: Callable[..., Any] = multiply
        else:
            compute = lambda a, b, c: multiply(a, b) + c  # noqa: E731
    else:
        compute = _INTEGER[i.root]
    return lambda lanes: write(lanes, compute(*[source(lanes) for source in sources]))


def product(kind: str, i: Instruction) -> Callable[..., Any]:
    """The half of a product that an opcode names."""
    return _high(kind) if i.has("hi") else np.multiply


def _wide(dtype: np.dtype) -> Callable[..., Any]:
    return lambda a, b: np.asarray(a).astype(dtype) * np.asarray(b).astype(dtype)


def _high(kind: str) -> Callable[..., Any]:
    """The upper half of a product."""
    bits = BITS[kind]
    if bits < 64:
        double = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 4}")
        return lambda a, b: (_wide(double)(a, b) >> double.type(bits)).astype(meaning(kind))

    def high(a: Any, b: Any) -> Array:
        a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
        ua, ub = a.astype(np.uint64), b.astype(np.uint64)
        mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        low = (ua & mask) * (ub & mask)
        cross = (ua >> half) * (ub & mask) + (low >> half)
        other = (ua & mask) * (ub >> half) + (cross & mask)
        found = (ua >> half) * (ub >> half) + (cross >> half) + (other >> half)
        if kind[0] == "s":
            found = found - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
        return found.view(meaning(kind))

    return high


def _quotient(a: Any, b: Any) -> Array:
    """Towards zero; of a division by zero, all ones, as GPUs give."""
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    safe = np.where(b == 0, b.dtype.type(1), b)
    found = a // safe
    if a.dtype.kind == "i":
        found = found + ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~b.dtype.type(0), found)


def _remainder(a: Any, b: Any) -> Array:
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    return np.where(b == 0, a, a - _quotient(a, b) * b)


_INTEGER: dict[str, Callable[..., Any]] = {
    **_PLAIN,
    "div": _quotient,
    "rem": _remainder,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "neg": np.negative,
    "sad": lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)).astype(c.dtype),
}
