"""linear_cross_entropy for torch: operands and three numbers a row are saved; logits are made again, by chunks.

Or kept, as many as the caller gives memory for.
"""

import math
from typing import Any, Literal, overload

import torch

from gradlab.autodiff.arguments.errors import dtype_name, refuse, want_floats, want_rank, want_size
from gradlab.autodiff.class_losses.row_sums_torch import Reduction, reduced
from gradlab.autodiff.class_losses.settings import class_loss, want_bytes
from gradlab.autodiff.class_losses.spread_torch import on_mesh
from gradlab.autodiff.class_losses.vocabulary_torch import (
    NO_GROUP,
    flat,
    gathered,
    part_of_head,
    summed,
    together,
    vocabulary_part,
    want_group,
)
from gradlab.autodiff.cross_entropy_torch import CLASSES
from gradlab.autodiff.frameworks.autocast_torch import to_autocast_dtype, to_float32
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public, unrecorded
from gradlab.kernels import linear_cross_entropy_triton as kernels
from gradlab.kernels.class_losses.chunks import kept
from gradlab.kernels.class_losses.linear_second_triton import second_backward
from gradlab.kernels.class_losses.parts_triton import merge_parts
from gradlab.kernels.runtime.launch_triton import accumulator

OP = "linear_cross_entropy"


class LinearCrossEntropy(Function):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, the row statistics and kept logits, of x = h w + b.

    Everything has an axis Z in front, which mapped axes are merged into. Logits are kept in up to `memory` bytes; of
    DTensors, whose parts differ, none are.
    """

    @staticmethod
    def forward(h, w, t, b, a, settings, part, memory):
        (Z, M, K), V, spread = h.shape, w.shape[-1], part is not None and part.mesh is not None
        classes = 0 if spread else kept(Z * M, K, V, accumulator(h.dtype).itemsize, memory)
        if part is None:
            return kernels.loss(h, w, t, b, a, settings.flat(), None, classes)
        loss = part.on_locals(_loss_of_part, f"{_ARRAYS} -> y[Z M], n[Z M], s[Z 3 M], x[Z M V]")
        return loss(h, w, t, b, a, settings, part, classes)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings, ctx.part, _ = inputs
        *_, s, x = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(s, x)
        ctx.save_for_backward(*tensors, s, x)

    @staticmethod
    def backward(ctx, dy, dn, *_):
        *saved, s, x = ctx.saved_tensors
        # Without an axis of classes where none is kept.
        saved += [s, x if x.ndim > 1 else None]
        if dy is None:
            dy = s.new_zeros(()).expand(s.shape[::2])
        need_h, need_w, _, need_b, *_ = ctx.needs_input_grad
        dh, dw, db = LinearCrossEntropyBackward.apply(dy, dn, *saved, ctx.settings, need_h, need_w, need_b, ctx.part)
        return dh if need_h else None, dw if need_w else None, None, db if need_b else None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        if in_dims[4] is not None:
            raise NotImplementedError(f"{OP}: weight is mapped over, wanted one for all")
        return _merged(LinearCrossEntropy, info, in_dims, args)


class LinearCrossEntropyBackward(Function):
    """dh = dx w^T, dw = h^T dx, db[v] = sum_m dx[m v] of dx = z' (dy (R p - r) + 2 dn l p)."""

    @staticmethod
    def forward(dy, dn, h, w, t, b, a, s, x, settings, need_h, need_w, need_b, part):
        needs = need_h, need_w, need_b, _by_columns(w)
        if part is None:
            return kernels.backward(dy, dn, h, w, t, b, a, s, settings.flat(), *needs, None, x)
        text = f"dy[Z M], dn[Z M], {_ARRAYS}, s[Z 3 M] -> dh[Z M K], dw[Z K V], db[Z V]"
        return part.on_locals(_backward_of_part, text)(dy, dn, h, w, t, b, a, s, x, settings, needs, part)

    @staticmethod
    def setup_context(ctx, inputs, output):
        # Not the kept logits: the second backward makes its own, with what changes them.
        *tensors, _, ctx.settings = inputs[:10]
        *ctx.needs, ctx.part = inputs[10:]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        # A gradient that was not needed has no cotangent.
        u = [u if needed else None for u, needed in zip(cotangents, ctx.needs, strict=True)]
        need_dy, need_dn, need_h, need_w, _, need_b, *_ = ctx.needs_input_grad
        ddy, ddn, dh, dw, db = LinearCrossEntropySecondBackward.apply(
            *u, *ctx.saved_tensors, ctx.settings, need_h, need_w, need_b, ctx.part
        )
        rows = ddy if need_dy else None, ddn if need_dn else None
        return *rows, dh if need_h else None, dw if need_w else None, None, db if need_b else None, *[None] * 8

    @staticmethod
    def vmap(info, in_dims, *args):
        return _merged(LinearCrossEntropyBackward, info, in_dims, args)


class LinearCrossEntropySecondBackward(Function):
    """The backward of the backward: <dx, u> by dy, dn, h, w and b, u = uh w + h uw + ub."""

    @staticmethod
    def forward(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, need_h, need_w, need_b, part):
        needs = need_h, need_w, need_b, _by_columns(w)
        if part is None:
            return second_backward(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings.flat(), *needs)
        text = f"uh[Z M K], uw[Z K V], ub[Z V], dy[Z M], dn[Z M], {_ARRAYS}, s[Z 3 M]"
        text += " -> ddy[Z M], ddn[Z M], dh[Z M K], dw[Z K V], db[Z V]"
        second = part.on_locals(_second_backward_of_part, text)
        return second(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, needs, part)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError(f"{OP}: its third derivative is not implemented, wanted order 1 or 2")

    @staticmethod
    def vmap(info, in_dims, *args):
        return _merged(LinearCrossEntropySecondBackward, info, in_dims, args)


def _merged(rule, info, in_dims, args):
    """The rule with the mapped axis merged into Z, and its results with Z split again."""
    args = [a.flatten(0, 1) if isinstance(a, torch.Tensor) else a for a in in_front(info.batch_size, in_dims, args)]
    results = rule.apply(*args)
    # A gradient that is not needed has no axis Z, and no element.
    split = [r.unflatten(0, (info.batch_size, -1)) if r.ndim > 1 else r for r in results]
    return tuple(split), tuple(0 if r.ndim > 1 else None for r in results)


# Axis letters of what a loss is of.
_ARRAYS = "h[Z M K], w[Z K V], t[Z M], b[Z V], a[Z V]"


def _loss_of_part(h, w, t, b, a, settings, part, classes):
    """y, n, s of whole rows, of which this rank has some classes, and x of those it keeps; all without a group."""
    if part.group is None:
        return kernels.loss(h, w, t, b, a, settings.flat())
    *_, p, x = kernels.loss(h, w, t, b, a, settings.flat(), flat(part), classes)
    return *merge_parts(gathered(p, part.group), t, settings.flat(), part.total), x


def _backward_of_part(dy, dn, h, w, t, b, a, s, x, settings, needs, part):
    given = dy, dn, h, w, t, b, a, s, settings.flat(), *needs
    if part.group is None:
        return kernels.backward(*given)
    dh, dw, db = kernels.backward(*given, flat(part), x)
    return summed(part.group, dh)[0].to(h.dtype), dw, db


def _second_backward_of_part(uh, uw, ub, dy, dn, h, w, t, b, a, s, settings, needs, part):
    given = uh, uw, ub, dy, dn, h, w, t, b, a, s, settings.flat(), *needs
    if part.group is None:
        return second_backward(*given)
    ddy, ddn, sums, _, _ = second_backward(*given, flat(part))
    ddy, ddn, sums = summed(part.group, ddy, ddn, sums)
    _, _, dh, dw, db = second_backward(*given, flat(part), sums)
    return ddy, ddn, summed(part.group, dh)[0].to(h.dtype), dw, db


def _by_columns(w: torch.Tensor) -> bool:
    """Whether a matrix lies in memory column by column, as a transposed weight does: its gradient is to lie so too."""
    return w.stride(-2) == 1 and w.stride(-1) != 1


@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[True],
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    group: Any = None,
    logits_memory: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[False] = False,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    group: Any = None,
    logits_memory: int = 0,
) -> torch.Tensor: ...
@overload
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    group: Any = None,
    logits_memory: int = 0,
) -> Any: ...
@public(OP)
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    group: Any = None,
    logits_memory: int = 0,
) -> Any:
    """cross_entropy(linear(input[... K], linear_weight[V K], linear_bias[V]), target[...]) without logits in memory.

    As `torch.nn.functional.linear_cross_entropy`, with its names; chunked always, so it takes no `options`.

    Args:
        input: [... K], any leading axes, none or empty ones included.
        linear_weight: [V K], V >= 1.
        target: classes [...] in [0, V), int64, int32 or uint8. Probabilities are refused: they are as large as logits.
        linear_bias: [V].
        weight: of each class [V], of any float dtype; a constant.
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V). None is -100.
        reduction: "mean", "sum", or "none" for one loss a row. The mean of the first part is over the weights a[t] of
            the rows not ignored, that of the z-loss over their number; NaN when there are none.
        label_smoothing: the part of each target, in [0, 1], that is spread over all classes.
        z_loss: what the square of each row's log-sum-exp is weighted with and added.
        return_z_loss: return that part too, reduced alike; both are differentiable.
        softcap: the logits are softcap tanh(logits / softcap).
        bias: linear_bias, by the name that `linear` and the jax side have for it.
            Any strides. input, linear_weight and linear_bias of one dtype (float64, float32, float16, bfloat16); all on
            one device, a CPU or CUDA. Under `torch.autocast` the three are cast to its dtype and the loss is float32.
        group: a `torch.distributed.ProcessGroup` over which the classes are spread (vocabulary parallel):
            linear_weight, linear_bias and weight are this rank's part, [V/W K] and [V/W] of W ranks, in the order of
            ranks; parts need not be equal, and may be empty. input and target are the same on every rank, and so are
            the loss and the gradient of input, a sum over the ranks. Each rank has to make every call, also of backward
            passes. DTensors need no group: linear_weight may be Shard(0), and input Shard(0), in equal parts
            if it has more axes than [M K].
        logits_memory: bytes that forward may keep logits in for backward, which then does not make them again: M V Vk
            of them, of float32 (float64), where Vk = V if that fits, else whole chunks of Vc classes. 0 keeps none,
            and so does a call without gradients, and one of DTensors. Of a group each rank keeps its own; with
            `torch.vmap` all mapped calls share the memory. It changes no bit of a result.

    Returns:
        The loss, a scalar or [...], in the inputs' dtype, summed in float32 or better; with `return_z_loss` two. First
        and second derivatives for input, linear_weight and linear_bias are exact, and neither holds the logits: the
        first takes M Vc e + 4 M K bytes besides what is asked for, with Vc = max(1024, K, 2^21 / M) classes of e bytes
        at once (docs/linear_cross_entropy.md), and what is kept in `logits_memory`. What needs no gradient costs
        nothing.

    With a group ranks exchange 4 float32 (float64) numbers a row in forward, as in `cross_entropy`, and the M K numbers
    of input's gradient, in float32 or better, in backward; a second backward exchanges those, and 2 numbers a row
    before (3 with a z-loss). At its first call ranks compare what they are called with, as in `cross_entropy`.

    Raises:
        ValueError: shapes that do not fit, another device, an unknown reduction, a number out of its range, a class
            weight that requires a gradient; a group that this rank is no member of, or whose ranks have different
            arguments.
        TypeError: not a strided tensor, mixed or integer dtypes, classes not integer.
        IndexError: a class out of range, with its row. On a CPU at once; on CUDA the row's loss and gradient are NaN,
            and a later call raises (`gradlab.torch.raise_device_errors` asks without a call).
        NotImplementedError: a third derivative; a DTensor that `torch.vmap` maps over.
    """
    if group is not None:
        want_group(OP, group)
    with NO_GROUP if group is None else together(OP, group):
        if bias is not None:
            if linear_bias is not None:
                refuse(OP, "bias", "there beside linear_bias", "one of the two")
            linear_bias = bias
        given = {"input": input, "linear_weight": linear_weight, "linear_bias": linear_bias}
        floats = {name: t for name, t in given.items() if t is not None}
        spread = on_mesh(OP, floats | {"target": target} | ({} if weight is None else {"weight": weight}))
        # The dtype that torch's linear has under autocast, and the one that its cross_entropy has.
        (full,) = to_float32(input)
        floats = dict(zip(floats, to_autocast_dtype(*floats.values()), strict=True))
        want_floats(OP, floats)
        settings = class_loss(
            OP,
            ignore_index=-100 if ignore_index is None else ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            return_z_loss=return_z_loss,
            softcap=softcap,
        )
        logits_memory = want_bytes(OP, "logits_memory", logits_memory)
        h, w, b = floats["input"], floats["linear_weight"], floats.get("linear_bias")
        _want_shapes(h, w, b, target, weight, group is None)
    M = math.prod(h.shape[:-1])
    t = target.reshape(M)
    how = Reduction(reduction, float(z_loss), return_z_loss)
    part = None
    if spread:
        part, h = part_of_head(OP, h, w, group)
    elif group is not None:
        same = {"shape of input": h.shape, "dtype of input": h.dtype, "dtype of target": target.dtype}
        same |= {"linear_bias": "none" if b is None else "there", "weight": "none" if weight is None else "there"}
        same |= {"settings": settings, "reduction": how, "requires_grad of input": h.requires_grad}
        part = vocabulary_part(OP, group, w.shape[0], same, target)
    y, n, *_ = LinearCrossEntropy.apply(
        h.reshape(1, M, h.shape[-1]),
        w.t().unsqueeze(0),
        t.unsqueeze(0),
        None if b is None else b.unsqueeze(0),
        None if weight is None else weight.unsqueeze(0),
        settings,
        part,
        0 if unrecorded((h, w, b)) else logits_memory,
    )
    found = reduced(y[0], n[0], t, weight, w.shape[0], settings.ignore_index, how, part)
    loss, added = (a.reshape(target.shape if reduction == "none" else ()).to(full.dtype) for a in found)
    return (loss, added) if return_z_loss else loss


def _want_shapes(h, w, b, target, weight, whole) -> None:
    if target.is_floating_point():
        wanted = "classes: probabilities are as large as the logits that this op avoids, cross_entropy takes them"
        refuse(OP, "dtype of target", dtype_name(target), wanted, TypeError)
    if target.dtype not in CLASSES:
        refuse(OP, "dtype of target", dtype_name(target), "int64, int32 or uint8", TypeError)
    if h.ndim == 0:
        refuse(OP, "input of shape []", "0-dimensional", "[... K]")
    want_rank(OP, "linear_weight", w, "[V K]", (2,))
    want_size(OP, "linear_weight", w, 1, "K", h.shape[-1], "like input's last axis")
    if w.shape[0] == 0 and whole:
        refuse(OP, f"linear_weight of shape {list(w.shape)}", "V = 0", "at least one class")
    if target.shape != h.shape[:-1]:
        refuse(OP, "shape of target", list(target.shape), f"{list(h.shape[:-1])} like input's but its last axis")
    for argument, one in (("linear_bias", b), ("weight", weight)):
        if one is not None:
            want_rank(OP, argument, one, "[V]", (1,))
            want_size(OP, argument, one, 0, "V", w.shape[0], "like linear_weight's first axis")
    if weight is not None:
        want_floats(OP, {"weight": weight})
        if weight.requires_grad:
            refuse(OP, "weight", "a tensor that requires a gradient", "one without: it has no derivative here")


def by_spec(
    h: torch.Tensor,
    w: torch.Tensor,
    t: torch.Tensor,
    b: torch.Tensor | None = None,
    a: torch.Tensor | None = None,
    **options,
) -> Any:
    """linear_cross_entropy with the Spec's w[K V] and a."""
    return linear_cross_entropy(h, w.t(), t, b, weight=a, **options)
