"""ld and st: of parameters, global, shared, local and generic addresses.

Source: PTX ISA 8.7, sections 9.7.9.8 to 9.7.9.12.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.blocks import Lanes
from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.local_memory import LocalMemory
from gradlab.profiling.ptx.machine import LOCAL_WINDOW, SHARED_WINDOW, Machine, Step
from gradlab.profiling.ptx.moves import parts
from gradlab.profiling.ptx.numbers import BITS, Array
from gradlab.profiling.ptx.program import Instruction

_PARAMETER = re.compile(r"^\[\s*([$\w]+)\s*(?:\+\s*(\d+)\s*)?\]$")


@instruction("ld", "ldu")
def load(i: Instruction, m: Machine) -> Step:
    """`ld.space.vec.type d, [a]`."""
    kind = i.opcode[-1] if i.opcode[-1][0] == "s" else f"b{BITS[i.opcode[-1]]}"
    size = BITS[kind] // 8
    names = parts(i.operands[0])
    writes = [m.target(name, kind) for name in names]
    match = _PARAMETER.match(i.operands[1])
    if i.has("param") and match and match[1] in m.arguments:
        value = _parameter(m.arguments[match[1]], int(match[2] or 0), size * len(names))
        ready = [np.frombuffer(value[n * size : (n + 1) * size], _dtype(kind))[0] for n in range(len(names))]

        def load_parameter(lanes: Lanes) -> None:
            for write, part in zip(writes, ready, strict=True):
                write(lanes, part)

        return load_parameter
    address = m.address(i.operands[1])
    access = accessor(i, m, size, len(names), write=False)

    def run(lanes: Lanes) -> None:
        for write, values in zip(writes, access(address(lanes), lanes, None), strict=True):
            write(lanes, values.view(_dtype(kind)))

    return run


@instruction("st")
def store(i: Instruction, m: Machine) -> Step:
    """`st.space.vec.type [a], b`."""
    size = BITS[i.opcode[-1]] // 8
    address = m.address(i.operands[0])
    reads = [m.source(name, f"b{8 * size}") for name in parts(i.operands[1])]
    access = accessor(i, m, size, len(reads), write=True)

    def run(lanes: Lanes) -> None:
        access(address(lanes), lanes, [read(lanes) for read in reads])

    return run


def accessor(
    i: Instruction, m: Machine, size: int, number: int, write: bool
) -> Callable[[Array, Lanes, list[Any] | None], list[Array]]:
    """What loads or stores `number` elements of `size` bytes at each address, in the space that the opcode names.

    Faulty lanes are noted; they load zeros, and store nothing.
    """
    if i.has("shared", "shared::cta", "shared::cluster"):
        return lambda addresses, lanes, values: _shared(i, m, addresses, lanes, size, number, values)
    if i.has("global"):
        return lambda addresses, lanes, values: _global(i, m, addresses, lanes, size, number, values)

    # What is handed to a function lies there too.
    if i.has("local", "param"):
        return lambda addresses, lanes, values: _local(i, m, addresses, lanes, size, number, values)

    def generic(addresses: Array, lanes: Lanes, values: list[Any] | None) -> list[Array]:
        shared = (addresses >= SHARED_WINDOW) & (addresses < LOCAL_WINDOW)
        local = addresses >= LOCAL_WINDOW
        spaces = ((~(shared | local), 0, _global), (shared, SHARED_WINDOW, _shared), (local, LOCAL_WINDOW, _local))
        where, found = m.where(lanes), [np.zeros(addresses.size, f"u{size}") for _ in range(number)]
        for mine, shift, run in spaces:
            if mine.all():
                return run(i, m, addresses - shift, lanes, size, number, values)
            if not mine.any():
                continue
            given = None if values is None else [np.broadcast_to(v, where.shape)[mine] for v in values]
            for part, got in zip(
                found, run(i, m, addresses[mine] - shift, where[mine], size, number, given), strict=False
            ):
                part[mine] = got
        return found

    return generic


def aligned(i: Instruction, m: Machine, addresses: Array, lanes: Lanes, size: int) -> Array | None:
    """Which addresses are multiples of what is accessed; None where all are, which a GPU demands."""
    wrong = addresses % size != 0
    if not wrong.any():
        return None
    first = np.flatnonzero(wrong)[0]
    m.fault(
        "misaligned address",
        i,
        f"address 0x{int(addresses[first]) % 2**64:x} is no multiple of {size} bytes",
        m.where(lanes)[wrong],
    )
    return ~wrong


def _global(
    i: Instruction, m: Machine, addresses: Array, lanes: Lanes, size: int, number: int, values: list[Any] | None
) -> list[Array]:
    whole = size * number
    right = aligned(i, m, addresses, lanes, whole)
    allowed = m.memory.allowed(addresses, whole)
    if allowed is not None:
        first = np.flatnonzero(~allowed)[0]
        what = "atomic operation on" if i.root in ("atom", "red") else "load of" if values is None else "store of"
        text = f"{what} {m.memory.describe(int(addresses[first]), whole)}"
        m.fault("out of bounds", i, text, m.where(lanes)[~allowed])
        right = allowed if right is None else allowed & right
    where = m.where(lanes)
    if right is not None:
        addresses, where = addresses[right], where[right]
    m.counts.global_access(i.index, addresses, where, whole, values is not None)
    found = []
    for n in range(number):
        at = addresses + n * size
        if values is None:
            got = m.memory.load(at, size)
            if right is not None:
                whole_width = np.zeros(right.size, got.dtype)
                whole_width[right] = got
                got = whole_width
            found.append(got)
        else:
            given = values[n]
            m.memory.store(at, size, given if right is None or np.ndim(given) == 0 else given[right])
    return found


def _shared(
    i: Instruction, m: Machine, addresses: Array, lanes: Lanes, size: int, number: int, values: list[Any] | None
) -> list[Array]:
    whole = size * number
    right = aligned(i, m, addresses, lanes, whole)
    allowed = m.shared.allowed(i, addresses, whole, lanes)
    if allowed is not None:
        right = allowed if right is None else allowed & right
    where = m.where(lanes)
    if right is not None:
        addresses, where = addresses[right], where[right]
        if values is not None:
            values = [given if np.ndim(given) == 0 else given[right] for given in values]
    m.counts.shared_access(i.index, addresses, where, whole, values is not None)
    if values is not None:
        m.shared.write(i, addresses, where, size, values)
        return []
    got = m.shared.read(i, addresses, where, size, number)
    if right is None:
        return got
    found = [np.zeros(right.size, f"u{size}") for _ in range(number)]
    for part, value in zip(found, got, strict=True):
        part[right] = value
    return found


def _local(
    i: Instruction, m: Machine, addresses: Array, lanes: Lanes, size: int, number: int, values: list[Any] | None
) -> list[Array]:
    memory, where, whole = m.part(LocalMemory), m.where(lanes), size * number
    right = aligned(i, m, addresses, lanes, whole)
    inside = memory.inside(addresses, whole)
    if inside is not None:
        text = f"byte {int(addresses[~inside][0])} of local memory, of which a thread has {memory.size}"
        m.fault("out of bounds", i, text, where[~inside])
        right = inside if right is None else inside & right
    chosen = slice(None) if right is None else right
    if values is not None:
        given = [np.broadcast_to(value, where.shape)[chosen] for value in values]
        memory.write(addresses[chosen], where[chosen], size, given)
        return []
    found = [np.zeros(where.size, f"u{size}") for _ in range(number)]
    for part, value in zip(found, memory.read(addresses[chosen], where[chosen], size, number), strict=True):
        part[chosen] = value
    return found


def _parameter(value: int | bytes, offset: int, size: int) -> bytes:
    data = value if isinstance(value, bytes) else (value % 2**64).to_bytes(8, "little")
    return data[offset : offset + size].ljust(size, b"\0")


def _dtype(kind: str) -> np.dtype:
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{BITS[kind] // 8}")
