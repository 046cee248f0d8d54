"""A network as the scale model sees it: ops with their sizes, which of their axes may be split, and what is then a sum.

    axis          a layer split along it over devices                        what is a sum over devices
    rows          each device has rows of x and y and all parameters         the parameters' gradients
    columns       columns of w, b and y, all of x                            the gradient of x
    sums          rows of w, columns of x, all of b                          y
    vocabulary    classes of the logits                                      four numbers a row

The third column follows from the letters of a Spec's signature: split along an axis, an array that lacks it is whole on
every device; a result that lacks it is a sum of terms, and where a result has it, the gradient of an input that lacks
it is one.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gradlab.kernels.spec import Array, Case, OpCase, spec


@dataclass(frozen=True)
class Axes:
    """The axis letters of an op that may be split; None where there is none."""

    rows: str
    columns: str | None = None
    sums: str | None = None
    vocabulary: str | None = None


# Elementwise ops have every axis in E: their rows and their columns.
AXES = {
    "linear": Axes("M", columns="N", sums="K"),
    "conv2d": Axes("B", columns="F", sums="D"),
    "max_pool2d": Axes("B", columns="C"),
    "relu": Axes("E", columns="E"),
    "sigmoid": Axes("E", columns="E"),
    "tanh": Axes("E", columns="E"),
    "mse_loss": Axes("E"),
    "binary_cross_entropy_with_logits": Axes("E"),
    "cross_entropy": Axes("M", vocabulary="V"),
    "linear_cross_entropy": Axes("M", vocabulary="V"),
}
Split = Literal["columns", "sums", "vocabulary"] | None


@dataclass(frozen=True)
class Layer:
    """One op of a network.

    Attributes:
        name: in the network.
        op: a Spec's.
        sizes: its axes for one row of the batch.
        static: the case's options.
        leaf: whether its first input is the network's, which has no gradient.
    """

    name: str
    op: str
    sizes: tuple[tuple[str, int], ...]
    static: tuple[tuple[str, Any], ...] = ()
    leaf: bool = False

    @property
    def axes(self) -> Axes:
        return AXES[self.op]

    def axis(self, split: Split) -> str | None:
        """The letter that a split divides, None if the op has none or is not split."""
        letter = getattr(self.axes, split) if split else None
        return None if dict(self.static).get("groups", 1) != 1 else letter

    def length(self, letter: str) -> int:
        """An axis' length for one row of the batch."""
        return dict(self.sizes)[letter]

    def at(self, rows: int, split: Split = None, parts: int = 1) -> OpCase:
        """The op on `rows` rows of the batch, one of `parts` parts along the split's axis."""
        return _at(self, rows, self.axis(split), parts)

    @functools.cache  # noqa: B019
    def parameters(self, split: Split = None, parts: int = 1) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained, one of `parts` parts each: inputs with a gradient that lack the rows' axis."""
        at = self.at(1, split, parts)
        found = [at.inputs[i] for i in at.wrt if self.axes.rows not in at.inputs[i].axes]
        return {a.name: a.shape(at.sizes) for a in found}

    @property
    def saves_result(self) -> bool:
        """Whether backward reads the layer's result: a fused relu's mask, or an activation by itself."""
        return "activation" in dict(self.static) or self.op in ("relu", "sigmoid", "tanh")

    @functools.cache  # noqa: B019
    def sums(self, split: Split) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """What is a sum over devices under a split: results, and inputs by their gradients, parameters aside."""
        letter, at = self.axis(split), self.at(1)
        if letter is None or letter == self.axes.rows or split == "vocabulary":
            return (), ()
        lacking = tuple(a for a in at.results if letter not in a.axes)
        if lacking:
            return lacking, ()
        # The gradient of the network's own input is not taken.
        inputs = [at.inputs[i] for i in at.wrt if letter not in at.inputs[i].axes]
        return (), tuple(a for a in inputs if self.axes.rows in a.axes and not self.leaf)


@functools.cache
def _at(layer: Layer, rows: int, letter: str | None, parts: int) -> OpCase:
    sizes = dict(layer.sizes)
    sizes[layer.axes.rows] *= rows
    if letter is not None and parts > 1:
        sizes[letter] //= parts
    return spec(layer.op).at(Case(layer.name, sizes, dict(layer.static)))


@dataclass(frozen=True)
class Network:
    """Layers in order; a loss, if there is one, is the last of them.

    Attributes:
        name: of the workload or op.
        layers: in order.
        batch: rows of one step, if none are asked for.
        optimizer: the op of the update, "adam" or "sgd"; None for none.
    """

    name: str
    layers: tuple[Layer, ...]
    batch: int
    optimizer: str | None = None
    about: str = ""

    @functools.cached_property
    def trained(self) -> tuple[Layer, ...]:
        """The layers with parameters."""
        return tuple(layer for layer in self.layers if layer.parameters())

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for layer in self.layers for shape in layer.parameters().values())


@dataclass(frozen=True)
class Plan:
    """How each layer is split within a tensor group, by its name, over how many devices; or why it cannot be."""

    splits: Mapping[str, Split] = field(default_factory=dict)
    parts: int = 1
    refused: str = ""

    def of(self, layer: Layer) -> tuple[Split, int]:
        """A layer's split, and its parts."""
        split = self.splits.get(layer.name)
        return split, self.parts if split else 1


def tensor_plan(network: Network, parts: int) -> Plan:
    """Column, then row, then column ...: what lies between is split too; an odd last one goes into the loss' classes.

    Without a loss over classes an odd last layer is whole on every device.
    """
    if parts == 1:
        return Plan()
    splits: dict[str, Split] = {}
    trained = [layer for layer in network.layers if layer.axes.columns and layer.axes.sums]
    pairs = len(trained) // 2 * 2
    loss = _class_loss(network)
    for i, layer in enumerate(trained):
        if i < pairs:
            splits[layer.name] = "sums" if i % 2 else "columns"
        elif loss is not None and layer is network.layers[-2]:
            splits |= {layer.name: "columns", loss.name: "vocabulary"}
    if len(network.layers) == 1 and trained:
        # An op alone: what comes after it would take its columns.
        splits[trained[0].name] = "columns"
    if loss is not None and loss.op == "linear_cross_entropy":
        splits[loss.name] = "vocabulary"
    return _checked(network, splits, parts)


def vocabulary_plan(network: Network, parts: int) -> Plan:
    """The classes of the last layer and of the loss are split, all else is whole on every device."""
    if parts == 1:
        return Plan()
    loss = _class_loss(network)
    if loss is None:
        return Plan(refused="no loss over classes")
    splits: dict[str, Split] = {loss.name: "vocabulary"}
    if loss.op == "cross_entropy" and len(network.layers) > 1 and network.layers[-2].op == "linear":
        splits[network.layers[-2].name] = "columns"
    return _checked(network, splits, parts)


def _class_loss(network: Network) -> Layer | None:
    last = network.layers[-1]
    return last if last.axes.vocabulary else None


def _checked(network: Network, splits: dict[str, Split], parts: int) -> Plan:
    """The plan, with what lies between a column and its row split along its columns; refused where parts are uneven."""
    if not splits:
        return Plan(refused="no two layers to split")
    between = False
    for layer in network.layers:
        split = splits.get(layer.name)
        if split in ("columns", "sums"):
            between = split == "columns"
        elif between and split is None and layer.axes.columns:
            splits[layer.name] = split = "columns"
        letter = layer.axis(split)
        if split and letter is None:
            return Plan(refused=f"{layer.name} has groups")
        if letter and layer.length(letter) % parts:
            return Plan(refused=f"{letter} = {layer.length(letter)} of {layer.name} over {parts}")
    return Plan(splits, parts)
