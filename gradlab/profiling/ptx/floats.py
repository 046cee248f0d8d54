"""ex2, lg2, sqrt, rsqrt, rcp, tanh, sin, cos: rounded to nearest, or as far off as is documented.

Source of the errors: PTX ISA 8.7, section 9.7.3, "Maximum Error" of each instruction.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradlab.profiling.ptx.instructions import instruction
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import Array, meaning
from gradlab.profiling.ptx.program import Instruction
from gradlab.profiling.ptx.rounding import flushed

_EXACT: dict[str, Callable[..., Any]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "rcp": lambda v: 1 / v,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}
# Of the approximate forms in float32: relative errors, absolute ones of lg2 near 1, sin and cos.
_RELATIVE = {"ex2": 2**-22, "sqrt": 2**-23, "rsqrt": 2**-22.9, "rcp": 2**-23, "tanh": 2**-11}
_ABSOLUTE = {"lg2": 2**-22, "sin": 2**-20.5, "cos": 2**-20.9}


@instruction(*_EXACT)
def special(i: Instruction, m: Machine) -> Step:
    """`op.approx.type d, a`."""
    kind = i.opcode[-1]
    write, read = m.target(i.operands[0], kind), m.source(i.operands[1], kind)
    compute, dtype = _EXACT[i.root], meaning(kind)
    approximate = i.has("approx") and kind == "f32" and not m.exact
    ftz = i.has("ftz") and kind == "f32"

    def run(lanes: Any) -> None:
        values = np.asarray(read(lanes))
        if ftz:
            values = flushed(values)
        exact = compute(values.astype(np.float64))
        if approximate:
            exact = _off(exact, i.root, values)
        found = exact.astype(dtype)
        write(lanes, flushed(found) if ftz else found)

    return run


def _off(exact: Array, root: str, values: Array) -> Array:
    """As far from the exact result as is documented, one way or the other by the operand's bits."""
    bits = values.view(np.uint32) * np.uint32(2654435761)
    sign = np.where(bits >> np.uint32(31), 1.0, -1.0)
    # What a GPU gives exactly: powers of two of integers, results that are zero or infinite.
    plain = (exact == 0) | ~np.isfinite(exact) | (np.log2(np.abs(np.where(exact == 0, 1, exact))) % 1 == 0)
    error = _RELATIVE[root] * np.abs(exact) if root in _RELATIVE else _ABSOLUTE[root]
    return np.where(plain, exact, exact + sign * error)
