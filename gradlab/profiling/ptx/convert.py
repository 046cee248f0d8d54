"""cvt: between integers and floating-point numbers of all widths, with their roundings.

Source: PTX ISA 8.7, section 9.7.9.21.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import Array, from_bf16, is_float, meaning, to_bf16
from gradlab.profiling.ptx.program import Instruction
from gradlab.profiling.ptx.rounding import flushed, odd_bf16
from gradlab.profiling.ptx.small_floats import SMALL, decode, encode

_TO_INTEGER: dict[str, Callable[..., Any]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_PAIRS = {"f16x2": "f16", "bf16x2": "bf16", "e4m3x2": "e4m3", "e5m2x2": "e5m2"}


@instruction("cvt")
def convert(i: Instruction, m: Machine) -> Step:
    """`cvt.round.d.a d, a`; of pairs, `cvt.round.f16x2.f32 d, high, low`."""
    result, kind = i.opcode[-2:]
    if _PAIRS.get(kind) in SMALL:
        return unpack_small(i, m)
    if result in _PAIRS:
        return _to_pair(i, m, _PAIRS[result], kind)
    write, read = m.target(i.operands[0], result), m.source(i.operands[1], kind)
    compute = one(i, result, kind)
    return lambda lanes: write(lanes, compute(read(lanes)))


def one(i: Instruction, result: str, kind: str) -> Callable[[Any], Any]:
    """The conversion of one number."""
    way = next((_TO_INTEGER[part] for part in i.opcode if part in _TO_INTEGER), None)
    if is_float(kind) and not is_float(result):
        return _to_integer(result, way or np.trunc)
    if not is_float(result):
        return _saturated(result) if i.has("sat") else lambda v: v
    compute = _to_float(i, result, kind, way)
    if i.has("relu"):
        signed = compute
        compute = lambda v: np.where((r := signed(v)) < 0, r.dtype.type(0), r)  # noqa: E731
    if i.has("sat"):
        unbounded = compute
        compute = lambda v: np.nan_to_num(np.clip(unbounded(v), 0, 1), nan=0.0)  # noqa: E731
    if i.has("ftz"):
        plain = compute
        compute = lambda v: flushed(plain(flushed(v) if kind == "f32" else v))  # noqa: E731
    return compute


def _to_float(i: Instruction, result: str, kind: str, way: Any) -> Callable[[Any], Any]:
    dtype = meaning(result)
    if way is not None and is_float(kind):
        return lambda v: way(v).astype(dtype)
    if result == "tf32":
        return _to_tf32
    if result == "bf16":
        if i.has("rz"):
            return lambda v: from_bf16((np.asarray(v, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16))
        if kind == "f32":
            return lambda v: v
        return lambda v: odd_bf16(np.asarray(v, np.float64))
    if i.has("rz", "rm", "rp"):
        direction = next(part for part in i.opcode if part in ("rz", "rm", "rp"))
        return lambda v: _toward(np.asarray(v), dtype, direction)
    return lambda v: np.asarray(v).astype(dtype)


def _to_tf32(values: Any) -> Array:
    """To nearest, ties away from zero: 10 bits behind the point."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def _toward(values: Array, dtype: np.dtype, direction: str) -> Array:
    near = values.astype(dtype)
    # Integers of 64 bits have no wider type to be compared in: longdouble holds them.
    exact, got = values.astype(np.longdouble), near.astype(np.longdouble)
    down, up = np.nextafter(near, dtype.type(-np.inf)), np.nextafter(near, dtype.type(np.inf))
    low, high = np.where(got > exact, down, near), np.where(got < exact, up, near)
    return low if direction == "rm" else high if direction == "rp" else np.where(exact > 0, low, high)


def _to_integer(result: str, way: Callable[..., Any]) -> Callable[[Any], Array]:
    """Rounded to an integer, and to the nearest that the type has; a NaN is 0."""
    info = np.iinfo(meaning(result))

    def compute(values: Any) -> Array:
        rounded = way(np.asarray(values, np.float64))
        low, high = rounded <= info.min, rounded >= info.max
        plain = np.where(low | high | np.isnan(rounded), 0, rounded).astype(meaning(result))
        dtype = meaning(result).type
        return np.where(low, dtype(info.min), np.where(high, dtype(info.max), plain))

    return compute


def _saturated(result: str) -> Callable[[Any], Array]:
    info = np.iinfo(meaning(result))

    def compute(values: Any) -> Array:
        values = np.asarray(values)
        # Compared as Python integers where the types differ in sign.
        low = values < info.min if values.dtype.kind == "i" else np.zeros(values.shape, bool)
        high = (
            values > np.uint64(info.max)
            if values.dtype.kind == "u"
            else (values > 0) & (values.astype(np.uint64) > np.uint64(info.max))
        )
        dtype = meaning(result).type
        return np.where(low, dtype(info.min), np.where(high, dtype(info.max), values.astype(dtype)))

    return compute


def _to_pair(i: Instruction, m: Machine, half: str, kind: str) -> Step:
    if kind in ("f16x2", "bf16x2"):
        return _to_small_pair(i, m, half, kind)
    write, high, low = m.target(i.operands[0], "b32"), m.source(i.operands[1], kind), m.source(i.operands[2], kind)
    if half in SMALL:
        write = m.target(i.operands[0], "b16")

        def small(lanes: Lanes) -> None:
            bits = [encode(np.asarray(part(lanes)), half, i.has("relu")).astype(np.uint16) for part in (high, low)]
            write(lanes, (bits[0] << np.uint16(8)) | bits[1])

        return small
    compute = one(i, half, kind)

    def bits_of(value: Any) -> Array:
        found = compute(value)
        raw = to_bf16(found) if half == "bf16" else np.ascontiguousarray(found, np.float16).view(np.uint16)
        return raw.astype(np.uint32)

    return lambda lanes: write(lanes, (bits_of(high(lanes)) << np.uint32(16)) | bits_of(low(lanes)))


def _to_small_pair(i: Instruction, m: Machine, half: str, kind: str) -> Step:
    """Two half-precision numbers to two of 8 bits."""
    write, read = m.target(i.operands[0], "b16"), m.source(i.operands[1], "b32")

    def run(lanes: Lanes) -> None:
        packed = np.asarray(read(lanes))
        found: Any = np.uint16(0)
        for place in (0, 1):
            part = (packed >> np.uint32(16 * place)).astype(np.uint16)
            values = from_bf16(part) if kind == "bf16x2" else part.view(np.float16)
            found = found | (encode(values, half, i.has("relu")).astype(np.uint16) << np.uint16(8 * place))
        write(lanes, found)

    return run


def unpack_small(i: Instruction, m: Machine) -> Step:
    """`cvt.rn.f16x2.e5m2x2`: two numbers of 8 bits to two of 16."""
    small = _PAIRS[i.opcode[-1]]
    write, read = m.target(i.operands[0], "b32"), m.source(i.operands[1], "b16")

    def run(lanes: Lanes) -> None:
        packed = np.asarray(read(lanes))
        found: Any = np.uint32(0)
        for place in (0, 1):
            values = decode((packed >> np.uint16(8 * place)).astype(np.uint8), small)
            found = found | (values.astype(np.float16).view(np.uint16).astype(np.uint32) << np.uint32(16 * place))
        write(lanes, found)

    return run
