"""Devices by the name of their GPU, in nodes as it is sold; or this machine, measured."""

import importlib

from gradlab.autodiff.frameworks.side import side
from gradlab.profiling.machine_code.gpus import GPUS
from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.links import LINKS, Link, link

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
