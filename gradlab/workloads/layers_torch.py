"""A network's layers in torch, by gradlab or by torch itself: the same calls, since gradlab takes torch's arguments."""

from typing import Any

import torch
import torch.nn.functional as F

from gradlab import torch as gradlab_torch
from gradlab.workloads.network import Activation, Conv, Flatten, Layer, Network, Pool
from gradlab.workloads.workload import Layers, Optimizer

Params = dict[str, torch.Tensor]


def outputs(layers: Layers, network: Network, params: Params, x: torch.Tensor) -> torch.Tensor:
    """The network's outputs for x[M ...]."""
    for name, layer, *_ in network.placed():
        x = _output(layers, layer, params.get(f"{name}.weight"), params.get(f"{name}.bias"), x)
    return x


def activate(layers: Layers, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """The activation, or x itself where there is none."""
    module: Any = gradlab_torch if layers == "gradlab" else torch
    return x if activation is None else getattr(module, activation)(x)


def loss(layers: Layers, name: str, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mean loss of outputs y and targets t."""
    return getattr(gradlab_torch if layers == "gradlab" else F, name)(y, t)


def optimizer(layers: Layers, settings: Optimizer, params: Params) -> torch.optim.Optimizer:
    """The optimizer over all parameters."""
    module: Any = gradlab_torch if layers == "gradlab" else torch.optim
    if settings.kind == "adam":
        return module.Adam(params.values(), lr=settings.lr)
    return module.SGD(params.values(), lr=settings.lr, momentum=settings.momentum)


class Net(torch.nn.Sequential):
    """The network as a module, a child a layer, for what wraps modules: DDP and fully_shard.

    Its parameters have the names that the weights have everywhere else: linear1.weight, ...
    """

    def __init__(self, layers: Layers, network: Network, params: Params) -> None:
        super().__init__()
        for name, layer, *_ in network.placed():
            self.add_module(name, _Placed(layers, layer, params.get(f"{name}.weight"), params.get(f"{name}.bias")))


class _Placed(torch.nn.Module):
    def __init__(self, layers: Layers, layer: Layer, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.layers, self.layer = layers, layer
        self.weight, self.bias = (None if w is None else torch.nn.Parameter(w.detach()) for w in (weight, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _output(self.layers, self.layer, self.weight, self.bias, x)


def _output(
    layers: Layers, layer: Layer, weight: torch.Tensor | None, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    module: Any = gradlab_torch if layers == "gradlab" else F
    if isinstance(layer, Flatten):
        return x.flatten(1)
    if isinstance(layer, Pool):
        return module.max_pool2d(x, layer.window)
    fused: dict[str, Any] = {}
    if layers == "gradlab" and layer.activation == "relu":
        fused = {"activation": "relu"}
    if isinstance(layer, Conv):
        x = module.conv2d(x, weight, bias, padding=layer.padding, **fused)
    else:
        x = module.linear(x, weight, bias, **fused)
    return x if fused else activate(layers, layer.activation, x)
