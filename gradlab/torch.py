"""The torch side: every layer as a Triton kernel under a `torch.autograd.Function`; imports no jax."""

from gradlab.autodiff.adam_torch import adam_step
from gradlab.autodiff.binary_cross_entropy_with_logits_torch import binary_cross_entropy_with_logits
from gradlab.autodiff.conv2d_torch import conv2d
from gradlab.autodiff.cross_entropy_torch import cross_entropy
from gradlab.autodiff.layers.convert_torch import Conversion, convert
from gradlab.autodiff.layers.modules_torch import (
    BCEWithLogitsLoss,
    Conv2d,
    CrossEntropyLoss,
    Linear,
    MaxPool2d,
    MSELoss,
    ReLU,
    Sigmoid,
    Tanh,
)
from gradlab.autodiff.linear_cross_entropy_torch import linear_cross_entropy
from gradlab.autodiff.linear_torch import linear
from gradlab.autodiff.max_pool2d_torch import max_pool2d
from gradlab.autodiff.mse_loss_torch import mse_loss
from gradlab.autodiff.optimizers.adam_optimizer_torch import Adam, AdamW
from gradlab.autodiff.optimizers.norm_torch import clip_grad_norm_
from gradlab.autodiff.relu_torch import relu
from gradlab.autodiff.sgd_torch import SGD, sgd_step
from gradlab.autodiff.sigmoid_torch import sigmoid
from gradlab.autodiff.tanh_torch import tanh
from gradlab.kernels.class_losses.class_range_triton import raise_device_errors

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BCEWithLogitsLoss",
    "Conv2d",
    "Conversion",
    "CrossEntropyLoss",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "ReLU",
    "Sigmoid",
    "Tanh",
    "adam_step",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm_",
    "conv2d",
    "convert",
    "cross_entropy",
    "linear",
    "linear_cross_entropy",
    "max_pool2d",
    "mse_loss",
    "raise_device_errors",
    "relu",
    "sgd_step",
    "sigmoid",
    "tanh",
]
