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
class GPU:
    """A GPU: its architecture, multiprocessors (compute units), and the datasheet's ceilings."""

    name: str
    arch: str
    multiprocessors: int
    ceilings: Ceilings


@dataclass(frozen=True)
class Floor:
    """The least time of some work: seconds, and the ceiling that sets it in words."""

    seconds: float
    ceiling: str


def _gpu(
    name: str, arch: str, multiprocessors: int, terabytes: float, half: float, single: float, double: float
) -> GPU:
    """TB/s, and dense TFLOP/s in half precision, float32 and float64."""
    rates = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12, "float64": double * 1e12}
    return GPU(name, arch, multiprocessors, Ceilings(rates, terabytes * 1e12))


# Datasheets: NVIDIA A100 (June 2021), A10 (2021), L4 (2023), H100 (2023), H200 (2024), HGX B200 (2025); AMD Instinct
# MI300X (2023). float64 is the tensor cores' where they have it. Multiprocessors: NVIDIA's architecture white papers.
GPUS = {
    gpu.name: gpu
    for gpu in (
        # name, architecture, multiprocessors, TB/s, TFLOP/s: half, float32, float64
        _gpu("A100", "sm_80", 108, 2.039, 312, 19.5, 19.5),
        _gpu("A100-PCIe", "sm_80", 108, 1.935, 312, 19.5, 19.5),
        _gpu("A10", "sm_86", 72, 0.600, 125, 31.2, 0.488),
        _gpu("L4", "sm_89", 58, 0.300, 121, 30.3, 0.473),
        _gpu("H100", "sm_90", 132, 3.35, 989.4, 66.9, 66.9),
        _gpu("H100-PCIe", "sm_90", 114, 2.0, 756.5, 51.2, 51.2),
        _gpu("H200", "sm_90", 132, 4.8, 989.4, 66.9, 66.9),
        _gpu("B200", "sm_100", 148, 8.0, 2250, 75, 37),
        _gpu("MI300X", "gfx942", 304, 5.3, 1307.4, 163.4, 163.4),
    )
}
# The GPU of each architecture for waves and minimum time, if none is named.
DEFAULT_GPUS = {"sm_80": "A100", "sm_86": "A10", "sm_89": "L4", "sm_90": "H200", "sm_100": "B200", "gfx942": "MI300X"}


def gpu(name: str) -> GPU:
    """The GPU of that name, case-insensitive.

    Raises:
        ValueError: there is none.
    """
    found = next((g for g in GPUS.values() if g.name.lower() == name.lower()), None)
    if found is None:
        raise ValueError(f"inspect: gpu is {name!r}, wanted one of {', '.join(GPUS)}")
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
