"""The layers as modules: subclasses of torch.nn's with another `forward`, so checkpoints load both ways."""

import copy
from typing import Any

import torch
from torch import nn

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.binary_cross_entropy_with_logits_torch import binary_cross_entropy_with_logits
from gradlab.autodiff.conv2d_torch import conv2d
from gradlab.autodiff.cross_entropy_torch import cross_entropy
from gradlab.autodiff.linear_torch import linear
from gradlab.autodiff.max_pool2d_torch import max_pool2d
from gradlab.autodiff.mse_loss_torch import mse_loss
from gradlab.autodiff.relu_torch import relu
from gradlab.autodiff.sigmoid_torch import sigmoid
from gradlab.autodiff.tanh_torch import tanh


class Linear(nn.Linear):
    """y[... N] = x[... K] weight[N K]^T + bias[N]; a hand-written `torch.nn.Linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """y[B F P Q] of x[B C H W]; a hand-written `torch.nn.Conv2d`, its borders filled with zeros alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _want(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pair = (self.stride, self.padding, self.dilation)
        stride, padding, dilation = (p if isinstance(p, str) else (p[0], p[1]) for p in pair)
        return conv2d(input, self.weight, self.bias, stride, padding, dilation, self.groups)  # type: ignore[arg-type]


class ReLU(nn.ReLU):
    """y = max(x, 0); a hand-written `torch.nn.ReLU`, out of place alone."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace)
        _want(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return relu(input)


class MaxPool2d(nn.MaxPool2d):
    """y[B C P Q] of x[B C H W]; a hand-written `torch.nn.MaxPool2d`."""

    def forward(self, input: torch.Tensor) -> Any:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=self.return_indices,
        )


class Sigmoid(nn.Sigmoid):
    """y = 1 / (1 + exp(-x)); a hand-written `torch.nn.Sigmoid`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return sigmoid(input)


class Tanh(nn.Tanh):
    """y = tanh x; a hand-written `torch.nn.Tanh`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return tanh(input)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """The loss of logits[N V ...] and a target; a hand-written `torch.nn.CrossEntropyLoss` with z-loss and softcap.

    With a `group` logits and weight are this rank's part of the classes, as `cross_entropy` has them; a deep
    copy has the same group.
    """

    # A converted layer has no other.
    z_loss: float = 0.0
    softcap: float | None = None
    group: Any = None

    def __init__(
        self, *args: Any, z_loss: float = 0.0, softcap: float | None = None, group: Any = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.z_loss, self.softcap, self.group = z_loss, softcap, group

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return "" if self.group is None else f"group={type(self.group).__name__}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "CrossEntropyLoss":
        copied = memo[id(self)] = type(self).__new__(type(self))
        # A group is of processes: a copy has the same one.
        memo[id(self.group)] = self.group
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


class MSELoss(nn.MSELoss):
    """The mean of squared differences; a hand-written `torch.nn.MSELoss`, for arrays of one shape."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mse_loss(input, target, reduction=self.reduction)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """The loss of logits and probabilities of yes; a hand-written `torch.nn.BCEWithLogitsLoss`."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


HAND_WRITTEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.ReLU: ReLU,
    nn.Sigmoid: Sigmoid,
    nn.Tanh: Tanh,
    nn.CrossEntropyLoss: CrossEntropyLoss,
    nn.MSELoss: MSELoss,
    nn.BCEWithLogitsLoss: BCEWithLogitsLoss,
}
# What a layer may be set to: attribute -> the only value that the hand-written layer has.
LIMITS: dict[type[nn.Module], dict[str, Any]] = {
    nn.Conv2d: {"padding_mode": "zeros"},
    nn.ReLU: {"inplace": False},
}


def beyond(module: nn.Module) -> tuple[str, Any, Any] | None:
    """The first setting that the hand-written layer has not: (attribute, its value, wanted); None without one."""
    for kind, limits in LIMITS.items():
        if isinstance(module, kind):
            for attribute, wanted in limits.items():
                value = getattr(module, attribute)
                if isinstance(value, torch.Tensor) or value != wanted:
                    return attribute, "a tensor" if isinstance(value, torch.Tensor) else repr(value), wanted
    return None


def _want(module: nn.Module) -> None:
    found = beyond(module)
    if found:
        refuse(type(module).__name__, found[0], found[1], repr(found[2]))
