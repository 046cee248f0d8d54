"""Devices and the nodes that they are in: peak rates, memory, and the links between them."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gradlab.autodiff.frameworks.side import side
from gradlab.profiling.machine_code.gpus import GPUS, Ceilings
from gradlab.profiling.scale.collective import Place
from gradlab.profiling.scale.links import LINKS, Link, link

# Seconds from one small kernel to the next where they are launched one after the other: 3.8 us (NVIDIA, Getting Started
# with CUDA Graphs, 2019, on a V100).
LAUNCH = 3.8e-6

# What a GPU is usually sold with: links within a node and between nodes, and devices a node. Datasheets of NVIDIA DGX
# A100, DGX H100, DGX H200, DGX B200, of AMD's Instinct MI300X platform; cards on PCIe as in NVIDIA-certified servers.
NODES = {
    "A100": ("nvlink3", "hdr", 8),
    "A100-PCIe": ("pcie4", "hdr", 8),
    "A10": ("pcie4", "100gbe", 8),
    "L4": ("pcie4", "100gbe", 8),
    "H100": ("nvswitch", "ndr", 8),
    "H100-PCIe": ("pcie5", "ndr", 8),
    "H200": ("nvswitch", "ndr", 8),
    "B200": ("nvlink5", "ndr", 8),
    "MI300X": ("infinity", "ndr", 8),
}


@dataclass(frozen=True)
class Machine:
    """Devices, `node` of them in a node.

    Attributes:
        name: the GPU's, or of what was measured.
        ceilings: peak rates of one device.
        memory: bytes of one device; 0 where that is not asked.
        within, between: links in a node and between nodes.
        node: devices in one.
        launch: seconds that a kernel takes however little it has to do.
        cores: how many devices can work at once, where there are fewer than devices; None where each works alone.
        overlaps: whether links work while the device computes; not where the same cores do both.
        factors: by kind of collective, what it sends here over what its algorithm needs.
    """

    name: str
    ceilings: Ceilings
    memory: float
    within: Link
    between: Link
    node: int
    launch: float = LAUNCH
    cores: int | None = None
    overlaps: bool = True
    factors: tuple[tuple[str, float], ...] = ()

    def place(self, devices: int, stride: int, every: int) -> Place:
        """Where a group is whose members are `stride` devices apart; `every` devices work at once."""
        inside = max(1, min(devices, self.node // stride))
        while devices % inside:
            inside -= 1
        return Place(inside, devices // inside, self.within, self.between, min(self.node, every))

    def slowed(self, devices: int) -> "Machine":
        """The same where so many devices share the cores."""
        if self.cores is None or devices <= self.cores:
            return self
        share = self.cores / devices
        rates: Mapping[str, float] = {name: rate * share for name, rate in self.ceilings.rates.items()}
        ceilings = Ceilings(rates, self.ceilings.bandwidth * share, self.ceilings.source)
        # The cores do the links' work too.
        link = replace(
            self.within,
            bandwidth=self.within.bandwidth * share,
            hop=self.within.hop / share,
            deep=self.within.deep / share,
        )
        return replace(self, ceilings=ceilings, within=link, between=link, launch=self.launch / share)


def machine(gpu: str, links: str | None = None, node: int | None = None, dtype: str = "float32") -> Machine:
    """A GPU by name, in nodes as it is sold, or with other links: "within,between"; "this" is measured.

    Raises:
        ValueError: no such GPU or link, or not one or two links; links beside "this".
        ModuleNotFoundError: torch is not installed, which measures.
        RuntimeError: measuring failed.
    """
    if gpu.lower() == "this":
        if links is not None or node is not None:
            came = f"links are {links!r}" if links is not None else f"node is {node}"
            raise ValueError(f"scale: {came}, wanted none beside --gpu this, whose links are measured")
        # Here is where a framework that is not installed is told of.
        side("torch")
        return importlib.import_module("gradlab.profiling.scale.this_torch").machine(dtype)
    found = next((name for name in GPUS if name.lower() == gpu.lower()), None)
    if found is None:
        raise ValueError(f"scale: gpu is {gpu!r}, wanted one of {', '.join(GPUS)}, or this")
    within, between, each = NODES[found]
    one = GPUS[found]
    first, second = _links(links, within, between)
    return Machine(found, one.ceilings, one.memory, first, second, each if node is None else node)


def _links(text: str | None, within: str, between: str) -> tuple[Link, Link]:
    if text is None:
        return LINKS[within], LINKS[between]
    names = text.split(",")
    if len(names) > 2:
        raise ValueError(f"scale: links are {text!r}, wanted one, or two: within a node, between nodes")
    return link(names[0]), link(names[-1])
