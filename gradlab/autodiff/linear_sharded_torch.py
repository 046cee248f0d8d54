"""Products of rows with any leading axes as rules: `linear` on tensors of which devices hold parts, for torch."""

import math

import torch

from gradlab.autodiff.arguments.shards_torch import along
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function
from gradlab.autodiff.relu_torch import Relu, ReluMask
from gradlab.kernels.common import rows_triton as kernels
from gradlab.kernels.linear import MOVES

# Where the mask of a gram matrix goes in the pullbacks by its first and by its second array.
GRAM_MOVES = {"": ("", ""), "y": ("b", "b"), "a": ("y", "a"), "b": ("a", "y")}


class RowsProduct(Function):
    """y[... N] = a[... K] b[K N] + bias[N], then relu; `masked` ("a", "b", "y" or "") is zero where mask <= 0."""

    @staticmethod
    def forward(a, b, bias, mask, masked, relu):
        return kernels.product(a, b, bias, mask, masked, relu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, _, mask, masked, relu = inputs
        ctx.save_for_backward(a, b, output if relu else mask)
        ctx.masked = "y" if relu else masked
        # A transposed weight's gradient is to lie as the weight does.
        ctx.by_columns = b.stride(0) == 1 and b.stride(1) != 1

    @staticmethod
    def backward(ctx, dy):
        a, b, mask = ctx.saved_tensors
        in_dgrad, in_wgrad = MOVES[ctx.masked]
        need_a, need_b, need_bias, *_ = ctx.needs_input_grad
        da = db = dbias = None
        if need_a:
            mask_a = mask.transpose(0, 1) if ctx.masked == "b" else mask
            da = RowsProduct.apply(dy, b.transpose(0, 1), None, mask_a, in_dgrad, False)
        if need_b:
            db = RowsGram.apply(a, dy, mask, in_wgrad, ctx.by_columns)
        if need_bias:
            dbias = RowsSum.apply(dy, mask if ctx.masked == "y" else None)
        return da, db, dbias, None, None, None

    @staticmethod
    def vmap(info, in_dims, a, b, bias, mask, masked, relu):
        if in_dims[1:3] == (None, None) and masked != "b":
            # One b for all: the mapped axis is one more of rows.
            a, mask = in_front(info.batch_size, (in_dims[0], in_dims[3]), (a, mask))
            return RowsProduct.apply(a, b, bias, mask, masked, relu), 0
        from gradlab.autodiff.linear_torch import Linear

        a, b, bias, mask = in_front(info.batch_size, in_dims[:4], (a, b, bias, mask))
        rows = mask if masked in ("b", "") else _rows(mask)
        y = Linear.apply(_rows(a), b, bias, rows, masked, relu, False)
        return y.reshape(*a.shape[:-1], b.shape[-1]), 0


class RowsGram(Function):
    """y[K N] = the sum over rows of a[... K] c[... N]; `masked` ("a", "b" for c, "y" or "") is zero where mask <= 0."""

    @staticmethod
    def forward(a, c, mask, masked, transposed):
        return kernels.gram(a, c, mask, masked, transposed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, c, mask, ctx.masked, _ = inputs
        ctx.save_for_backward(a, c, mask)

    @staticmethod
    def backward(ctx, u):
        a, c, mask = ctx.saved_tensors
        by_a, by_c = GRAM_MOVES[ctx.masked]
        need_a, need_c, *_ = ctx.needs_input_grad
        da = dc = None
        if need_a:
            mask_a = mask.transpose(0, 1) if ctx.masked == "y" else mask
            da = RowsProduct.apply(c, u.transpose(0, 1), None, mask_a, by_a, False)
        if need_c:
            dc = RowsProduct.apply(a, u, None, mask, by_c, False)
        return da, dc, None, None, None

    @staticmethod
    def vmap(info, in_dims, a, c, mask, masked, transposed):
        from gradlab.autodiff.linear_torch import Linear

        a, c, mask = in_front(info.batch_size, in_dims[:3], (a, c, mask))
        if masked in ("a", "b"):
            mask = _rows(mask).transpose(-2, -1) if masked == "a" else _rows(mask)
        return Linear.apply(_rows(a).transpose(-2, -1), _rows(c), None, mask, masked, False, transposed), 0


class RowsSum(Function):
    """s[N] = the sum over rows of a[... N], zeros where mask <= 0. Linear: its pullback is a masked broadcast."""

    @staticmethod
    def forward(a, mask):
        return kernels.sum_(a, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, ds):
        (mask,) = ctx.saved_tensors
        rows = ds.expand(ctx.shape)
        return rows if mask is None else ReluMask.apply(rows, mask), None

    @staticmethod
    def vmap(info, in_dims, a, mask):
        from gradlab.autodiff.linear_torch import LinearBiasGrad

        a, mask = in_front(info.batch_size, in_dims, (a, mask))
        return LinearBiasGrad.apply(_rows(a), None if mask is None else _rows(mask)), 0


def _rows(t: torch.Tensor) -> torch.Tensor:
    """[Z M N] of t[Z ... N]."""
    return t if t.ndim == 3 else t.reshape(t.shape[0], math.prod(t.shape[1:-1]), t.shape[-1])


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """`linear` on DTensors: input[... K] or [K], weight[N K] or [K], bias[N] or a scalar."""
    a = input if input.ndim > 1 else input.unsqueeze(0)
    b = (weight if weight.ndim == 2 else weight.unsqueeze(0)).t()
    c = bias.reshape(1) if bias is not None and bias.ndim == 0 else bias
    # Split along K over devices a product is a sum that is still to be made, of which relu is taken afterwards.
    apart = relu and (along(input, -1) or along(weight, -1))
    y = RowsProduct.apply(a, b, c, None, "", relu and not apart)
    if apart:
        y = Relu.apply(y)
    y = y if input.ndim > 1 else y.squeeze(0)
    return y if weight.ndim == 2 else y.squeeze(-1)
