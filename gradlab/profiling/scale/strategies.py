"""Ways to share a step among devices, and the collectives that each of them needs.

N = data x sharded x tensor devices; e bytes a number; a device has rows B / (data x sharded) of the batch; P bytes are
the parameters of a tensor rank, W those of one layer.

    data            gradients are added over `data` devices         all-reduce P, in buckets (DDP)
    fully sharded   a layer's parameters are gathered for forward   all-gather W, twice; reduce-scatter W
                    and again for backward, gradients scattered     (FSDP2, each layer a unit)
      both          what is scattered is added over `data`          all-reduce W / sharded
    tensor          column then row: y[M N] is a sum in forward,    all-reduce e M N in forward
                    dx[M K] in backward                             all-reduce e M K in backward
    vocabulary      logits x[M V] in parts along V: NUMBERS sums    all-gather of NUMBERS M of each device in
                    of a row over a part, merged by all; dx[M K]    forward, all-reduce e M K in backward

FSDP2 cuts each parameter along its first axis into equal shares, rounded up: what is sent are `sharded` such shares.
DDP fills buckets from the last layer to the first, and closes one once it has a size: 1 MiB, then 25 MiB.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gradlab.kernels.spec import BYTES, Array
from gradlab.profiling.scale.collective import Collective
from gradlab.profiling.scale.layer import Layer, Network, Plan, Split

# torch's DistributedDataParallel: the first bucket, and bucket_cap_mb.
BUCKETS = (2**20, 25 * 2**20)
# Numbers a row, float32 or better, that each device of a vocabulary-parallel loss gives: the maximum, the sum of
# exponentials, and two sums over the targets' weights.
NUMBERS = 4


@dataclass(frozen=True)
class Degrees:
    """Over how many devices each way shares a step; their product is the number of devices."""

    data: int = 1
    sharded: int = 1
    tensor: int = 1

    @property
    def devices(self) -> int:
        return self.data * self.sharded * self.tensor

    @property
    def rows(self) -> int:
        """Over how many devices the batch is shared out."""
        return self.data * self.sharded

    def __str__(self) -> str:
        words = [f"{n} {name}" for name, n in vars(self).items() if n > 1]
        return " x ".join(words) or "1"


def buckets(network: Network, plan: Plan, dtype: str) -> list[tuple[Layer, int]]:
    """DDP's buckets in the order in which backward fills them: the layer that fills it, and its bytes."""
    found: list[tuple[Layer, int]] = []
    size, limit = 0, BUCKETS[0]
    last: Layer | None = None
    for layer in reversed(network.layers):
        for shape in reversed(layer.parameters(*plan.of(layer)).values()):
            size, last = size + BYTES[dtype] * math.prod(shape), layer
            if size >= limit:
                found.append((layer, size))
                size, limit = 0, BUCKETS[1]
    if size and last is not None:
        found.append((last, size))
    return found


def gathered(layer: Layer, split: Split, parts: int, sharded: int, dtype: str) -> int:
    """Bytes of a layer's parameters as FSDP2 gathers them: equal shares of each, rounded up."""
    shapes = layer.parameters(split, parts).items()
    return BYTES[dtype] * sum(sharded * math.prod(_shares(layer, name, shape, sharded)) for name, shape in shapes)


def _shares(layer: Layer, name: str, shape: tuple[int, ...], sharded: int) -> tuple[int, ...]:
    """One share, cut along the first axis of torch's layout: a Spec's w[K N] is weight[N K] there."""
    if layer.op in ("linear", "linear_cross_entropy") and len(shape) == 2:
        shape = shape[::-1]
    return (-(-shape[0] // sharded), *shape[1:])


def forward_sums(layer: Layer, plan: Plan, rows: int, dtype: str) -> Iterator[Collective]:
    """What a tensor group adds after a layer's forward."""
    split, parts = plan.of(layer)
    if split == "vocabulary":
        yield Collective("all-gather", parts * NUMBERS * _wide(dtype) * _rows(layer, rows), parts)
    for array in layer.sums(split)[0]:
        yield Collective("all-reduce", _size(layer, array, rows, split, parts, dtype), parts)


def backward_sums(layer: Layer, plan: Plan, rows: int, dtype: str) -> Iterator[Collective]:
    """What a tensor group adds after a layer's backward."""
    split, parts = plan.of(layer)
    if split == "vocabulary" and layer.op == "linear_cross_entropy":
        # dh is added up before it is rounded.
        at = layer.at(rows)
        yield Collective("all-reduce", _wide(dtype) * math.prod(at.inputs[0].shape(at.sizes)), parts)
    for array in layer.sums(split)[1]:
        yield Collective("all-reduce", _size(layer, array, rows, split, parts, dtype), parts)


def collectives(network: Network, plan: Plan, degrees: Degrees, rows: int, dtype: str) -> list[Collective]:
    """All collectives of one step that one device takes part in, in no order; `rows` of the batch are its."""
    found: list[Collective] = []
    for layer in network.layers:
        found += [*forward_sums(layer, plan, rows, dtype), *backward_sums(layer, plan, rows, dtype)]
        split, parts = plan.of(layer)
        size = gathered(layer, split, parts, degrees.sharded, dtype)
        if degrees.sharded > 1 and size:
            found += [Collective("all-gather", size, degrees.sharded)] * 2
            found.append(Collective("reduce-scatter", size, degrees.sharded))
            if degrees.data > 1:
                found.append(Collective("all-reduce", size // degrees.sharded, degrees.data))
    if degrees.data > 1 and degrees.sharded == 1:
        found += [Collective("all-reduce", size, degrees.data) for _, size in buckets(network, plan, dtype)]
    return found


def _wide(dtype: str) -> int:
    """Bytes of a number that is float32 or better."""
    return max(4, BYTES[dtype])


def _rows(layer: Layer, rows: int) -> int:
    return int(layer.at(rows).sizes[layer.axes.rows])


def _size(layer: Layer, array: Array, rows: int, split: Split, parts: int, dtype: str) -> int:
    return _bytes(array, layer.at(rows, split, parts).sizes, dtype)


def _bytes(array: Array, sizes, dtype: str) -> int:
    return BYTES[dtype] * math.prod(array.shape(sizes))
