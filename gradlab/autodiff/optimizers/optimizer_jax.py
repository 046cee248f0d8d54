"""Shared by the optimizers for jax: optax's protocol, checks of trees, scalars without a derivative."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import FLOATS, refuse, want_floats
from gradlab.kernels.runtime.mesh_pallas import placed

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]


class GradientTransformation(NamedTuple):
    """`init(params) -> state` and `update(grads, state, params=None) -> (updates, state)`: optax's protocol."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def fixed(message: str) -> Callable[[jax.Array], jax.Array]:
    """The identity on the scalars of a step, which have no derivative.

    The error is raised in backward, because jax caches a forward that raised.
    """

    def bwd(saved, cotangent):
        raise NotImplementedError(message)

    same = jax.custom_vjp(lambda scalars: scalars)
    same.defvjp(lambda scalars: (scalars, None), bwd)
    return same


def without_derivative(fn: Callable[..., Any], message: str, static: tuple[int, ...]) -> Callable[..., Any]:
    """`fn` with a backward that raises; its arguments number `static` are no arrays."""

    def fwd(*args: Any) -> tuple[Any, None]:
        return rule(*args), None

    def bwd(*saved: Any) -> Any:
        raise NotImplementedError(message)

    rule = jax.custom_vjp(fn, nondiff_argnums=static)
    rule.defvjp(fwd, bwd)
    return rule


def zeros(op: str, params: Any, dtype: Callable[[jax.Array], Any] = lambda p: p.dtype) -> Any:
    """A tree of zeros like the parameters, in the dtypes that `dtype` returns for them.

    Raises:
        TypeError: a parameter that is not an array of the lab's floating dtypes.
    """
    for path, p in jax.tree.leaves_with_path(params):
        want_floats(op, as_arrays(op, {f"params{jax.tree_util.keystr(path)}": p}))
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype(jnp.asarray(p))), params)


def columns(
    op: str, grads: Any, trees: dict[str, Any], loose: Collection[str] = ()
) -> tuple[Any, list[tuple[jax.Array, ...]]]:
    """The structure of `grads`, and each of its leaves with its counterparts in `trees`.

    Those of the trees named in `loose` may have another floating dtype.

    Raises:
        ValueError: trees or shapes that differ.
        TypeError: dtypes that differ or are not floating.
    """
    structure: Any
    like, structure = jax.tree.flatten_with_path(grads)
    found = {"grads": [g for _, g in like]}
    for name, tree in trees.items():
        if jax.tree.structure(tree) != structure:
            refuse(op, f"the tree of {name}", jax.tree.structure(tree), f"{structure} like grads")
        found[name] = jax.tree.leaves(tree)
    for i, (path, g) in enumerate(like):
        arrays = as_arrays(op, {f"{n}{jax.tree_util.keystr(path)}": c[i] for n, c in found.items()})
        path_of = jax.tree_util.keystr(path)
        want_floats(op, {name: a for name, a in arrays.items() if name.removesuffix(path_of) not in loose})
        for name, array in arrays.items():
            want_floats(op, {name: array})
            if array.shape != g.shape:
                refuse(op, f"shape of {name}", list(array.shape), f"{list(g.shape)} like grads")
    return structure, list(zip(*found.values(), strict=True))


def parted(before: Iterable[Any], after: Iterable[jax.Array]) -> list[jax.Array]:
    """The arrays of a step, each sharded over the Explicit axes of a mesh as the array that it replaces.

    An update of no parameter replaces a state.
    """
    pairs = zip(before, after, strict=False)
    return [new if old is None else placed(new, jax.typeof(old)) for old, new in pairs]


def number(op: str, argument: str, value: Any, dtype: Any) -> jax.Array:
    """A scalar option as an array of one number of that dtype.

    Raises:
        ValueError: an array of more than one.
    """
    array = as_arrays(op, {argument: value})[argument]
    if array.shape != ():
        refuse(op, f"shape of {argument}", list(array.shape), "[], one number")
    return array.astype(dtype)


def float_dtype(op: str, argument: str, dtype: Any) -> Any:
    """The dtype itself, or None.

    Raises:
        TypeError: it is not one of the lab's floating dtypes.
    """
    if dtype is None:
        return None
    name = jnp.dtype(dtype).name
    if name not in FLOATS:
        refuse(op, argument, name, f"None or one of {', '.join(FLOATS)}", TypeError)
    return jnp.dtype(dtype)


def rate(learning_rate: Rate, count: jax.Array) -> Any:
    """The learning rate of a step: a schedule's value at the steps taken before it."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def following(count: jax.Array) -> jax.Array:
    """The number of steps taken after one more; saturates at its dtype's maximum, as `optax.safe_increment`."""
    most = jnp.iinfo(count.dtype).max
    return jnp.where(count < most, count + 1, most)
