"""cross_entropy for jax: kept are the logits and two numbers a row; the softmax is computed again on the way back."""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.arguments import dtype_name, refuse, want_choice, want_floats, want_rank, want_size
from gradlab.autodiff.arguments_jax import as_arrays
from gradlab.autodiff.ranges_jax import public
from gradlab.kernels import cross_entropy_pallas as kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _loss_rule(x, t, ignore_index):
    """y[M] = log sum_v exp x[m v] - x[m t[m]], and each row's maximum and log of its sum of exponentials."""
    return kernels.loss(x, t, ignore_index)


def _loss_fwd(x, t, ignore_index):
    y, s = loss(x, t, ignore_index)
    return (y, s), (x, s, t)


def _loss_bwd(ignore_index, kept, cotangents):
    dy, _ = cotangents
    return pullback(dy, *kept, ignore_index), None


_loss_rule.defvjp(_loss_fwd, _loss_bwd)
loss = jax.jit(_loss_rule, static_argnums=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def pullback(dy, x, s, t, ignore_index):
    """dx[m v] = dy[m] (softmax(x)[m v] - onehot(t)[m v])."""
    return kernels.pullback(dy, x, s, t, ignore_index)


def _pullback_fwd(dy, x, s, t, ignore_index):
    return pullback(dy, x, s, t, ignore_index), (dy, x, s, t)


def _pullback_bwd(ignore_index, kept, u):
    ddy, dx = second(u, *kept, ignore_index)
    # s depends on x, and dx has that dependence in it already.
    return ddy, dx, None, None


pullback.defvjp(_pullback_fwd, _pullback_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def second(u, dy, x, s, t, ignore_index):
    """The pullback of the pullback: the row's dot product for dy, the Hessian-vector product for x."""
    return kernels.second(u, dy, x, s, t, ignore_index)


def _second_fwd(*args):
    raise NotImplementedError("cross_entropy: its third derivative is not implemented, wanted order 1 or 2")


second.defvjp(_second_fwd, _second_fwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _total_rule(y, t, ignore_index, mean):
    """The sum of y[M], or its mean over the n rows that are not ignored, and n. Linear: its pullback is a broadcast."""
    return kernels.total(y, t, ignore_index, mean)


def _total_fwd(y, t, ignore_index, mean):
    r, n = total(y, t, ignore_index, mean)
    # An array without elements remembers the shape of one that nothing else needs.
    return (r, n), (n, jnp.empty((*y.shape, 0)))


def _total_bwd(ignore_index, mean, kept, cotangents):
    (n, shape), (dr, _) = kept, cotangents
    return jnp.broadcast_to(dr / n if mean else dr, shape.shape[:1]), None


_total_rule.defvjp(_total_fwd, _total_bwd)
total = jax.jit(_total_rule, static_argnums=(2, 3))


@public("cross_entropy")
def cross_entropy(logits: jax.Array, labels: jax.Array, *, ignore_index: int = -100,
                  reduction: str = "mean") -> jax.Array:  # fmt: skip
    """Negative log-likelihood of labels[M] under softmax(logits[M V]).

    Args:
        logits: [M V], V >= 1, M may be 0; float64, float32, float16 or bfloat16.
        labels: integer classes [M] in [0, V).
        ignore_index: a class whose rows give no loss and no gradient; need not lie in [0, V).
        reduction: "mean" over the rows not ignored (NaN when there are none), "sum", or "none" for one loss a row.

    Returns:
        A scalar, or [M], in the logits' dtype, summed in float32 or better. First and second derivatives are exact.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction.
        TypeError: not an array, logits not floating, labels not integer.
        IndexError: on a CPU outside jit, a class out of range. A traced label has no value to look at, and on an
            accelerator asking would make the host wait: such a row's loss and gradient are NaN there.
        NotImplementedError: a third derivative.
    """
    arrays = as_arrays("cross_entropy", {"logits": logits, "labels": labels})
    x, t = arrays["logits"], arrays["labels"]
    want_floats("cross_entropy", {"logits": x})
    if not jnp.issubdtype(t.dtype, jnp.integer):
        refuse("cross_entropy", "dtype of labels", dtype_name(t), "an integer dtype", TypeError)
    want_choice("cross_entropy", "reduction", reduction, ("none", "mean", "sum"))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        refuse("cross_entropy", "ignore_index", repr(ignore_index), "an int", TypeError)
    want_rank("cross_entropy", "logits", x, "[M V]", (2,))
    want_rank("cross_entropy", "labels", t, "[M]", (1,))
    want_size("cross_entropy", "labels", t, 0, "M", x.shape[0], "like logits' first axis")
    if x.shape[1] == 0:
        refuse("cross_entropy", f"logits of shape {list(x.shape)}", "V = 0", "at least one class")
    _refuse_classes(t, x.shape[1], ignore_index)
    low, high = -(2**31), 2**31 - 1
    if t.dtype.itemsize > 4 or t.dtype == jnp.uint32:
        # A class that int32 cannot hold is out of range: it must not wrap round to one that is in range.
        t = jnp.clip(t, max(jnp.iinfo(t.dtype).min, low), high)
    ignore_index = min(max(int(ignore_index), low), high)
    t = t.astype(jnp.int32)
    y, _ = loss(x, t, ignore_index)
    if reduction != "none":
        y, _ = total(y, t, ignore_index, reduction == "mean")
    return y.astype(x.dtype)


def _refuse_classes(t: jax.Array, V: int, ignore_index: int) -> None:
    """Look at the classes where looking waits for nothing: concrete ones on a CPU."""
    if isinstance(t, jax.core.Tracer) or any(d.platform != "cpu" for d in t.devices()):
        return
    classes = np.asarray(t)
    wrong = ((classes < 0) | (classes >= V)) & (classes != ignore_index)
    if wrong.any():
        row = int(wrong.argmax())
        raise IndexError(f"cross_entropy: labels[{row}] is {classes[row]}, wanted a class in [0, {V})")


by_spec = cross_entropy
