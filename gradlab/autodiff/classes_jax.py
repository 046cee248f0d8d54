"""Classes out of range on jax: an error at once on a CPU, a late one on an accelerator, a checkify check inside jit."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

# What calls found: (array [2] on its way to the host, op, V).
_pending: deque[tuple[Any, str, int]] = deque()


@jax.jit
def unknown(t: jax.Array, V: int, ignore_index: int) -> jax.Array:
    """(the first place of t.ravel() whose class is neither in [0, V) nor ignore_index, or -1; that class)."""
    flat = t.ravel()
    wrong = ((flat < 0) | (flat >= V)) & (flat != ignore_index)
    row = jnp.argmax(wrong)
    return jnp.stack([jnp.where(wrong.any(), row, -1), flat[row]])


def refuse_unknown(op: str, t: jax.Array, V: int, ignore_index: int) -> None:
    """Raise an IndexError for a class in t that is neither in [0, V) nor ignore_index.

    Concrete classes on a CPU: at once. On an accelerator looking would make the host wait, so what is found travels
    beside whatever comes next, and a later call that finds it arrived raises. A traced class has no value yet: there a
    check of `jax.experimental.checkify` stands, which costs nothing unless the program is wrapped in it.
    """
    if t.size == 0:
        return
    if isinstance(t, jax.core.Tracer):
        row, value = unknown(t, V, ignore_index)
        checkify.debug_check(row < 0, f"{op}: labels.ravel()[{{row}}] is {{value}}, wanted a class in [0, {V})",
                             row=row, value=value)  # fmt: skip
        return
    if any(d.platform != "cpu" for d in t.devices()):
        raise_late()
        note(unknown(t, V, ignore_index), op, V)
        return
    classes = np.asarray(t)
    wrong = ((classes < 0) | (classes >= V)) & (classes != ignore_index)
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), classes.shape))
        where = f"labels[{', '.join(map(str, place))}]" if place else "labels"
        raise IndexError(f"{op}: {where} is {classes[place]}, wanted a class in [0, {V})")


def narrow(t: jax.Array, ignore_index: int) -> tuple[jax.Array, int]:
    """Classes and the ignored one in int32. What that cannot hold is out of range: it must not wrap round into it."""
    low, high = -(2**31), 2**31 - 1
    if t.dtype.itemsize > 4 or t.dtype == jnp.uint32:
        t = jnp.clip(t, max(jnp.iinfo(t.dtype).min, low), high)
    return t.astype(jnp.int32), min(max(int(ignore_index), low), high)


def note(found: jax.Array, op: str, V: int) -> None:
    """Remember what a call finds until it is there."""
    found.copy_to_host_async()
    _pending.append((found, op, V))


def raise_late() -> None:
    """Raise what calls that are over found; the others go on, and nothing waits for them.

    Raises:
        IndexError: an earlier call had a class out of range.
    """
    while _pending and _pending[0][0].is_ready():
        found, op, V = _pending.popleft()
        row, value = np.asarray(found)
        if row >= 0:
            raise IndexError(f"{op}: labels.ravel()[{row}] is {value}, wanted a class in [0, {V}); found on the "
                             "accelerator in an earlier call, whose loss and gradient are NaN there")  # fmt: skip
