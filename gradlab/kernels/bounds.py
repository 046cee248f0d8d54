"""What an op's compiled kernels keep, as data: `gradlab inspect --check` holds their machine code to it."""

from dataclasses import dataclass

HALF = ("float16", "bfloat16")
# This CPU and others that `gradlab inspect` compiles for.
CPUS = ("native", "x86-64-v3", "sapphirerapids", "neoverse-v2")


@dataclass(frozen=True)
class Promise:
    """A bound on a number of some kernels' machine code; a word that is left out holds for all.

    Attributes:
        fact: the number: spill_bytes, registers, occupancy, tensor, copies, atomics, wide_loads, wide_stores, ..., or
            wide_share, the part of global loads and stores that move 128 bits a thread. On CPUs those of the innermost
            loops have `inner_` in front; inner_share is the part of their loads and stores that move several elements,
            inner_width that of a vector register which their widest instruction works on.
        least, most: its bounds, either or both; what a kernel has no number for is not held to it.
        kernels: names, without `_` and `_kernel`; each must be among the op's.
        sides, dtypes, archs: where it is kept; without archs on sm_80 and sm_90.
        case: which case's launches; the op's largest when not given.
    """

    fact: str
    least: float | None = None
    most: float | None = None
    kernels: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    archs: tuple[str, ...] = ("sm_80", "sm_90")
    case: str = ""

    def holds(self, value: float | None) -> bool:
        """Whether a number lies within the bounds."""
        if value is None:
            return True
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most == 0:
            return f"no {self.fact}"
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        return f"{self.fact} {' and '.join(bounds)}"


NO_SPILLS = Promise("spill_bytes", most=0)
# Same inputs, same bits; a block that no multiprocessor holds cannot be launched; a CPU works on whole vectors.
ALWAYS = (
    Promise("atomics", most=0),
    Promise("blocks", least=1),
    Promise("atomics", most=0, archs=CPUS),
    Promise("inner_width", least=1, archs=CPUS),
)


def spills(float32: int = 0, float64: int = 0) -> tuple[Promise, ...]:
    """None in half precision, and no more bytes than these in full: ptxas gives up a register or two for occupancy."""
    bounds = {HALF: 0, ("float32",): float32, ("float64",): float64}
    return tuple(Promise("spill_bytes", most=most, dtypes=dtypes) for dtypes, most in bounds.items())


def tensor_cores(*kernels: str) -> tuple[Promise, ...]:
    """Products run on tensor cores in half precision, and never in TF32: float32 has none of their instructions."""
    return (
        Promise("tensor", least=1, kernels=kernels, dtypes=HALF),
        Promise("tensor", most=0, kernels=kernels, dtypes=("float32",)),
    )


def streams(*kernels: str, share: float = 1.0, sides: tuple[str, ...] = (), dtypes: tuple[str, ...] = ()) -> Promise:
    """That part of the kernels' global loads and stores move 128 bits, where sizes are multiples of 16."""
    return Promise("wide_share", least=share, kernels=kernels, sides=sides, dtypes=dtypes)


def in_vectors(*kernels: str, but: tuple[str, ...] = ()) -> tuple[Promise, ...]:
    """On a CPU nothing is computed on one float at a time in the kernels' innermost loops, and no lane loaded alone.

    Args:
        but: those of the kernels that gather or scatter lanes.
    """
    dense = tuple(kernel for kernel in kernels if kernel not in but)
    return (
        Promise("inner_scalars", most=0, kernels=kernels, archs=CPUS),
        *(
            # AVX2 leaves out no lanes of 16 bits: at an edge they are moved one by one.
            Promise(fact, most=0, kernels=dense, archs=CPUS, dtypes=("float64", "float32"))
            for fact in ("inner_gathers", "inner_scatters") * bool(dense)
        ),
    )


def unspilled(*kernels: str) -> Promise:
    """On a CPU no register goes to the stack in the kernels' innermost loops."""
    return Promise("inner_spill_stores", most=0, kernels=kernels, archs=CPUS)


def fused(*kernels: str) -> tuple[Promise, ...]:
    """On a CPU products are FMAs; in bfloat16 they are AMX's where it is there."""
    return (
        Promise("products", least=4, kernels=kernels, archs=CPUS),
        Promise("tensor", least=1, kernels=kernels, archs=("sapphirerapids",), dtypes=("bfloat16",)),
    )
