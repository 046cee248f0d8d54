"""atom and red: one lane after another.

Source: PTX ISA 8.7, sections 9.7.13.5, 9.7.13.6.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.memory import accessor
from gradlab.profiling.ptx.moves import parts
from gradlab.profiling.ptx.numbers import BITS, Array, from_bf16, meaning, to_bf16
from gradlab.profiling.ptx.program import Instruction

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": lambda old, bound: np.where(old >= bound, 0, old + 1).astype(old.dtype),
    "dec": lambda old, bound: np.where((old == 0) | (old > bound), bound, old - 1).astype(old.dtype),
}


@instruction("atom", "red")
def atomic(i: Instruction, m: Machine) -> Step:
    """`atom.sem.scope.space.op.type d, [a], b`; red has no result."""
    kind = i.opcode[-1]
    operands = list(i.operands)
    targets = [m.target(name, _bits(kind)) for name in parts(operands.pop(0))] if i.root == "atom" else []
    address = m.address(operands[0])
    operation = _OPERATIONS[next(part for part in i.opcode if part in _OPERATIONS)]
    sources = [[m.source(name, _bits(kind)) for name in parts(o)] for o in operands[1:3] if "cache" not in o]
    number, size = len(sources[0]), BITS[kind] // 8
    load = accessor(i, m, size, number, write=False)
    save = accessor(i, m, size, number, write=True)

    def run(lanes: Lanes) -> None:
        where, addresses = m.where(lanes), address(lanes)
        given = [[np.broadcast_to(part(lanes), where.shape) for part in source] for source in sources]
        old_values = [np.zeros(where.size, f"u{size}") for _ in range(number)]
        # Lanes with different addresses at once: the first of each, then the second, and so on.
        left = np.arange(where.size)
        while left.size:
            _, first = np.unique(_places(m, addresses, where, i)[left], return_index=True)
            now = left[np.sort(first)]
            old = load(addresses[now], where[now], None)
            new = [
                _raw(operation(_value(o, kind), *[_value(s[n][now], kind) for s in given]), kind)
                for n, o in enumerate(old)
            ]
            save(addresses[now], where[now], new)
            for whole, part in zip(old_values, old, strict=True):
                whole[now] = part
            left = np.setdiff1d(left, now)
        for write, values in zip(targets, old_values, strict=False):
            write(lanes, values)

    return run


def combined(operation: str, kind: str, old: Array, new: Array) -> Array:
    """The bits of what an operation makes of what was there and what comes."""
    return _raw(_OPERATIONS[operation](_value(old, kind), _value(new, kind)), kind)


def _places(m: Machine, addresses: Array, where: Array, i: Instruction) -> Array:
    """Addresses that differ where shared memory of different blocks does."""
    return m.shared.places(addresses, where) if i.has("shared", "shared::cta", "shared::cluster") else addresses


def _bits(kind: str) -> str:
    return f"b{BITS[kind]}"


def _value(raw: Array, kind: str) -> Array:
    """What the bits mean; of a pair, a last axis of two."""
    raw = np.ascontiguousarray(raw)
    if kind in ("f16x2", "bf16x2"):
        halves = raw.view(np.uint16).reshape(*raw.shape, 2)
        return from_bf16(halves) if kind == "bf16x2" else halves.view(np.float16)
    return from_bf16(raw) if kind == "bf16" else raw.view(meaning(kind))


def _raw(values: Array, kind: str) -> Array:
    if kind in ("f16x2", "bf16x2"):
        halves = to_bf16(values) if kind == "bf16x2" else values.astype(np.float16).view(np.uint16)
        return np.ascontiguousarray(halves).view(np.uint32)[..., 0]
    if kind == "bf16":
        return to_bf16(values)
    return np.ascontiguousarray(values, meaning(kind)).view(f"u{BITS[kind] // 8}")
