"""The `Side` of jax."""

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.frameworks.side import as_tuple


class JaxSide:
    """jax, on its default device."""

    name = "jax"

    def op(self, name: str) -> Callable[..., Any]:
        return importlib.import_module(f"gradlab.autodiff.{name}_jax").by_spec

    def put(self, array: np.ndarray, dtype: str, like: jax.Array | None = None) -> jax.Array:
        if np.iscomplexobj(array):
            return jax.device_put(array, may_alias=False)
        floats = np.issubdtype(array.dtype, np.floating)
        wanted = jnp.dtype(dtype if floats else "int32" if like is None else like.dtype)
        # Converted by NumPy, and not staged by jnp.asarray: jax compiles a program for each shape that it does that to.
        return jax.device_put(np.asarray(array).astype(wanted), may_alias=False)

    def cast(self, array: jax.Array, dtype: str) -> jax.Array:
        return array.astype(dtype)

    def take(self, value: jax.Array) -> np.ndarray:
        return np.asarray(value, np.float64 if jnp.issubdtype(value.dtype, jnp.floating) else None)

    def is_array(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def dtype(self, array: Any) -> str:
        return str(array.dtype) if isinstance(array, jax.Array) else ""

    def foreign(self, array: Any) -> str:
        held = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.extended)
        return str(array.dtype) if held else ""

    def dense(self, array: jax.Array) -> jax.Array:
        return array

    def parts(self, array: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.real(array), jnp.imag(array)

    def joined(self, real: jax.Array, imaginary: jax.Array) -> jax.Array:
        return jax.lax.complex(real, imaginary)

    def functional(self, fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        return fn, {}

    def differentiable(
        self, fn: Callable[..., tuple[Any, ...]], args: Sequence[jax.Array], wrt: Sequence[int]
    ) -> list[str]:
        program = jax.make_jaxpr(fn)(*args)
        reached = _reached(program.jaxpr, [i in wrt for i in range(len(args))])
        return [str(y.dtype) if has else "" for y, has in zip(program.out_avals, reached, strict=True)]

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

            results, pull = jax.vjp(of_wrt, *(args[i] for i in wrt))
            return pull(tuple(c.astype(y.dtype) for y, c in zip(results, cotangents, strict=True)))

        return vjp

    def backward_alone(
        self,
        fn: Callable[..., Any],
        wrt: Sequence[int],
        args: Sequence[jax.Array],
        cotangents: Sequence[jax.Array],
        compiled: bool,
    ) -> Callable[[], tuple[jax.Array, ...]]:
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

    def quick(self, fn: Callable[..., Any], small: bool = False) -> Callable[..., Any]:
        return jax.jit(fn, compiler_options=_cheap() if small else None)

    def double(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(True)

    def single(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(False)

    def wait(self, value: Any) -> Any:
        return jax.block_until_ready(value)

    def device(self) -> str:
        return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())

    def interpreted(self) -> bool:
        return False


@functools.cache
def _cheap() -> Any:
    """Options that compile for a CPU in a fifth of the time, into programs that are slow on large arrays only.

    None where this version of XLA has no such options, or the device is no CPU.
    """
    if jax.default_backend() != "cpu":
        return None
    options: Any = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    try:
        jax.jit(lambda: 0).lower().compile(options)
    except Exception:
        return None
    return options


def _reached(program: Any, moving: Sequence[bool]) -> list[bool]:
    """Which results of a program depend on the inputs that move, other than through stop_gradient."""
    reached = {v for v, moves in zip(program.invars, moving, strict=True) if moves}
    for equation in program.eqns:
        # A literal is no variable, and cannot be hashed on every version.
        into = [not hasattr(v, "val") and v in reached for v in equation.invars]
        inner = equation.params.get("jaxpr")
        if equation.primitive.name == "stop_gradient":
            out = [False] * len(equation.outvars)
        elif equation.primitive.name in ("jit", "pjit") and inner is not None:
            out = _reached(inner.jaxpr, into)
        else:
            out = [any(into)] * len(equation.outvars)
        reached |= {v for v, hit in zip(equation.outvars, out, strict=True) if hit}
    return [not hasattr(v, "val") and v in reached for v in program.outvars]


SIDE = JaxSide()
