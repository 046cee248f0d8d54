"""The arguments of `gradlab scale`, validated."""

import re
from dataclasses import dataclass
from pathlib import Path

from gradlab.base.files import writable
from gradlab.kernels.spec import BYTES
from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.layer import Network
from gradlab.profiling.scale.named import machine as machine_of
from gradlab.profiling.scale.search import STRATEGIES

# Figures beyond this are no cluster's.
MOST = 2**20


@dataclass(frozen=True)
class ScaleArgs:
    """What is predicted.

    Attributes:
        devices: numbers of devices, ascending.
        batch: rows of a step in all; `each`: rows a device instead, so that the batch grows with the devices.
        strategies: of STRATEGIES.
        detail: the strategy whose steps are shown in detail.
        plot, json: files to write.
    """

    network: Network
    machine: Machine
    devices: tuple[int, ...]
    batch: int
    each: int | None
    dtype: str
    strategies: tuple[str, ...]
    detail: str
    plot: Path | None = None
    json: Path | None = None

    def rows(self, devices: int) -> int:
        """Rows of a step on so many devices."""
        return self.batch if self.each is None else self.each * devices


def parsed_devices(text: str) -> tuple[int, ...]:
    """ "1..4096" is every power of two from 1 to 4096, "1,3,8..32" is 1, 3, 8, 16, 32.

    Raises:
        ValueError: no such numbers.
    """
    found: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= MOST:
            raise ValueError(f"scale: devices are {text!r}, wanted numbers from 1 to {MOST} as 1..4096 or 1,2,3,8..64")
        found |= {first, last} | {2**k for k in range(MOST.bit_length()) if first <= 2**k <= last}
    return tuple(sorted(found))


def checked_args(
    network: Network,
    gpu: str,
    links: str | None,
    node: int | None,
    devices: str,
    batch: int | None,
    each: int | None,
    dtype: str,
    strategies: tuple[str, ...],
    plot: Path | None,
    json: Path | None,
) -> ScaleArgs:
    """Validate the arguments.

    Raises:
        ValueError: an unknown dtype or strategy, both batches, no numbers of devices, a file that cannot be written.
    """
    if dtype not in BYTES:
        raise ValueError(f"scale: dtype is {dtype!r}, wanted one of {', '.join(BYTES)}")
    for name in strategies:
        if name not in STRATEGIES:
            raise ValueError(f"scale: strategy is {name!r}, wanted one of {', '.join(STRATEGIES)}")
    if batch is not None and each is not None:
        raise ValueError(f"scale: --batch is {batch}, wanted none beside --batch-per-device")
    for name, n in (("batch", batch), ("batch-per-device", each), ("node", node)):
        if n is not None and n < 1:
            raise ValueError(f"scale: {name} is {n}, wanted at least 1")
    numbers = parsed_devices(devices)
    writable("scale", plot)
    writable("scale", json)
    chosen = strategies or STRATEGIES
    # Last, because it may have to be measured.
    machine = machine_of(gpu, links, node, dtype)
    return ScaleArgs(network, machine, numbers, batch or network.batch, each, dtype, chosen, chosen[-1], plot, json)
