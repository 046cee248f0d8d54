"""Devices and the nodes that they are in: peak rates, memory, and the links between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gradlab.profiling.machine_code.gpus import Ceilings
from gradlab.profiling.scale.collective import Place
from gradlab.profiling.scale.links import Link

# Seconds from one small kernel to the next where they are launched one after the other: 3.8 us (NVIDIA, Getting Started
# with CUDA Graphs, 2019, on a V100).
LAUNCH = 3.8e-6


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
