"""Traces functions once for all calls with equal functions, compared by value and not by identity.

An op makes the functions that it launches anew at every call, so jax, which identifies functions by identity, would
trace each one again: for every place of a program that launches it, and for every vmap of it. Two functions are equal
if they have the same code and globals, and equal defaults and closures.
"""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import pallas as pl


class _Incomparable(Exception):
    """The function holds an array, or an object that cannot be compared."""


class _Identity:
    """An object compared by identity."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


class ByValue:
    """A function that compares and hashes by value; by identity if it holds an object that cannot be compared.

    Attributes:
        comparable: whether it compares by value.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        # A replaced pl.pallas_call, as in a test, must trace again.
        try:
            self._key: Any = (_value_of(fn, ()), _Identity(pl.pallas_call))
        except _Incomparable:
            self._key = _Identity(self)
        self.comparable = not isinstance(self._key, _Identity)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ByValue) and self.comparable and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash


def traced(fn: ByValue, types: Sequence[Any]) -> tuple[Any, Any]:
    """The program of a function of arrays of these types, and the structure of its results.

    Kept as long as jax's caches.

    A function that is not comparable is traced each time.
    """
    if not fn.comparable:
        program, out = jax.make_jaxpr(fn.fn, return_shape=True)(*types)
        return program, jax.tree.structure(out)
    found = _called.trace(fn, *types)
    return found.jaxpr, jax.tree.structure(found.out_info)


@functools.partial(jax.jit, static_argnums=0)
def _called(fn: ByValue, *arrays: jax.Array) -> Any:
    return fn.fn(*arrays)


def _value_of(x: Any, within: tuple[Any, ...]) -> Any:
    """x as a comparable value; `within` are the functions that it is part of."""
    if isinstance(x, (jax.Array, np.ndarray)):
        raise _Incomparable
    if isinstance(x, float):
        # 0 is not -0.
        return float, repr(x)
    if isinstance(x, (tuple, list)):
        return type(x), tuple(_value_of(y, within) for y in x)
    if isinstance(x, dict):
        return dict, tuple((_value_of(k, within), _value_of(v, within)) for k, v in x.items())
    if isinstance(x, functools.partial):
        return functools.partial, *(_value_of(y, within) for y in (x.func, x.args, x.keywords))
    if isinstance(x, types.MethodType):
        return types.MethodType, x.__func__, _value_of(x.__self__, within)
    if isinstance(x, types.FunctionType):
        if x in within:
            # A function that calls itself.
            return "within", within.index(x)
        within = (*within, x)
        cells = tuple(_value_of(c.cell_contents, within) for c in x.__closure__ or ())
        defaults = _value_of(x.__defaults__, within), _value_of(x.__kwdefaults__, within)
        return x.__code__, x.__name__, _Identity(x.__globals__), cells, defaults
    try:
        hash(x)
    except TypeError:
        raise _Incomparable from None
    # Python's numbers are equal across types.
    return type(x), x
