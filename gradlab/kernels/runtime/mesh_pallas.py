"""The types of sharded arrays: in jax an array's type contains its sharding, by the kind of the mesh's axes.

- Manual axes, inside `jax.shard_map`: each device runs the op on what it has. An array that is the same on every device
  of an axis is cast to one that may differ there as soon as another operand differs; a replicated weight gets the
  gradient of the whole batch, the sum over that axis.
- Explicit axes, as `jax.make_mesh` makes them: results and cotangents are typed by an operation's rule
  (`sharded_pallas.py`).
- Auto axes are in no type: the partitioner decides at compilation, by the same rule.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, ManualAxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def compiled(rule: Any, static_argnums: int | Sequence[int] = ()) -> Callable[..., Any]:
    """`jax.jit` of a custom_vjp rule whose cotangents have the types of its arguments."""
    return jax.jit(uniform(rule), static_argnums=static_argnums)


def uniform(rule: Any) -> Any:
    """The custom_vjp rule, each of whose cotangents is brought to its argument's type.

    Where arguments are sharded differently a pullback's results may be sharded as the other one, or vary over devices
    on which the argument is one: there the gradient is the sum over these.
    """
    forward, backward, static = rule.fwd, rule.bwd, tuple(rule.nondiff_argnums)

    def fwd(*args: Any) -> Any:
        result, saved = forward(*args)
        return result, (saved, _Types(x for i, x in enumerate(args) if i not in static))

    def bwd(*args: Any) -> Any:
        *settings, (saved, types), cotangents = args
        return types.of_cotangents(backward(*settings, saved, cotangents))

    rule.defvjp(fwd, bwd)
    return rule


@jax.tree_util.register_static
class _Types:
    """The types of a rule's arguments, None where one is no array: a residual without arrays."""

    def __init__(self, args: Iterable[Any]) -> None:
        flat: list[tuple[Any, Any]] = [jax.tree.flatten(arg) for arg in args]
        self._types = tuple((tuple(map(jax.typeof, leaves)), tree) for leaves, tree in flat)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Types) and self._types == other._types

    def __hash__(self) -> int:
        return hash(self._types)

    def of_cotangents(self, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        """The cotangents, each brought to its argument's type."""
        brought = []
        for c, (types, tree) in zip(cotangents, self._types, strict=True):
            if c is not None:
                c = tree.unflatten(map(_as_typed, tree.flatten_up_to(c), types))
            brought.append(c)
        return tuple(brought)


def _as_typed(x: Any, wanted: Any) -> Any:
    """x of the type's sharding: summed over the Manual axes along which it varies and the type does not."""
    if x is None:
        return None
    spread, once = jax.typeof(x).manual_axis_type.varying, wanted.manual_axis_type.varying
    if spread - once:
        x = jax.lax.psum(x, tuple(sorted(spread - once, key=str)))
    return placed(_vary(x, once), wanted)


def placed(x: jax.Array, wanted: Any) -> jax.Array:
    """x, sharded over the Explicit axes of a mesh as the type is."""
    if explicit_mesh([wanted]) is None or jax.typeof(x).sharding == wanted.sharding:
        return x
    return jax.sharding.reshard(x, wanted.sharding)


def varying(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The operands, cast to vary along every Manual axis along which one varies."""
    axes = _axes([jax.typeof(x) for x in operands])
    return [_vary(x, axes) for x in operands]


def typed(specs: Sequence[Any] | None, operands: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """The types of results of operands of these types: on their mesh, varying as they do.

    `specs`: how each lies on the Explicit axes; None: whole.
    """
    mesh = next((t.sharding.mesh for t in operands if not t.sharding.mesh.empty), None)
    if mesh is None:
        return list(results)
    kind = ManualAxisType(varying=_axes(operands))
    found = []
    for result, spec in zip(results, specs or [P(*[None] * result.ndim) for result in results], strict=True):
        sharding = NamedSharding(mesh, spec)
        found.append(jax.core.ShapedArray(result.shape, result.dtype, sharding=sharding, manual_axis_type=kind))
    return found


def plain(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, varying along no axis of a mesh."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=ManualAxisType())


def explicit_mesh(types: Sequence[Any]) -> Any:
    """The mesh with Explicit axes that arrays of these types lie on, or None.

    Raises:
        ValueError: they lie on different ones.
    """
    meshes = list(dict.fromkeys(t.sharding.mesh for t in types if AxisType.Explicit in t.sharding.mesh.axis_types))
    if len(meshes) > 1:
        here, there, *_ = (dict(mesh.shape) for mesh in meshes)
        raise ValueError(f"launch: operands lie on the meshes {here} and {there}, wanted one mesh")
    return meshes[0] if meshes else None


def explicit_axes(mesh: Any) -> dict[Any, int]:
    """The Explicit axes of a mesh, and their sizes."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Explicit}


def _axes(types: Sequence[Any]) -> frozenset[Any]:
    return frozenset().union(*(t.manual_axis_type.varying for t in types))


def _vary(x: jax.Array, axes: frozenset[Any]) -> jax.Array:
    missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying, key=str))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
