"""Codegen bounds: limits on an op's machine code, as data, that `gradlab inspect --check` checks."""

from dataclasses import dataclass

HALF = ("float16", "bfloat16")
# Facts of what is executed.
EXECUTED = ("tensor_share", "traffic")
# This CPU and others that `gradlab inspect` compiles for.
CPUS = ("native", "x86-64-v3", "sapphirerapids", "neoverse-v2")


@dataclass(frozen=True)
class Bound:
    """A limit on one number of some kernels' machine code; a field that is left out means all.

    Attributes:
        fact: the number: spill_bytes, registers, occupancy, tensor, copies, atomics, wide_loads, wide_stores, ..., or
            wide_share, the part of global loads and stores that move 128 bits a thread. On CPUs the prefix
            `inner_` counts innermost loops only; inner_share is the part of their loads and stores that move several
            elements, inner_width the part of a vector register that their widest instruction uses. What a launch's
            first program executes tells on torch: tensor_share, the cycles of tensor cores of those of the part of a
            multiprocessor that needs the most; traffic, the bytes of the sectors that all programs touch, each
            program's once, of the least that the Spec states for the pass.
        least, most: the limits, either or both; a kernel without the number passes.
        kernels: names, without `_` and `_kernel`; each must be among the op's.
        sides, dtypes, archs: where it applies; without archs on sm_80 and sm_90.
        case: which case's launches; the op's largest when not given.
        per: axes, as "M V": the fact is `instructions`, of threads, that all programs execute in machine code, over
            the product of these sizes of the case. As above, by the first program.
    """

    fact: str
    least: float | None = None
    most: float | None = None
    kernels: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    archs: tuple[str, ...] = ("sm_80", "sm_90")
    case: str = ""
    per: str = ""

    @property
    def executed(self) -> bool:
        """Whether it speaks of what is executed, not of the code as it stands."""
        return bool(self.per) or self.fact in EXECUTED

    def holds(self, value: float | None) -> bool:
        """Whether a number is within the limits."""
        if value is None:
            return True
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most == 0:
            return f"no {self.fact}"
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        fact = f"{self.fact} per {self.per}" if self.per else self.fact
        return f"{fact} {' and '.join(bounds)}"


NO_SPILLS = Bound("spill_bytes", most=0)
# Same inputs, same bits; a block that fits on no multiprocessor cannot be launched; a CPU uses full vectors.
ALWAYS = (
    Bound("atomics", most=0),
    Bound("blocks", least=1),
    Bound("atomics", most=0, archs=CPUS),
    Bound("inner_width", least=1, archs=CPUS),
)


def spills(float32: int = 0, float64: int = 0) -> tuple[Bound, ...]:
    """No spills in half precision, at most these bytes in float32 and float64: ptxas spills a little for occupancy."""
    bounds = {HALF: 0, ("float32",): float32, ("float64",): float64}
    return tuple(Bound("spill_bytes", most=most, dtypes=dtypes) for dtypes, most in bounds.items())


def tensor_cores(*kernels: str) -> tuple[Bound, ...]:
    """Matmuls run on tensor cores in half precision, and never in TF32: none of their instructions in float32."""
    return (
        Bound("tensor", least=1, kernels=kernels, dtypes=HALF),
        Bound("tensor", most=0, kernels=kernels, dtypes=("float32",)),
    )


def streams(*kernels: str, share: float = 1.0, sides: tuple[str, ...] = (), dtypes: tuple[str, ...] = ()) -> Bound:
    """At least this share of the kernels' global loads and stores is 128 bits wide; sizes are multiples of 16."""
    return Bound("wide_share", least=share, kernels=kernels, sides=sides, dtypes=dtypes)


def in_vectors(*kernels: str, but: tuple[str, ...] = ()) -> tuple[Bound, ...]:
    """On a CPU the kernels' innermost loops have no scalar float arithmetic, no gathers and no scatters.

    Args:
        but: the kernels that may gather or scatter.
    """
    dense = tuple(kernel for kernel in kernels if kernel not in but)
    return (
        Bound("inner_scalars", most=0, kernels=kernels, archs=CPUS),
        *(
            # AVX2 has no masked loads and stores of 16 bits: at an edge elements are moved one by one.
            Bound(fact, most=0, kernels=dense, archs=CPUS, dtypes=("float64", "float32"))
            for fact in ("inner_gathers", "inner_scatters") * bool(dense)
        ),
    )


def unspilled(*kernels: str) -> Bound:
    """On a CPU the kernels' innermost loops spill no register."""
    return Bound("inner_spill_stores", most=0, kernels=kernels, archs=CPUS)


def fused(*kernels: str) -> tuple[Bound, ...]:
    """On a CPU matmuls use FMA instructions; in bfloat16 AMX, where the CPU has it."""
    return (
        Bound("products", least=4, kernels=kernels, archs=CPUS),
        Bound("tensor", least=1, kernels=kernels, archs=("sapphirerapids",), dtypes=("bfloat16",)),
    )
