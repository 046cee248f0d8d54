"""The step of a network on so many devices: seconds, memory, bytes sent, and what bounds it. A model, never a time.

A pass of a layer takes the longest of its FLOPs over the peak rate, its bytes over the memory's bandwidth, and the
launches of its kernels: Spec.at(case).flops() and .bytes(dtype), at the sizes that one device has. Two clocks run, one
of the device and one of its links:

    tensor sums     the device waits for them
    data            a bucket is added while backward goes on, as soon as its last layer's backward is done
    fully sharded   parameters of the next layer are gathered while one is computed; gradients are scattered behind
    update          after all of it, on the parameters that a device has

Where cores do the links' work too, the device waits for every collective.

The first layer takes no gradient of the network's input: as many FLOPs as its forward.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from gradlab.kernels.spec import BYTES, Case, spec
from gradlab.profiling.scale import strategies
from gradlab.profiling.scale.collective import Collective, Kind, Seconds, seconds, total
from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.layer import Layer, Network, Plan
from gradlab.profiling.scale.strategies import Degrees

# What bounds a step, in words.
BOUNDS = {
    "compute": "the peak rate",
    "memory": "the memory's bandwidth",
    "launch": "launches of kernels",
    "link": "bytes over links that nothing hides",
    "latency": "steps of collectives that nothing hides",
}


@dataclass(frozen=True)
class Prediction:
    """A step.

    Attributes:
        degrees: over how many devices each way shares it.
        seconds: of the step.
        parts: seconds by what bounds them; their sum is the step.
        update: seconds of the optimizer, part of the step.
        memory: bytes that a device holds at most.
        sent: bytes that a device sends.
        collectives: that a device takes part in.
        rows: of the batch on the device with the most.
        batch: rows of the step.
        refused: why there is no such step; everything else is empty then.
    """

    degrees: Degrees
    seconds: float = math.inf
    parts: dict[str, float] = field(default_factory=dict)
    update: float = 0.0
    memory: float = 0.0
    sent: float = 0.0
    collectives: tuple[Collective, ...] = ()
    rows: int = 0
    batch: int = 0
    refused: str = ""

    @property
    def bound(self) -> str:
        """What takes the largest part of the step."""
        return max(self.parts, key=lambda name: self.parts[name]) if self.parts else ""


def predict(network: Network, machine: Machine, degrees: Degrees, batch: int, dtype: str, plan: Plan) -> Prediction:
    """One step on `batch` rows in all."""
    if plan.refused:
        return Prediction(degrees, refused=plan.refused)
    if degrees.rows > batch:
        return Prediction(degrees, refused=f"a batch of {batch} for {degrees.rows}")
    rows = -(-batch // degrees.rows)
    step = _Step(network, machine.slowed(degrees.devices), degrees, rows, dtype, plan)
    step.run()
    used = strategies.collectives(network, plan, degrees, rows, dtype)
    return Prediction(
        degrees,
        step.now,
        step.parts,
        step.update,
        memory(network, plan, degrees, rows, dtype),
        sum(one.sent * step.factor(one.kind) for one in used),
        tuple(used),
        rows,
        batch,
    )


class _Step:
    """The two clocks: `now` of the device, `free` of its links."""

    def __init__(self, network: Network, machine: Machine, degrees: Degrees, rows: int, dtype: str, plan: Plan) -> None:
        self.network, self.machine, self.degrees = network, machine, degrees
        self.rows, self.dtype, self.plan = rows, dtype, plan
        self.now = self.free = self.update = 0.0
        self.parts = dict.fromkeys(BOUNDS, 0.0)
        # Seconds that the device waited for links, and all of the links' work by kind.
        self.waited, self.work = 0.0, Seconds()

    def run(self) -> None:
        layers = self.network.layers
        self._pass(layers, "forward")
        filled = strategies.buckets(self.network, self.plan, self.dtype)
        self._pass(tuple(reversed(layers)), "backward", filled)
        self._wait_until(self.free)
        began = self.now
        self._update()
        self.update = self.now - began
        # What is waited for is shared out as the links' work is.
        if self.work.total:
            self.parts["link"] = self.waited * self.work.link / self.work.total
            self.parts["latency"] = self.waited * self.work.latency / self.work.total

    def factor(self, kind: str) -> float:
        """What a collective sends on this machine over what its algorithm needs."""
        return dict(self.machine.factors).get(kind, 1.0)

    def _pass(self, layers: tuple[Layer, ...], way: str, filled: list[tuple[Layer, int]] | None = None) -> None:
        gathers = [layer for layer in layers if self._gathered(layer)]
        there = {layer: self._gather(layer) for layer in gathers[:1]}
        for layer in layers:
            if layer in there:
                self._wait_until(there[layer])
                # The next one's parameters are on their way while this one is computed.
                following = gathers[gathers.index(layer) + 1 :][:1]
                there |= {after: self._gather(after) for after in following}
            self._compute(layer, way)
            sums = strategies.forward_sums if way == "forward" else strategies.backward_sums
            for one in sums(layer, self.plan, self.rows, self.dtype):
                self._send(one.kind, one.size, one.devices, 1)
                self._wait_until(self.free)
            if way == "backward":
                self._gradients(layer, self._gathered(layer), filled or [])

    def _gather(self, layer: Layer) -> float:
        """When a layer's parameters are there."""
        self._send("all-gather", self._gathered(layer), self.degrees.sharded, self.degrees.tensor)
        return self.free

    def _gradients(self, layer: Layer, size: int, filled: list[tuple[Layer, int]]) -> None:
        degrees = self.degrees
        stride = degrees.sharded * degrees.tensor
        if size:
            self._send("reduce-scatter", size, degrees.sharded, degrees.tensor)
            self._send("all-reduce", size / degrees.sharded, degrees.data, stride)
        elif degrees.sharded == 1:
            for one, bucket in filled:
                if one is layer:
                    self._send("all-reduce", bucket, degrees.data, stride)

    def _gathered(self, layer: Layer) -> int:
        if self.degrees.sharded == 1:
            return 0
        return strategies.gathered(layer, *self.plan.of(layer), self.degrees.sharded, self.dtype)

    def _send(self, kind: Kind, size: float, devices: int, stride: int) -> None:
        place = self.machine.place(devices, stride, self.degrees.devices)
        spent = seconds(kind, size * self.factor(kind), place)
        self.work = total((self.work, spent))
        self.free = max(self.free, self.now) + spent.total
        if not self.machine.overlaps:
            self._wait_until(self.free)

    def _wait_until(self, when: float) -> None:
        self.waited += max(0.0, when - self.now)
        self.now = max(self.now, when)

    def _compute(self, layer: Layer, way: str) -> None:
        split, parts = self.plan.of(layer)
        at = layer.at(self.rows, split, parts)
        flops, moved = at.flops()[way], at.bytes(self.dtype)[way]
        launches = 1 if way == "forward" else len(at.wrt)
        if way == "backward" and layer.leaf:
            flops, launches = flops - at.flops()["forward"], launches - 1
            moved -= BYTES[self.dtype] * math.prod(at.inputs[0].shape(at.sizes))
        self._take(flops, moved, self.dtype, launches)

    def _update(self) -> None:
        """The optimizer on the parameters that a device has; its state is float32."""
        numbers = held(self.network, self.plan, self.degrees.sharded)
        if self.network.optimizer is None or not numbers:
            return
        op = spec(self.network.optimizer)
        static = {"has_x": False} if op.name == "adam" else {}
        at = op.at(Case("update", {"E": numbers}, static))
        wide = "float64" if self.dtype == "float64" else "float32"
        self._take(at.flops()["forward"], at.bytes(wide)["forward"], wide, 1)

    def _take(self, flops: float, moved: float, dtype: str, launches: int) -> None:
        ways = {
            "compute": flops / self.machine.ceilings.rates[dtype],
            "memory": moved / self.machine.ceilings.bandwidth,
            "launch": launches * self.machine.launch,
        }
        bound = max(ways, key=lambda name: ways[name])
        self.parts[bound] += ways[bound]
        self.now += ways[bound]


def held(network: Network, plan: Plan, sharded: int) -> int:
    """Numbers of the parameters that a device keeps."""
    return sum(
        -(-math.prod(shape) // sharded)
        for layer in network.layers
        for shape in layer.parameters(*plan.of(layer)).values()
    )


# Bytes of float32 state for each number: Adam's two moments, SGD's momentum, and a master of parameters of half
# precision.
STATE = {"adam": 8, "sgd": 4, None: 0}


def memory(network: Network, plan: Plan, degrees: Degrees, rows: int, dtype: str) -> float:
    """Bytes that a device holds at most.

    Parameters and state of its share, and the most that backward needs at one layer beside them: the layer's input and
    those of the layers before it, its result where that is saved, the gradients of both and those of the parameters so
    far; with `sharded` also its parameters and the next ones' whole, and its gradient before that is scattered.
    """
    e = BYTES[dtype]
    state = STATE[network.optimizer] + 4 * (e == 2) if network.optimizer else 0
    kept = (e + state) * held(network, plan, degrees.sharded)
    made = list(_results(network, plan, rows, dtype))
    wholes = [strategies.gathered(layer, *plan.of(layer), 1, dtype) for layer in network.layers]
    most = gradients = 0.0
    for i, layer in reversed(list(enumerate(network.layers))):
        # The gradients of the result and of the input, and the result where backward reads it.
        passing = made[i + 1] * (2 if layer.saves_result else 1) + (0 if layer.leaf else made[i])
        here = sum(made[: i + 1]) + passing + gradients + wholes[i]
        if degrees.sharded > 1:
            here += wholes[i] + next((whole for whole in reversed(wholes[:i]) if whole), 0)
        gradients += wholes[i] / degrees.sharded
        most = max(most, here)
    return kept + most


def _results(network: Network, plan: Plan, rows: int, dtype: str) -> Iterator[int]:
    """Bytes of the network's input and of every layer's result."""
    first = network.layers[0].at(rows, *plan.of(network.layers[0]))
    yield BYTES[dtype] * math.prod(first.inputs[0].shape(first.sizes))
    for layer in network.layers:
        at = layer.at(rows, *plan.of(layer))
        yield sum(BYTES[dtype] * math.prod(a.shape(at.sizes)) for a in at.results)
