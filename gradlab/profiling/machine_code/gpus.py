"""GPUs by name: multiprocessors, and the peak rates that bound a kernel's time."""

from collections.abc import Mapping
from dataclasses import dataclass

from gradlab.profiling.machine_code.targets import Target

DATASHEET = "datasheet"


@dataclass(frozen=True)
class Ceilings:
    """The peak rates of a GPU, and their source.

    Attributes:
        rates: dtype -> FLOP/s; of products whose sums are carried in float32 or better, dense, never TF32.
        bandwidth: bytes/s, read and written together.
        source: "datasheet", or what measured them.
    """

    rates: Mapping[str, float]
    bandwidth: float
    source: str = DATASHEET


@dataclass(frozen=True)
class Rates:
    """What one multiprocessor of an architecture does in a cycle: instructions of single threads, if nothing else said.

    Attributes:
        float32, float64: sums, products and both in one.
        half: of 16 bits; an instruction on a pair is one.
        integer: sums, logic, comparisons; multiply: products.
        special: ex2, rcp, ... and conversions, which are executed by the same units.
        tensor: FLOP of tensor cores by the dtype of their operands, dense.
        mma: the share of it that `mma.sync` reaches.
        schedulers: instructions of warps.
        shared: bytes of shared memory and L1.
    """

    float32: int
    float64: int
    half: int
    integer: int
    multiply: int
    tensor: Mapping[str, float]
    mma: float = 1.0
    special: int = 16
    schedulers: int = 4
    shared: int = 128


@dataclass(frozen=True)
class GPU:
    """A GPU.

    Attributes:
        arch: its architecture.
        multiprocessors: compute units on AMD.
        ceilings: the datasheet's.
        clock: Hz, the one that the datasheet's rate in half precision is for.
        l2: bytes that its L2 gives in a cycle; None if not known.
        memory: bytes.
    """

    name: str
    arch: str
    multiprocessors: int
    ceilings: Ceilings
    clock: float = 0.0
    l2: float | None = None
    memory: float = 0.0


@dataclass(frozen=True)
class Floor:
    """The least time of some work: seconds, and the ceiling that sets it in words."""

    seconds: float
    ceiling: str


def _gpu(
    name: str,
    arch: str,
    multiprocessors: int,
    terabytes: float,
    half: float,
    single: float,
    double: float,
    gigahertz: float,
    gigabytes: float,
    l2: float | None = None,
) -> GPU:
    """TB/s, dense TFLOP/s in half precision, float32 and float64, GHz, GB of memory, and bytes of L2 a cycle."""
    rates = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12, "float64": double * 1e12}
    return GPU(name, arch, multiprocessors, Ceilings(rates, terabytes * 1e12), gigahertz * 1e9, l2, gigabytes * 1e9)


# Datasheets: NVIDIA A100 (June 2021), A10 (2021), L4 (2023), H100 (2023), H200 (2024), HGX B200 (2025); AMD Instinct
# MI300X (2023). float64 is the tensor cores' where they have it. Multiprocessors and L2: NVIDIA's architecture white
# papers; of Hopper's L2 no rate is published, it is taken to be Ampere's. Hopper's rates in float32 are for 1.98 GHz.
GPUS = {
    gpu.name: gpu
    for gpu in (
        # name, architecture, multiprocessors, TB/s, TFLOP/s: half, float32, float64, GHz, GB, L2 bytes a cycle
        _gpu("A100", "sm_80", 108, 2.039, 312, 19.5, 19.5, 1.41, 80, 5120),
        _gpu("A100-PCIe", "sm_80", 108, 1.935, 312, 19.5, 19.5, 1.41, 80, 5120),
        _gpu("A10", "sm_86", 72, 0.600, 125, 31.2, 0.488, 1.695, 24),
        _gpu("L4", "sm_89", 58, 0.300, 121, 30.3, 0.473, 2.04, 24),
        _gpu("H100", "sm_90", 132, 3.35, 989.4, 66.9, 66.9, 1.83, 80, 5120),
        _gpu("H100-PCIe", "sm_90", 114, 2.0, 756.5, 51.2, 51.2, 1.62, 80, 5120),
        _gpu("H200", "sm_90", 132, 4.8, 989.4, 66.9, 66.9, 1.83, 141, 5120),
        _gpu("B200", "sm_100", 148, 8.0, 2250, 75, 37, 1.856, 180),
        _gpu("MI300X", "gfx942", 304, 5.3, 1307.4, 163.4, 163.4, 2.1, 192),
    )
}


def _tensor(half: float, double: float, eight: float = 2.0, float8: bool = True) -> dict[str, float]:
    """FLOP a cycle of half precision, of float64, and how many times half precision's those of 8 bits are."""
    rates = {"f16": half, "bf16": half, "tf32": half / 2, "f64": double, "s8": eight * half, "u8": eight * half}
    return rates | ({"e4m3": eight * half, "e5m2": eight * half} if float8 else {})


# Source: CUDA C++ Best Practices Guide, "Throughput of Native Arithmetic Instructions"; tensor cores: the white papers,
# which agree with the datasheets' rates. mma.sync on Hopper: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper
# GPU Architecture" (2024), arXiv:2402.13499: 62.9 % of the peak on average.
RATES = {
    "sm_80": Rates(64, 32, 128, 64, 64, _tensor(2048, 128, float8=False)),
    "sm_86": Rates(128, 2, 128, 64, 64, _tensor(1024, 4, float8=False)),
    "sm_89": Rates(128, 2, 64, 64, 64, _tensor(1024, 4)),
    "sm_90": Rates(128, 64, 128, 64, 64, _tensor(4096, 256), mma=0.63),
    "sm_100": Rates(128, 64, 128, 64, 64, _tensor(8192, 128)),
}
# The GPU of each architecture for waves and minimum time, if none is named.
DEFAULT_GPUS = {"sm_80": "A100", "sm_86": "A10", "sm_89": "L4", "sm_90": "H200", "sm_100": "B200", "gfx942": "MI300X"}


def gpu(name: str, command: str = "inspect") -> GPU:
    """The GPU of that name, case-insensitive; `command` is who asks, for the error.

    Raises:
        ValueError: there is none.
    """
    found = next((g for g in GPUS.values() if g.name.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"{command}: gpu is {name!r}, wanted one of {', '.join(GPUS)}")
    return found


def gpu_for(where: Target, requested: str | None) -> GPU:
    """The requested GPU if it has this architecture, else the architecture's default one."""
    named = gpu(requested) if requested else None
    return named if named and named.arch == where.name else GPUS[DEFAULT_GPUS[where.name]]


def floor(flops: float, moved: float, dtype: str, ceilings: Ceilings) -> Floor:
    """max(FLOPs / rate, bytes / bandwidth), with the ceiling that is the higher time named."""
    rate = ceilings.rates[dtype]
    compute, traffic = flops / rate, moved / ceilings.bandwidth
    if compute > traffic:
        return Floor(compute, f"{rate / 1e12:.4g} TFLOP/s, {ceilings.source}")
    return Floor(traffic, f"{ceilings.bandwidth / 1e12:.4g} TB/s, {ceilings.source}")
