"""linear's forward and both of its gradients as one product of matrices on Pallas."""

import jax

from gradlab.kernels.common import matmul_pallas


def matmul(
    a: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    gate: jax.Array | None,
    turned_a: bool,
    turned_b: bool,
    place: str,
    relu: bool,
) -> jax.Array:
    """y[M N] = a[M K] b[K N] + bias[N], then relu; where gate <= 0, zeros stand in for `place`: "a", "b" or "y".

    `turned_a`, `turned_b`: the operand comes as a[K M], b[N K] and is read so; a gate at an operand lies as it does.
    A bias[M N] gives y its dtype, and its memory where nobody else needs it: sums grow in float32.
    Logical GEMM M x N x K; each operand is read once per tile of the other, y is written once.
    """
    return matmul_pallas.matmul(a, b, bias, gate, turned_a, turned_b, place, relu)
