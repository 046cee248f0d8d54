"""The torch side: every layer as a Triton kernel under a `torch.autograd.Function`; imports no jax."""

from gradlab.autodiff.adam_torch import Adam as Adam
from gradlab.autodiff.adam_torch import adam_step as adam_step
from gradlab.autodiff.cross_entropy_torch import cross_entropy as cross_entropy
from gradlab.autodiff.linear_torch import linear as linear
from gradlab.autodiff.relu_torch import relu as relu
