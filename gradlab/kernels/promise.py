"""What an op's compiled kernels keep, as data: `gradlab inspect --check` holds their machine code to it."""

from dataclasses import dataclass

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Promise:
    """A bound on a number of some kernels' machine code; a word that is left out holds for all.

    Attributes:
        fact: the number: spill_bytes, registers, occupancy, tensor, copies, atomics, wide_loads, wide_stores, ..., or
            wide_share, the part of global loads and stores that move 128 bits a thread.
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
# Same inputs, same bits; and a block that no multiprocessor holds cannot be launched.
ALWAYS = (Promise("atomics", most=0), Promise("blocks", least=1))


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
