"""cross_entropy for torch: the logits and three numbers a row are saved; backward recomputes the softmax."""

from typing import Any, Literal, overload

import torch

from gradlab.autodiff.arguments.errors import dtype_name, refuse, want_bool, want_floats, want_size
from gradlab.autodiff.class_losses.in_place_torch import gradient, in_place, loss_with_gradient
from gradlab.autodiff.class_losses.row_sums_torch import Reduction, reduced
from gradlab.autodiff.class_losses.settings import class_loss
from gradlab.autodiff.class_losses.spread_torch import on_mesh
from gradlab.autodiff.class_losses.vocabulary_torch import (
    NO_GROUP,
    flat,
    gathered,
    part_of_logits,
    summed,
    together,
    vocabulary_part,
    want_group,
)
from gradlab.autodiff.frameworks.autocast_torch import to_float32
from gradlab.autodiff.frameworks.mapped_torch import in_front
from gradlab.autodiff.frameworks.ranges_torch import Function, public
from gradlab.kernels import cross_entropy_triton as kernels
from gradlab.kernels.class_losses.parts_triton import merge_parts

_OP = "cross_entropy"
CLASSES = (torch.int64, torch.int32, torch.uint8)


class CrossEntropy(Function):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, and the row statistics.

    With a `place` the gradient takes the memory of the logits: in the backward pass, or here, and then the reduced loss
    comes back.
    """

    @staticmethod
    def forward(x, t, q, a, settings, place, part):
        if part is not None:
            return part.on_locals(_loss_of_part, f"{_ARRAYS} -> y[M], n[M], s[3 M]")(x, t, q, a, settings, part)
        if place is not None and place.with_loss:
            return loss_with_gradient(x, t, q, a, settings, place)
        return kernels.loss(x, t, q, a, settings.flat())

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, t, q, a, ctx.settings, place, ctx.part = inputs
        # Without the divisors: what backward holds is what is saved.
        ctx.place, ctx.taken = place and place._replace(divisors=None), False
        if isinstance(output, torch.Tensor):
            ctx.save_for_backward(x)
            return
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, t, q, a, output[2])

    @staticmethod
    def backward(ctx, dy, dn=None, _=None):
        if ctx.place is not None:
            return gradient(ctx, dy, dn), *[None] * 6
        x, t, q, a, s = ctx.saved_tensors
        if dy is None:
            dy = s.new_zeros(()).expand(s.shape[1:])
        dx = CrossEntropyBackward.apply(dy, dn, x, t, q, a, s, ctx.settings, ctx.part)
        dq = CrossEntropyTargetBackward.apply(dy, x, a, s, ctx.settings, ctx.part) if ctx.needs_input_grad[2] else None
        return dx, None, dq, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, t, q, a, settings, place, part):
        x, t, q, a = _mapped(info, in_dims, x, t, q, a)
        y, n, s = CrossEntropy.apply(*_rows(x, t, q), a, settings, place, part)
        M = x.shape[0], x.shape[1] * x.shape[3]
        return (y.reshape(M), n.reshape(M), s.reshape(3, *M)), (0, 0, 1)


class CrossEntropyBackward(Function):
    """dx[m v] = z'[m v] (dy[m] (R[m] p[m v] - r[m v]) + 2 dn[m] l[m] p[m v])."""

    @staticmethod
    def forward(dy, dn, x, t, q, a, s, settings, part):
        launch = kernels.backward
        if part is not None:
            launch = part.on_locals(launch, f"dy[M], dn[M], {_ARRAYS}, s[3 M] -> d[N V D]")
        return launch(dy, dn, x, t, q, a, s, settings.flat(), flat(part))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings, ctx.part = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, u):
        _, dn, _, _, q, _, _ = saved = ctx.saved_tensors
        ddy, ddn, dx, dq = CrossEntropySecondBackward.apply(u, *saved, ctx.settings, ctx.part)
        return ddy, None if dn is None else ddn, dx, None, None if q is None else dq, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, dy, dn, x, t, q, a, s, settings, part):
        dy, dn, s = in_front(info.batch_size, (*in_dims[:2], in_dims[6]), (dy, dn, s))
        x, t, q, a = _mapped(info, in_dims[2:], x, t, q, a)
        dx = CrossEntropyBackward.apply(*_flat(dy, dn), *_rows(x, t, q), a, _statistics(s), settings, part)
        return dx.reshape(x.shape), 0


class CrossEntropyTargetBackward(Function):
    """dq[m v] = dy[m] a[v] (1 - eps) (l[m] - z[m v]), eps the smoothing: linear in dy; in x a loss of target u."""

    @staticmethod
    def forward(dy, x, a, s, settings, part):
        launch = kernels.target_backward
        if part is not None:
            launch = part.on_locals(launch, "dy[M], x[N V D], a[V], s[3 M] -> d[N V D]")
        return launch(dy, x, a, s, settings.flat())

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, a, _, ctx.settings, ctx.part = inputs
        ctx.save_for_backward(dy, x, a)

    @staticmethod
    def backward(ctx, u):
        dy, x, a = ctx.saved_tensors
        # Linear in the target: without smoothing the loss of target u is the product of u and dq, but for a factor.
        linear, part = ctx.settings._replace(label_smoothing=0.0), 1 - ctx.settings.label_smoothing
        y, _, s = CrossEntropy.apply(x, None, u, a, linear, None, ctx.part)
        if part != 1:
            y, dy = part * y, part * dy
        dx = CrossEntropyBackward.apply(dy, None, x, None, u, a, s, linear, ctx.part)
        return y.to(dy.dtype), dx, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, dy, x, a, s, settings, part):
        dy, s = in_front(info.batch_size, (in_dims[0], in_dims[3]), (dy, s))
        x, _, _, a = _mapped(info, (in_dims[1], None, None, in_dims[2]), x, None, None, a)
        dq = CrossEntropyTargetBackward.apply(*_flat(dy), x.flatten(0, 1), a, _statistics(s), settings, part)
        return dq.reshape(x.shape), 0


class CrossEntropySecondBackward(Function):
    """The backward of the backward: d(dy), d(dn), the Hessian-vector product dx, and dq."""

    @staticmethod
    def forward(u, dy, dn, x, t, q, a, s, settings, part):
        if part is None:
            ddy, ddn, dx, dq = kernels.second_backward(u, dy, dn, x, t, q, a, s, settings.flat())
        else:
            text = f"u[N V D], dy[M], dn[M], {_ARRAYS}, s[3 M] -> ddy[M], ddn[M], d[N V D], dq[N V D]"
            second = part.on_locals(_second_backward_of_part, text)
            ddy, ddn, dx, dq = second(u, dy, dn, x, t, q, a, s, settings, part)
        return ddy.to(dy.dtype), ddn if dn is None else ddn.to(dn.dtype), dx, dq

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cotangents):
        raise NotImplementedError("cross_entropy: its third derivative is not implemented, wanted order 1 or 2")

    @staticmethod
    def vmap(info, in_dims, u, dy, dn, x, t, q, a, s, settings, part):
        u, dy, dn, s = in_front(info.batch_size, (*in_dims[:3], in_dims[7]), (u, dy, dn, s))
        x, t, q, a = _mapped(info, in_dims[3:], x, t, q, a)
        found = CrossEntropySecondBackward.apply(
            u.flatten(0, 1), *_flat(dy, dn), *_rows(x, t, q), a, _statistics(s), settings, part
        )
        # Without dn there is no d(dn), and no dq of classes.
        like = dy, dn, x, q
        return (
            tuple(f if a is None else f.reshape(a.shape) for f, a in zip(found, like, strict=True)),
            tuple(None if a is None else 0 for a in like),
        )


# Axis letters of what a loss is of.
_ARRAYS = "x[N V D], t[M], q[N V D], a[V]"


def _loss_of_part(x, t, q, a, settings, part):
    """y, n, s of whole rows, of which this rank has some classes; of all of them without a group."""
    if part.group is None:
        return kernels.loss(x, t, q, a, settings.flat())
    p = kernels.loss(x, t, q, a, settings.flat(), flat(part))[2].unsqueeze(0)
    rows = None if t is None else t.unsqueeze(0)
    y, n, s = merge_parts(gathered(p, part.group), rows, settings.flat(), part.total)
    return y[0], n[0], s[0]


def _second_backward_of_part(u, dy, dn, x, t, q, a, s, settings, part):
    given = u, dy, dn, x, t, q, a, s, settings.flat()
    if part.group is None:
        return kernels.second_backward(*given)
    ddy, ddn, sums, _ = kernels.second_backward(*given, flat(part))
    ddy, ddn, sums = summed(part.group, ddy, ddn, sums)
    *_, dx, dq = kernels.second_backward(*given, flat(part), sums)
    return ddy, ddn, dx, dq


def _mapped(info, in_dims, x, t, q, a):
    """Logits and targets with the mapped axis in front; the class weights are one row for all."""
    if in_dims[3] is not None:
        raise NotImplementedError("cross_entropy: weight is mapped over, wanted one for all")
    return *in_front(info.batch_size, in_dims[:3], (x, t, q)), a


def _flat(*rows: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if r is None else r.flatten() for r in rows]


def _rows(x, t, q) -> tuple[Any, ...]:
    """The mapped axis as more rows."""
    return x.flatten(0, 1), *_flat(t), None if q is None else q.flatten(0, 1)


def _statistics(s: torch.Tensor) -> torch.Tensor:
    """Row statistics [Z 3 M] with the mapped axis as more rows."""
    return s.movedim(0, 1).flatten(1)


@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[True],
    softcap: float | None = None,
    inplace: bool = False,
    group: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[False] = False,
    softcap: float | None = None,
    inplace: bool = False,
    group: Any = None,
) -> torch.Tensor: ...
@overload
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool,
    softcap: float | None = None,
    inplace: bool = False,
    group: Any = None,
) -> Any: ...
@public(_OP)
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    inplace: bool = False,
    group: Any = None,
) -> Any:
    """Negative log-likelihood of a target under softmax(input[N V ...]); as `torch.nn.functional.cross_entropy`.

    Args:
        input: logits [V], [N V] or [N V D1 ...], V >= 1, N may be 0; any strides; float64, float32, float16, bfloat16,
            on a CPU or CUDA. Under `torch.autocast` logits, soft targets and weight are cast to float32 first.
        target: classes [], [N] or [N D1 ...] in [0, V), int64, int32 or uint8; or soft targets of input's shape and
            dtype, which have a derivative too. A class of probability 0 costs nothing, also where its logit is -inf.
        weight: of each class, [V], in input's dtype; has no derivative.
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V). With soft targets one
            of 0 or more is refused, and a negative one has no effect.
        reduction: "mean", weighted over the rows not ignored (unweighted over all rows for soft targets; NaN when there
            are none), "sum", or "none" for one loss a row.
        label_smoothing: the part, from 0 to 1, of each target that is spread evenly over the classes.
        z_loss: the coefficient of each row's squared log-sum-exp, which is added to its loss; under "mean" averaged
            unweighted over the rows not ignored.
        return_z_loss: give the loss and, apart, what the z-loss has added to it; both are differentiable.
        softcap: the logits enter as softcap tanh(input / softcap); a logit of -inf enters as -softcap.
        inplace: give away the memory of `input`, whose values are then unspecified: the gradient is written over the
            logits. Under "sum" and "mean" the forward pass writes it, for a cotangent of 1, and the backward pass
            scales it where the cotangent is another. The backward pass writes it under "none", with `return_z_loss`, in
            float16, and for a z-loss in float64. One backward pass only: no batch of them, no second derivative.
            Without a gradient to compute, `input` is untouched.
        group: a `torch.distributed.ProcessGroup` over which the classes are spread (vocabulary parallel): input, soft
            targets and weight are this rank's part of them, [N V/W ...] and [V/W] of W ranks, in the order of ranks;
            parts need not be equal, and may be empty. Classes are of all V and, like the rows, the same on every rank.
            So is the loss, bit for bit. Gradients are this rank's part, of the loss on any one rank, for a cotangent
            that is the same on every rank. Each rank has to make every call, also of backward passes. DTensors need no
            group: input may be Shard(0) or Shard(1), or both along axes of a mesh; [N V D1 ...] along Shard(0) in equal
            parts only.

    Returns:
        A scalar, or [], [N] or [N D1 ...], in the logits' dtype, summed in float32 or better; with `return_z_loss` two.
        First and second derivatives are exact.

    Between forward and backward one array of M V elements is held, as torch's own loss holds one: the logits, from
    which the softmax is recomputed, with the targets, the weight and three numbers a row; or, where `inplace` writes
    the gradient in the forward pass, that gradient and nothing else. All of it is saved as autograd saves:
    `save_on_cpu`, saved_tensors_hooks and non-reentrant checkpoints see it.

    With a group the logits stay where they are. Ranks exchange 4 float32 (float64) numbers a row in forward, one more
    in all for the mean with a weight, none in backward, and 2 a row (3 with a z-loss) in a second backward. At a
    group's first call with these shapes and options ranks compare them, and their targets. One that later comes
    with others than the rest waits until the group's timeout, and on gloo may be aborted by torch (SIGABRT).

    Raises:
        ValueError: shapes that do not fit, another device, an option out of its range, a weight that requires a
            gradient; inplace with a leaf that requires a gradient, with soft targets that do, with expanded logits,
            with logits given away before and not written since, or where a compiler or a transform runs; a group
            that this rank is no member of, or whose ranks have different arguments.
        TypeError: not strided tensors of one such dtype, classes not integer.
        IndexError: a class out of range, with its row. On a CPU at once. On CUDA nothing waits for the device: the
            row's loss and gradient are NaN, a kernel notes the row, and a later call that finds the note arrived
            raises (`gradlab.torch.raise_device_errors` asks without a call). Not inside a captured CUDA graph.
        RuntimeError: a second backward pass after inplace.
        NotImplementedError: a third derivative; with inplace a second one, or a batch of backward passes; a DTensor
            that `torch.vmap` maps over.
    """
    input, weight = to_float32(input, weight)
    if isinstance(target, torch.Tensor) and target.is_floating_point():
        (target,) = to_float32(target)
    if group is not None:
        want_group(_OP, group)
    with NO_GROUP if group is None else together(_OP, group):
        settings = class_loss(
            _OP,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            return_z_loss=return_z_loss,
            softcap=softcap,
        )
        want_bool(_OP, "inplace", inplace)
        spread = _want(input, target, weight, ignore_index, group is None)
    part = part_of_logits(_OP, input, group, inplace) if spread else None
    soft = target.is_floating_point()
    x, shape = input.unsqueeze(-1), input.shape[:1]
    if input.ndim == 1:
        x, shape = input.reshape(1, input.shape[0], 1), input.shape[:0]
    elif input.ndim > 2:
        x, shape = input.flatten(2), input.shape[:1] + input.shape[2:]
    t, q = (None, target.reshape(x.shape)) if soft else (target.reshape(-1), None)
    how = Reduction(reduction, float(z_loss), return_z_loss)
    if group is not None and not spread:
        same = {"shape of input but its classes": (x.shape[0], input.shape[2:]), "dtype of input": input.dtype}
        same |= {"dtype of target": target.dtype, "weight": "none" if weight is None else "there"}
        same |= {"settings": settings, "reduction": how, "inplace": inplace}
        part = vocabulary_part(_OP, group, x.shape[1], same, target)
    place = in_place(x, t, q, weight, settings, how, input.is_leaf, part is None) if inplace else None
    found = CrossEntropy.apply(x, t, q, weight, settings, place, part)
    if place is not None and place.with_loss:
        found = found, found
    else:
        y, n, _ = found
        found = reduced(y, n, t, weight, x.shape[1], settings.ignore_index, how, part)
    loss, added = (r.reshape(shape if reduction == "none" else ()).to(input.dtype) for r in found)
    return (loss, added) if return_z_loss else loss


def _want(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, whole: bool
) -> bool:
    """Refuse what does not fit; whether they are DTensors."""
    given = {"input": input} | ({} if weight is None else {"weight": weight})
    spread = on_mesh(_OP, given | {"target": target})
    want_floats(_OP, given)
    if input.ndim == 0:
        refuse(_OP, "input of shape []", "0-dimensional", "[V], [N V] or [N V ...]")
    V = input.shape[0 if input.ndim == 1 else 1]
    if V == 0 and whole:
        refuse(_OP, f"input of shape {list(input.shape)}", "V = 0", "at least one class")
    if weight is not None:
        if weight.ndim != 1:
            refuse(_OP, f"weight of shape {list(weight.shape)}", f"{weight.ndim}-dimensional", "[V]")
        want_size(_OP, "weight", weight, 0, "V", V, "like input's classes")
        if weight.requires_grad:
            refuse(_OP, "weight", "a tensor that requires a gradient", "one without: it has no derivative here")
    if target.is_floating_point():
        want_floats(_OP, {"input": input, "target": target})
        if target.shape != input.shape:
            refuse(_OP, "shape of soft target", list(target.shape), f"{list(input.shape)} like input")
        if ignore_index >= 0:
            refuse(_OP, "ignore_index", ignore_index, "none with soft targets, which have no class to ignore")
        return spread
    if target.dtype not in CLASSES:
        refuse(_OP, "dtype of target", dtype_name(target), "int64, int32, uint8 or input's for soft targets", TypeError)
    wanted = input.shape[:0] if input.ndim == 1 else input.shape[:1] + input.shape[2:]
    if target.shape != wanted:
        refuse(_OP, "shape of target", list(target.shape), f"{list(wanted)} for input of shape {list(input.shape)}")
    return spread


def by_spec(x: torch.Tensor, target: torch.Tensor, a: torch.Tensor | None = None, **options: Any) -> Any:
    """The loss with the Spec's names; soft targets are floating. `inplace` of a leaf is that of a copy."""
    if options.get("inplace") and x.is_leaf and x.requires_grad:
        x = x * 1
    return cross_entropy(x, target, a, **options)
