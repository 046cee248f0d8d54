"""Gradient clipping by global norm for jax: one pass over each array measures the norm, a second one scales.

A sum of squares, a product with a number and a dot product are each other's pullbacks: every order is exact.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.arrays_jax import as_arrays
from gradlab.autodiff.arguments.errors import refuse, want_floats
from gradlab.autodiff.optimizers.optimizer_jax import GradientTransformation
from gradlab.kernels.optimizers import norm_pallas as kernels
from gradlab.kernels.runtime.launch_pallas import accumulator
from gradlab.kernels.runtime.mesh_pallas import compiled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _squares_rule(dtype, *arrays):
    """s = the sum of x^2 over all arrays, in that dtype."""
    return kernels.squares(dtype, *arrays)


def _squares_fwd(dtype, *arrays):
    return squares(dtype, *arrays), arrays


def _squares_bwd(dtype, arrays, ds):
    return tuple(scale(x, 2 * ds.astype(accumulator(x.dtype))) for x in arrays)


_squares_rule.defvjp(_squares_fwd, _squares_bwd)
squares = compiled(_squares_rule, static_argnums=0)


@jax.custom_vjp
def _dot_rule(x, y):
    """s = the sum of x y. Bilinear: its pullbacks are products with a number."""
    return kernels.dot(x, y)


def _dot_fwd(x, y):
    return dot(x, y), (x, y)


def _dot_bwd(saved, ds):
    x, y = saved
    return scale(y, ds), scale(x, ds)


_dot_rule.defvjp(_dot_fwd, _dot_bwd)
dot = compiled(_dot_rule)


@jax.custom_vjp
def _scale_rule(x, s):
    """y = x s for a number s. Bilinear: its pullbacks are of its kind, and a dot product."""
    return kernels.scale(x, s)


def _scale_fwd(x, s):
    return scale(x, s), (x, s)


def _scale_bwd(saved, dy):
    x, s = saved
    return scale(dy, s), dot(x, dy)


_scale_rule.defvjp(_scale_fwd, _scale_bwd)
scale = compiled(_scale_rule)


def global_norm(tree: Any) -> jax.Array:
    """The square root of the sum of the squares of all elements of a tree; a hand-written `optax.tree.norm`.

    Args:
        tree: of arrays of float64, float32, float16 or bfloat16, also mixed.

    Returns:
        A scalar: float64 where a leaf is, else float32. Reverse-mode derivatives of every order; 0 where the norm is.

    Raises:
        TypeError: a leaf that is not an array of such a dtype.
    """
    leaves = _leaves("global_norm", tree)
    dtype = jnp.result_type(*(accumulator(x.dtype) for x in leaves)) if leaves else jnp.float32
    total = squares(jnp.dtype(dtype), *leaves) if leaves else jnp.zeros((), dtype)
    # The square root has no derivative at 0.
    return jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))


def clip_factor(tree: Any, max_norm: float | jax.Array) -> jax.Array:
    """The factor that scales a tree to a norm of at most `max_norm`: min(1, max_norm / norm), as in optax.

    For steps that apply the factor in their own pass over the gradients.
    """
    norm = global_norm(tree)
    # A norm of NaN is not below, and gives NaN.
    below = norm < max_norm
    return jnp.where(below, 1, jnp.asarray(max_norm, norm.dtype) / jnp.where(below, 1, norm))


def clip_by_global_norm(max_norm: float | jax.Array) -> GradientTransformation:
    """Scale gradients down to a maximum global norm; a hand-written `optax.clip_by_global_norm`.

    update = g max_norm / n where n, the norm over the whole tree, is max_norm or more, else g.

    Args:
        max_norm: the norm above which gradients are scaled down; a number or an array, a run-time value.

    Returns:
        `init` and `update`, for optax.chain and jax.jit; the state is empty.

    Raises:
        ValueError: a max_norm that is negative or not a number.
        TypeError: in `update`, a gradient that is not an array of the lab's floating dtypes.
    """
    want_norm("clip_by_global_norm", max_norm)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _leaves("clip_by_global_norm", grads)
        factor = clip_factor(grads, max_norm)
        return jax.tree.map(lambda g: scale(jnp.asarray(g), factor.astype(accumulator(g.dtype))), grads), state

    return GradientTransformation(lambda params: (), update)


def want_norm(op: str, max_norm: Any) -> None:
    """Refuse a negative or NaN max_norm; an array is not checked."""
    if isinstance(max_norm, (int, float)) and (math.isnan(max_norm) or max_norm < 0):
        refuse(op, "max_norm", repr(max_norm), "a number from 0")


def _leaves(op: str, tree: Any) -> list[jax.Array]:
    found: list[jax.Array] = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        arrays = as_arrays(op, {f"leaf {jax.tree_util.keystr(path)}": leaf})
        want_floats(op, arrays)
        found += arrays.values()
    return found
