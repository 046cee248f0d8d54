"""The mesh axes that the classes of a loss are split over, inside `jax.shard_map`."""

import functools
from typing import Any

import jax

from gradlab.autodiff.arguments.errors import refuse
from gradlab.kernels.class_losses.parts_pallas import ClassAxes, part_of

_WANTED = "an axis of the mesh of a jax.shard_map around the call"


def class_axes(op: str, axis_name: Any, V: int) -> tuple[jax.Array | None, ClassAxes | None]:
    """The first of this device's V classes, [], and the axes that all classes are split over; None without a name.

    Raises:
        ValueError: an axis that is not there, as outside of `jax.shard_map`, or one of a `jax.vmap` within.
        TypeError: not a name or a tuple of names.
    """
    if axis_name is None:
        return None, None
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        refuse(op, "axis_name", repr(axis_name), "the name of a mesh axis, or a tuple of names", TypeError)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    for name in names:
        try:
            jax.lax.axis_size(name)
        except NameError:
            refuse(op, "axis_name", repr(name), _WANTED)
        # An axis of jax.vmap alone stands for devices, but jax gathers along none that is within a shard_map.
        if manual and name not in manual:
            refuse(op, "axis_name", f"{name!r}, an axis of jax.vmap", _WANTED)
    if len(set(names)) < len(names):
        refuse(op, "axis_name", repr(axis_name), "each axis once")
    return part_of(names, V)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _one_of_all(y: jax.Array, axes: ClassAxes) -> jax.Array:
    return y


def _one_of_all_fwd(y: jax.Array, axes: ClassAxes) -> tuple[jax.Array, None]:
    # Not y itself: where this is differentiated once more, the cotangents are those of all devices again.
    return _one_of_all(y, axes), None


def _one_of_all_bwd(axes: ClassAxes, _: None, dy: jax.Array) -> tuple[jax.Array]:
    return (axes.sum(dy),)


_one_of_all.defvjp(_one_of_all_fwd, _one_of_all_bwd)


def same_on(y: jax.Array, axes: ClassAxes) -> jax.Array:
    """y, which every device of the axes has alike, with the cotangents of all of them.

    With check_vma=True its type says so, and it has one cotangent. Else, as jax takes programs without types, every
    device has a loss of its own, whose cotangents are summed: those of a result that `jax.shard_map` gives once, too.
    """
    return y if axes.typed else _one_of_all(y, axes)


def term_of(y: jax.Array, axes: ClassAxes) -> jax.Array:
    """One of W equal terms of y, which every device of the axes has alike: their sum over the devices is y."""
    term = same_on(y, axes) / jax.lax.axis_size(axes.names)
    return jax.lax.pcast(term, axes.names, to="varying") if axes.typed else term
