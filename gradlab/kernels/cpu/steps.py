"""Strides of integer and address tensors along an axis, found from their operations: a stride of 1 is a vector load."""

from collections.abc import Mapping

from gradlab.kernels.cpu.lanes import Uniform
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Affine, Buffer, Lazy, Value

# A uniform step known only at run time; it is not 1, as Triton specialises arguments that are 1.
RUNTIME = -(2**40)

Env = Mapping[str, Value]
Found = dict[tuple[str, int], int | None]


def step(env: Env, name: str, axis: int, found: Found | None = None) -> int | None:
    """The step of a tensor along an axis: a number, RUNTIME, or None if it is not uniform or not known.

    Args:
        found: a memo of steps; without it the time would grow with the number of paths through the operations.
    """
    value = env.get(name)
    if isinstance(value, Affine):
        return step(env, value.start, axis, found)
    if isinstance(value, Buffer):
        return 0 if value.shape[axis] == 1 else None
    if not isinstance(value, Lazy):
        return 0
    found = {} if found is None else found
    if (name, axis) not in found:
        found[name, axis] = _step(env, value.op, axis, found)
    return found[name, axis]


def known(env: Env, name: str) -> int | None:
    """The constant that a scalar, or every element of a tensor, is; None if it is not a compile-time constant."""
    value = env.get(name)
    if isinstance(value, Uniform):
        return value.known
    if isinstance(value, Lazy):
        if value.op.name == "tt.splat":
            return known(env, value.op.operands[0])
        if value.op.name == "arith.constant":
            given = value.op.attributes["value"]
            return given if isinstance(given, int) else None
    return None


def _step(env: Env, op: Operation, axis: int, found: Found) -> int | None:
    name, operands = op.name, op.operands
    if name in ("tt.splat", "arith.constant"):
        return 0
    if name == "tt.make_range":
        return 1
    if name == "tt.expand_dims":
        added = op.attributes["axis"]
        return 0 if axis == added else step(env, operands[0], axis - (axis > added), found)
    if name == "tt.broadcast":
        return 0 if op.operand_types[0].shape[axis] == 1 else step(env, operands[0], axis, found)
    if name == "tt.trans":
        return step(env, operands[0], op.attributes["order"][axis], found)
    if name == "tt.reshape":
        return None if op.result_types[0].shape[axis] != 1 else 0
    if name in ("arith.extsi", "arith.extui", "arith.trunci", "tt.bitcast"):
        return step(env, operands[0], axis, found)
    if name == "tt.split":
        return None
    steps = [step(env, operand, axis, found) for operand in operands]
    if name in ("arith.addi", "tt.addptr", "arith.subi"):
        a, c = steps
        if c == 0 or (a == 0 and name != "arith.subi"):
            return a if c == 0 else c
        if a is None or c is None:
            return None
        if RUNTIME in (a, c):
            return RUNTIME
        return a - c if name == "arith.subi" else a + c
    if name == "arith.muli" and any(steps):
        for grows, fixed, by in ((steps[0], steps[1], operands[1]), (steps[1], steps[0], operands[0])):
            if grows and fixed == 0:
                factor = known(env, by)
                return RUNTIME if factor is None or grows == RUNTIME else grows * factor
        return None
    return 0 if not any(s != 0 for s in steps) else None
