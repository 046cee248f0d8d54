"""Of every op its case of most options and arguments, at sizes of several programs on a GPU."""

import dataclasses

from gradlab.kernels.spec import specs

OPS = specs()
# Of every op the case of most options and arguments: in the other dtypes it is the same code around other casts.
RICHEST = {
    name: max(op.select("check"), key=lambda c: (len(op.at(c).options) + len(op.at(c).inputs), *c.sizes.values()))
    for name, op in OPS.items()
}
# Sizes of several programs, stretches and splits on a GPU, the last ones partial.
LARGE = {
    "adam": {"E": 4500},
    "binary_cross_entropy_with_logits": {"E": 13000},
    "conv2d": {"B": 5, "D": 17, "H": 9, "W": 11, "F": 72, "R": 3, "S": 2},
    "cross_entropy": {"M": 9, "V": 4500},
    "linear": {"M": 150, "K": 70, "N": 140},
    "linear_cross_entropy": {"M": 70, "K": 40, "V": 300},
    "max_pool2d": {"B": 3, "C": 5, "H": 21, "W": 19},
    "mse_loss": {"E": 13000},
    "relu": {"E": 13000},
    "sgd": {"E": 4500},
    "sigmoid": {"E": 13000},
    "tanh": {"E": 13000},
}
# Their Spec's inputs keep away from kinks, which takes long at these sizes and proves nothing where no difference is.
KINKED = ("conv2d", "linear", "max_pool2d", "relu")


def large(name):
    """A case of many programs; depthwise convolution has one for each group."""
    return dataclasses.replace(RICHEST[name], sizes=LARGE[name])
