"""The torch side: every layer as a Triton kernel under a `torch.autograd.Function`; imports no jax."""

from gradlab.autodiff.adam_optimizer_torch import Adam as Adam
from gradlab.autodiff.adam_optimizer_torch import AdamW as AdamW
from gradlab.autodiff.adam_torch import adam_step as adam_step
from gradlab.autodiff.binary_cross_entropy_with_logits_torch import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from gradlab.autodiff.conv2d_torch import conv2d as conv2d
from gradlab.autodiff.convert_torch import Conversion as Conversion
from gradlab.autodiff.convert_torch import convert as convert
from gradlab.autodiff.cross_entropy_torch import cross_entropy as cross_entropy
from gradlab.autodiff.linear_cross_entropy_torch import linear_cross_entropy as linear_cross_entropy
from gradlab.autodiff.linear_torch import linear as linear
from gradlab.autodiff.max_pool2d_torch import max_pool2d as max_pool2d
from gradlab.autodiff.modules_torch import BCEWithLogitsLoss as BCEWithLogitsLoss
from gradlab.autodiff.modules_torch import Conv2d as Conv2d
from gradlab.autodiff.modules_torch import CrossEntropyLoss as CrossEntropyLoss
from gradlab.autodiff.modules_torch import Linear as Linear
from gradlab.autodiff.modules_torch import MaxPool2d as MaxPool2d
from gradlab.autodiff.modules_torch import MSELoss as MSELoss
from gradlab.autodiff.modules_torch import ReLU as ReLU
from gradlab.autodiff.modules_torch import Sigmoid as Sigmoid
from gradlab.autodiff.modules_torch import Tanh as Tanh
from gradlab.autodiff.mse_loss_torch import mse_loss as mse_loss
from gradlab.autodiff.norm_torch import clip_grad_norm_ as clip_grad_norm_
from gradlab.autodiff.relu_torch import relu as relu
from gradlab.autodiff.sgd_torch import SGD as SGD
from gradlab.autodiff.sgd_torch import sgd_step as sgd_step
from gradlab.autodiff.sigmoid_torch import sigmoid as sigmoid
from gradlab.autodiff.tanh_torch import tanh as tanh
from gradlab.kernels.classes_triton import raise_late as raise_late
