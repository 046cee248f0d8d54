"""linear's forward and both of its gradients as one product of matrices on Triton."""

import math

import torch

from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.runtime.launch_triton import op


def _matmul_fake(a, b, bias, mask, masked, relu, transposed):
    return _empty(a, b, transposed)


def _matmul_sharding(a, b, bias, mask, masked, relu, transposed):
    z = "Z " * (a.ndim - 2)
    axes = {"a": f"{z}M K", "b": f"{z}K N", "y": f"{z}M N", "": ""}
    # relu of a term is no term of relu.
    sums = "" if relu else "; sums K; adds bias"
    return f"a[{axes['a']}], b[{axes['b']}], bias[{z}N], mask[{axes[masked]}] -> y[{axes['y']}]{sums}"


@op(
    "matmul",
    fake=_matmul_fake,
    flops=lambda a, b, *_, out_shape: 2 * math.prod(a) * b[-1],
    sharding=_matmul_sharding,
)
def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    masked: str,
    relu: bool,
    transposed: bool,
) -> torch.Tensor:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; the array named by `masked`, "a", "b" or "y", is 0 where mask <= 0.

    All of them may have a leading batch axis Z, for Z products in one launch. Any strides. `transposed` makes y
    column-major, the layout of the gradient of a transposed weight.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    y = _empty(a, b, transposed)
    matmul_into(y, a, b, bias, mask, masked, relu)
    return y


def _empty(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> torch.Tensor:
    Z, M, N = a.shape[:-2], a.shape[-2], b.shape[-1]
    return a.new_empty((*Z, N, M)).mT if transposed else a.new_empty((*Z, M, N))
