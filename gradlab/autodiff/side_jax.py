"""jax through the lab's verbs."""

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.side import as_tuple


class JaxSide:
    """jax, on its default device."""

    name = "jax"

    def op(self, name: str) -> Callable[..., Any]:
        return importlib.import_module(f"gradlab.autodiff.{name}_jax").by_spec

    def put(self, array: np.ndarray, dtype: str, like: jax.Array | None = None) -> jax.Array:
        if np.issubdtype(array.dtype, np.floating):
            return jnp.asarray(array, dtype)
        return jnp.asarray(array, jnp.int32 if like is None else like.dtype)

    def cast(self, array: jax.Array, dtype: str) -> jax.Array:
        return array.astype(dtype)

    def take(self, value: jax.Array) -> np.ndarray:
        return np.asarray(value, np.float64 if jnp.issubdtype(value.dtype, jnp.floating) else None)

    def is_array(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def dtype(self, array: Any) -> str:
        return str(array.dtype) if isinstance(array, jax.Array) else ""

    def flatten(self, tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any], list[tuple[str, str]]]:
        pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
        paths = [(str(getattr(p[0], "idx", "")), jax.tree_util.keystr(p[1:])) if p else ("", "") for p, _ in pairs]
        return [leaf for _, leaf in pairs], lambda leaves: jax.tree_util.tree_unflatten(structure, leaves), paths

    def pullback(self, fn: Callable[..., Any], wrt: Sequence[int]) -> Callable[..., tuple[jax.Array, ...]]:
        def vjp(args: Sequence[jax.Array], cotangents: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
            def of_wrt(*moving: jax.Array) -> tuple[jax.Array, ...]:
                full = list(args)
                for i, value in zip(wrt, moving, strict=True):
                    full[i] = value
                return as_tuple(fn(*full))

            return jax.vjp(of_wrt, *(args[i] for i in wrt))[1](tuple(cotangents))

        return vjp

    def way_back(self, fn: Callable[..., Any], wrt: Sequence[int], args: Sequence[jax.Array],
                 cotangents: Sequence[jax.Array], compiled: bool) -> Callable[[], tuple[jax.Array, ...]]:  # fmt: skip
        def of_wrt(*moving: jax.Array) -> tuple[jax.Array, ...]:
            full = list(args)
            for i, value in zip(wrt, moving, strict=True):
                full[i] = value
            return as_tuple(fn(*full))

        pull = jax.vjp(jax.jit(of_wrt) if compiled else of_wrt, *(args[i] for i in wrt))[1]
        # The pullback is a pytree of its residuals: they are arguments of the program, no constants in it.
        called = jax.jit(lambda pull, given: pull(given)) if compiled else lambda pull, given: pull(given)
        return functools.partial(called, pull, tuple(cotangents))

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(fn)

    def quick(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(fn)

    def double(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(True)

    def wait(self, value: Any) -> Any:
        return jax.block_until_ready(value)

    def device(self) -> str:
        return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())

    def interpreted(self) -> bool:
        return False


SIDE = JaxSide()
