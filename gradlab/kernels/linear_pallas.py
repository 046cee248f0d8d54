"""linear's forward and both of its gradients as one product of matrices on Pallas."""

import jax

from gradlab.kernels.common import matmul_pallas


def matmul(
    a: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transposed_a: bool,
    transposed_b: bool,
    masked: str,
    relu: bool,
) -> jax.Array:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; the array named by `masked`, "a", "b" or "y", is 0 where mask <= 0.

    `transposed_a`, `transposed_b`: the operand is stored as a[K M], b[N K]; a mask of an operand is stored alike.
    A bias[M N] accumulates: y has its dtype, and its memory where it is donated.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    return matmul_pallas.matmul(a, b, bias, mask, transposed_a, transposed_b, masked, relu)
