"""Collectives: what each device sends in one, and the seconds that it takes over links.

S bytes, n devices. A ring sends pieces of S/n from neighbour to neighbour, n - 1 times; a tree sends all of S up and
down through log2(n) levels, in pieces, so that its levels work at once.

    reduce-scatter, all-gather    (n-1)/n S       n - 1 steps
    all-reduce by a ring        2 (n-1)/n S    2 (n - 1) steps: reduce-scatter, then all-gather
    all-reduce by a tree        2 S            2 log2(n) steps
    all-reduce in a switch        S            2 steps: up to the switch, which adds, and down

Over nodes of g devices each: within each node first, then device i of every node with the others' device i, which has
S/g of it, then within the nodes again. Together a device sends what one ring over all would make it send. Pieces follow
each other, so the links within and between work at once: the slower ones count, and the steps of both.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gradlab.profiling.scale.links import Link

Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]


@dataclass(frozen=True, order=True)
class Collective:
    """One collective: `size` bytes of the whole array (added, gathered or scattered), among `devices`."""

    kind: Kind
    size: int
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by a ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * (self.devices - 1) / self.devices * self.size


@dataclass(frozen=True)
class Place:
    """Where the devices of a group are: `inside` in each of `nodes` nodes, with the links within and between nodes.

    `neighbours` are the devices that use a node's links at once.
    """

    inside: int
    nodes: int
    within: Link
    between: Link
    neighbours: int = 1

    @property
    def devices(self) -> int:
        return self.inside * self.nodes


@dataclass(frozen=True)
class Seconds:
    """Seconds for bytes, and those that remain were there none."""

    link: float = 0.0
    latency: float = 0.0

    @property
    def total(self) -> float:
        return self.link + self.latency

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.link + other.link, self.latency + other.latency)


def total(parts: Iterable[Seconds]) -> Seconds:
    """The sum."""
    return sum(parts, Seconds())


def seconds(kind: Kind, size: float, place: Place) -> Seconds:
    """Seconds of a collective of `size` bytes: by the quicker algorithm where there are several."""
    if place.devices == 1:
        return Seconds()
    share = place.between.bandwidth / (place.neighbours if place.between.shared else 1)
    if place.inside == 1:
        return _alone(kind, size, place.nodes, place.between, share)
    inside = place.within.bandwidth
    if place.nodes == 1:
        return _alone(kind, size, place.inside, place.within, inside)
    steps: tuple[Kind, ...] = ("reduce-scatter", "all-gather") if kind == "all-reduce" else (kind,)
    parts = [_alone(step, size, place.inside, place.within, inside) for step in steps]
    parts.append(_alone(kind, size / place.inside, place.nodes, place.between, share))
    return Seconds(max(parts[-1].link, total(parts[:-1]).link), total(parts).latency)


def _alone(kind: Kind, size: float, devices: int, link: Link, bandwidth: float) -> Seconds:
    """Over links of one kind."""
    scattered = (devices - 1) / devices * size / bandwidth
    ring = Seconds(scattered, link.start + (devices - 1) * link.hop)
    if kind != "all-reduce":
        return ring
    ways = [
        Seconds(2 * scattered, link.start + 2 * (devices - 1) * link.hop),
        Seconds(2 * size / bandwidth, link.start + 2 * math.ceil(math.log2(devices)) * link.deep),
    ]
    if link.sums:
        ways.append(Seconds(size / bandwidth, link.start + 2 * link.deep))
    return min(ways, key=lambda way: way.total)
