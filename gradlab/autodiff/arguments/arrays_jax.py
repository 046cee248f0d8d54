"""Checks of jax arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.arguments.errors import refuse


def as_arrays(op: str, arguments: dict[str, Any]) -> dict[str, jax.Array]:
    """The arguments as jax arrays; NumPy arrays and numbers become one, as everywhere in jax.

    Raises:
        TypeError: something that is neither.
    """
    for argument, value in arguments.items():
        if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float)):
            refuse(op, argument, f"a {type(value).__name__}", "a jax.Array", TypeError)
    return {argument: jnp.asarray(value) for argument, value in arguments.items()}
