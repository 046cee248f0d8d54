"""The architectures that kernels are compiled for, and how many of a kernel's programs one multiprocessor holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An architecture; sizes are those of one multiprocessor, shared memory in bytes.

    Source of the limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".

    Attributes:
        name: as on the command line.
        backend: Triton's name: "cuda" or "hip"; or "cpu".
        number: what Triton calls the architecture within its backend.
        lanes: threads of a warp (a wavefront).
        warps, blocks, shared: the most that are resident at once; 0 where occupancy is not worked out.
    """

    name: str
    backend: str
    number: int | str
    lanes: int
    warps: int = 0
    blocks: int = 0
    shared: int = 0


@dataclass(frozen=True)
class CPU(Target):
    """A CPU that code is assembled for; `lanes` is 1.

    Attributes:
        triple, cpu, features: LLVM's names; empty for the CPU that this process runs on.
        bits: of a vector register.
    """

    triple: str = ""
    cpu: str = ""
    features: str = ""
    bits: int = 0


_KIB = 1024
_X86, _ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("sm_80", "cuda", 80, 32, 64, 32, 164 * _KIB),
        Target("sm_86", "cuda", 86, 32, 48, 16, 100 * _KIB),
        Target("sm_89", "cuda", 89, 32, 48, 24, 100 * _KIB),
        Target("sm_90", "cuda", 90, 32, 64, 32, 228 * _KIB),
        Target("sm_100", "cuda", 100, 32, 64, 32, 228 * _KIB),
        Target("gfx942", "hip", "gfx942", 64),
        CPU("native", "cpu", "", 1),
        CPU("x86-64-v3", "cpu", "", 1, triple=_X86, cpu="x86-64-v3", bits=256),
        CPU(
            "sapphirerapids",
            "cpu",
            "",
            1,
            triple=_X86,
            cpu="sapphirerapids",
            features="+amx-tile,+amx-bf16,+amx-int8",
            bits=512,
        ),
        CPU("neoverse-v2", "cpu", "", 1, triple=_ARM, cpu="neoverse-v2", bits=128),
    )
}
CPUS = tuple(name for name, t in TARGETS.items() if isinstance(t, CPU))

# Shared memory that CUDA reserves in every block.
RESERVED = 1024
# A multiprocessor has four parts of 16384 registers, each with a quarter of its warps.
_PARTS, _REGISTERS = 4, 16384


@dataclass(frozen=True)
class Occupancy:
    """How full a multiprocessor gets: blocks at once, the share of its warps they make up, and what allows no more."""

    blocks: int
    share: float
    limiter: str


def target(name: str) -> Target:
    """The architecture of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"inspect: arch is {name!r}, wanted one of {', '.join(TARGETS)}")
    return TARGETS[name]


def occupancy(where: Target, registers: int, threads: int, shared: int) -> Occupancy | None:
    """What the resources of a kernel leave room for; None where there is no occupancy model for the architecture.

    Args:
        registers: of one thread.
        threads: of one block.
        shared: bytes of one block, static and dynamic, without what CUDA reserves.
    """
    if not where.warps:
        return None
    warps = -(-threads // where.lanes)
    # Registers go to whole warps in units of 256, shared memory to blocks in units of 128 bytes.
    resident = _REGISTERS // _up(max(registers, 1) * where.lanes, 256) * _PARTS
    room = {
        "warps": where.warps // warps,
        "blocks": where.blocks,
        "registers": resident // warps,
        "shared memory": where.shared // _up(shared + RESERVED, 128),
    }
    limiter = min(room, key=lambda name: room[name])
    return Occupancy(room[limiter], room[limiter] * warps / where.warps, limiter)


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
