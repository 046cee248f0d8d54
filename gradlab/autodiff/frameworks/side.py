"""The interface to a framework, so that checks, benchmarks and workloads are written once for both."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

SIDES = ("torch", "jax")


class Side(Protocol):
    """The operations that the lab needs of a framework."""

    name: str

    def op(self, name: str) -> Callable[..., Any]:
        """The hand-written op, taking the Spec's arrays in order and its options by name."""
        ...

    def put(self, array: np.ndarray, dtype: str, like: Any = None) -> Any:
        """A NumPy array on the default device or that of `like`; floats in `dtype`, integers as they or `like` are."""
        ...

    def cast(self, array: Any, dtype: str) -> Any:
        """An array of floats in another dtype, where it is."""
        ...

    def take(self, value: Any) -> np.ndarray:
        """Back to NumPy, floats as float64."""
        ...

    def is_array(self, value: Any) -> bool:
        """Whether the value is an array of this framework."""
        ...

    def dtype(self, array: Any) -> str:
        """The name of an array's dtype: "float32", "int64", ...; "" for what is no array."""
        ...

    def foreign(self, array: Any) -> str:
        """What an array is that NumPy has none for, "sparse_coo" or "key<fry>"; "" for all others."""
        ...

    def dense(self, array: Any) -> Any:
        """The array itself, or a sparse one written out, differentiably."""
        ...

    def parts(self, array: Any) -> tuple[Any, Any]:
        """The real and the imaginary part of a complex array, differentiably."""
        ...

    def joined(self, real: Any, imaginary: Any) -> Any:
        """The complex array of these parts, differentiably."""
        ...

    def functional(self, fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        """A module as a function of its trainable parameters and its arguments, and these by name; others as they are.

        The function takes the dictionary first; it is `fn` itself, and the dictionary empty, where `fn` is no module
        that has any.
        """
        ...

    def differentiable(self, fn: Callable[..., tuple[Any, ...]], args: Sequence[Any], wrt: Sequence[int]) -> list[str]:
        """For each result of `fn` its dtype, or "" when it has no gradient: detached, or behind stop_gradient."""
        ...

    def flatten(self, tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any], list[tuple[str, str]]]:
        """Leaves of nested containers, what puts them back, and each leaf's path: its first key and the rest."""
        ...

    def pullback(self, fn: Callable[..., Any], wrt: Sequence[int]) -> Callable[..., tuple[Any, ...]]:
        """(arguments, cotangents) -> the vjp of `fn` for the arguments at the places `wrt`; differentiable again."""
        ...

    def backward_alone(
        self, fn: Callable[..., Any], wrt: Sequence[int], args: Sequence[Any], cotangents: Sequence[Any], compiled: bool
    ) -> Callable[[], tuple[Any, ...]]:
        """Backward alone: `fn` is run here, once; each call gives the vjp anew, compiled where that is asked."""
        ...

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` under torch.compile(fullgraph=True) or jax.jit."""
        ...

    def quick(self, fn: Callable[..., Any], small: bool = False) -> Callable[..., Any]:
        """`fn` for many calls on arrays of the same shapes: jax.jit on jax, where tracing anew is what costs.

        Of small arrays compiling is most of the time, and XLA leaves its optimizations out where it can.
        """
        ...

    def double(self) -> AbstractContextManager[Any]:
        """A context in which float64 is float64; jax has none otherwise."""
        ...

    def single(self) -> AbstractContextManager[Any]:
        """A context without float64, as jax is run by default; torch knows none."""
        ...

    def wait(self, value: Any) -> Any:
        """Returns `value` once the device has finished it."""
        ...

    def device(self) -> str:
        """The kind of the default device: "cpu", "cuda", ..."""
        ...

    def interpreted(self) -> bool:
        """Whether the kernels' source runs as Python on the default device: then its time is no kernel's speed.

        Pallas' interpreter is not that: it writes a kernel as array operations, which XLA compiles.
        """
        ...


def side(name: str) -> Side:
    """The side of that name.

    Raises:
        ValueError: there is no such side.
        ModuleNotFoundError: its framework is not installed.
    """
    known(name)
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"side {name!r} needs {name}, which is not installed: pip install 'gradlab[{name}]'")
    return importlib.import_module(f"gradlab.autodiff.frameworks.side_{name}").SIDE


def known(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: there is no such side.
    """
    if name not in SIDES:
        raise ValueError(f"side: name is {name!r}, wanted one of {', '.join(SIDES)}")
    return name


def installed() -> tuple[str, ...]:
    """The sides whose framework is installed; none is imported."""
    return tuple(name for name in SIDES if importlib.util.find_spec(name) is not None)


def selected(names: Sequence[str] | None) -> tuple[str, ...]:
    """The sides of these names, each once, or all that are installed.

    Raises:
        ValueError: there is no side of a name.
        ModuleNotFoundError: a side's framework is not installed, or none is.
    """
    for name in names or ():
        side(name)
    found = tuple(dict.fromkeys(names or installed()))
    if not found:
        raise ModuleNotFoundError(
            "no side is installed: pip install 'gradlab[torch]', 'gradlab[jax]' or 'gradlab[all]'"
        )
    return found


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One result or several, as several."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
