"""The jax side: every layer as a Pallas kernel under a `jax.custom_vjp`; imports no torch."""

from gradlab.autodiff.adam_jax import AdamState, adam_init, adam_step
from gradlab.autodiff.adam_transforms_jax import adam, adamw, amsgrad
from gradlab.autodiff.binary_cross_entropy_with_logits_jax import binary_cross_entropy_with_logits
from gradlab.autodiff.class_losses.class_range_jax import raise_device_errors
from gradlab.autodiff.conv2d_jax import conv2d
from gradlab.autodiff.cross_entropy_jax import cross_entropy
from gradlab.autodiff.layers.hooks_jax import conv_general_dilated, dot_general
from gradlab.autodiff.linear_cross_entropy_jax import linear_cross_entropy
from gradlab.autodiff.linear_jax import linear
from gradlab.autodiff.max_pool2d_jax import max_pool2d
from gradlab.autodiff.mse_loss_jax import mse_loss
from gradlab.autodiff.optimizers.norm_jax import clip_by_global_norm, global_norm
from gradlab.autodiff.optimizers.optimizer_jax import GradientTransformation
from gradlab.autodiff.relu_jax import relu
from gradlab.autodiff.sgd_jax import SGDState, sgd, sgd_step
from gradlab.autodiff.sigmoid_jax import sigmoid
from gradlab.autodiff.tanh_jax import tanh

__all__ = [
    "AdamState",
    "GradientTransformation",
    "SGDState",
    "adam",
    "adam_init",
    "adam_step",
    "adamw",
    "amsgrad",
    "binary_cross_entropy_with_logits",
    "clip_by_global_norm",
    "conv2d",
    "conv_general_dilated",
    "cross_entropy",
    "dot_general",
    "global_norm",
    "linear",
    "linear_cross_entropy",
    "max_pool2d",
    "mse_loss",
    "raise_device_errors",
    "relu",
    "sgd",
    "sgd_step",
    "sigmoid",
    "tanh",
]
