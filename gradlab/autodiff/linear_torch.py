"""linear for torch: a product whose two pullbacks are products again, so that any order of derivative is exact."""

import math

import torch

from gradlab.autodiff import linear_sharded_torch
from gradlab.autodiff.arguments.errors import refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.frameworks.autocast_torch import to_autocast_dtype
from gradlab.autodiff.frameworks.mapped_torch import in_front, merged
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.autodiff.relu_torch import ReluMask
from gradlab.kernels import linear_triton as kernels
from gradlab.kernels.common.column_sum_triton import column_sum
from gradlab.kernels.common.matmul_triton import masks_first
from gradlab.kernels.linear import MOVES


class Linear(Function):
    """y[M N] = a[M K] b[K N] + bias[N], then relu; `masked` ("a", "b", "y" or "") is zero where mask <= 0.

    All of them may have one more axis Z in front, which is what a mapped axis becomes.
    """

    @staticmethod
    def forward(a, b, bias, mask, masked, relu, transposed):
        return kernels.matmul(a, b, bias, mask, masked, relu, transposed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, _, mask, masked, relu, _ = inputs
        # With a fused relu, y is its own mask.
        ctx.save_for_backward(a, b, output if relu else mask)
        ctx.masked = "y" if relu else masked
        # Looked up here: strides read in a backward make dynamo copy the cotangent.
        ctx.by_columns = _by_columns(a), _by_columns(b)

    @staticmethod
    def backward(ctx, dy):
        a, b, mask = ctx.saved_tensors
        masked = ctx.masked
        if masked == "y" and masks_first(dy):
            dy, masked = ReluMask.apply(dy, mask), ""
        in_dgrad, in_wgrad = MOVES[masked]
        need_a, need_b, need_bias, *_ = ctx.needs_input_grad
        da = db = dbias = None
        # Transposed by a call, not by .mT: torch.compile moves an attribute of what was saved into the forward, and
        # compiled autograd of torch 2.13 then loses count of what was saved.
        if need_a:
            # A mask that stays at its operand is transposed with it.
            mask_a = mask.transpose(-2, -1) if masked == "b" else mask
            da = Linear.apply(
                dy, b.transpose(-2, -1), None, mask_a if masked else None, in_dgrad, False, ctx.by_columns[0]
            )
        if need_b:
            mask_b = mask.transpose(-2, -1) if masked == "a" else mask
            db = Linear.apply(
                a.transpose(-2, -1), dy, None, mask_b if masked else None, in_wgrad, False, ctx.by_columns[1]
            )
        if need_bias:
            dbias = LinearBiasGrad.apply(dy, mask if masked == "y" else None)
        return da, db, dbias, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, a, b, bias, mask, masked, relu, transposed):
        if in_dims[1:3] == (None, None) and b.ndim == 2 and masked != "b":
            # One b for all: their rows are the rows of one product.
            a, mask = in_front(info.batch_size, (in_dims[0], in_dims[3]), (a, mask))
            y = Linear.apply(merged(a, 1), b, bias, merged(mask, 1), masked, relu, False)
            return y.reshape(*a.shape[:-1], b.shape[-1]), 0
        args = in_front(info.batch_size, in_dims, (a, b, bias, mask, masked, relu, transposed))
        folded = [merged(t, axes) for t, axes in zip(args[:4], (2, 2, 1, 2), strict=True)]
        y = Linear.apply(*folded, masked, relu, transposed)
        return y.reshape(*args[0].shape[:-1], args[1].shape[-1]), 0


class LinearBiasGrad(Function):
    """s[N] = sum over M of a[M N], zeros where mask <= 0. Linear in a: its pullback is a masked broadcast."""

    @staticmethod
    def forward(a, mask):
        return column_sum(a, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, ds):
        (mask,) = ctx.saved_tensors
        rows = ds.unsqueeze(-2).expand(ctx.shape)
        return rows if mask is None else ReluMask.apply(rows, mask), None

    @staticmethod
    def vmap(info, in_dims, a, mask):
        a, mask = in_front(info.batch_size, in_dims, (a, mask))
        s = LinearBiasGrad.apply(merged(a, 2), merged(mask, 2))
        return s.reshape(*a.shape[:-2], a.shape[-1]), 0


def _by_columns(t: torch.Tensor) -> bool:
    """Whether a matrix lies in memory column by column, as a transposed weight does: its gradient is to lie so too."""
    return t.stride(-2) == 1 and t.stride(-1) != 1


@public("linear")
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, activation: str | None = None
) -> torch.Tensor:
    """y[... N] = input[... K] weight[N K]^T + bias[N], then the activation; as `torch.nn.functional.linear`.

    Args:
        input: [... K], any leading axes, none or empty ones included; any strides.
        weight: [N K] or [K] (no axis N in the result), any strides.
        bias: [N], or a scalar beside a weight [K].
        activation: "relu" fuses max(y, 0) into the same kernel, forward and backward.
            All of one dtype (float64, float32, float16, bfloat16) and on one device, a CPU or CUDA. Sums are carried in
            float32 or better, never in TF32. Under `torch.autocast` they are cast to its dtype first.

    Returns:
        A new tensor [... N] in the inputs' dtype. Derivatives of every order are exact.

    Raises:
        ValueError: shapes that do not fit, another device, an unknown activation.
        TypeError: not a strided tensor, mixed or integer dtypes.
    """
    input, weight, bias = to_autocast_dtype(input, weight, bias)
    present = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    spread = want_tensors("linear", present)
    want_floats("linear", present)
    want_choice("linear", "activation", activation, (None, "relu"))
    if input.ndim == 0:
        refuse("linear", "input of shape []", "0-dimensional", "[... K]")
    want_rank("linear", "weight", weight, "[N K] or [K]", (1, 2))
    want_size("linear", "weight", weight, -1, "K", input.shape[-1], "like input's last axis")
    if bias is not None:
        want_rank("linear", "bias", bias, "[N], an axis for each of weight's but the last", (weight.ndim - 1,))
        if weight.ndim == 2:
            want_size("linear", "bias", bias, 0, "N", weight.shape[0], "like weight's first axis")
    if spread:
        return linear_sharded_torch.linear(input, weight, bias, activation == "relu")
    w = (weight if weight.ndim == 2 else weight.unsqueeze(0)).t()
    b = bias.reshape(1) if bias is not None and bias.ndim == 0 else bias
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    y = Linear.apply(rows, w, b, None, "", activation == "relu", False)
    if input.ndim == weight.ndim == 2:
        # No view of itself: fully_shard warns of layers that return one.
        return y
    # One tuple: with neither leading axes nor N the result has no axis, which reshape takes as () alone.
    return y.reshape((*input.shape[:-1], *weight.shape[:-1]))


def by_spec(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, *, activation: str | None = None
) -> torch.Tensor:
    """linear with the Spec's w[K N]."""
    return linear(x, w.t(), b, activation=activation)
