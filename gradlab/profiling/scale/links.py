"""Links between devices by name: bytes a second in one direction, and what a hop and a collective cost at the least."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A link, as one device sees it.

    Attributes:
        bandwidth: bytes/s that a device sends while it receives as many.
        hop, deep: seconds of a step of a ring and of a tree, however few bytes it sends.
        start: seconds of any collective beside its steps.
        shared: whether the devices of a node share one, instead of having one each.
        sums: whether the switch adds: a device then sends its array to it once, and receives the sum.
        about: what it is, and whose figure the bandwidth is.
    """

    name: str
    bandwidth: float
    hop: float
    deep: float
    start: float
    about: str
    shared: bool = False
    sums: bool = False


# Seconds of a ring's and a tree's step, and of the collective: NVIDIA's own model of NCCL, src/graph/tuning.cc (commit
# 5067397), baseLatencies and hwLatencies of the protocol LL, which NCCL takes where latency counts.
_NVLINK, _PCI, _NET = (0.6e-6, 0.6e-6), (1.0e-6, 1.0e-6), (2.7e-6, 5.0e-6)
_START = 6.6e-6
# A message in one direction through the kernel's TCP stack and one switch: an assumption, no standard says it.
_TCP = (15e-6, 15e-6)


def _link(
    name: str, gigabytes: float, steps: tuple[float, float], about: str, shared: bool = False, sums: bool = False
) -> Link:
    return Link(name, gigabytes * 1e9, *steps, _START, about, shared, sums)


# gloo over TCP between two processes of a machine, in an all-reduce: results/amd-epyc-2-cores/scale.md.
_LOOPBACK = Link("loopback", 1.39e9, 58e-6, 58e-6, 0.0, "gloo over TCP in one machine, measured on an AMD EPYC")

# Bandwidths are those of the standards and datasheets, in one direction: no protocol reaches all of it.
LINKS = {
    link.name: link
    for link in (
        _link("nvlink3", 300, _NVLINK, "NVLink 3, 12 links of 25 GB/s: NVIDIA A100 datasheet"),
        _link("nvlink4", 450, _NVLINK, "NVLink 4, 18 links of 25 GB/s: NVIDIA H100 datasheet"),
        _link("nvlink5", 900, _NVLINK, "NVLink 5, 18 links of 50 GB/s: NVIDIA HGX B200 datasheet"),
        _link("nvswitch", 450, _NVLINK, "NVLink 4 through NVSwitch 3, which adds (SHARP): NVIDIA Hopper white paper",
              sums=True),
        _link("infinity", 448, _PCI, "Infinity Fabric, 7 links of 64 GB/s: AMD Instinct MI300X datasheet"),
        _link("pcie4", 31.5, _PCI, "PCIe 4 x16, 16 GT/s a lane, 128b/130b: PCI-SIG"),
        _link("pcie5", 63.0, _PCI, "PCIe 5 x16, 32 GT/s a lane, 128b/130b: PCI-SIG"),
        _link("hdr", 25, _NET, "InfiniBand HDR, 200 Gbit/s, one a device: IBTA"),
        _link("ndr", 50, _NET, "InfiniBand NDR, 400 Gbit/s, one a device: IBTA"),
        _link("100gbe", 12.5, _TCP, "100 Gigabit Ethernet without RDMA, one a node: IEEE 802.3", shared=True),
        _LOOPBACK,
    )
}  # fmt: skip


def link(name: str) -> Link:
    """The link of that name, case-insensitive.

    Raises:
        ValueError: there is none.
    """
    found = LINKS.get(name.strip().lower())
    if found is None:
        raise ValueError(f"scale: link is {name!r}, wanted one of {', '.join(LINKS)}")
    return found
