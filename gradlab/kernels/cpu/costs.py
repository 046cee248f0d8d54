"""Which operations are expensive: decides whether a lazy tensor is recomputed or stored to memory once."""

from collections.abc import Callable, Mapping

from gradlab.kernels.cpu.values import Value, chain

# Operations that cost more to repeat than to store and load the result.
EXPENSIVE = {
    "tt.load",
    "tt.reduce",
    "arith.divf",
    "tt.extern_elementwise",
    "tt.precise_divf",
    "tt.histogram",
    "tt.gather",
}
DIVISIONS = ("arith.div", "arith.rem")
EXPENSIVE_PREFIXES = (*DIVISIONS, "math.")
CHEAP_MATH = {"math.absf", "math.fma", "math.absi"}
TRANSCENDENTAL = {f"math.{name}" for name in ("exp", "exp2", "log", "log2", "tanh", "erf", "sin", "cos", "powf")}


def expensive(env: Mapping[str, Value], name: str) -> bool:
    """Whether computing a tensor takes longer than reading it from memory."""
    return _involves(
        env, name, lambda op: op in EXPENSIVE or (op.startswith(EXPENSIVE_PREFIXES) and op not in CHEAP_MATH)
    )


def transcendental(env: Mapping[str, Value], name: str) -> bool:
    """Whether computing a tensor takes a transcendental function."""
    return _involves(env, name, lambda op: op in TRANSCENDENTAL)


def _involves(env: Mapping[str, Value], name: str, wanted: Callable[[str], bool]) -> bool:
    return any(wanted(op.name) for op in chain(env, name))
