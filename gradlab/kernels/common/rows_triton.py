"""Products of rows with any leading axes, for tensors of which devices hold parts.

A part of [B S K] along S is no part of the matrix [B S, K] that one device makes of it. Here the leading axes are in
the op's signature, and each device makes a matrix of what it has. The kernels are those of `matmul_triton.py` and
`column_sum_triton.py`.
"""

import math

import torch

from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.runtime.launch_triton import op

# Names of leading axes; K and N are the last ones.
_LEADING = "ABCDEFGHIJ"


def _product_fake(a, b, bias, mask, masked, relu):
    return a.new_empty((*a.shape[:-1], b.shape[1]))


def _product_sharding(a, b, bias, mask, masked, relu):
    rows = " ".join(_LEADING[: a.ndim - 1])
    axes = {"a": f"{rows} K", "b": "K N", "y": f"{rows} N", "": ""}
    # relu of a term is no term of relu.
    sums = "" if relu else "; sums K; adds bias"
    return f"a[{axes['a']}], b[K N], bias[N], mask[{axes[masked]}] -> y[{axes['y']}]{sums}"


@op(
    "rows_product",
    fake=_product_fake,
    flops=lambda a, b, *_, out_shape: 2 * math.prod(a) * b[-1],
    sharding=_product_sharding,
)
def product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    masked: str,
    relu: bool,
) -> torch.Tensor:
    """y[... N] = a[... K] b[K N] + bias[N], then relu.

    The array named by `masked`, "a", "b" or "y", is 0 where mask <= 0. Any strides.
    Logical GEMM M x N x K, M all leading axes.
    """
    y = _product_fake(a, b, bias, mask, masked, relu)
    matmul_into(_rows(y), _rows(a), b, bias, mask if mask is None or masked == "b" else _rows(mask), masked, relu)
    return y


def _gram_fake(a, c, mask, masked, transposed):
    K, N = a.shape[-1], c.shape[-1]
    return a.new_empty((N, K)).mT if transposed else a.new_empty((K, N))


def _gram_sharding(a, c, mask, masked, transposed):
    leading = _LEADING[: a.ndim - 1]
    rows = " ".join(leading)
    axes = {"a": f"{rows} K", "b": f"{rows} N", "y": "K N", "": ""}
    return f"a[{axes['a']}], c[{axes['b']}], mask[{axes[masked]}] -> y[K N]; sums {rows}"


@op(
    "rows_gram",
    fake=_gram_fake,
    flops=lambda a, c, *_, out_shape: 2 * math.prod(a) * c[-1],
    sharding=_gram_sharding,
)
def gram(a: torch.Tensor, c: torch.Tensor, mask: torch.Tensor | None, masked: str, transposed: bool) -> torch.Tensor:
    """y[K N] = the sum over rows of a[... K] c[... N].

    The array named by `masked`, "a", "b" for c, or "y", is 0 where mask <= 0. Any strides; `transposed` makes y
    column-major. Logical GEMM K x N x M, M all leading axes.
    """
    y = _gram_fake(a, c, mask, masked, transposed)
    if mask is not None and masked != "y":
        mask = _rows(mask).mT if masked == "a" else _rows(mask)
    matmul_into(y, _rows(a).mT, _rows(c), None, mask, masked)
    return y


def _sum_fake(a, mask):
    return a.new_empty(a.shape[-1])


def _sum_sharding(a, mask):
    rows = " ".join(_LEADING[: a.ndim - 1])
    return f"a[{rows} N], mask[{rows} N] -> s[N]; sums {rows}"


@op("rows_sum", fake=_sum_fake, sharding=_sum_sharding)
def sum_(a: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """s[N] = the sum over rows of a[... N], zeros where mask <= 0. Any strides."""
    return column_sum(_rows(a), None if mask is None else _rows(mask))


def _rows(t: torch.Tensor) -> torch.Tensor:
    """The matrix [M K] of t[... K]."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
