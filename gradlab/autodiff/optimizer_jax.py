"""What the optimizers for jax have in common: optax's protocol, trees that must fit, scalars without a derivative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments import refuse, want_floats
from gradlab.autodiff.arguments_jax import as_arrays

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]


class GradientTransformation(NamedTuple):
    """`init(params) -> state` and `update(grads, state, params=None) -> (updates, state)`: optax's protocol."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def fixed(message: str) -> Callable[[jax.Array], jax.Array]:
    """The identity on the scalars of a step, which have no derivative.

    Refused on the way back, because jax keeps a way there that raised.
    """

    def bwd(kept, cotangent):
        raise NotImplementedError(message)

    same = jax.custom_vjp(lambda scalars: scalars)
    same.defvjp(lambda scalars: (scalars, None), bwd)
    return same


def zeros(op: str, params: Any) -> Any:
    """A tree of zeros like the parameters.

    Raises:
        TypeError: a parameter that is not an array of the lab's floating dtypes.
    """
    for path, p in jax.tree.leaves_with_path(params):
        want_floats(op, as_arrays(op, {f"params{jax.tree_util.keystr(path)}": p}))
    return jax.tree.map(jnp.zeros_like, params)


def columns(op: str, grads: Any, trees: dict[str, Any]) -> tuple[Any, list[tuple[jax.Array, ...]]]:
    """The structure of `grads`, and for each of its leaves that one and its counterparts in `trees`.

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
        want_floats(op, arrays)
        for name, array in arrays.items():
            if array.shape != g.shape:
                refuse(op, f"shape of {name}", list(array.shape), f"{list(g.shape)} like grads")
    return structure, list(zip(*found.values(), strict=True))


def rate(learning_rate: Rate, count: jax.Array) -> Any:
    """The learning rate of a step: a schedule's value at the steps taken before it."""
    return learning_rate(count) if callable(learning_rate) else learning_rate
