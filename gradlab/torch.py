"""The torch side: every layer as a Triton kernel under a `torch.autograd.Function`; imports no jax."""

from gradlab.autodiff.adam_torch import Adam as Adam
from gradlab.autodiff.adam_torch import AdamW as AdamW
from gradlab.autodiff.adam_torch import adam_step as adam_step
from gradlab.autodiff.conv2d_torch import conv2d as conv2d
from gradlab.autodiff.convert_torch import Conversion as Conversion
from gradlab.autodiff.convert_torch import convert as convert
from gradlab.autodiff.cross_entropy_torch import cross_entropy as cross_entropy
from gradlab.autodiff.linear_torch import linear as linear
from gradlab.autodiff.modules_torch import Conv2d as Conv2d
from gradlab.autodiff.modules_torch import CrossEntropyLoss as CrossEntropyLoss
from gradlab.autodiff.modules_torch import Linear as Linear
from gradlab.autodiff.modules_torch import ReLU as ReLU
from gradlab.autodiff.relu_torch import relu as relu
from gradlab.autodiff.sgd_torch import SGD as SGD
from gradlab.autodiff.sgd_torch import sgd_step as sgd_step
