"""cross_entropy for jax: the logits and the row statistics are saved; backward computes the softmax again."""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import dtype_name, refuse, want_bool, want_floats, want_size
from gradlab.autodiff.class_losses.class_axes_jax import class_axes, term_of
from gradlab.autodiff.class_losses.class_range_jax import as_given, rows_of
from gradlab.autodiff.class_losses.row_sums_jax import Reduction, reduced
from gradlab.autodiff.class_losses.settings import class_loss
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import cross_entropy_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled, uniform

_OP = "cross_entropy"


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _loss_rule(x, t, q, a, first, settings, axes, with_n, inplace):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, and the row statistics."""
    return kernels.loss(x, t, q, a, first, settings, axes)


def _loss_fwd(x, t, q, a, first, settings, axes, with_n, inplace):
    y, n, s = loss(x, t, q, a, first, settings, axes, with_n, inplace)
    return (y, n, s), (x, t, q, a, first, s)


def _loss_bwd(settings, axes, with_n, inplace, saved, cotangents):
    x, t, q, a, first, s = saved
    dy, dn, _ = cotangents
    dx = backward(dy, dn if with_n else None, x, t, q, a, first, s, settings, axes, inplace)
    dq = None if q is None else target_backward(dy, x, a, first, s, settings, axes)
    return dx, None, dq, None, None


_loss_rule.defvjp(_loss_fwd, _loss_bwd)
loss = compiled(_loss_rule, static_argnums=(5, 6, 7, 8))


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9, 10))
def backward(dy, dn, x, t, q, a, first, s, settings, axes, inplace):
    """dx[m v] = z'[m v] (dy[m] (R[m] p[m v] - r[m v]) + 2 dn[m] l[m] p[m v])."""
    return kernels.backward(dy, dn, x, t, q, a, first, s, settings, axes, inplace=inplace)


def _backward_fwd(dy, dn, x, t, q, a, first, s, settings, axes, inplace):
    return backward(dy, dn, x, t, q, a, first, s, settings, axes, inplace), (dy, dn, x, t, q, a, first, s)


def _backward_bwd(settings, axes, inplace, saved, u):
    ddy, ddn, dx, dq = second_backward(u, *saved, settings, axes)
    # s depends on x, and dx has that dependence in it already. With axes ddy and ddn are the terms of a sum over the
    # devices, which is the pullback of how dy and dn came to each of them.
    return ddy, ddn, dx, None, dq, None, None, None


backward.defvjp(_backward_fwd, _backward_bwd)
backward = uniform(backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def target_backward(dy, x, a, first, s, settings, axes):
    """dq[m v] = dy[m] a[v] (1 - eps) (l[m] - z[m v]), eps the smoothing: linear in dy; in x a loss of target u."""
    return kernels.target_backward(dy, x, a, s, settings)


def _target_backward_fwd(dy, x, a, first, s, settings, axes):
    return target_backward(dy, x, a, first, s, settings, axes), (dy, x, a, first)


def _target_backward_bwd(settings, axes, saved, u):
    dy, x, a, first = saved
    # Of the target only its own part is there: 1 - s of it, and nothing spread over the classes.
    part, linear = 1 - settings.label_smoothing, settings._replace(label_smoothing=0.0)
    ddy, _, s = loss(x, None, u, a, first, linear, axes, False, False)
    dx = backward(part * dy, None, x, None, u, a, first, s, linear, axes, False)
    return part * (ddy if axes is None else term_of(ddy, axes)), dx, None, None, None


target_backward.defvjp(_target_backward_fwd, _target_backward_bwd)
target_backward = uniform(target_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(9, 10))
def second_backward(u, dy, dn, x, t, q, a, first, s, settings, axes):
    """The backward of the backward: d(dy), d(dn), the Hessian-vector product dx, and dq."""
    return kernels.second_backward(u, dy, dn, x, t, q, a, first, s, settings, axes)


def _second_backward_fwd(*args):
    return second_backward(*args), None


def _second_backward_bwd(*args):
    raise NotImplementedError("cross_entropy: its third derivative is not implemented, wanted order 1 or 2")


second_backward.defvjp(_second_backward_fwd, _second_backward_bwd)
second_backward = uniform(second_backward)


@overload
def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[True],
    softcap: float | None = None,
    inplace: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array]: ...
@overload
def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[False] = False,
    softcap: float | None = None,
    inplace: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array: ...
@overload
def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool,
    softcap: float | None = None,
    inplace: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any: ...
@public(_OP)
def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    inplace: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    """Negative log-likelihood of labels under softmax(logits[... V]).

    Args:
        logits: [... V] or, with another `axis`, the classes V >= 1 there; other axes may be empty; float64, float32,
            float16 or bfloat16.
        labels: integer classes in [0, V), of logits' shape without its axis V; or soft labels of logits' shape and
            dtype, which have a derivative too. A class of probability 0 costs nothing, also where its logit is -inf.
        weight: of each class, [V], in logits' dtype; a constant.
        axis: where the classes are.
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V). With soft labels one of
            0 or more is refused, and a negative one has no effect.
        reduction: "mean", weighted over the rows not ignored (unweighted over all rows for soft labels; NaN when there
            are none), "sum", or "none" for one loss a row.
        label_smoothing: the part, from 0 to 1, of each label that is spread evenly over the classes.
        z_loss: the coefficient of each row's squared log-sum-exp, which is added to its loss; under "mean" averaged
            unweighted over the rows not ignored.
        return_z_loss: give the loss and, apart, what the z-loss has added to it; both are differentiable.
        softcap: the logits enter as softcap tanh(logits / softcap); a logit of -inf enters as -softcap.
        inplace: alias the gradient to the logits' memory. Arrays of jax never change: XLA takes the memory where
            nothing else needs the logits, and copies them where something does.
        axis_name: inside `jax.shard_map`, the mesh axis or axes that the classes are split over: logits, soft labels
            and weight are those of this device, V / W of all V classes, in the order of the axis; integer labels are
            among all V. W parts exchange four numbers a row, one more where a mean is weighted; a second derivative
            one a row. The loss is the same on every device of the axis.

    Returns:
        A scalar, or logits' shape without its axis V, in the logits' dtype, summed in float32 or better; with
        `return_z_loss` two. First and second derivatives are exact. Between forward and backward the logits, the
        labels and three numbers a row are saved, and no array of M V elements besides.

    Raises:
        ValueError: shapes that do not fit, an option out of its range.
        TypeError: not arrays of one such dtype, labels not integer.
        IndexError: a class out of range, with its place. On a CPU outside jit at once. On an accelerator nothing waits
            for the device: the row's loss and gradient are NaN, and a later call that finds the note of it arrived
            raises (`gradlab.jax.raise_device_errors` asks without a call). Inside jit the row is NaN, and the error is
            one of `jax.experimental.checkify` for whoever wraps the program in it.
        NotImplementedError: a third derivative.
    """
    labels = as_given(labels)
    there = {"logits": logits, "labels": labels} | ({} if weight is None else {"weight": weight})
    arrays = as_arrays(_OP, there)
    x, target, a = arrays["logits"], arrays["labels"], arrays.get("weight")
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
    x = _want(x, target, a, axis, ignore_index)
    first, axes = class_axes(_OP, axis_name, x.shape[-1])
    V = x.shape[-1]
    # Said to be constants, so that nobody waits for a gradient that is not there.
    a = None if a is None else jax.lax.stop_gradient(a)
    t = q = None
    if jnp.issubdtype(target.dtype, jnp.floating):
        q = jnp.moveaxis(target, axis, -1)
    else:
        t, settings = rows_of(_OP, labels, axes.V if axes else V, settings)
    reducing = Reduction(reduction, float(z_loss), return_z_loss)
    y, n, _ = loss(x, t, q, a, first, settings, axes, reducing.with_n, inplace)
    return reduced(y, n, t, a, V, settings, reducing, x.dtype, first, axes)


def _want(x: jax.Array, target: jax.Array, a: jax.Array | None, axis: Any, ignore_index: int) -> jax.Array:
    """The logits with their classes last."""
    want_floats(_OP, {"logits": x} | ({} if a is None else {"weight": a}))
    if x.ndim == 0:
        refuse(_OP, "logits of shape []", "0-dimensional", "[... V]")
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        refuse(_OP, "axis", repr(axis), f"an int from {-x.ndim} to {x.ndim - 1} for logits of shape {list(x.shape)}")
    shape, V = list(x.shape), x.shape[axis]
    if V == 0:
        refuse(_OP, f"logits of shape {shape}", "V = 0", "at least one class")
    if a is not None:
        if a.ndim != 1:
            refuse(_OP, f"weight of shape {list(a.shape)}", f"{a.ndim}-dimensional", "[V]")
        want_size(_OP, "weight", a, 0, "V", V, "like logits' classes")
    if jnp.issubdtype(target.dtype, jnp.floating):
        want_floats(_OP, {"logits": x, "labels": target})
        if list(target.shape) != shape:
            refuse(_OP, "shape of soft labels", list(target.shape), f"{shape} like logits")
        if ignore_index >= 0:
            refuse(_OP, "ignore_index", ignore_index, "none with soft labels, which have no class to ignore")
    elif not jnp.issubdtype(target.dtype, jnp.integer):
        refuse(_OP, "dtype of labels", dtype_name(target), "an integer dtype, or logits' for soft labels", TypeError)
    else:
        wanted = [n for i, n in enumerate(shape) if i != axis % x.ndim]
        if list(target.shape) != wanted:
            refuse(_OP, "shape of labels", list(target.shape), f"{wanted} for logits of shape {shape}")
    return jnp.moveaxis(x, axis, -1)


def by_spec(x: jax.Array, target: jax.Array, a: jax.Array | None = None, **options: Any) -> Any:
    """The loss with the Spec's names; soft labels are told by their dtype."""
    return cross_entropy(x, target, weight=a, **options)
