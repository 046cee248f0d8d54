"""A workload's network as `gradlab scale` takes it: ops with their sizes for one row of the batch."""

import math

from gradlab.profiling.scale.given import linear, of_loss
from gradlab.profiling.scale.layer import Layer, Network
from gradlab.workloads.catalogue import workload
from gradlab.workloads.network import Conv, Dense, Placed, Pool


def network(name: str) -> Network:
    """The layers of a workload and its loss.

    Raises:
        ValueError: there is no such workload.
    """
    one = workload(name)
    layers = [layer for placed in one.network.placed() for layer in _layers(placed)]
    layers[0] = Layer(layers[0].name, layers[0].op, layers[0].sizes, layers[0].static, leaf=True)
    *_, last = one.network.placed()
    layers.append(of_loss(one.loss, math.prod(last.after)))
    about = f"{one.network}; {one.loss}; {one.optimizer}"
    return Network(name, tuple(layers), one.batch, one.optimizer.kind, about)


def _layers(placed: Placed) -> list[Layer]:
    """What a layer launches: the op, and an activation that is not fused into it."""
    name, layer, before, after = placed
    found: list[Layer] = []
    if isinstance(layer, Conv):
        C, H, W = before
        sizes = {"B": 1, "D": C, "H": H, "W": W, "F": layer.filters, "R": layer.window, "S": layer.window}
        static: list[tuple[str, object]] = [("padding", layer.padding)]
        if layer.activation == "relu":
            static.append(("activation", "relu"))
        found.append(Layer(name, "conv2d", tuple(sizes.items()), tuple(static)))
    elif isinstance(layer, Pool):
        C, H, W = before
        sizes = {"B": 1, "C": C, "H": H, "W": W}
        found.append(Layer(name, "max_pool2d", tuple(sizes.items()), (("kernel_size", layer.window),)))
    elif isinstance(layer, Dense):
        found.append(linear(name, before[0], layer.units, relu=layer.activation == "relu"))
    if isinstance(layer, Conv | Dense) and layer.activation == "sigmoid":
        found.append(Layer(f"{name}.sigmoid", "sigmoid", (("E", math.prod(after)),)))
    return found
