"""What kind of instruction an opcode is, by the part of a multiprocessor that executes it."""

from collections.abc import Callable

from gradlab.profiling.ptx.numbers import BITS
from gradlab.profiling.ptx.program import Instruction

# Kinds in the order in which they are shown, with what is in them.
KINDS = {
    "integer": "integer arithmetic and logic",
    "multiply": "integer products",
    "compare": "comparisons, selections, minima and maxima",
    "float32": "float32 arithmetic",
    "half": "16-bit floating-point arithmetic",
    "float64": "float64 arithmetic",
    "special": "special functions: ex2, rcp, sqrt, tanh, ...",
    "convert": "conversions of types",
    "move": "moves and parameters, most of which are none in machine code",
    "load": "loads of global memory",
    "store": "stores to global memory",
    "copy": "asynchronous copies",
    "shared": "loads and stores of shared memory",
    "local": "loads and stores of local memory",
    "atomic": "atomic operations",
    "exchange": "shuffles, votes, reductions of a warp",
    "tensor": "tensor cores",
    "control": "branches",
    "barrier": "barriers, fences and waits",
}
_SHARED = ("shared", "shared::cta", "shared::cluster")
_HALF = ("f16", "bf16", "f16x2", "bf16x2")
_ROOTS = {
    "compare": ("setp", "set", "selp", "slct", "testp", "min", "max"),
    "special": ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"),
    "convert": ("cvt",),
    "move": ("mov", "cvta", "mapa", "createpolicy", "isspacep"),
    "load": ("ld", "ldu", "prefetch"),
    "store": ("st",),
    "atomic": ("atom", "red"),
    "exchange": ("shfl", "vote", "redux", "match", "elect", "activemask"),
    "tensor": ("mma", "wmma", "wgmma"),
    "shared": ("ldmatrix", "stmatrix", "movmatrix"),
    "control": ("bra", "brx", "ret", "exit", "trap", "call"),
    "barrier": ("bar", "barrier", "fence", "membar", "mbarrier", "griddepcontrol", "setmaxnreg", "nanosleep"),
    "copy": ("cp",),
}
_KIND = {root: kind for kind, roots in _ROOTS.items() for root in roots}


def kind(i: Instruction) -> str:
    """One of `KINDS`."""
    found = _KIND.get(i.root)
    special = _SPECIAL.get(found or "")
    if special is not None:
        return special(i)
    return found or _arithmetic(i)


def waits(i: Instruction) -> bool:
    """Whether it ends, counts or orders what runs beside the threads, and starts nothing."""
    return i.has("commit_group", "wait_group", "wait_all", "fence", "commit", "wait", "mbarrier")


def bits(i: Instruction) -> int:
    """Bits of what an instruction works on: of its type."""
    return BITS.get(i.opcode[-1], 32)


def _memory(i: Instruction) -> str:
    if i.has("param", "const"):
        return "move"
    if i.has("local"):
        return "local"
    return "shared" if i.has(*_SHARED) else "store" if i.root == "st" else "load"


def _arithmetic(i: Instruction) -> str:
    """By the type, the last part of the opcode."""
    type_ = i.opcode[-1]
    if type_ == "f64":
        return "float64"
    if type_ in _HALF:
        return "half"
    if type_[0] == "f":
        return "special" if i.has("approx", "full") and i.root == "div" else "float32"
    return "multiply" if i.root in ("mul", "mad", "mul24", "mad24", "div", "rem") else "integer"


_SPECIAL: dict[str, Callable[[Instruction], str]] = {
    "load": _memory,
    "store": _memory,
    "tensor": lambda i: "barrier" if waits(i) else "tensor",
    "copy": lambda i: "barrier" if waits(i) else "copy",
}
