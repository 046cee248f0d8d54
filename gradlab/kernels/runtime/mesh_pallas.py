"""Sharded arrays: brings the arguments of a rule, or the operands of a launch, to one sharding type.

In jax an array's type contains its sharding. Pallas requires all operands of a kernel to have the same, and no axis of
the mesh over which jax itself would shard:

- Manual axes, inside `jax.shard_map`: each device runs the op on what it has. An array that is the same on every device
  of an axis is cast to one that may differ there as soon as another argument differs; the cast's pullback is the sum
  over that axis, so a replicated weight gets the gradient of the whole batch.
- Explicit axes, as `jax.make_mesh` makes them: every device runs the op on the whole arrays, which are gathered before
  it, and the leading axes of the result (all axes of an optimizer's) are parted again as those of the first argument.
  So results and types are those of jax's own ops, at the cost in time and memory of one device doing it all.
- Auto axes are in no type; the partitioner decides at compilation, and replicates a compiled kernel.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, ManualAxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def compiled(rule: Callable[..., Any], static_argnums: int | Sequence[int] = ()) -> Callable[..., Any]:
    """`jax.jit` of a custom_vjp rule, after its arrays are brought to one type."""
    return jax.jit(uniform(rule), static_argnums=static_argnums)


def uniform(rule: Callable[..., Any]) -> Any:
    """A rule whose arrays are first brought to one type, by operations that jax differentiates itself."""

    @functools.wraps(rule)
    def call(*args: Any) -> Any:
        tree: Any
        leaves, tree = jax.tree.flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        for i, array in zip(places, _alike([leaves[i] for i in places]), strict=True):
            leaves[i] = array
        return rule(*tree.unflatten(leaves))

    return call


def gathered(x: jax.Array) -> jax.Array:
    """The array, replicated along the Explicit axes of its mesh."""
    sharding = jax.typeof(x).sharding
    if not any(place is not None for place in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P(*[None] * x.ndim)))


def parted_like(y: jax.Array, x: Any, axes: Iterable[int] | None = None) -> jax.Array:
    """y with leading axes parted over the Explicit axes of a mesh as these axes of x are; all axes when not said."""
    if not isinstance(x, jax.Array):
        return y
    sharding = jax.typeof(x).sharding
    spec = sharding.spec if axes is None else [sharding.spec[axis] for axis in axes]
    if not any(place is not None for place in spec):
        return y
    return jax.sharding.reshard(y, NamedSharding(sharding.mesh, P(*spec, *[None] * (y.ndim - len(spec)))))


def on_each_device(fn: Callable[..., Any], operands: Sequence[jax.Array]) -> Any:
    """`fn(*operands)`, run by each device on replicated operands: Explicit axes are Manual within."""
    mesh = _explicit_mesh(operands)
    if mesh is None:
        return fn(*operands)
    axes = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    return jax.shard_map(fn, mesh=mesh, in_specs=P(), out_specs=P(), axis_names=axes)(*map(gathered, operands))


def varying(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The operands, cast to vary along every Manual axis along which one varies."""
    axes = _axes([jax.typeof(x) for x in operands])
    return [_vary(x, axes) for x in operands]


def like(result: Any, operands: Sequence[Any]) -> Any:
    """The type of a result of operands of these types: on their mesh, varying as they do."""
    mesh = next((t.sharding.mesh for t in operands if not t.sharding.mesh.empty), None)
    if mesh is None:
        return result
    sharding = NamedSharding(mesh, P(*[None] * result.ndim))
    kind = ManualAxisType(varying=_axes(operands))
    return jax.core.ShapedArray(result.shape, result.dtype, sharding=sharding, manual_axis_type=kind)


def plain(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, varying along no axis of a mesh."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=ManualAxisType())


def _alike(arrays: list[jax.Array]) -> list[jax.Array]:
    mesh = _explicit_mesh(arrays)
    if mesh is not None:
        arrays = [jax.sharding.reshard(x, NamedSharding(mesh, P(*[None] * x.ndim))) for x in arrays]
    # Integers have no gradient that would need their types to be one, and a launch casts them itself.
    axes = _axes([jax.typeof(x) for x in arrays])
    return [_vary(x, axes) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in arrays]


def _explicit_mesh(arrays: Sequence[jax.Array]) -> Any:
    """The mesh with Explicit axes of one of the arrays, or None."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def _axes(types: Sequence[Any]) -> frozenset[Any]:
    return frozenset().union(*(t.manual_axis_type.varying for t in types))


def _vary(x: jax.Array, axes: frozenset[Any]) -> jax.Array:
    missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying, key=str))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
