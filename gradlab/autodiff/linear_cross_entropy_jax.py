"""linear_cross_entropy for jax: operands and row statistics are saved; backward makes the logits again, by chunks.

Or forward keeps them, as many as the caller gives memory for.
"""

import functools
import math
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import dtype_name, refuse, want_floats, want_rank, want_size
from gradlab.autodiff.class_losses.class_axes_jax import class_axes
from gradlab.autodiff.class_losses.class_range_jax import as_given, rows_of
from gradlab.autodiff.class_losses.row_sums_jax import Reduction, reduced
from gradlab.autodiff.class_losses.settings import class_loss, want_bytes
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.kernels import linear_cross_entropy_pallas as kernels
from gradlab.kernels.class_losses import linear_second_pallas as linear_second
from gradlab.kernels.class_losses.chunks import kept
from gradlab.kernels.runtime.launch_pallas import accumulator
from gradlab.kernels.runtime.mesh_pallas import compiled

OP = "linear_cross_entropy"


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9, 10))
def _loss_rule(h, w, t, b, a, first, settings, axes, with_n, memory, keeping):
    """y[m] = sum_v r[m v] (l[m] - z[m v]), n[m] = l[m]^2, the row statistics and kept logits, of x = h w + b.

    `keeping` is what a gradient asks for: logits in up to `memory` bytes, else None.
    """
    M, size = math.prod(h.shape[:-1]), jnp.dtype(accumulator(h.dtype)).itemsize
    classes = kept(M, w.shape[0], w.shape[1], size, memory) if keeping else 0
    return kernels.loss(h, w, t, b, a, first, settings, axes, classes)


def _loss_fwd(h, w, t, b, a, first, settings, axes, with_n, memory, keeping):
    y, n, s, x = loss(h, w, t, b, a, first, settings, axes, with_n, memory, True)
    return (y, n, s, x if keeping else None), (h, w, t, b, a, first, s, x)


def _loss_bwd(settings, axes, with_n, memory, keeping, saved, cotangents):
    # What is kept for backward has no cotangent.
    dy, dn, *_ = cotangents
    dh, dw, db = backward(dy, dn if with_n else None, *saved, settings, axes)
    return dh, dw, None, db, None, None


_loss_rule.defvjp(_loss_fwd, _loss_bwd)
loss = compiled(_loss_rule, static_argnums=(6, 7, 8, 9, 10))


@functools.partial(jax.custom_vjp, nondiff_argnums=(10, 11))
def _backward_rule(dy, dn, h, w, t, b, a, first, s, x, settings, axes):
    """dh = dx w^T, dw = h^T dx, db[v] = sum_m dx[m v] of dx = z' (dy (R p - r) + 2 dn l p)."""
    return kernels.backward(dy, dn, h, w, t, b, a, first, s, x, settings, axes)


def _backward_fwd(*args):
    # Not the kept logits x: the second backward makes its own, with what changes them.
    return backward(*args), args[:-3]


def _backward_bwd(settings, axes, saved, u):
    ddy, ddn, dh, dw, db = second_backward(u, *saved, settings, axes)
    # s and x depend on h, w and b, and their gradients have that dependence in them already.
    return ddy, ddn, dh, dw, None, db, None, None, None, None


_backward_rule.defvjp(_backward_fwd, _backward_bwd)
backward = compiled(_backward_rule, static_argnums=(10, 11))


@functools.partial(jax.custom_vjp, nondiff_argnums=(10, 11))
def _second_backward_rule(u, dy, dn, h, w, t, b, a, first, s, settings, axes):
    """The backward of the backward: <dx, u> by dy, dn, h, w and b, u = uh w + h uw + ub."""
    return linear_second.second_backward(u, dy, dn, h, w, t, b, a, first, s, settings, axes)


def _second_backward_fwd(*args):
    return second_backward(*args), None


def _second_backward_bwd(*args):
    raise NotImplementedError(f"{OP}: its third derivative is not implemented, wanted order 1 or 2")


_second_backward_rule.defvjp(_second_backward_fwd, _second_backward_bwd)
second_backward = compiled(_second_backward_rule, static_argnums=(10, 11))


@overload
def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight: jax.Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[True],
    softcap: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    logits_memory: int = 0,
) -> tuple[jax.Array, jax.Array]: ...
@overload
def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight: jax.Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: Literal[False] = False,
    softcap: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    logits_memory: int = 0,
) -> jax.Array: ...
@overload
def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight: jax.Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool,
    softcap: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    logits_memory: int = 0,
) -> Any: ...
@public(OP)
def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight: jax.Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_z_loss: bool = False,
    softcap: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    logits_memory: int = 0,
) -> Any:
    """cross_entropy(linear(hidden[... K], kernel[K V], bias[V]), labels[...]) without logits in memory.

    Args:
        hidden: [... K], any leading axes, none or empty ones included.
        kernel: [K V], V >= 1, as flax and jax keep it.
        labels: integer classes [...] in [0, V). Probabilities are refused: they are as large as the logits.
        bias: [V].
        weight: of each class [V], of any float dtype; a constant, whose gradient is 0.
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V).
        reduction: "mean", "sum", or "none" for one loss a row. The mean of the first part is over the weights of
            the classes of the rows not ignored, that of the z-loss over their number; NaN when there are none.
        label_smoothing: the part of each target, in [0, 1], that is spread over all classes.
        z_loss: what the square of each row's log-sum-exp is weighted with and added.
        return_z_loss: return that part too, reduced alike; both are differentiable.
        softcap: the logits are softcap tanh(logits / softcap).
            hidden, kernel and bias of one dtype (float64, float32, float16, bfloat16).
        axis_name: inside `jax.shard_map`, the mesh axis or axes that the classes are split over: kernel, bias and
            weight are those of this device, V / W of all V classes, in the order of the axis; hidden and labels are
            the same on its W devices, labels among all V classes. As in cross_entropy four numbers a row and part are
            exchanged; the gradient of hidden is summed over the devices.
        logits_memory: bytes that forward may keep logits in for backward, which then does not make them again: M Vk of
            them, of float32 (float64), where Vk = V if that fits, else whole chunks of Vc classes. 0 keeps none, and so
            does a call without gradients, or of rows whose number an export leaves open. With axis_name each device
            keeps its own; with `jax.vmap` each mapped call has the memory. Where the partitioner has the classes split
            and not all are kept, it gathers them.

    Returns:
        The loss, a scalar or [...], in the inputs' dtype, summed in float32 or better; with `return_z_loss` two. First
        and second derivatives for hidden, kernel and bias are exact, and neither holds the logits: the first takes
        M Vc e + 4 M K + 2 K Vc e bytes besides what is asked for, with Vc = max(1024, K, 2^21 / M) classes of e bytes
        at once (docs/linear_cross_entropy.md), and what is kept in `logits_memory`. What needs no gradient costs
        nothing.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction, a number out of its range.
        TypeError: not an array, mixed or integer dtypes, labels not integer.
        IndexError: a class out of range, with its place. On a CPU outside jit at once; else the row's loss and gradient
            are NaN, and on an accelerator a later call raises (`gradlab.jax.raise_device_errors` asks without a call).
            Inside jit the error is one of `jax.experimental.checkify` for whoever wraps the program in it.
        NotImplementedError: a third derivative.
    """
    labels = as_given(labels)
    there = {"hidden": hidden, "kernel": kernel, "labels": labels, "bias": bias, "weight": weight}
    given = as_arrays(OP, {name: array for name, array in there.items() if array is not None})
    want_floats(OP, {name: given[name] for name in ("hidden", "kernel", "bias") if name in given})
    settings = class_loss(
        OP,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        return_z_loss=return_z_loss,
        softcap=softcap,
    )
    logits_memory = want_bytes(OP, "logits_memory", logits_memory)
    h, w, t, b, a = given["hidden"], given["kernel"], given["labels"], given.get("bias"), given.get("weight")
    _want_shapes(h, w, t, b, a)
    V = w.shape[1]
    first, axes = class_axes(OP, axis_name, V)
    # Said to be constants, so that nobody waits for a gradient that is not there.
    a = None if a is None else jax.lax.stop_gradient(a)
    t, settings = rows_of(OP, labels, axes.V if axes else V, settings)
    reducing = Reduction(reduction, float(z_loss), return_z_loss)
    y, n, *_ = loss(h, w, t, b, a, first, settings, axes, reducing.with_n, logits_memory, False)
    return reduced(y, n, t, a, V, settings, reducing, h.dtype, first, axes)


def _want_shapes(h, w, t, b, a) -> None:
    if jnp.issubdtype(t.dtype, jnp.floating):
        wanted = "classes: probabilities are as large as the logits that this op avoids, cross_entropy takes them"
        refuse(OP, "dtype of labels", dtype_name(t), wanted, TypeError)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        refuse(OP, "dtype of labels", dtype_name(t), "an integer dtype", TypeError)
    if h.ndim == 0:
        refuse(OP, "hidden of shape []", "0-dimensional", "[... K]")
    want_rank(OP, "kernel", w, "[K V]", (2,))
    want_size(OP, "kernel", w, 0, "K", h.shape[-1], "like hidden's last axis")
    if w.shape[1] == 0:
        refuse(OP, f"kernel of shape {list(w.shape)}", "V = 0", "at least one class")
    if t.shape != h.shape[:-1]:
        refuse(OP, "shape of labels", list(t.shape), f"{list(h.shape[:-1])} like hidden's but its last axis")
    for argument, one in (("bias", b), ("weight", a)):
        if one is not None:
            want_rank(OP, argument, one, "[V]", (1,))
            want_size(OP, argument, one, 0, "V", w.shape[1], "like kernel's last axis")
    if a is not None:
        want_floats(OP, {"weight": a})


def by_spec(
    h: jax.Array, w: jax.Array, t: jax.Array, b: jax.Array | None = None, a: jax.Array | None = None, **options
) -> Any:
    """linear_cross_entropy with the Spec's a."""
    return linear_cross_entropy(h, w, t, b, weight=a, **options)
