"""The jax side: every layer as a Pallas kernel under a `jax.custom_vjp`; imports no torch."""

from gradlab.autodiff.adam_jax import AdamState as AdamState
from gradlab.autodiff.adam_jax import adam_init as adam_init
from gradlab.autodiff.adam_jax import adam_step as adam_step
from gradlab.autodiff.adam_transforms_jax import adam as adam
from gradlab.autodiff.adam_transforms_jax import adamw as adamw
from gradlab.autodiff.adam_transforms_jax import amsgrad as amsgrad
from gradlab.autodiff.binary_cross_entropy_with_logits_jax import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from gradlab.autodiff.classes_jax import raise_late as raise_late
from gradlab.autodiff.conv2d_jax import conv2d as conv2d
from gradlab.autodiff.cross_entropy_jax import cross_entropy as cross_entropy
from gradlab.autodiff.hooks_jax import conv_general_dilated as conv_general_dilated
from gradlab.autodiff.hooks_jax import dot_general as dot_general
from gradlab.autodiff.linear_cross_entropy_jax import linear_cross_entropy as linear_cross_entropy
from gradlab.autodiff.linear_jax import linear as linear
from gradlab.autodiff.max_pool2d_jax import max_pool2d as max_pool2d
from gradlab.autodiff.mse_loss_jax import mse_loss as mse_loss
from gradlab.autodiff.norm_jax import clip_by_global_norm as clip_by_global_norm
from gradlab.autodiff.norm_jax import global_norm as global_norm
from gradlab.autodiff.optimizer_jax import GradientTransformation as GradientTransformation
from gradlab.autodiff.relu_jax import relu as relu
from gradlab.autodiff.sgd_jax import SGDState as SGDState
from gradlab.autodiff.sgd_jax import sgd as sgd
from gradlab.autodiff.sgd_jax import sgd_step as sgd_step
from gradlab.autodiff.sigmoid_jax import sigmoid as sigmoid
from gradlab.autodiff.tanh_jax import tanh as tanh
