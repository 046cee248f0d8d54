"""A network as data: its layers, for both frameworks; all shapes and initial weights follow from them.

Weights have torch's names and layout: conv1.weight[F C R S], linear1.weight[N K], and a bias each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Activation = Literal["relu", "sigmoid"] | None
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Conv:
    """`filters` of `window` x `window` with stride 1, then the activation."""

    filters: int
    window: int
    padding: int = 0
    activation: Activation = "relu"


@dataclass(frozen=True)
class Pool:
    """The maximum of each `window` x `window`, windows side by side."""

    window: int = 2


@dataclass(frozen=True)
class Flatten:
    """[C H W] -> [C*H*W], in this order on both frameworks, so that later weights differ only by a transposition."""


@dataclass(frozen=True)
class Dense:
    """A linear layer with `units` outputs, then the activation."""

    units: int
    activation: Activation = None


Layer = Conv | Pool | Flatten | Dense


class Placed(NamedTuple):
    """A layer in its network: its name, and its input and output shapes without the batch axis."""

    name: str
    layer: Layer
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Layers, and the shape of one input: (K,) or, as torch lays images out, (C, H, W)."""

    shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def placed(self) -> Iterator[Placed]:
        """Every layer with its name and shapes.

        Raises:
            ValueError: a layer that its input does not fit.
        """
        shape, counts = self.shape, {"conv": 0, "pool": 0, "flatten": 0, "linear": 0}
        for layer in self.layers:
            kind = {Conv: "conv", Pool: "pool", Flatten: "flatten", Dense: "linear"}[type(layer)]
            counts[kind] += 1
            before, shape = shape, _after(layer, shape)
            yield Placed(f"{kind}{counts[kind]}", layer, before, shape)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight and bias by name, in torch's layout."""
        found: dict[str, tuple[int, ...]] = {}
        for name, layer, before, after in self.placed():
            if isinstance(layer, Conv):
                found[f"{name}.weight"] = (layer.filters, before[0], layer.window, layer.window)
            elif isinstance(layer, Dense):
                found[f"{name}.weight"] = (layer.units, *before)
            else:
                continue
            found[f"{name}.bias"] = after[:1]
        return found

    def initial(self, seed: int = 0) -> Weights:
        """The float32 weights that every run starts from: normal, of variance 2/K before a relu and 1/K elsewhere.

        K is the number of terms in one of the layer's sums. Biases are zero.
        """
        rng = np.random.default_rng([seed, 0])
        activations = {name: getattr(layer, "activation", None) for name, layer, *_ in self.placed()}
        weights = {}
        for name, shape in self.parameters().items():
            if name.endswith(".bias"):
                weights[name] = np.zeros(shape, np.float32)
            else:
                gain = 2 if activations[name.removesuffix(".weight")] == "relu" else 1
                scale = math.sqrt(gain / math.prod(shape[1:]))
                weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        return weights

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape))]
        for layer in self.layers:
            if isinstance(layer, Conv):
                words.append(f"conv {layer.filters}@{layer.window}x{layer.window}")
            elif isinstance(layer, Pool):
                words.append(f"max-pool {layer.window}")
            elif isinstance(layer, Dense):
                words.append(f"{layer.units}{' sigmoid' if layer.activation == 'sigmoid' else ''}")
        return ", ".join(words) if len(self.shape) > 1 else "-".join(words)


def _after(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, Flatten):
        return (math.prod(shape),)
    if isinstance(layer, Dense):
        if len(shape) != 1:
            raise ValueError(f"network: input of a linear layer is {list(shape)}, wanted [K]: flatten it first")
        return (layer.units,)
    if len(shape) != 3:
        raise ValueError(f"network: input of {layer} is {list(shape)}, wanted [C H W]")
    C, H, W = shape
    if isinstance(layer, Conv):
        grown = 2 * layer.padding - layer.window + 1
        result = (layer.filters, H + grown, W + grown)
    else:
        result = (C, H // layer.window, W // layer.window)
    if min(result) < 1:
        raise ValueError(f"network: input of {layer} is {list(shape)}, wanted one that leaves an output of at least 1")
    return result
