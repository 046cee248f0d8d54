"""Bits, comparisons and choices: and, or, xor, not, shl, shr, shf, lop3, prmt, bfe, bfi, popc, setp, selp and others.

Source: PTX ISA 8.7, sections 9.7.1, 9.7.6 to 9.7.8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import BITS, Array, from_bf16, is_float, meaning
from gradlab.profiling.ptx.program import Instruction

_BITWISE: dict[str, Callable[..., Any]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
}
_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


def _compute(i: Instruction, m: Machine, kind: str, compute: Callable[..., Any], kinds: tuple[str, ...] = ()) -> Step:
    """A step that writes what `compute` gives for the sources; `kinds` where they are not all of the result's type."""
    write = m.target(i.operands[0], kind)
    sources = [m.source(o, k) for o, k in zip(i.operands[1:], kinds or (kind,) * 9, strict=False)]
    return lambda lanes: write(lanes, compute(*[source(lanes) for source in sources]))


@instruction("and", "or", "xor", "not")
def bitwise(i: Instruction, m: Machine) -> Step:
    """`op.type d, a, b`, of predicates too."""
    return _compute(i, m, i.opcode[-1], _BITWISE[i.root])


@instruction("cnot")
def logical_not(i: Instruction, m: Machine) -> Step:
    """d = a == 0."""
    return _compute(i, m, i.opcode[-1], lambda a: np.equal(a, 0).astype(a.dtype))


@instruction("shl", "shr")
def shift(i: Instruction, m: Machine) -> Step:
    """A shift past the width gives zero, or the sign."""
    kind = i.opcode[-1]
    bits, left = BITS[kind], i.root == "shl"

    def shifted(value: Any, by: Any) -> Array:
        value = np.asarray(value)
        capped = np.minimum(by, bits - 1).astype(value.dtype)
        found = value << capped if left else value >> capped
        return found if kind[0] == "s" and not left else np.where(by >= bits, value.dtype.type(0), found)

    return _compute(i, m, kind, shifted, (kind, "u32"))


@instruction("shf")
def funnel(i: Instruction, m: Machine) -> Step:
    """Shift of the 64 bits that two registers are; `.l` keeps the upper half, `.r` the lower."""
    clamp, left = i.has("clamp"), i.has("l")

    def shifted(low: Any, high: Any, by: Any) -> Array:
        by = (np.minimum(by, 32) if clamp else by & np.uint32(31)).astype(np.uint64)
        both = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | np.asarray(low).astype(np.uint64)
        found = (both << by) >> np.uint64(32) if left else both >> by
        return found.astype(np.uint32)

    return _compute(i, m, "b32", shifted)


@instruction("lop3")
def logic_of_three(i: Instruction, m: Machine) -> Step:
    """Any function of three bits, given as its table."""
    table = int(i.operands[4], 0)

    def compute(a: Any, b: Any, c: Any) -> Array:
        found: Any = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                parts = [v if row >> place & 1 else ~v for v, place in ((a, 2), (b, 1), (c, 0))]
                found = found | (parts[0] & parts[1] & parts[2])
        return np.asarray(found)

    return _compute(i, m, "b32", compute, ("b32",) * 3)


@instruction("prmt")
def permute(i: Instruction, m: Machine) -> Step:
    """Four bytes chosen out of eight; the fourth bit of a selector replicates the sign."""
    mode = i.opcode[2] if len(i.opcode) > 2 else ""
    if mode:
        raise KeyError(mode)

    def compute(a: Any, b: Any, selector: Any) -> Array:
        both = np.asarray(a).astype(np.uint64) | (np.asarray(b).astype(np.uint64) << np.uint64(32))
        found: Any = np.uint64(0)
        for byte in range(4):
            chosen = (np.asarray(selector).astype(np.uint64) >> np.uint64(4 * byte)) & np.uint64(15)
            value = (both >> ((chosen & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(value & np.uint64(128), np.uint64(255), np.uint64(0))
            found = found | (np.where(chosen & np.uint64(8), sign, value) << np.uint64(8 * byte))
        return np.asarray(found).astype(np.uint32)

    return _compute(i, m, "b32", compute)


@instruction("bfe")
def extract(i: Instruction, m: Machine) -> Step:
    """A field of bits, extended by zeros or by its sign."""
    kind = i.opcode[-1]
    bits, signed = BITS[kind], kind[0] == "s"
    raw = np.dtype(f"u{bits // 8}")

    def compute(value: Any, start: Any, length: Any) -> Array:
        value = np.asarray(value)
        start, length = (np.asarray(v).astype(np.int64) & 255 for v in (start, length))
        # Past the register are copies of its sign, or zeros.
        length = np.where(length == 0, 0, np.minimum(length, 64))
        found = value >> np.minimum(start, bits - 1).astype(value.dtype)
        if not signed:
            found = np.where(start >= bits, value.dtype.type(0), found)
        left = np.clip(bits - length, 0, bits - 1).astype(value.dtype)
        found = (found << left) >> left
        return np.where(length == 0, value.dtype.type(0), found).astype(meaning(kind)).view(raw)

    return _compute(i, m, f"b{bits}", compute, (kind, "u32", "u32"))


@instruction("bfi")
def insert(i: Instruction, m: Machine) -> Step:
    """d = b with the low bits of a put into a field."""
    kind = i.opcode[-1]
    bits = BITS[kind]

    def compute(field: Any, into: Any, start: Any, length: Any) -> Array:
        start, length = (np.minimum(np.asarray(v).astype(np.uint64) & np.uint64(255), 64) for v in (start, length))
        ones = np.where(length >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length, 63)) - np.uint64(1))
        mask = np.where(start >= 64, np.uint64(0), ones << np.minimum(start, 63))
        wide = (np.asarray(into).astype(np.uint64) & ~mask) | (
            (np.asarray(field).astype(np.uint64) << np.minimum(start, 63)) & mask
        )
        return wide.astype(f"u{bits // 8}")

    return _compute(i, m, kind, compute, (kind, kind, "u32", "u32"))


def _bits_of(value: Any) -> Array:
    """A last axis of bits, the lowest first."""
    value = np.ascontiguousarray(value)
    return np.unpackbits(value[..., None].view(np.uint8), axis=-1, bitorder="little")


def _highest(value: Any) -> Array:
    """Place of the highest bit that is set; -1 where none is."""
    bits = _bits_of(value)
    first = bits.shape[-1] - 1 - np.argmax(bits[..., ::-1], axis=-1)
    return np.where(bits.any(-1), first, -1)


@instruction("popc", "clz", "brev", "bfind")
def count(i: Instruction, m: Machine) -> Step:
    """Bits that are set, zeros above them, bits in reverse, the highest one."""
    kind = i.opcode[-1]
    width = BITS[kind]
    if i.root == "brev":
        reverse = lambda v: np.packbits(_bits_of(v)[..., ::-1], axis=-1, bitorder="little").view(v.dtype)[..., 0]  # noqa: E731
        return _compute(i, m, kind, reverse)
    # How far to shift it to the left, instead of where it is; -1 where there is none.
    last = np.int32(width - 1)
    found = (lambda at: np.where(at < 0, at, last - at)) if i.has("shiftamt") else (lambda at: at)
    compute: Callable[..., Any] = {
        "popc": lambda v: _bits_of(v).sum(-1, dtype=np.uint32),
        "clz": lambda v: (width - 1 - _highest(v)).astype(np.uint32),
        "bfind": lambda v: found(_highest(np.where(v < 0, ~v, v)).astype(np.int32)).view(np.uint32),
    }[i.root]
    return _compute(i, m, "u32", lambda v: compute(np.atleast_1d(v)), (kind,))


def _ordered(compare: str, kind: str) -> Callable[..., Any]:
    if compare == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if compare == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if is_float(kind) and compare.endswith("u") and compare[:-1] in _COMPARE:
        inner = _COMPARE[compare[:-1]]
        return lambda a, b: inner(a, b) | np.isnan(a) | np.isnan(b)
    inner = _COMPARE[compare]
    if is_float(kind) and compare == "ne":
        # Of a NaN only the unordered form is true.
        return lambda a, b: inner(a, b) & ~(np.isnan(a) | np.isnan(b))
    return inner


_COMBINE: dict[str, Callable[..., Any]] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@instruction("setp")
def set_predicate(i: Instruction, m: Machine) -> Step:
    """p|q = a compare b, combined with another predicate; q is its opposite, or the second number's of a pair."""
    kind, compare = i.opcode[-1], i.opcode[1]
    targets = [m.target(name.strip(), "pred") for name in i.operands[0].split("|")]
    combine = _COMBINE.get(i.opcode[2])
    other = m.source(i.operands[3], "pred") if combine else None
    if kind in ("f16x2", "bf16x2"):
        return _set_pair(i, m, kind, targets, _ordered(compare, kind[:-2]))
    a, b = (m.source(o, kind) for o in i.operands[1:3])
    test = _ordered(compare, kind)

    def run(lanes: Lanes) -> None:
        found = test(a(lanes), b(lanes))
        results = [found] if len(targets) == 1 else [found, ~found]
        for write, result in zip(targets, results, strict=True):
            write(lanes, combine(result, other(lanes)) if combine and other else result)

    return run


def _set_pair(i: Instruction, m: Machine, kind: str, targets: list[Any], test: Callable[..., Any]) -> Step:
    a, b = (m.source(o, "b32") for o in i.operands[1:3])

    def half(packed: Any, high: int) -> Array:
        part = (np.asarray(packed) >> np.uint32(16 * high)).astype(np.uint16)
        return from_bf16(part) if kind == "bf16x2" else part.view(np.float16)

    def run(lanes: Lanes) -> None:
        left, right = a(lanes), b(lanes)
        for high, write in enumerate(targets):
            write(lanes, test(half(left, high), half(right, high)))

    return run


@instruction("set")
def set_value(i: Instruction, m: Machine) -> Step:
    """d = a compare b, as all ones or as 1.0."""
    result, kind = i.opcode[-2:]
    test = _ordered(i.opcode[1], kind)
    true = 1.0 if is_float(result) else -1
    dtype = meaning(result)
    chosen = lambda a, b: np.where(test(a, b), np.asarray(true).astype(dtype), dtype.type(0))  # noqa: E731
    return _compute(i, m, result, chosen, (kind, kind))


@instruction("selp")
def select(i: Instruction, m: Machine) -> Step:
    """d = p ? a : b."""
    kind = f"b{BITS[i.opcode[-1]]}"
    return _compute(i, m, kind, lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"))


@instruction("slct")
def select_by_sign(i: Instruction, m: Machine) -> Step:
    """d = c >= 0 ? a : b."""
    kind = f"b{BITS[i.opcode[-2]]}"
    return _compute(i, m, kind, lambda a, b, c: np.where(c >= 0, a, b), (kind, kind, i.opcode[-1]))


@instruction("testp")
def test_property(i: Instruction, m: Machine) -> Step:
    """Whether a number is finite, infinite, a number, not one, normal or subnormal."""
    kind = i.opcode[-1]
    least = np.finfo(meaning(kind)).smallest_normal
    compute: Callable[..., Any] = {
        "finite": lambda v: np.isfinite(v),
        "infinite": lambda v: np.isinf(v),
        "number": lambda v: ~np.isnan(v),
        "notanumber": lambda v: np.isnan(v),
        "normal": lambda v: np.isfinite(v) & (np.abs(v) >= least),
        "subnormal": lambda v: (np.abs(v) < least) & (v != 0),
    }[i.opcode[1]]
    return _compute(i, m, "pred", compute, (kind,))


@instruction("copysign")
def copy_sign(i: Instruction, m: Machine) -> Step:
    """b with the sign of a."""
    return _compute(i, m, i.opcode[-1], lambda a, b: np.copysign(b, a))
