"""A tensor's lanes at one place of a loop, and how much is known about them at compile time.

    Uniform    one scalar for all lanes, perhaps a compile-time constant
    Ramp       base + lane * step
    Vector     arbitrary lanes
    Shifted    arbitrary lanes plus a scalar: an inner loop moves the scalar, the lanes stay loop-invariant
    Pointer    an address: a base for all lanes plus an offset in elements, a ramp or a vector

Ramps make vector loads possible: the address of `x_ptr + first + arange` is a Pointer with a ramp of step 1.
"""

from typing import NamedTuple

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.emit import Emitter


class Uniform(NamedTuple):
    """One scalar; `known` is its value where it is a compile-time constant (integers and truth values)."""

    ssa: str
    element: str
    known: int | None = None


class Ramp(NamedTuple):
    """base + lane * step, integers of base's element type."""

    base: Uniform
    step: "int | Uniform"
    element: str


class Vector(NamedTuple):
    """A value for each lane."""

    ssa: str
    element: str


class Shifted(NamedTuple):
    """vector + by in every lane, integers of by's element type, modulo 2^bits."""

    vector: str
    by: Uniform
    element: str


class Pointer(NamedTuple):
    """base + offset elements of the pointee; no offset: every lane has the base. `element` is the pointer's type."""

    base: str
    offset: "Ramp | Vector | None"
    element: str


Lane = Uniform | Ramp | Vector | Shifted | Pointer


def known(value: int | bool, element: str) -> Uniform:
    """An integer constant."""
    wrapped = wrap(int(value), element)
    return Uniform(types.constant(wrapped, element), element, wrapped)


def constant(value: float, element: str) -> Uniform:
    """A constant of any type."""
    return Uniform(types.constant(value, element), element) if types.is_float(element) else known(int(value), element)


def wrap(value: int, element: str) -> int:
    """An integer wrapped to its type's bits: signed, except that a truth value is 0 or 1."""
    if element == "i1":
        return value & 1
    width = types.bits(element)
    return (value + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))


def is_scalar(*lanes: Lane) -> bool:
    """Whether all have one value for every lane."""
    return all(isinstance(x, Uniform) or (isinstance(x, Pointer) and x.offset is None) for x in lanes)


def made(b: Emitter, ssa: str, element: str) -> Lane:
    """An instruction's result at the current width."""
    if b.width:
        return Vector(ssa, element)
    return Pointer(ssa, None, element) if types.is_pointer(element) else Uniform(ssa, element)


def registers(b: Emitter, x: Lane) -> str:
    """The value as an LLVM value of the current width."""
    if isinstance(x, Vector):
        return x.ssa
    if isinstance(x, Uniform):
        return b.splat(x.element, x.ssa)
    if isinstance(x, Pointer):
        return addresses(b, x)
    if not b.width:
        raise AssertionError("a ramp has lanes")
    if isinstance(x, Shifted):
        return b.op("add", x.element, x.vector, b.splat(x.element, x.by.ssa))
    if isinstance(x.step, int):
        steps = b.vector(x.element, [wrap(i * x.step, x.element) for i in range(b.width)])
    else:
        steps = b.op("mul", x.element, b.splat(x.element, x.step.ssa), b.iota(x.element))
    if x.base.known == 0:
        return steps
    return b.op("add", x.element, b.splat(x.element, x.base.ssa), steps)


def addresses(b: Emitter, p: Pointer) -> str:
    """The address of each lane; one address in scalar code."""
    if p.offset is None:
        return b.splat(p.element, p.base)
    offset = registers(b, p.offset)
    kind = types.in_memory(types.pointee(p.element))
    return b.emit(f"getelementptr {kind}, ptr {p.base}, {b.type(p.offset.element)} {offset}")


def add(b: Emitter, x: Uniform, y: Uniform) -> Uniform:
    """x + y of scalars, modulo 2^bits."""
    if x.known == 0:
        return y
    if y.known == 0:
        return x
    if x.known is not None and y.known is not None:
        return known(x.known + y.known, x.element)
    with b.lanes(0):
        return Uniform(b.op("add", x.element, x.ssa, y.ssa), x.element)


def subtract(b: Emitter, x: Uniform, y: Uniform) -> Uniform:
    """x - y of scalars."""
    if y.known == 0:
        return x
    if x.known is not None and y.known is not None:
        return known(x.known - y.known, x.element)
    with b.lanes(0):
        return Uniform(b.op("sub", x.element, x.ssa, y.ssa), x.element)


def multiply(b: Emitter, x: Uniform, y: Uniform) -> Uniform:
    """x y of scalars."""
    if x.known == 1:
        return y
    if y.known == 1:
        return x
    if x.known == 0 or y.known == 0:
        return known(0, x.element)
    if x.known is not None and y.known is not None:
        return known(x.known * y.known, x.element)
    with b.lanes(0):
        return Uniform(b.op("mul", x.element, x.ssa, y.ssa), x.element)


def shifted(b: Emitter, x: Lane, y: Lane) -> Lane:
    """x + y of integers, one with lanes; a scalar part that loops move stays separate (`Emitter.across`)."""
    if not b.across:
        return Vector(b.op("add", x.element, registers(b, x), registers(b, y)), x.element)
    vectors, by = [], known(0, x.element)
    for part in (x, y):
        assert not isinstance(part, Pointer)
        if isinstance(part, Vector):
            vectors.append(part.ssa)
        elif isinstance(part, Shifted):
            vectors.append(part.vector)
            by = add(b, by, part.by)
        elif isinstance(part, Ramp):
            vectors.append(registers(b, Ramp(known(0, x.element), part.step, x.element)))
            by = add(b, by, part.base)
        else:
            by = add(b, by, part)
    total = vectors[0] if len(vectors) == 1 else b.op("add", x.element, *vectors)
    return Vector(total, x.element) if by.known == 0 else Shifted(total, by, x.element)


def widen(b: Emitter, x: Uniform, element: str) -> Uniform:
    """A scalar integer sign-extended."""
    if types.llvm(x.element) == types.llvm(element):
        return Uniform(x.ssa, element, x.known)
    if x.known is not None:
        return known(x.known, element)
    with b.lanes(0):
        return Uniform(b.convert("sext", x.element, element, x.ssa), element)


def step(b: Emitter, ramp: Ramp, element: str) -> "int | Uniform":
    """A ramp's step in another integer type."""
    return ramp.step if isinstance(ramp.step, int) else widen(b, ramp.step, element)


def as_uniform(value: "int | Uniform", element: str) -> Uniform:
    """A step as a scalar."""
    return known(value, element) if isinstance(value, int) else value


def moved(b: Emitter, p: Lane, offset: Lane) -> Lane:
    """The pointer `p` moved by `offset` elements."""
    element = p.element
    kind = types.in_memory(types.pointee(element))
    if isinstance(p, Vector):
        lanes = registers(b, offset)
        return Vector(
            b.emit(f"getelementptr {kind}, {b.type(element)} {p.ssa}, {b.type(offset.element)} {lanes}"), element
        )
    if not isinstance(p, Pointer):
        raise AssertionError(f"a pointer is {p}")
    if isinstance(offset, Uniform):
        return Pointer(_step_base(b, p.base, kind, offset), p.offset, element)
    if isinstance(offset, Shifted):
        # Offsets that wrap in a lane address no memory.
        p = Pointer(_step_base(b, p.base, kind, offset.by), p.offset, element)
        offset = Vector(offset.vector, offset.element)
    if isinstance(offset, Ramp):
        base = _step_base(b, p.base, kind, offset.base)
        flat = Ramp(known(0, "i64"), step(b, offset, "i64"), "i64")
        if p.offset is None:
            return Pointer(base, flat, element)
        if isinstance(p.offset, Ramp):
            return Pointer(base, _sum(b, flat, p.offset), element)
        offset, p = flat, Pointer(base, p.offset, element)
    assert not isinstance(offset, Pointer)
    if p.offset is None:
        return Pointer(p.base, offset, element)
    total = b.op("add", "i64", _as_i64(b, p.offset), _as_i64(b, offset))
    return Pointer(p.base, Vector(total, "i64"), element)


def _step_base(b: Emitter, base: str, kind: str, offset: Uniform) -> str:
    if offset.known == 0:
        return base
    with b.lanes(0):
        return b.emit(f"getelementptr {kind}, ptr {base}, {types.llvm(offset.element)} {offset.ssa}")


def _sum(b: Emitter, x: Ramp, y: Ramp) -> Ramp:
    """The sum of two i64 ramps from 0."""
    if isinstance(x.step, int) and isinstance(y.step, int):
        return Ramp(x.base, x.step + y.step, "i64")
    return Ramp(x.base, add(b, as_uniform(x.step, "i64"), widen(b, as_uniform(y.step, "i64"), "i64")), "i64")


def _as_i64(b: Emitter, x: Lane) -> str:
    return b.convert("sext", x.element, "i64", registers(b, x))
