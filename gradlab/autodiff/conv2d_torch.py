"""conv2d for torch: forward, dgrad and wgrad, each with the two others for pullbacks, so any derivative is exact."""

import torch

from gradlab.autodiff.arguments.errors import refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.arguments.shards_torch import along
from gradlab.autodiff.arguments.tensors_torch import want_tensors
from gradlab.autodiff.arguments.window_torch import pair_of
from gradlab.autodiff.common.channels_last_torch import ChannelsLast
from gradlab.autodiff.common.conv2d_mapped_torch import as_images, from_images, inside, more_groups, outside
from gradlab.autodiff.frameworks.autocast_torch import to_autocast_dtype
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.autodiff.relu_torch import Relu, ReluMask
from gradlab.kernels import conv2d_triton as kernels
from gradlab.kernels.common.conv2d_last_triton import takes
from gradlab.kernels.common.images_triton import lies_channels_last
from gradlab.kernels.common.window import Geometry, pads


class Conv2d(Function):
    """y[B F P Q] = the correlation of x with w, plus bias, then relu; 0 where mask <= 0."""

    @staticmethod
    def forward(x, w, bias, mask, geometry, relu):
        return kernels.forward(x, w, bias, mask, geometry, relu, lies_channels_last(x) or lies_channels_last(w))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _, mask, ctx.geometry, relu = inputs
        # With a fused relu, y is its own mask.
        ctx.save_for_backward(x, w, output if relu else mask)
        # Asked in the backward, dynamo copies the cotangent first, and export with dynamic sizes fails.
        ctx.last = lies_channels_last(x), lies_channels_last(w)

    @staticmethod
    def backward(ctx, dy):
        x, w, mask = ctx.saved_tensors
        need_x, need_w, need_bias, *_ = ctx.needs_input_grad
        filters = w.shape[0] // Geometry.of(ctx.geometry).groups
        if (need_x or need_w) and takes(dy, filters) and not (mask is None and any(ctx.last)):
            # One copy for all three, masked on its way, where each would make or mask its own.
            dy, mask = ChannelsLast.apply(dy, mask), None
        dx = Conv2dDgrad.apply(dy, w, mask, ctx.geometry, ctx.last[0]) if need_x else None
        dw = Conv2dWgrad.apply(dy, x, mask, ctx.geometry, ctx.last[1]) if need_w else None
        db = Conv2dBiasGrad.apply(dy, mask) if need_bias else None
        return dx, dw, db, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, w, bias, mask, geometry, relu):
        Z, one_x, one_w = info.batch_size, in_dims[0] is None, in_dims[1:3] == (None, None)
        if one_w:
            x, mask = as_images(*in_front(Z, (in_dims[0], in_dims[3]), (x, mask)))
            return from_images(Conv2d.apply(x, w, bias, mask, geometry, relu), Z), 0
        groups = Geometry.of(geometry).groups if one_x else 1
        w, bias, mask = in_front(Z, in_dims[1:4], (w, bias, mask))
        if not one_x:
            x, geometry = inside(x.movedim(in_dims[0], 0), 1, 1), more_groups(geometry, Z)
        y = Conv2d.apply(x, inside(w, 0, groups), inside(bias, 0, groups), inside(mask, 1, groups), geometry, relu)
        return outside(y, Z, 1, groups), 0


class Conv2dDgrad(Function):
    """dx[B C H W] of the cotangent dy, zeros in place of dy where mask <= 0."""

    @staticmethod
    def forward(dy, w, mask, geometry, channels_last):
        return kernels.dgrad(dy, w, mask, geometry, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, mask, ctx.geometry, _ = inputs
        ctx.save_for_backward(dy, w, mask)

    @staticmethod
    def backward(ctx, u):
        dy, w, mask = ctx.saved_tensors
        need_dy, need_w, *_ = ctx.needs_input_grad
        ddy = Conv2d.apply(u, w, None, mask, ctx.geometry, False) if need_dy else None
        dw = Conv2dWgrad.apply(dy, u, mask, ctx.geometry, lies_channels_last(w)) if need_w else None
        return ddy, dw, None, None, None

    @staticmethod
    def vmap(info, in_dims, dy, w, mask, geometry, channels_last):
        Z, one_w = info.batch_size, in_dims[1] is None
        dy, mask = in_front(Z, (in_dims[0], in_dims[2]), (dy, mask))
        if one_w:
            dy, mask = as_images(dy, mask)
            return from_images(Conv2dDgrad.apply(dy, w, mask, geometry, channels_last), Z), 0
        w, geometry = inside(w.movedim(in_dims[1], 0), 0, 1), more_groups(geometry, Z)
        dx = Conv2dDgrad.apply(inside(dy, 1, 1), w, inside(mask, 1, 1), geometry, channels_last)
        return outside(dx, Z, 1, 1), 0


class Conv2dWgrad(Function):
    """dw[F D R S] of the cotangent dy, zeros in place of dy where mask <= 0."""

    @staticmethod
    def forward(dy, x, mask, geometry, channels_last):
        return kernels.wgrad(dy, x, mask, geometry, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, mask, ctx.geometry, _ = inputs
        ctx.save_for_backward(dy, x, mask)

    @staticmethod
    def backward(ctx, v):
        dy, x, mask = ctx.saved_tensors
        need_dy, need_x, *_ = ctx.needs_input_grad
        ddy = Conv2d.apply(x, v, None, mask, ctx.geometry, False) if need_dy else None
        dx = Conv2dDgrad.apply(dy, v, mask, ctx.geometry, lies_channels_last(x)) if need_x else None
        return ddy, dx, None, None, None

    @staticmethod
    def vmap(info, in_dims, dy, x, mask, geometry, channels_last):
        Z, one_x = info.batch_size, in_dims[1] is None
        groups = Geometry.of(geometry).groups if one_x else 1
        dy, mask = in_front(Z, (in_dims[0], in_dims[2]), (dy, mask))
        if not one_x:
            x, geometry = inside(x.movedim(in_dims[1], 0), 1, 1), more_groups(geometry, Z)
        dw = Conv2dWgrad.apply(inside(dy, 1, groups), x, inside(mask, 1, groups), geometry, channels_last)
        return outside(dw, Z, 0, groups), 0


class Conv2dBiasGrad(Function):
    """db[F] = sum over B, P and Q of dy, zeros where mask <= 0. Linear: its pullback is a masked broadcast."""

    @staticmethod
    def forward(dy, mask):
        return kernels.bias_sum(dy, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, db):
        (mask,) = ctx.saved_tensors
        spread = db[:, None, None].expand(ctx.shape)
        return spread if mask is None else ReluMask.apply(spread, mask), None

    @staticmethod
    def vmap(info, in_dims, dy, mask):
        dy, mask = in_front(info.batch_size, in_dims, (dy, mask))
        return outside(Conv2dBiasGrad.apply(inside(dy, 1, 1), inside(mask, 1, 1)), info.batch_size, 0, 1), 0


@public("conv2d")
def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> torch.Tensor:
    """y[B F P Q] = input[B C H W] correlated with weight[F D R S], plus bias[F]; as `torch.nn.functional.conv2d`.

    Args:
        input: [B C H W] or, unbatched, [C H W]; B may be 0; any strides.
        weight: [F D R S] with C = groups D and F a multiple of groups.
        bias: [F].
        stride, dilation: a positive number, or one for rows and one for columns.
        padding: zeros around the image, a number or a pair; "valid" for none; "same" for P = H, with stride 1 alone.
        groups: how many parts the channels fall into; C of them is depthwise.
        activation: "relu" fuses max(y, 0) into the same kernel, forward and backward.
            All arrays of one dtype (float64, float32, float16, bfloat16) and on one device, a CPU or CUDA. Sums are
            carried in float32 or better, never in TF32. Under `torch.autocast` they are cast to its dtype first.

    Returns:
        A new tensor in the inputs' dtype, channels last where input or weight lies so. Derivatives of every order are
        exact.

    Raises:
        ValueError: shapes that do not fit, a stride, padding, dilation or groups out of range, another device.
        TypeError: not a strided tensor, mixed or integer dtypes.
    """
    input, weight, bias = to_autocast_dtype(input, weight, bias)
    present = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    spread = want_tensors("conv2d", present)
    want_floats("conv2d", present)
    want_choice("conv2d", "activation", activation, (None, "relu"))
    want_rank("conv2d", "input", input, "[B C H W] or [C H W]", (3, 4))
    want_rank("conv2d", "weight", weight, "[F D R S]", (4,))
    geometry = _geometry(input, weight, stride, padding, dilation, groups)
    if bias is not None:
        want_rank("conv2d", "bias", bias, "[F]", (1,))
        want_size("conv2d", "bias", bias, 0, "F", weight.shape[0], "like weight's first axis")
    x = input if input.ndim == 4 else input.unsqueeze(0)
    relu = activation == "relu"
    # Split along channels over devices it is a sum that is still to be made, of which relu is taken afterwards.
    apart = spread and relu and (along(input, -3) or along(weight, 1))
    y = Conv2d.apply(x, weight, bias, None, geometry.flat(), relu and not apart)
    if apart:
        y = Relu.apply(y)
    return y if input.ndim == 4 else y.squeeze(0)


def _geometry(input, weight, stride, padding, dilation, groups) -> Geometry:
    steps, spread = (pair_of("conv2d", name, value, 1) for name, value in (("stride", stride), ("dilation", dilation)))
    if isinstance(padding, str):
        want_choice("conv2d", "padding", padding, ("same", "valid"))
        if padding == "same" and steps != (1, 1):
            refuse("conv2d", "stride", steps, "(1, 1) beside padding 'same'")
    else:
        padding = pair_of("conv2d", "padding", padding, 0)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        refuse("conv2d", "groups", repr(groups), "a positive int")
    F, D, *window = weight.shape
    C, *image = input.shape[-3:]
    if 0 in (F, D, *window):
        refuse("conv2d", "weight of shape " + str(list(weight.shape)), "empty", "at least one filter, channel and tap")
    if F % groups:
        refuse("conv2d", f"weight of shape {list(weight.shape)}", f"F = {F}", f"a multiple of groups = {groups}")
    if groups * D != C:
        refuse("conv2d", f"input of shape {list(input.shape)}", f"C = {C}", f"C = {groups * D}, groups x weight's D")
    around = pads(padding, window, steps, spread, image)
    geometry = Geometry(steps, spread, around, groups, (image[0], image[1]), (window[0], window[1]))
    if min(geometry.result) < 1:
        padded = [n + sum(p) for n, p in zip(image, around, strict=True)]
        reach = [d * (k - 1) + 1 for k, d in zip(window, spread, strict=True)]
        refuse("conv2d", "the padded image", padded, f"at least the window's {reach}")
    return geometry


by_spec = conv2d
