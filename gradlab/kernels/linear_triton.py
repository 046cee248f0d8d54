"""linear's forward and both of its gradients as one product of matrices on Triton."""

import math

import torch

from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.runtime.launch_triton import op


def _matmul_fake(a, b, bias, gate, place, relu, transposed):
    return _empty(a, b, transposed)


@op("matmul", fake=_matmul_fake, flops=lambda a, b, *_, out_shape: 2 * math.prod(a) * b[-1])
def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    place: str,
    relu: bool,
    transposed: bool,
) -> torch.Tensor:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; where gate <= 0, zeros stand in for `place`: "a", "b" or "y".

    All of them may have one more axis Z in front, for Z products in one launch. Any strides. `transposed` lays y out
    column by column, as the gradient of a transposed weight wants it.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    y = _empty(a, b, transposed)
    matmul_into(y, a, b, bias, gate, place, relu)
    return y


def _empty(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> torch.Tensor:
    Z, M, N = a.shape[:-2], a.shape[-2], b.shape[-1]
    return a.new_empty((*Z, N, M)).mT if transposed else a.new_empty((*Z, M, N))
