"""jax in the first minute on a GPU: arrays on its devices. Its kernels have no list; each case launches its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.frameworks.side_jax import SIDE


def gpu() -> Any:
    """jax's default device."""
    return jax.devices()[0]


def cpu() -> Any:
    """Where kernels are interpreted."""
    return jax.devices("cpu")[0]


def put(array: np.ndarray, dtype: str, where: Any) -> jax.Array:
    """An array on a device, floats in `dtype`."""
    floats = np.issubdtype(array.dtype, np.floating)
    return jax.device_put(jnp.asarray(array, dtype if floats else jnp.int32), where)


take = SIDE.take
CALLS: tuple[Any, ...] = ()


def kernels() -> set[str]:
    """None is known by name."""
    return set()


@contextmanager
def counted() -> Iterator[set[str]]:
    """Nothing is counted."""
    yield set()
