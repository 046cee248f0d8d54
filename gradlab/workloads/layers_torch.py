"""A network's layers in torch, by gradlab or by torch itself: the same calls, since gradlab takes torch's arguments."""

from typing import Any

import torch
import torch.nn.functional as F

from gradlab import torch as gradlab_torch
from gradlab.workloads.network import Activation, Conv, Flatten, Network, Pool
from gradlab.workloads.workload import Layers, Optimizer

Params = dict[str, torch.Tensor]


def outputs(layers: Layers, network: Network, params: Params, x: torch.Tensor) -> torch.Tensor:
    """The network's outputs for x[M ...]."""
    module: Any = gradlab_torch if layers == "gradlab" else F
    for name, layer, *_ in network.placed():
        if isinstance(layer, Flatten):
            x = x.flatten(1)
        elif isinstance(layer, Pool):
            x = module.max_pool2d(x, layer.window)
        else:
            weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
            fused: dict[str, Any] = {}
            if layers == "gradlab" and layer.activation == "relu":
                fused = {"activation": "relu"}
            if isinstance(layer, Conv):
                x = module.conv2d(x, weight, bias, padding=layer.padding, **fused)
            else:
                x = module.linear(x, weight, bias, **fused)
            x = x if fused else activate(layers, layer.activation, x)
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
