"""Classes out of range on jax: an error at once on a CPU, at a later call on an accelerator, by checkify inside jit."""

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from gradlab.autodiff.frameworks.checkify_jax import guarded
from gradlab.kernels.class_losses.settings import ClassLoss

# What calls found: (array [2] on its way to the host, op, V, dtype of the classes).
_pending: deque[tuple[Any, str, int, Any]] = deque()
# Classes in int32 that stand for what int32 cannot hold: one that is ignored, and one out of range.
_IGNORED, _OUT_OF_RANGE = -2, -1


def _wrong(t: Any, V: int, ignore_index: int) -> Any:
    """Where a class of t is neither in [0, V) nor ignore_index.

    A number that t's dtype cannot hold is not compared: it would wrap round, and uint8 255 would equal -1.
    """
    limits = jnp.iinfo(t.dtype)
    allowed = t >= 0
    if limits.max >= V:
        allowed = allowed & (t < np.asarray(V, t.dtype))
    if limits.min <= ignore_index <= limits.max:
        allowed = allowed | (t == np.asarray(ignore_index, t.dtype))
    return ~allowed


@functools.partial(jax.jit, static_argnums=(1, 2))
def out_of_range(t: jax.Array, V: int, ignore_index: int) -> jax.Array:
    """(the first place of t.ravel() whose class is neither in [0, V) nor ignore_index, or -1; that class).

    Of uint32 the class is its bits as int32.
    """
    flat = t.ravel()
    wrong = _wrong(flat, V, ignore_index)
    row = jnp.argmax(wrong)
    value = flat[row].astype(jnp.int32) if flat.dtype == jnp.uint32 else flat[row]
    return jnp.stack([jnp.where(wrong.any(), row, -1), value])


def as_given(labels: Any) -> Any:
    """NumPy's classes, and numbers, as a NumPy array: without x64 jax would wrap 64 bits round into 32."""
    return np.asarray(labels) if isinstance(labels, (np.ndarray, np.generic, int)) else labels


def refuse_out_of_range(op: str, t: jax.Array | np.ndarray, V: int, ignore_index: int) -> Any:
    """t; an IndexError for a class in it that is neither in [0, V) nor ignore_index.

    Concrete classes on a CPU, NumPy's among them: at once. On an accelerator looking would make the host wait, so what
    is found travels beside whatever comes next, and a later call that finds it arrived raises. A traced class has no
    value yet: there a check of `jax.experimental.checkify` stands in what is given back, which costs nothing unless the
    program is wrapped in it.
    """
    if t.size == 0:
        return t
    if isinstance(t, jax.core.Tracer):
        return guarded(t, InRange(op, V, ignore_index))
    if isinstance(t, jax.Array) and any(d.platform != "cpu" for d in t.devices()):
        raise_device_errors()
        note(out_of_range(t, V, ignore_index), op, V, t.dtype)
        return t
    classes = np.asarray(t)
    wrong = _wrong(classes, V, ignore_index)
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), classes.shape))
        where = f"labels[{', '.join(map(str, place))}]" if place else "labels"
        raise IndexError(f"{op}: {where} is {classes[place]}, wanted a class in [0, {V})")
    return t


@dataclass(frozen=True)
class InRange:
    """checkify's check that every class of labels is in [0, V) or ignored."""

    op: str
    V: int
    ignore_index: int

    def __call__(self, t: jax.Array, size: int) -> None:
        row, value = out_of_range(t, self.V, self.ignore_index)
        checkify.debug_check(
            row < 0,
            f"{self.op}: labels.ravel()[{{row}}] is {{value}}, wanted a class in [0, {self.V})",
            row=row % size,
            value=value.astype(t.dtype),
        )


def rows_of(op: str, labels: Any, V: int, settings: ClassLoss) -> tuple[jax.Array, ClassLoss]:
    """The classes t[M] of the rows in int32, M any axes, checked by `refuse_out_of_range`, and their settings."""
    t, ignored = narrow(refuse_out_of_range(op, labels, V, settings.ignore_index), settings.ignore_index)
    return t, settings._replace(ignore_index=ignored)


def narrow(t: jax.Array | np.ndarray, ignore_index: int) -> tuple[jax.Array, int]:
    """Classes and the ignored one in int32. What that cannot hold is out of range: it must not wrap round into it."""
    low, high = -(2**31), 2**31 - 1
    limits = jnp.iinfo(t.dtype)
    if low <= limits.min and limits.max <= high and low <= ignore_index <= high:
        return jnp.asarray(t, jnp.int32), ignore_index
    if isinstance(t, np.ndarray):
        return jnp.asarray(_marked(np, t, ignore_index)), _IGNORED
    return _marked_jit(t, ignore_index), _IGNORED


def _marked(xp: Any, t: Any, ignore_index: int) -> Any:
    """Classes in int32: _IGNORED where ignored, _OUT_OF_RANGE where past int32 or negative."""
    limits = jnp.iinfo(t.dtype)
    inside = t >= 0
    if limits.max > 2**31 - 1:
        inside = inside & (t <= 2**31 - 1)
    t32 = xp.where(inside, t, xp.zeros_like(t)).astype(xp.int32)
    t32 = xp.where(inside, t32, xp.int32(_OUT_OF_RANGE))
    if limits.min <= ignore_index <= limits.max:
        t32 = xp.where(t == np.asarray(ignore_index, t.dtype), xp.int32(_IGNORED), t32)
    return t32


_marked_jit = jax.jit(functools.partial(_marked, jnp), static_argnums=1)


def note(found: jax.Array, op: str, V: int, dtype: Any = np.int64) -> None:
    """Remember what a call finds until it is there; `dtype` is that of its classes."""
    found.copy_to_host_async()
    _pending.append((found, op, V, dtype))


def raise_device_errors() -> None:
    """Raise what calls that are over found; the others go on, and nothing waits for them.

    Raises:
        IndexError: an earlier call had a class out of range.
    """
    while _pending and _pending[0][0].is_ready():
        found, op, V, dtype = _pending.popleft()
        row, value = np.asarray(found)
        if row >= 0:
            value = value.astype(dtype)
            raise IndexError(
                f"{op}: labels.ravel()[{row}] is {value}, wanted a class in [0, {V}); found on the "
                "accelerator in an earlier call, whose loss and gradient are NaN there"
            )
